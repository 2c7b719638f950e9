"""Outlines drawn as pixels: those that scikit-image draws, whatever the image is cut into."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.draw import polygon

from pipeline.export.images.rasterize import draw_rings

SHAPE = (90, 120)


def random_rings(rng: np.random.Generator, step: float) -> list[np.ndarray]:
    """Stars and scrawls with corners on multiples of ``step``, some of them beyond the image."""
    rings = []
    for k in range(60):
        centre, count = rng.uniform(-5, 115, 2), int(rng.integers(3, 12))
        angle = np.sort(rng.uniform(0, 2 * np.pi, count)) if k % 3 else rng.uniform(0, 2 * np.pi, count)
        radius = rng.uniform(0.1, 15, (count, 1))
        ring = centre + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
        rings.append(np.round(ring / step) * step)
    return rings


def drawn_in(rings: list[np.ndarray], left: int, top: int, shape: tuple[int, int]) -> np.ndarray:
    drawn = np.zeros(shape, np.int32)
    offsets = np.cumsum([0, *map(len, rings)])
    centres = np.array([np.floor(ring.mean(0) + 0.5) for ring in rings], np.int64)
    draw_rings(drawn, left, top, np.concatenate(rings), offsets, centres, np.arange(len(rings)))
    return drawn


@pytest.mark.parametrize("step", [1.0, 0.5, 1e-3])
def test_pixels_are_those_of_scikit_image(step: float) -> None:
    rings = random_rings(np.random.default_rng(0), step)
    expected = np.zeros((200, 200), int)
    for k, ring in enumerate(rings):
        rows, columns = polygon(ring[:, 1] + 40, ring[:, 0] + 40, expected.shape)
        if len(rows):
            expected[rows, columns] = k + 1
        else:
            x, y = np.floor(ring.mean(0) + 0.5).astype(int) + 40
            expected[y, x] = expected[y, x] or k + 1
    drawn = drawn_in(rings, 0, 0, SHAPE)
    assert len(np.unique(drawn)) > 40
    np.testing.assert_array_equal(drawn, expected[40 : 40 + SHAPE[0], 40 : 40 + SHAPE[1]])


def test_parts_are_those_of_the_whole() -> None:
    rings = random_rings(np.random.default_rng(1), 0.25)
    whole = drawn_in(rings, 0, 0, SHAPE)
    for top in range(0, 90, 30):
        for left in range(0, 120, 20):
            part = drawn_in(rings, left, top, (30, 20))
            np.testing.assert_array_equal(part, whole[top : top + 30, left : left + 20])


def test_a_ring_between_pixels_sets_one_that_is_free() -> None:
    square = np.array([[0, 0], [0.2, 0], [0.2, 0.2], [0, 0.2]]) + 0.3
    large = np.array([[8.0, 8.0], [12.0, 8.0], [12.0, 12.0], [8.0, 12.0]])
    drawn = drawn_in([square + 5, large, square + 10], 0, 0, (20, 20))
    assert drawn[5, 5] == 1
    assert (drawn == 2).sum() == 25
    assert (drawn > 0).sum() == 26
