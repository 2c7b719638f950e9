"""What a training is shown."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from classifier.dataset import SOURCE_PX, PatchDataset
from classifier.patches import reflected
from classifier.training import batches
from classifier.training.batches import LibrarySampler, SamplePixels
from classifier.training.config import ClassifierTraining


def dataset() -> PatchDataset:
    """Nuclei of two images, in no order, some at an edge."""
    rng = np.random.default_rng(0)
    images = [cv2.blur(rng.integers(0, 256, (300 + 90 * k, 420, 3), np.uint8), (5, 5)) for k in range(2)]
    points = rng.uniform(0, 300, (40, 2))
    image = rng.integers(0, 2, 40)
    none = np.zeros(40, np.int64)
    pixels = tuple(reflected(one, SOURCE_PX // 2) for one in images)
    return PatchDataset(
        pixels, points, none, none, np.ones((40, 35), bool), image, (("a", "a"), ("b", "b")), points.copy()
    )


def test_contexts_of_many_nuclei_are_those_of_each_by_itself() -> None:
    samples, rows = dataset(), np.array([3, 17, 3, 39, 0, 21])
    each = np.concatenate([samples.contexts(rows[i : i + 1], SOURCE_PX) for i in range(len(rows))])
    np.testing.assert_array_equal(samples.contexts(rows, SOURCE_PX), each)
    assert 0 < (each[..., 3] == 255).mean() < 1
    assert samples.contexts(rows[:0]).shape == (0, 64, 64, 4)


@pytest.mark.parametrize("context", [True, False])
def test_pixels_that_are_kept_are_those_cut_for_a_batch(context: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "AT_ONCE", 16)
    pixels = SamplePixels(dataset(), context, torch.device("cpu"))
    rows = np.array([39, 0, 15, 16, 0])
    expected = pixels(rows)
    assert [tuple(view.shape) for view in expected] == [(5, 3, 96, 96), (5, 4, 96, 96)][: 1 + context]
    assert not pixels.fit_on_gpu()
    pixels.keep()
    for kept, cut in zip(pixels(rows), expected, strict=True):
        assert torch.equal(kept, cut)


def test_round_robin_takes_each_library_in_turn() -> None:
    library = np.repeat([1, 2], [3, 97])
    none, points = np.zeros(100, np.int64), np.zeros((100, 2))
    targets = np.eye(35, dtype=bool)[np.where(library == 1, 12, 20)]
    samples = PatchDataset((), points, library, none, targets, none, (("g", "i"),), points)
    config = ClassifierTraining((("consep", Path("consep")),), Path("m.safetensors"), batch_size=7)
    draw = LibrarySampler(dataclasses.replace(config, sampling="round-robin"), samples, {})
    for step in range(4):
        chosen = draw(step, torch.Generator().manual_seed(step))
        assert (library[chosen] == 1 + (np.arange(7) + 7 * step) % 2).all()
    random = LibrarySampler(dataclasses.replace(config, balance="none", batch_size=2000), samples, {})
    assert (library[random(0, torch.Generator().manual_seed(0))] == 1).mean() == pytest.approx(0.03, abs=0.015)
