"""Errors of the service: every one of the same shape, ``{"error": {"code", "message"}}``."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

CODES = {
    400: "bad_request",
    401: "no_token",
    403: "other_site",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "no_image",
    422: "invalid",
    500: "internal",
    503: "busy",
    504: "timeout",
}


class ErrorBody(BaseModel):
    """Body of an error."""

    code: str
    message: str


class Refused(BaseModel):
    """An error."""

    error: ErrorBody


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message


def refusal(status: int, message: str) -> JSONResponse:
    """Return the answer."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "2"}}.get(status)
    return JSONResponse({"error": {"code": CODES.get(status, "error"), "message": message}}, status, headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe, for OpenAPI, the errors that an operation may answer with."""
    return {status: {"model": Refused, "description": CODES[status].replace("_", " ")} for status in statuses}


def handle_errors(app: FastAPI) -> None:
    """Give every error of the application the one shape."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return refusal(error.status, error.message)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        answer = refusal(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without what was sent, which JSON may not be able to hold (NaN) and which may be large.
        problems = (f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors())
        return refusal(422, "; ".join(problems))
