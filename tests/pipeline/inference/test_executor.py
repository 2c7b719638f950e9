"""The crew: in order, bounded, stopped by the first error, and at rest when its block is left."""

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.inference.executor import Stage, StageExecutor
from pipeline.inference.profiling import StageTimer


def test_results_come_in_order_whatever_takes_long() -> None:
    with StageExecutor(timer := StageTimer(keep=True)) as executor:
        first, second = executor.pool(4, "first"), executor.pool(2, "second")

        def slow(k: int) -> int:
            time.sleep(0.02 if k % 3 == 0 else 0)
            return k

        stages = (Stage("a", first, slow), Stage("b", first, lambda k: k + 1), Stage("c", second, lambda k: 10 * k))
        assert list(executor.map_ordered(stages, range(20), depth=5)) == [10 * (k + 1) for k in range(20)]
    assert {name: total.times for name, total in timer.sums.items()} == {"a": 20, "b": 20, "c": 20}
    assert {span.thread.rstrip("_0123") for span in timer.spans if span.stage == "c"} == {"nucpipe-second"}
    assert all(span.began <= span.ended for span in timer.spans)


def test_no_more_than_depth_are_under_way() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for k in range(10):
            begun.append(k)
            yield k

    with StageExecutor(StageTimer()) as executor:
        stage = Stage("same", executor.pool(2, "pool"), lambda k: k)
        for taken, _ in enumerate(executor.map_ordered((stage,), items(), depth=3), 1):
            assert len(begun) <= taken + 2
    assert begun == list(range(10))


def test_an_error_surfaces_at_once_and_the_rest_is_not_begun() -> None:
    gate, begun = threading.Event(), []

    def work(k: int) -> int:
        begun.append(k)
        if k == 1:
            raise ValueError("broken tile")
        gate.wait(20)
        return k

    def first_of_nine() -> None:
        with StageExecutor(StageTimer()) as executor:
            stage = Stage("work", executor.pool(2, "pool"), work)
            try:
                next(executor.map_ordered((stage,), range(9), depth=5))
            finally:
                gate.set()

    # The first item is not finished, and the error of the second is raised all the same.
    with pytest.raises(ValueError, match="broken tile"):
        first_of_nine()
    # The thread that raised may have begun one more before the caller left.
    assert len(begun) <= 4


def test_leaving_the_block_stops_the_threads() -> None:
    before = threading.active_count()
    with StageExecutor(StageTimer()) as executor:
        stage = Stage("work", executor.pool(3, "pool"), lambda k: k)
        assert next(executor.map_ordered((stage,), range(100), depth=4)) == 0
    assert threading.active_count() == before
