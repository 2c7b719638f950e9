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
    """

    def __init__(self, most: int, max_waiting: int) -> None:
        self._most, self._max_waiting = most, max_waiting
        self._lent = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, pixels: int) -> None:
        """Wait until so many pixels are free, and take them; :meth:`give_back` returns them.

        Raises:
            ApiError: 503, too many wait already.
        """
        if len(self._waiting) >= self._max_waiting:
            raise ApiError(503, f"{self._max_waiting} requests wait already; try again later.")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        self._lend()
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # the turn came as the request was given up
                self.give_back(pixels)
            else:
                turn.cancel()
                self._lend()
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
