"""Threads that take work through stages: bounded, in order, and stopped by the first error."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

from pipeline.inference.profiling import StageTimer

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Stage:
    """A step on the way of every item.

    Attributes:
        name: for people.
        pool: whose threads do it. Stages of one pool that follow each other are done by one thread without a pause, so
            that what was begun first is finished first.
        work: from the result of the stage before to this one's.
    """

    name: str
    pool: Executor
    work: Callable[[Any], Any]


class StageExecutor:
    """Pools of threads that work for one caller.

    The first error of any of them is raised by the caller's next :meth:`result`, whatever it waits for; leaving the
    ``with`` block begins nothing more, and waits for what is under way.
    """

    def __init__(self, timer: StageTimer) -> None:
        self.timer = timer
        self._pools: list[ThreadPoolExecutor] = []
        self._failure: Future[None] = Future()
        self._once = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in self._pools:
            pool.shutdown()

    def pool(self, threads: int, name: str) -> ThreadPoolExecutor:
        """Return a pool of ``threads`` threads."""
        pool = ThreadPoolExecutor(threads, f"nucpipe-{name}")
        self._pools.append(pool)
        return pool

    def submit(self, stage: Stage, item: Any) -> Future[Any]:
        """Let a stage work on an item."""
        return self._submit((stage,), item, Future())

    def result(self, future: Future[B]) -> B:
        """Return the result, once it is there.

        Raises:
            BaseException: what this or any other work raised.
        """
        both: tuple[Future[Any], ...] = (future, self._failure)
        wait(both, return_when=FIRST_COMPLETED)
        if self._failure.done():
            self._failure.result()
        return future.result()

    def map_ordered(self, stages: Sequence[Stage], items: Iterable[A], depth: int) -> Iterator[Any]:
        """Yield each item's result of the last stage, in order, with at most ``depth`` items under way.

        Whatever the caller does with one result, the others go on meanwhile.
        """
        under_way: deque[Future[Any]] = deque()
        for item in items:
            under_way.append(self._submit(stages, item, Future()))
            if len(under_way) >= depth:
                yield self.result(under_way.popleft())
        while under_way:
            yield self.result(under_way.popleft())

    def _submit(self, stages: Sequence[Stage], item: Any, final: Future[Any]) -> Future[Any]:
        """Take an item through the stages; ``final`` gets the result."""
        pool, asked = stages[0].pool, monotonic()

        def work() -> None:
            value, wanted = item, asked
            for k, stage in enumerate(stages):
                if self._stopped:
                    return
                if stage.pool is not pool:
                    self._submit(stages[k:], value, final)
                    return
                with self.timer.measure(stage.name, wanted):
                    value = stage.work(value)
                wanted = monotonic()
            final.set_result(value)

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                with self._once:
                    if not self._failure.done():
                        self._failure.set_exception(error)

        pool.submit(guarded)
        return final
