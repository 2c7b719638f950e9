"""What windows have in common is read once, and no pixel depends on what was read before."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.slide.block_cache import Blocks
from pipeline.slide.resample import Box, Image

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)


class Source:
    """Reads from an array and keeps account."""

    def __init__(self) -> None:
        self.boxes: list[Box] = []

    def __call__(self, box: Box) -> Image:
        self.boxes.append(box)
        x0, y0, x1, y1 = box
        return PIXELS[y0:y1, x0:x1]


def test_any_box_has_its_pixels_and_blocks_are_read_once() -> None:
    blocks, source, rng = Blocks((90, 70), 16), Source(), np.random.default_rng(1)
    for _ in range(200):
        (x0, x1), (y0, y1) = np.sort(rng.integers(0, 91, 2)), np.sort(rng.integers(0, 71, 2))
        assert np.array_equal(blocks.read((x0, y0, x1, y1), source), PIXELS[y0:y1, x0:x1])
    assert len(source.boxes) == len(set(source.boxes)) == 6 * 5
    assert (80, 64, 90, 70) in source.boxes


def test_what_is_given_out_may_be_changed() -> None:
    blocks, source = Blocks((90, 70), 16), Source()
    blocks.read((0, 0, 16, 16), source)[:] = 0
    assert np.array_equal(blocks.read((0, 0, 16, 16), source), PIXELS[:16, :16])


def test_the_block_that_was_not_wanted_for_longest_is_forgotten() -> None:
    blocks, source = Blocks((90, 70), 16, most_bytes=2 * 3 * 16 * 16), Source()
    for x in (0, 16, 0, 32, 0, 16):
        blocks.read((x, 0, x + 16, 16), source)
    assert [x for x, *_ in source.boxes] == [0, 16, 32, 16]


def test_a_block_that_could_not_be_read_is_tried_again() -> None:
    blocks, source = Blocks((90, 70), 16), Source()

    def broken(box: Box) -> Image:
        raise OSError(f"bad place {box}")

    with pytest.raises(OSError, match=r"bad place \(16, 0, 32, 16\)"):
        blocks.read((20, 0, 30, 9), broken)
    assert np.array_equal(blocks.read((20, 0, 30, 9), source), PIXELS[:9, 20:30])


def test_threads_wait_for_the_block_that_one_of_them_reads() -> None:
    blocks, source, all_ask = Blocks((90, 70), 16), Source(), threading.Barrier(4)

    def slow(box: Box) -> Image:
        threading.Event().wait(0.05)
        return source(box)

    def ask(_: int) -> Image:
        all_ask.wait(10)
        return blocks.read((0, 0, 8, 8), slow)

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(ask, range(4)))
    assert all(np.array_equal(part, PIXELS[:8, :8]) for part in parts)
    assert len(source.boxes) == 1
