"""The bundled detector on real tissue: the nuclei do not depend on how the slide was cut into regions."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import RunConfig
from pipeline.inference.engine import RegionPixels, keep_owned, resize
from pipeline.inference.models import find_model
from pipeline.regions.region import cut_regions
from pipeline.regions.tissue import TissueMask
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.open import open_slide
from segmentation.evaluation.metrics import match_by_distance
from segmentation.hovernet.detector import HoVerNetDetector, load_hovernet
from segmentation.nuclei import Nuclei

BOX_PX = 8  # of the tissue mask; the square is 320 x 320 level-0 pixels, 640 x 640 working pixels


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def detector(request: pytest.FixtureRequest) -> HoVerNetDetector:
    return load_hovernet(find_model("segmentor", RunConfig().segmentor), precision=request.param, threads=2)


def detect(path: Path, detector: HoVerNetDetector, size_w: int) -> Nuclei:
    with open_slide(path) as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        mask = np.zeros((slide.size_l0[1] // BOX_PX, slide.size_l0[0] // BOX_PX), bool)
        mask[160:200, 112:152] = True
        tissue = TissueMask(mask, (float(BOX_PX), float(BOX_PX)), slide.mpp)
        found = []
        for region in cut_regions(grid, tissue, size_w, 2 * detector.context_px, 32, 2 * detector.margin_px):
            pixels = slide.read(grid, region.read_box_w)
            window = RegionPixels(region, pixels, resize(pixels, grid.stride, 2))
            nuclei = detector.nuclei(detector.predict(window.resized), grid.mpp_w * 2)
            found.append(keep_owned(window, nuclei, grid, tissue).nuclei_l0)
    return Nuclei.concatenate(found)


def test_region_size_changes_no_nucleus_of_real_tissue(demo_slide: Path, detector: HoVerNetDetector) -> None:
    whole = detect(demo_slide, detector, 2048)
    assert len(whole) > 60
    parts = detect(demo_slide, detector, 256)
    whole, parts = (nuclei.select(np.lexsort(nuclei.centroids.T)) for nuclei in (whole, parts))
    if detector.runtime.name == "openvino":
        np.testing.assert_array_equal(parts.centroids, whole.centroids)
        np.testing.assert_array_equal(parts.contour_points, whole.contour_points)
        np.testing.assert_array_equal(parts.detection_p, whole.detection_p)
    else:  # PyTorch's rounding may depend on the shape of a window
        assert abs(len(parts) - len(whole)) <= 1
        assert len(match_by_distance(whole.centroids, parts.centroids, 0.1)[0]) >= len(whole) - 1
