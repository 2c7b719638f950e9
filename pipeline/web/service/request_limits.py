"""Who is let in, and with how much: tokens, other sites' pages, the size of a request and the time it takes to send."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.web.service.config import ServeConfig
from pipeline.web.service.errors import refusal
from pipeline.web.service.metrics import Metrics

GUARDED = ("/v1/", "/metrics")
"""Paths that need the token; pages and health are for everybody."""

MAX_REQUESTS_HELD = 4
"""Requests of the most bytes that are held at a time, or as many smaller ones as have as many bytes together."""


MAX_ANSWERED = 2
"""Times as many requests as may wait for the models are answered at a time: as many again are read or written. With all
of a server's connections taken by them nobody else would be heard."""

GONE = 499
"""Status, in the metrics, of a request whose client went away before it was answered."""


class ClientWatch:
    """Gives a request up when its client goes away, so that nobody's turn is used for nobody.

    Args:
        receive: the server's, of the request.

    Attributes:
        receive: the same; only until the watch begins.
        gone: the client has gone, and the request's task was cancelled for it.
    """

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.gone = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Tell whether the watch has begun."""
        return self._watch is not None

    def begin(self) -> None:
        """Watch from now on; the request is whole, and the task that calls this answers it."""
        self._watch = asyncio.create_task(self._cancel_when_gone(asyncio.current_task()))

    async def _cancel_when_gone(self, request: asyncio.Task[Any] | None) -> None:
        await self.receive()  # all that can come now
        self.gone = True
        if request is not None:
            request.cancel()

    async def client_has_gone(self) -> Message:
        """Wait until the client has gone."""
        if self._watch is not None:
            await asyncio.wait([self._watch])
        return {"type": "http.disconnect"}

    def end(self) -> None:
        """Watch no more: the answer is there."""
        if self._watch is not None:
            self._watch.cancel()


class RequestLimits:
    """Turns requests away before they are read, or as soon as they are too much; counts all of them."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.config, self.metrics = app, config, metrics
        self._held = 0  # bytes of all requests that are being answered
        self._answered = 0  # requests that are whole, and are being answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status: int | None = None
        held, watch = 0, ClientWatch(receive)
        counted = False

        async def counted_receive() -> Message:
            nonlocal held, counted
            message = await limited_receive()
            if watch.begun and not counted:
                if self._answered >= MAX_ANSWERED * self.config.max_waiting:
                    raise HTTPException(503, f"{self.config.max_waiting} requests wait already; try again later.")
                counted = True
                self._answered += 1
            arrived = len(message.get("body", b""))
            held += arrived
            self._held += arrived
            if arrived and self._held > MAX_REQUESTS_HELD * self.config.max_bytes:
                raise HTTPException(503, "too many large requests at a time; try again later.")
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                watch.end()
            await send(message)

        try:
            if (answer := self._refusal(scope)) is not None:
                await answer(scope, receive, counted_send)
            else:
                limited_receive = self._limited(watch)
                await self.app(scope, counted_receive, counted_send)
        except asyncio.CancelledError:
            # The client has gone, or the server ends; uvicorn would log it as an error of ours.
            if watch.gone:
                status = GONE
            elif status is None:
                await refusal(503, "the service is being stopped.")(scope, receive, counted_send)
        except Exception as error:  # of any library below; reported to the client, others are served
            logging.getLogger(__name__).exception("a request failed")
            if status is None:
                answer = refusal(500, f"unexpected {type(error).__name__}; the service's log tells more.")
                await answer(scope, receive, counted_send)
        finally:
            watch.end()
            self._held -= held
            self._answered -= counted
            # The route's pattern, not the path: clients must not be able to make ever new counters.
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers, token = Headers(scope=scope), self.config.token
        if token is not None and scope["path"].startswith(GUARDED):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            # Compared in constant time, so that it cannot be guessed letter by letter.
            right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
            if scheme.lower() != "bearer" or not right:
                return refusal(401, "expected the header 'Authorization: Bearer TOKEN' with the service's token.")
        origin = headers.get("origin")
        if scope["method"] == "POST" and origin and origin.partition("://")[2] != headers.get("host"):
            return refusal(403, "pages of other sites may not use this service.")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.config.max_bytes:
            return refusal(413, self._too_large)
        return None

    @property
    def _too_large(self) -> str:
        return f"a request may have {self.config.max_bytes:,} bytes at most."

    def _limited(self, watch: ClientWatch) -> Receive:
        received, deadline = 0, time.monotonic() + self.config.timeout_s

        async def limited() -> Message:
            nonlocal received
            if watch.begun:  # all has been received
                return await watch.client_has_gone()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await watch.receive()
            except TimeoutError:
                raise HTTPException(408, f"the request was not sent within {self.config.timeout_s:g} s.") from None
            received += len(message.get("body", b""))
            if received > self.config.max_bytes:
                raise HTTPException(413, self._too_large)
            if not message.get("more_body", False):
                watch.begin()
            return message

        return limited
