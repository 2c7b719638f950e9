"""Serving a web application: on which address, to whom, and with which headers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nucpipe.errors import UsageError
from pipeline.web.connections import Connection, ConnectionLimits, LimitedConfig, QuietAccepts, allow_files

LOOPBACK = "127.0.0.1"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
LOCAL_NAMES = ["127.0.0.1", "localhost", "[::1]"]
"""As a browser names this machine in its requests."""
LIMITS = ConnectionLimits()
BACKLOG = 128
"""Connections that the system keeps until they are accepted."""
SEND_BUFFER = 2**17
"""Bytes that the system takes of a connection's answers before they are read. It would take megabytes by itself, and a
client that asks and asks, and reads nothing, would have thousands of answers made for it."""
HEADERS = {
    # Nothing from elsewhere: pages work offline, and what they show stays here.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
}

App = TypeVar("App", bound=Starlette)


class _Headers:
    """Adds :data:`HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def with_safe_headers(app: App, local_only: bool) -> App:
    """Return the application, whose pages load nothing from elsewhere.

    Args:
        app: the application.
        local_only: it answers only to this machine's own names: a page of another site whose name suddenly points here
            (DNS rebinding) reads nothing.
    """
    app.add_middleware(_Headers)
    if local_only:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_NAMES)
    return app


def listen(host: str, port: int, or_next: bool = False) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: address or name of this machine.
        port: 0 for any free one.
        or_next: take any free port where that one is taken.

    Raises:
        UsageError: no such address, or the port is taken.
    """
    listener: socket.socket | None = None
    try:
        family, kind, protocol, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol named asyncio sends at once; else small answers would wait 40 ms for an acknowledgement.
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # on Windows two processes could then listen on one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # of what it accepts, too
        listener.bind((host, port))
        listener.listen(BACKLOG)
        return listener
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        if or_next and port:
            return listen(host, 0)
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on {host}, port {port} ({why}); give another --port.") from error


def address(listener: socket.socket) -> str:
    """Return the URL of what listens."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class Server(uvicorn.Server):
    """A server of one application on one socket, whose slow and surplus connections are closed.

    Args:
        app: the application.
        begun: called once it answers.
        limits: of its connections.
    """

    def __init__(
        self, app: ASGIApp, begun: Callable[[], None] = lambda: None, limits: ConnectionLimits = LIMITS
    ) -> None:
        # Of a client's mistakes the client is told, and not the log.
        options = {"log_level": "error", "server_header": False, "timeout_graceful_shutdown": 5, "backlog": BACKLOG}
        super().__init__(LimitedConfig(app, allow_files(limits), **options))
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does."""
        asyncio.get_running_loop().set_exception_handler(QuietAccepts())
        await super().startup(sockets)
        self._begun()

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn does, ten times a second."""
        now = time.monotonic()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.close_if_slow(now)
        return await super().on_tick(counter)


def serve(app: ASGIApp, listener: socket.socket, begun: Callable[[], None]) -> None:
    """Serve until the user stops it (Ctrl-C) or the process receives SIGTERM.

    Args:
        app: the application.
        listener: what it listens on.
        begun: called once it answers.
    """
    try:
        Server(app, begun).run([listener])
    except KeyboardInterrupt:
        pass  # uvicorn has ended everything in order and passes the signal on
    finally:
        listener.close()
