"""Outlines run through pixel corners, are simple polygons, and enclose the mask's area exactly."""

import numpy as np
import pytest
from scipy import ndimage
from shapely.geometry import Polygon

from segmentation.contours import trace_instances, trace_outline
from segmentation.evaluation.scores import draw_instances
from segmentation.hovernet.postprocess import majority_types, outline_instances
from segmentation.nuclei import Nuclei


def test_square_of_ten_pixels_has_area_100() -> None:
    mask = np.zeros((14, 16), bool)
    mask[2:12, 3:13] = True
    outline = trace_outline(mask)
    assert sorted(map(tuple, outline.tolist())) == [(3, 2), (3, 12), (13, 2), (13, 12)]
    found = trace_instances(mask.astype(np.int32) * 7, mask.astype(np.float32))
    assert (found.ids.tolist(), found.areas.tolist(), found.centroids.tolist()) == ([7], [100.0], [[8.0, 7.0]])
    assert sorted(map(tuple, found.points.tolist())) == sorted(map(tuple, outline.tolist()))


def test_single_pixel() -> None:
    assert rotated_to_least(trace_outline(np.ones((1, 1), bool))) == [(0, 0), (1, 0), (1, 1), (0, 1)]
    found = trace_instances(np.ones((1, 1), np.int32), np.full((1, 1), 0.25, np.float32))
    assert rotated_to_least(found.points) == [(0, 0), (1, 0), (1, 1), (0, 1)]
    assert (found.areas[0], found.centroids.tolist(), found.pixels[0], found.sums[0]) == (1.0, [[0.5, 0.5]], 1, 0.25)


def test_outlines_go_clockwise_on_screen() -> None:
    x, y = trace_outline(np.ones((3, 5), bool)).T
    assert (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0


def rotated_to_least(ring: np.ndarray) -> list[tuple[int, int]]:
    corners = [(int(x), int(y)) for x, y in ring]
    first = corners.index(min(corners))
    return corners[first:] + corners[:first]


def blobs(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random((24, 27)), 1.3)
    parts, n = ndimage.label(smooth > np.median(smooth))
    sizes = ndimage.sum_labels(np.ones_like(parts), parts, np.arange(1, n + 1))
    return parts == 1 + int(np.argmax(sizes))


@pytest.mark.parametrize("seed", range(60))
def test_area_of_a_ragged_mask_is_its_filled_pixels_and_the_ring_is_valid(seed: int) -> None:
    mask = blobs(seed)
    outline = trace_outline(mask)
    polygon = Polygon(outline)
    assert polygon.is_valid
    # Holes count as inside; so do pockets whose only way out is between two pixels that meet at a corner.
    filled = ndimage.binary_fill_holes(mask, structure=np.ones((3, 3)))
    closed = ndimage.binary_fill_holes(mask)
    assert filled.sum() <= polygon.area
    found = trace_instances(mask.astype(np.int32), mask.astype(np.float32))
    assert (found.areas[0], found.pixels[0]) == (polygon.area, mask.sum())
    np.testing.assert_allclose(found.centroids[0], polygon.centroid.coords[0], rtol=1e-12)
    assert rotated_to_least(found.points) == rotated_to_least(outline)
    if len(np.unique(outline, axis=0)) == len(outline) and not has_pinch(closed):
        assert polygon.area == closed.sum()


def has_pinch(mask: np.ndarray) -> bool:
    """Whether some 2x2 square holds two pixels of the mask that meet at a corner only."""
    a, b, c, d = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
    return bool(((a & d & ~b & ~c) | (b & c & ~a & ~d)).any())


def test_pinched_mask_becomes_one_simple_ring() -> None:
    mask = np.ones((6, 6), bool)
    mask[1:3, 1:3] = False
    mask[3:5, 3:5] = False
    mask[0, 0] = False  # opens the first hole at a corner only
    assert Polygon(trace_outline(mask)).is_valid


def test_instances_drawn_from_their_outlines_are_the_instances() -> None:
    instances = np.zeros((40, 50), np.int32)
    yy, xx = np.mgrid[:40, :50]
    instances[(xx - 34) ** 2 / 2 + (yy - 18) ** 2 < 70] = 1
    instances[(xx - 12) ** 2 + (yy - 20) ** 2 < 81] = 2
    nuclei = outline_instances(instances, np.full(instances.shape, 0.9, np.float32), 0.25, 1)
    np.testing.assert_array_equal(draw_instances(nuclei, instances.shape), instances)
    assert nuclei.area_um2.tolist() == pytest.approx([(instances == k).sum() / 16 for k in (1, 2)])
    assert nuclei.detection_p.tolist() == pytest.approx([0.9, 0.9])
    for k in (0, 1):
        rows, columns = np.nonzero(instances == k + 1)
        np.testing.assert_allclose(nuclei.centroids[k], (columns.mean() + 0.5, rows.mean() + 0.5), atol=1e-9)


def test_select_and_concatenate_keep_each_outline_with_its_nucleus() -> None:
    rings = [np.arange(2 * k, dtype=float).reshape(k, 2) for k in (4, 5, 6)]
    nuclei = Nuclei(
        np.arange(6.0).reshape(3, 2),
        np.array([0, 4, 9, 15]),
        np.concatenate(rings),
        np.arange(3, dtype=np.float32),
        np.arange(3, dtype=np.float32),
    )
    chosen = nuclei.select(np.array([2, 0]))
    np.testing.assert_array_equal(chosen.contour(0), rings[2])
    np.testing.assert_array_equal(chosen.contour(1), rings[0])
    assert len(nuclei.select(np.zeros(3, bool))) == 0
    both = Nuclei.concatenate([chosen, Nuclei.empty(), nuclei])
    np.testing.assert_array_equal(both.contour(3), rings[1])
    np.testing.assert_array_equal(nuclei.transformed(2.0, (1, -1)).centroids[1], [5.0, 5.0])


@pytest.mark.parametrize("seed", range(6))
def test_all_instances_of_a_map_at_once_are_those_of_their_masks(seed: int) -> None:
    """Touching, ragged, with holes, in several bits, hanging together by corners, cut by the map's edge."""
    rng = np.random.default_rng(seed)
    instances = (rng.random((60, 70)) * 7).astype(np.int32)
    instances = ndimage.median_filter(instances, 5) * 3
    found = trace_instances(instances, np.ones(instances.shape, np.float32))
    assert sorted(found.ids.tolist()) == [k for k in np.unique(instances).tolist() if k]
    firsts = [int(np.flatnonzero(instances == k)[0]) for k in found.ids]
    assert firsts == sorted(firsts)
    for i, k in enumerate(found.ids.tolist()):
        ring = found.points[found.offsets[i] : found.offsets[i + 1]]
        polygon = Polygon(ring)
        assert polygon.is_valid
        assert polygon.area == found.areas[i] == Polygon(trace_outline(instances == k)).area
        assert found.pixels[i] == found.sums[i] == (instances == k).sum()


def test_holes_and_lesser_bits_do_not_count() -> None:
    instances = np.zeros((12, 20), np.int32)
    instances[1:9, 1:9] = 4
    instances[3:5, 3:5] = 0  # a hole
    instances[6, 6] = 9  # another nucleus in it
    instances[2:5, 12:18] = 4  # a lesser bit
    found = trace_instances(instances, np.ones(instances.shape, np.float32))
    assert (found.ids.tolist(), found.areas.tolist(), found.pixels.tolist()) == ([4, 9], [64, 1], [59 + 18, 1])
    assert rotated_to_least(found.points[:4]) == [(1, 1), (9, 1), (9, 9), (1, 9)]


def test_two_pixels_at_a_corner_become_one_outline() -> None:
    instances = np.array([[1, 0, 2], [0, 1, 0]], np.int32)
    found = trace_instances(instances, np.ones((2, 3), np.float32))
    assert found.areas.tolist() == [4, 1]
    assert rotated_to_least(found.points[:4]) == [(0, 0), (2, 0), (2, 2), (0, 2)]


def test_nothing() -> None:
    found = trace_instances(np.zeros((5, 6), np.int32), np.zeros((5, 6), np.float32))
    assert (len(found.ids), found.offsets.tolist(), found.points.shape) == (0, [0], (0, 2))


def test_commonest_type_of_an_instance() -> None:
    instances, types = np.zeros((8, 16), np.int32), np.zeros((8, 16), np.uint8)
    instances[1:5, 2:6], instances[1:5, 10:14] = 1, 3
    types[1:3, 2:6] = 3  # 8 of 16 pixels; 7 are background, 1 of type 2
    types[3, 2] = 2
    types[6, :] = 1  # outside
    assert majority_types(instances, types)[[1, 3]].tolist() == [2, -1]
