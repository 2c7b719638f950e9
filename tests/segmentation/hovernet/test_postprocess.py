"""Post-processing finds every nucleus of ideal maps, parts touching ones, and does not look at the tile."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label
from skimage.segmentation import watershed

from segmentation.evaluation.metrics import panoptic_quality
from segmentation.hovernet.merging import merge_across_weak_borders
from segmentation.hovernet.network import HoVerNet
from segmentation.hovernet.postprocess import PostProcessing, find_nuclei, label_instances
from segmentation.hovernet.watershed import flood
from segmentation.targets import hv_maps


def ideal_maps(instances: np.ndarray) -> np.ndarray:
    logit = np.where(instances > 0, 6.0, -6.0).astype(np.float32)
    return np.concatenate([logit[None], hv_maps(instances)])


def discs(shape: tuple[int, int], circles: list[tuple[int, int, int]]) -> np.ndarray:
    instances = np.zeros(shape, np.int32)
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    for k, (x, y, r) in enumerate(circles):
        instances[((xx - x) ** 2 + (yy - y) ** 2 <= r * r) & (instances == 0)] = k + 1
    return instances


def test_hv_maps_span_minus_one_to_one_in_every_nucleus() -> None:
    instances = np.zeros((12, 12), np.int32)
    instances[2:7, 3:8] = 5
    horizontal, vertical = hv_maps(instances)
    np.testing.assert_allclose(horizontal[4, 2:9], [0, -1, -0.5, 0, 0.5, 1, 0])
    np.testing.assert_allclose(vertical[1:8, 4], [0, -1, -0.5, 0, 0.5, 1, 0])


TOUCHING = [(30, 30, 12), (53, 30, 12), (30, 53, 12), (100, 40, 10), (100, 59, 10), (150, 100, 14), (160, 40, 8)]


def test_touching_nuclei_are_parted() -> None:
    instances = discs((130, 190), TOUCHING)
    maps = ideal_maps(instances)
    found = label_instances(1 / (1 + np.exp(-maps[0])), maps[1:], PostProcessing())
    dq, sq, _ = panoptic_quality(instances, found)
    assert dq == 1
    assert sq > 0.97


def test_a_nucleus_is_the_same_whatever_lies_beside_it() -> None:
    maps = ideal_maps(discs((130, 190), TOUCHING))
    whole = find_nuclei(maps, 0.25)
    part = find_nuclei(np.ascontiguousarray(maps[:, :, :80]), 0.25)
    assert len(part) == 3
    for i in range(3):
        j = int(np.abs(whole.centroids - part.centroids[i]).sum(1).argmin())
        np.testing.assert_array_equal(whole.contour(j), part.contour(i))


def test_a_faint_neighbourhood_changes_nothing() -> None:
    """The published normalisation stretches a tile's gradients to 0-1; a strong nucleus then hides weak borders."""
    maps = ideal_maps(discs((130, 190), TOUCHING))
    weak = maps.copy()
    weak[1:, :, 130:] *= 3
    left = find_nuclei(weak, 0.25).centroids
    expected = find_nuclei(maps, 0.25).centroids
    np.testing.assert_array_equal(left[left[:, 0] < 120], expected[expected[:, 0] < 120])


def test_specks_and_nothing() -> None:
    maps = ideal_maps(discs((60, 60), [(20, 20, 2)]))
    assert len(find_nuclei(maps, 0.25)) == 0
    assert len(find_nuclei(np.full((3, 32, 32), -9, np.float32), 0.25)) == 0


@pytest.mark.parametrize("shape", [(64, 96), (16, 16)])
def test_maps_have_twice_the_side_of_the_pixels(shape: tuple[int, int]) -> None:
    import torch

    with torch.inference_mode():
        maps = HoVerNet().eval()(torch.zeros(2, 3, *shape, dtype=torch.uint8))
    assert maps.shape == (2, 3, 2 * shape[0], 2 * shape[1])


@pytest.mark.parametrize("seed", range(4))
def test_flooding_is_the_watershed_of_scikit_image(seed: int) -> None:
    """Where no two pixels are equally low, the order is beyond doubt, and so is every pixel."""
    rng = np.random.default_rng(seed)
    landscape = rng.random((60, 70)).astype(np.float32)
    mask = gaussian_filter(rng.random((60, 70)), 3) > 0.48
    components = label(mask)[0].astype(np.int32)
    markers = np.where(mask & (rng.random(mask.shape) < 0.02), 1, 0) * np.arange(1, mask.size + 1).reshape(mask.shape)
    wanted = np.zeros(components.max() + 1, bool)
    wanted[1::2] = True
    flooded = np.where(wanted[components], markers, 0).astype(np.int32)
    expected = watershed(landscape, flooded, mask=wanted[components])
    flood(landscape, components, wanted, flooded)
    np.testing.assert_array_equal(flooded, expected)
    assert len(np.unique(flooded)) > 10


def test_a_nucleus_whose_maps_wave_stays_one() -> None:
    """A long nucleus, whose horizontal map falls a little in the middle, on half of its width."""
    instances = np.zeros((60, 120), np.int32)
    instances[20:40, 20:100] = 1
    maps = ideal_maps(instances)
    maps[1, 20:40, 56:64] -= np.linspace(0, 0.45, 8, dtype=np.float32)
    maps[1, 20:40, 64:100] -= 0.45
    p = 1 / (1 + np.exp(-maps[0]))
    assert len(np.unique(label_instances(p, maps[1:], PostProcessing(weak_border=0)))) == 3
    np.testing.assert_array_equal(label_instances(p, maps[1:], PostProcessing()) > 0, instances > 0)
    assert len(np.unique(label_instances(p, maps[1:], PostProcessing()))) == 2


def test_borders_are_judged_by_their_mean_fall_and_joins_carry_on() -> None:
    """Four parts in a row: 5 | 2 | 7 | 9 with falls of 0.02 (mean of 0 and 0.04), 0.05 and 0.5; 5, 2 and 7 become 2.
    What the other map does beside such a border does not count.
    """
    instances = np.repeat(np.array([[5, 2, 7, 9, 0, 9]], np.int32), 2, 0)
    right = np.array([[0.0, 0.0, 0.05, 0.5, 9.0, 0.0], [0.04, 0.0, 0.05, 0.5, 9.0, 0.0]], np.float32)
    down = np.full((2, 6), 9, np.float32)
    merge_across_weak_borders(instances, right, down, 0.06)
    np.testing.assert_array_equal(instances, [[2, 2, 2, 9, 0, 9]] * 2)
    columns = np.array([[5], [2]], np.int32)
    merge_across_weak_borders(columns, np.full((2, 1), 9, np.float32), np.zeros((2, 1), np.float32), 0.06)
    np.testing.assert_array_equal(columns, [[2], [2]])
    untouched = np.array([[5, 2]], np.int32)
    merge_across_weak_borders(untouched, np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32), 0)
    np.testing.assert_array_equal(untouched, [[5, 2]])


@pytest.mark.parametrize("seed", range(3))
def test_joins_are_those_of_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    instances = np.kron(rng.permutation(np.arange(1, 31)).reshape(5, 6), np.ones((7, 8))).astype(np.int32)
    instances[rng.random(instances.shape) < 0.1] = 0
    down, right = rng.random((2, *instances.shape)).astype(np.float32)
    pixels: dict[tuple[int, int], list[float]] = {}
    for row, column in np.ndindex(instances.shape):
        for r, c, fall in ((row + 1, column, down), (row, column + 1, right)):
            if r < instances.shape[0] and c < instances.shape[1]:
                one, other = sorted((int(instances[row, column]), int(instances[r, c])))
                if 0 < one < other:
                    pixels.setdefault((one, other), []).append(float(max(fall[row, column], fall[r, c])))
    numbers = {number: number for number in range(31)}
    for (one, other), falls in pixels.items():
        if np.mean(falls) < 0.64:
            smaller, larger = sorted((numbers[one], numbers[other]))
            numbers = {k: smaller if v == larger else v for k, v in numbers.items()}
    expected = np.vectorize(numbers.get)(instances)
    assert 3 < len(np.unique(expected)) < 30
    merge_across_weak_borders(instances, right, down, 0.64)
    np.testing.assert_array_equal(instances, expected)
