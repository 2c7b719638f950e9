"""The tissue round a nucleus, against a plain reckoning."""

from __future__ import annotations

import numpy as np
import pytest

from classifier.patches import CONTEXT_HALF_W, cut_contexts

WIDTH, HEIGHT = 460, 380
POINTS = np.array([[0.0, 0.0], [10.5, 3.2], [229.6, 190.0], [459.9, 379.5], [300.49, 20.5]])


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def reckoned(image: np.ndarray, x: float, y: float, covered: int) -> np.ndarray:
    context = np.zeros((64, 64, 4), np.uint8)
    left, top = int(np.floor(x + 0.5)) - 32 * covered, int(np.floor(y + 0.5)) - 32 * covered
    for j in range(64):
        for i in range(64):
            x0, y0 = left + covered * i, top + covered * j
            if x0 >= 0 and y0 >= 0 and x0 + covered <= image.shape[1] and y0 + covered <= image.shape[0]:
                mean = image[y0 : y0 + covered, x0 : x0 + covered].mean((0, 1))
                context[j, i] = [*np.rint(mean).astype(int), 255]
    return context


@pytest.mark.parametrize("stride", [1, 2])
def test_a_context_is_the_mean_of_what_it_covers_and_nothing_beyond_the_image(image: np.ndarray, stride: int) -> None:
    contexts = cut_contexts(image, POINTS, (0, 0, WIDTH, HEIGHT), stride)
    assert contexts.shape == (5, 64, 64, 4)
    for context, (x, y) in zip(contexts, POINTS, strict=True):
        np.testing.assert_array_equal(context, reckoned(image, x, y, 4 // stride))
    assert not contexts[0, :32].any()
    assert contexts[0, 32:, 32:, 3].all()


def test_a_context_is_the_same_whatever_it_is_cut_from(image: np.ndarray) -> None:
    contexts = cut_contexts(image, POINTS, (0, 0, WIDTH, HEIGHT))
    round_it = np.random.default_rng(1).integers(0, 256, (HEIGHT + 90, WIDTH + 50, 3), np.uint8)
    round_it[37 : 37 + HEIGHT, 41 : 41 + WIDTH] = image
    inside = (41, 37, 41 + WIDTH, 37 + HEIGHT)
    np.testing.assert_array_equal(cut_contexts(round_it, POINTS + np.array([41, 37]), inside), contexts)
    x0, y0 = 230 - CONTEXT_HALF_W, 190 - CONTEXT_HALF_W
    part = image[y0 : y0 + 2 * CONTEXT_HALF_W, x0 : x0 + 2 * CONTEXT_HALF_W]
    cut = cut_contexts(part, POINTS[2:3] - np.array([x0, y0]), (0, 0, *part.shape[1::-1]))
    np.testing.assert_array_equal(cut, contexts[2:3])
    assert cut[..., 3].all()


def test_no_context_where_there_is_no_image(image: np.ndarray) -> None:
    assert cut_contexts(image, np.zeros((0, 2)), (0, 0, WIDTH, HEIGHT)).shape == (0, 64, 64, 4)
    assert not cut_contexts(image[:3, :3], np.ones((1, 2)), (0, 0, 3, 3)).any()
    assert not cut_contexts(image, POINTS, (0, 0, 0, 0)).any()
