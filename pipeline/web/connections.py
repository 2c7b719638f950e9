"""A web server's connections: how many there are, and how long one may take."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

ACCEPT_LOG_S = 60.0
"""From one complaint to the next that no connection can be accepted; the system would have one many times a second."""
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 2\r\n\r\n"


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of a server's connections.

    Attributes:
        most: connections at a time. For a new one beyond, that one makes way whose client has been waited for longest;
            where all are being answered, the new one gets 503.
        head_s: seconds in which a client must send the head of a request.
        unread_s: seconds in which a client must take some of its answer.
    """

    most: int = 256
    head_s: float = 10.0
    unread_s: float = 60.0


class LimitedConfig(Config):
    """A uvicorn configuration with limits of connections; uvicorn has none for the time that a request's head takes."""

    def __init__(self, app: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(app, http=Connection, ws="none", **options)
        self.limits = limits


class Connection(H11Protocol):
    """A connection that is closed when its client is too slow, or when another one needs its place."""

    config: LimitedConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn does, if there is room."""
        now = time.monotonic()
        self._since = now  # that the client has been about what it does now
        self._unsent, self._unsent_since = 0, now
        # Read twice by the event loop: what the client had sent before has been seen.
        self._settled = False
        self.loop.call_soon(self.loop.call_soon, self._settle)
        room = make_room(self.connections, self.config.limits.most)
        super().connection_made(transport)
        if not room:
            transport.write(REFUSED)
            transport.close()

    def _settle(self) -> None:
        self._settled = True

    def handle_events(self) -> None:
        """As uvicorn does; the head of a request may be whole now."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._since = time.monotonic()

    def on_response_complete(self) -> None:
        """As uvicorn does; the next request is waited for now."""
        self._since = time.monotonic()
        super().on_response_complete()

    def close_if_slow(self, now: float) -> None:
        """Close the connection if the client takes too long to send a request's head, or to read an answer."""
        limits, unsent = self.config.limits, self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        if now - self._unsent_since > limits.unread_s or (self.sends_head and now - self._since > limits.head_s):
            self.abort()

    @property
    def sends_head(self) -> bool:
        """Tell whether a request is waited for."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waits_for_client(self) -> bool:
        """Tell whether the client is to send or to take something, and not the service."""
        if self.sends_head:
            return self._settled
        if self.cycle.more_body:  # and all that has come was taken
            return not (self.cycle.body or self.flow.read_paused)
        return self.transport.get_write_buffer_size() > 0

    @property
    def since(self) -> float:
        """Monotonic seconds: when the request's head, or all before it, was there."""
        return self._since

    def abort(self) -> None:
        """Close the connection at once; what was not sent is lost, in the system's buffers too."""
        self.connections.discard(self)
        at_once = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.transport.abort()


def make_room(connections: Collection[Any], most: int) -> bool:
    """Close one of ``most`` connections where a further one comes; tells whether there is room for it now."""
    if len(connections) < most:
        return True
    slow = [one for one in connections if one.waits_for_client]
    if not slow:
        return False
    # Whatever it is that is waited for: a connection that has just come is the last to go.
    min(slow, key=lambda one: one.since).abort()
    return True


class QuietAccepts:
    """An event loop's exception handler that says now and then, in a line, that no connection can be accepted."""

    def __init__(self) -> None:
        self._last = -ACCEPT_LOG_S

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """As :meth:`asyncio.loop.set_exception_handler` has it."""
        if "accept" not in context.get("message", ""):
            loop.default_exception_handler(context)
        elif loop.time() - self._last >= ACCEPT_LOG_S:
            self._last = loop.time()
            log.warning("no connection can be accepted for a moment (%s).", context.get("exception"))


def allow_files(limits: ConnectionLimits) -> ConnectionLimits:
    """Let the process open as many files as its connections need; fewer connections where the system has fewer."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return limits
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * limits.most + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    return ConnectionLimits(max(1, (soft - OTHER_FILES) // 2), limits.head_s, limits.unread_s)


OTHER_FILES = 256
"""Files that are open beside connections and what these send: models, libraries, answers."""
