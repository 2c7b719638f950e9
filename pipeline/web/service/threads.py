"""The service's own threads, in which images are decoded and answers are written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

T = TypeVar("T")


class Threads:
    """A few threads for work that would hold up the event loop; more work waits for its turn.

    Args:
        number: of the threads.
    """

    def __init__(self, number: int) -> None:
        self._pool = ThreadPoolExecutor(number, "nucpipe-serve")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def do(self, work: Callable[[], T]) -> T:
        """Let a thread do it.

        A request that is given up leaves the queue; where the work has begun, which nothing stops, it is waited for, so
        that what the work holds in memory counts as long as it is there.
        """
        job = self._pool.submit(work)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if not job.cancelled():
                await asyncio.gather(asyncio.wrap_future(job), return_exceptions=True)
            raise
