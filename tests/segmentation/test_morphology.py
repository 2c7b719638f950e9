"""Measures of exact shapes, and the same as shapely's where it has them."""

import math

import numpy as np
import pytest
import shapely
from scipy import ndimage

from segmentation.hovernet.postprocess import outline_instances
from segmentation.morphology import with_morphology
from segmentation.nuclei import MEASURES, Nuclei


def nuclei_of(*rings: list[tuple[float, float]]) -> Nuclei:
    points = [np.array(ring, float) for ring in rings]
    return Nuclei(
        np.array([ring.mean(0) for ring in points]),
        np.cumsum([0, *map(len, points)]),
        np.concatenate(points),
        np.ones(len(points), np.float32),
        np.ones(len(points), np.float32),
    )


def measure(nuclei: Nuclei, mpp: float = 1.0) -> dict[str, list[float]]:
    white = np.full((80, 80, 3), 255, np.uint8)
    measures = with_morphology(nuclei, white, (0, 0), 1, mpp).measures
    assert measures is not None
    return {name: measures[:, k].tolist() for k, name in enumerate(MEASURES)}


CIRCLE = 3e-4
"""OpenCV makes the smallest circle wider by 2e-4 units, so that its points lie inside."""


def discs(*radii: float) -> Nuclei:
    instances = np.zeros((80, 80), np.int32)
    yy, xx = np.mgrid[:80, :80] + 0.5
    for k, r in enumerate(radii):
        instances[(xx - 20 - 40 * (k % 2)) ** 2 + (yy - 20 - 40 * (k // 2)) ** 2 <= r * r] = k + 1
    return outline_instances(instances, np.ones((80, 80), np.float32), 1.0, 1)


def test_a_square_of_ten_pixels() -> None:
    found = measure(nuclei_of([(3, 2), (13, 2), (13, 12), (3, 12)]), 0.5)
    # Four sides of nine steps between the middles of pixel edges, four half diagonals, eight changes between the two.
    perimeter = 0.98 * 36 + 1.406 * 2 - 0.091 * 8
    assert found["perimeter_um"] == pytest.approx([perimeter / 2])
    assert found["circularity"] == pytest.approx([4 * math.pi * 100 / perimeter**2])
    assert found["solidity"] == [1]
    assert found["max_diameter_um"] == pytest.approx([math.sqrt(200) / 2], abs=CIRCLE)
    assert found["min_diameter_um"] == pytest.approx([5])


def test_discs_are_round_and_their_perimeter_is_not_that_of_the_staircase() -> None:
    radii = (9.5, 6.3, 19.5, 13.2)
    found = measure(discs(*radii))
    for k, r in enumerate(radii):
        assert found["perimeter_um"][k] == pytest.approx(2 * math.pi * r, rel=0.03)
        assert found["circularity"][k] > 0.95
        assert found["solidity"][k] > 0.9
        assert found["max_diameter_um"][k] == pytest.approx(2 * r, abs=1.5)
        assert found["min_diameter_um"][k] == pytest.approx(2 * r, abs=1)


def test_a_triangle_that_no_pixels_made() -> None:
    found = measure(nuclei_of([(0.5, 0.5), (30.5, 0.5), (0.5, 40.5)]))
    assert found["perimeter_um"] == pytest.approx([120])
    assert found["circularity"] == pytest.approx([4 * math.pi * 600 / 120**2])
    assert found["max_diameter_um"] == pytest.approx([50], abs=CIRCLE)
    assert found["min_diameter_um"] == pytest.approx([24])


def test_an_l_is_not_convex() -> None:
    found = measure(nuclei_of([(0, 0), (4, 0), (4, 4), (8, 4), (8, 8), (0, 8)]))
    assert found["solidity"] == pytest.approx([48 / 56])


@pytest.mark.parametrize("seed", range(5))
def test_ragged_shapes_as_shapely_measures_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, _ = ndimage.label(ndimage.gaussian_filter(rng.random((80, 80)), 2) > 0.51)
    nuclei = outline_instances(labels.astype(np.int32), np.ones((80, 80), np.float32), 1.0, 5)
    assert len(nuclei) > 5
    found = measure(nuclei)
    for i in range(len(nuclei)):
        polygon = shapely.Polygon(nuclei.contour(i))
        assert found["solidity"][i] == pytest.approx(polygon.area / polygon.convex_hull.area, rel=1e-5)
        assert found["max_diameter_um"][i] == pytest.approx(2 * shapely.minimum_bounding_radius(polygon), abs=CIRCLE)
        hull = np.asarray(polygon.convex_hull.exterior.coords)
        angles = np.arctan2(*np.diff(hull, axis=0).T[::-1])
        across = hull @ np.array([-np.sin(angles), np.cos(angles)])
        assert found["min_diameter_um"][i] == pytest.approx(np.ptp(across, axis=0).min(), rel=1e-5)


def test_the_stain_is_that_of_the_pixels_inside() -> None:
    pixels = np.full((40, 60, 3), 255, np.uint8)
    haematoxylin = np.array([0.651, 0.701, 0.29]) / np.linalg.norm([0.651, 0.701, 0.29])
    eosin = np.array([0.216, 0.801, 0.558]) / np.linalg.norm([0.216, 0.801, 0.558])
    pixels[10:20, 10:20] = np.round(255 * 10 ** -(0.6 * haematoxylin))
    pixels[10:20, 30:40] = np.round(255 * 10 ** -(0.9 * eosin))
    pixels[25:35, 10:15] = np.round(255 * 10 ** -(0.6 * haematoxylin + 0.3 * eosin))

    def square(x: float, y: float) -> list[tuple[float, float]]:
        return [(x, y), (x + 10, y), (x + 10, y + 10), (x, y + 10)]

    # In a frame of half pixels whose corner lies at (100, 200).
    rings = [[(2 * x + 100, 2 * y + 200) for x, y in square(*corner)] for corner in ((10, 10), (30, 10), (10, 25))]
    outside = [(0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0)]
    measures = with_morphology(nuclei_of(*rings, outside), pixels, (100, 200), 2, 0.25).measures
    assert measures is not None
    # Values of 0 to 255 are rounded to whole numbers; half of the third square is white.
    np.testing.assert_allclose(measures[:3, MEASURES.index("haematoxylin_od")], [0.6, 0, 0.3], atol=0.01)
    assert np.isnan(measures[3, MEASURES.index("haematoxylin_od")])


def test_no_nuclei() -> None:
    measures = with_morphology(Nuclei.empty(), np.zeros((4, 4, 3), np.uint8), (0, 0), 1, 0.25).measures
    assert measures is not None
    assert measures.shape == (0, len(MEASURES))
