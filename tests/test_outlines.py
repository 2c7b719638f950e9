"""Outlines run through pixel corners, are simple polygons, and enclose the mask's area exactly."""

import numpy as np
import pytest
from scipy import ndimage
from shapely.geometry import Polygon

from segmentation.nuclei import Nuclei
from segmentation.outlines import trace_outline
from segmentation.postprocess import outline_instances, polygon_moments
from segmentation.scores import draw_instances


def test_square_of_ten_pixels_has_area_100() -> None:
    mask = np.zeros((14, 16), bool)
    mask[2:12, 3:13] = True
    outline = trace_outline(mask)
    assert sorted(map(tuple, outline.tolist())) == [(3, 2), (3, 12), (13, 2), (13, 12)]
    area, centroid = polygon_moments(outline)
    assert area == 100
    assert centroid.tolist() == [8.0, 7.0]


def test_single_pixel() -> None:
    area, centroid = polygon_moments(trace_outline(np.ones((1, 1), bool)))
    assert (area, centroid.tolist()) == (1.0, [0.5, 0.5])


def test_outlines_go_clockwise_on_screen() -> None:
    x, y = trace_outline(np.ones((3, 5), bool)).T
    assert (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0


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
    assert polygon_moments(outline)[0] == polygon.area
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
    instances[(xx - 12) ** 2 + (yy - 20) ** 2 < 81] = 1
    instances[(xx - 34) ** 2 / 2 + (yy - 18) ** 2 < 70] = 2
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
    np.testing.assert_array_equal(nuclei.moved(2.0, (1, -1)).centroids[1], [5.0, 5.0])
