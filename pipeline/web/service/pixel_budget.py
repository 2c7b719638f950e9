"""How many pixels all requests together may hold, decoded; who wants more waits for its turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pipeline.web.service.errors import ApiError


class PixelBudget:
    """Pixels that are lent to requests, first come, first served. Used by the event loop's thread alone.

    Args:
        most: pixels that are lent at a time; a request that wants more than all gets them when it is alone.
        max_waiting: requests that wait for theirs; more are refused.
        timeout_s: how long they wait.
    """

    def __init__(self, most: int, max_waiting: int, timeout_s: float) -> None:
        self._most, self._max_waiting, self._timeout_s = most, max_waiting, timeout_s
        self._lent = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, pixels: int) -> None:
        """Wait until so many pixels are free, and take them; :meth:`give_back` returns them.

        Raises:
            ApiError: 503, too many wait already, or it took too long.
        """
        if len(self._waiting) >= self._max_waiting:
            raise ApiError(503, f"{self._max_waiting} requests wait already; try again later.")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        self._lend()
        try:
            async with asyncio.timeout(self._timeout_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # the turn came together with the error
                self.give_back(pixels)
            else:
                turn.cancel()
                self._lend()
            if isinstance(error, TimeoutError):
                raise ApiError(503, "too many large images at a time; try again later.") from None
            raise

    def give_back(self, pixels: int) -> None:
        """Return pixels that were taken."""
        self._lent -= pixels
        self._lend()

    @asynccontextmanager
    async def lent(self, pixels: int) -> AsyncIterator[None]:
        """Take pixels and give them back at the end, see :meth:`take`."""
        await self.take(pixels)
        try:
            yield
        finally:
            self.give_back(pixels)

    def _lend(self) -> None:
        self._waiting = deque((pixels, turn) for pixels, turn in self._waiting if not turn.cancelled())
        while self._waiting and (not self._lent or self._lent + self._waiting[0][0] <= self._most):
            pixels, turn = self._waiting.popleft()
            self._lent += pixels
            turn.set_result(None)
