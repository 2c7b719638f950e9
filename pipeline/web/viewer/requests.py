"""Reading what the viewer's page asks, with a line that says what was expected where it makes no sense."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from starlette.requests import Request

from nucpipe.errors import UsageError

MOST_BYTES = 4_000_000
"""Length of what a page may send: ten times a line round the most nuclei."""


async def read_json(request: Request) -> dict[str, Any]:
    """Return what a page of ours sent.

    A page of another site can send no JSON here: browsers ask first, and are not answered.

    Raises:
        UsageError: it is not a JSON object, or too long a one.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise UsageError("expected JSON (Content-Type: application/json).")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise UsageError(f"expected at most {MOST_BYTES:,} bytes.")
    try:
        body = json.loads(bytes(content) or b"{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise UsageError("expected a JSON object.")
    return body


def list_of(body: dict[str, Any], name: str) -> list[Any]:
    """Return a list of a JSON object.

    Raises:
        UsageError: it is none.
    """
    value = body.get(name)
    if not isinstance(value, list):
        raise UsageError(f"{name}: expected a list.")
    return value


def number_of(request: Request, name: str, default: float | None = None) -> float:
    """Return a finite number of the address.

    Raises:
        UsageError: it is none, or is missing without a default.
    """
    text = request.query_params.get(name)
    try:
        value = default if text is None else float(text)
        if value is not None and np.isfinite(value):
            return value
    except ValueError:
        pass
    raise UsageError(f"{name}={text}: expected a number.")


def box_of(request: Request) -> tuple[float, float, float, float] | None:
    """Return the address's ``box=x0,y0,x1,y1``, in level-0 pixels; None where there is none.

    Raises:
        UsageError: it is something else.
    """
    if (text := request.query_params.get("box")) is None:
        return None
    try:
        x0, y0, x1, y1 = map(float, text.split(","))
        if np.isfinite((x0, y0, x1, y1)).all():
            return x0, y0, x1, y1
    except ValueError:
        pass
    raise UsageError(f"box={text}: expected x0,y0,x1,y1.")
