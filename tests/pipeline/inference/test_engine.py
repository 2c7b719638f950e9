"""The regions: cut and reassembled is the original, whatever the sizes, batches and workers."""

import threading
from pathlib import Path

import numpy as np
import pytest

from classifier.patches import cut_contexts, cut_crops
from nucpipe.errors import SlideError
from pipeline.inference.engine import LabelledRegion, RegionPixels, halo_w, keep_owned, process_regions, resize
from pipeline.regions.region import cut_regions
from pipeline.regions.tissue import TissueMask, tissue_from
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.open import open_slide
from segmentation.evaluation.metrics import match_by_distance
from segmentation.nuclei import Nuclei
from tests.support.synthetic import MPP, DarkSpots, Drawn, draw_slide, models

WIDTH, HEIGHT = 1500, 1130


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw_slide(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def slide_path(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.save(tmp_path_factory.mktemp("slide") / "ellipses.png")


def process(path: Path, region_size: int, batch_size: int, workers: int, context: bool = False) -> list[LabelledRegion]:
    run_models = models(context=context)
    with open_slide(path, MPP) as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        tissue = tissue_from("none", slide)
        regions = cut_regions(grid, tissue, region_size, halo_w(run_models.detector, context))
        done = list(process_regions(slide, grid, tissue, regions, run_models, batch_size, workers))
        assert [item.region.index for item in done] == [region.index for region in regions]
    return done


def collect(done: list[LabelledRegion]) -> tuple[Nuclei, np.ndarray]:
    """Everything, ordered by place."""
    nuclei = Nuclei.concatenate([item.nuclei_l0 for item in done])
    rows = np.concatenate([item.labels.probabilities for item in done])
    order = np.lexsort(nuclei.centroids.T)
    return nuclei.select(order), rows[order]


def one_after_the_other(path: Path, region_size: int, context: bool) -> tuple[Nuclei, np.ndarray]:
    """The plain way, without threads: what the engine must give to the bit."""
    run_models = models(context=context)
    done = []
    with open_slide(path, MPP) as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        tissue = tissue_from("none", slide)
        for region in cut_regions(grid, tissue, region_size, halo_w(run_models.detector, context)):
            pixels = slide.read(grid, region.read_box_w)
            window = RegionPixels(region, pixels, resize(pixels, grid.stride, 2))
            nuclei = run_models.detector.nuclei(run_models.detector.predict(window.resized), grid.mpp_w * 2)
            found = keep_owned(window, nuclei, grid, tissue, content_w=(0, 0, *grid.size_w) if context else None)
            assert len(found.views) == 1 + context
            done.append(LabelledRegion(region, found.nuclei_l0, run_models.classifier(*found.views)))
    return collect(done)


@pytest.mark.parametrize("context", [False, True])
def test_the_engine_gives_what_the_plain_way_gives(slide_path: Path, context: bool) -> None:
    nuclei, rows = one_after_the_other(slide_path, 512, context)
    found, found_rows = collect(process(slide_path, 512, 64, 2, context))
    for name in ("centroids", "contour_offsets", "contour_points", "detection_p", "area_um2"):
        np.testing.assert_array_equal(getattr(found, name), getattr(nuclei, name))
    np.testing.assert_allclose(found_rows, rows, atol=0 if run_on_openvino() else 1e-5)


def run_on_openvino() -> bool:
    return models().classifier.runtime(64).name == "openvino"


def test_an_error_of_any_stage_stops_the_run(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = DarkSpots.predict
    seen = []

    def fail(self: DarkSpots, pixels: np.ndarray) -> np.ndarray:
        seen.append(1)
        if len(seen) == 3:
            raise SlideError("broken tile")
        return predict(self, pixels)

    monkeypatch.setattr(DarkSpots, "predict", fail)
    threads = threading.active_count()
    with pytest.raises(SlideError, match="broken tile"):
        process(slide_path, 256, 64, 2)
    assert len(seen) < 12  # of 30
    assert threading.active_count() == threads


@pytest.fixture(scope="module")
def reference(slide_path: Path) -> tuple[Nuclei, np.ndarray]:
    return collect(process(slide_path, 2048, 64, 1))


def test_every_ellipse_comes_out_once_and_whole(drawn: Drawn, reference: tuple[Nuclei, np.ndarray]) -> None:
    nuclei, rows = reference
    order = np.lexsort((np.round(drawn.centres * 256) / 256).T)
    assert len(nuclei) == len(drawn.centres) == len(rows)
    np.testing.assert_allclose(nuclei.centroids, drawn.centres[order], atol=1 / 256)
    np.testing.assert_allclose(nuclei.area_um2, drawn.areas_px[order] / 16, rtol=1e-6)


@pytest.mark.parametrize(
    ("region_size", "batch_size", "workers"), [(128, 64, 2), (256, 1, 1), (512, 64, 2), (512, 7, 1), (1024, 64, 2)]
)
def test_region_size_batch_size_and_workers_change_nothing(
    slide_path: Path, reference: tuple[Nuclei, np.ndarray], region_size: int, batch_size: int, workers: int
) -> None:
    nuclei, rows = collect(process(slide_path, region_size, batch_size, workers))
    np.testing.assert_array_equal(nuclei.centroids, reference[0].centroids)
    np.testing.assert_array_equal(nuclei.contour_points, reference[0].contour_points)
    np.testing.assert_allclose(rows, reference[1], atol=1e-5)
    outputs = models().outputs
    for library, numbers in outputs.best(rows).items():
        np.testing.assert_array_equal(numbers, outputs.best(reference[1])[library])


@pytest.mark.parametrize("mpp", [0.25, 0.4, 0.5])
def test_a_context_is_cut_from_the_slide_whatever_the_regions(tmp_path: Path, mpp: float) -> None:
    """The classifier's contexts of all nuclei are those of the whole slide, to the bit, and end at its edges."""
    drawn = draw_slide(704, 528, spacing=48)
    path = drawn.save(tmp_path / "slide.png")
    run_models = models(context=True)
    seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    with open_slide(path, mpp) as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        tissue = tissue_from("none", slide)
        for size in (256, 1024, 4096):
            parts = []
            for region in cut_regions(grid, tissue, size, halo_w(run_models.detector, context=True)):
                pixels = slide.read(grid, region.read_box_w)
                window = RegionPixels(region, pixels, resize(pixels, grid.stride, 2))
                nuclei = run_models.detector.nuclei(run_models.detector.predict(window.resized), grid.mpp_w * 2)
                found = keep_owned(window, nuclei, grid, tissue, 2, slide.content_w(grid, region.read_box_w))
                parts.append((found.nuclei_l0.centroids, found.views[1]))
            centroids, contexts = (np.concatenate(each) for each in zip(*parts, strict=True))
            order = np.lexsort(np.round(centroids * 64).T)
            seen[size] = centroids[order], contexts[order]
        whole = slide.read(grid, (0, 0, *grid.size_w))
    assert len(seen[4096][1]) > 100
    for size in (256, 1024):
        np.testing.assert_array_equal(seen[size][0], seen[4096][0])
        np.testing.assert_array_equal(seen[size][1], seen[4096][1])
    inside = (0, 0, whole.shape[1], whole.shape[0])
    points = seen[4096][0] / grid.l0_per_read
    np.testing.assert_array_equal(cut_contexts(whole, points, inside, grid.stride), seen[4096][1])


@pytest.mark.parametrize(("region_size", "batch_size", "workers"), [(256, 7, 1), (1024, 64, 2)])
def test_region_size_batch_size_and_workers_change_nothing_of_two_views(
    slide_path: Path, region_size: int, batch_size: int, workers: int
) -> None:
    nuclei, rows = collect(process(slide_path, region_size, batch_size, workers, context=True))
    reference, expected = collect(process(slide_path, 2048, 64, 1, context=True))
    np.testing.assert_array_equal(nuclei.centroids, reference.centroids)
    np.testing.assert_array_equal(rows, expected)


def test_five_labels_for_every_nucleus_and_an_untrained_one_never(reference: tuple[Nuclei, np.ndarray]) -> None:
    rows = reference[1]
    outputs = models().outputs
    for columns in outputs.slices.values():
        np.testing.assert_allclose(rows[:, columns].sum(1), 1, atol=1e-5)
    assert (rows[:, [2, 13]] == 0).all()


def test_cores_tile_the_slide_and_own_every_point_once() -> None:
    grid = WorkingGrid.for_slide((WIDTH, HEIGHT), MPP)
    tissue = TissueMask(np.ones((1, 1), bool), (float(WIDTH), float(HEIGHT)), MPP)
    regions = cut_regions(grid, tissue, 256, 128)
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(0, (WIDTH, HEIGHT), (500, 2)), rng.integers(0, 4, (200, 2)) * 256.0])
    owners = np.sum([region.owns(points) for region in regions], axis=0)
    assert (owners == 1).all()
    for region in regions:
        assert all(edge % 32 == 0 for edge in region.read_box_w)
        for side, edge in ((0, WIDTH), (1, HEIGHT)):
            # A halo inside the slide; half a crop beyond its edge.
            assert region.read_box_w[side] == max(region.core_w[side] - 128, -32)
            assert region.read_box_w[side + 2] >= min(region.core_w[side + 2] + 128, edge + 32)


def test_regions_follow_each_other_in_bands() -> None:
    grid = WorkingGrid.for_slide((10 * 1024, 2 * 1024), MPP)
    tissue = TissueMask(np.ones((1, 1), bool), (10 * 1024.0, 2 * 1024.0), MPP)
    order = [region.index for region in cut_regions(grid, tissue, 1024, 128)]
    assert order == [*range(8), *range(10, 18), 8, 9, 18, 19]


def test_regions_without_tissue_are_left_out_and_numbers_stay() -> None:
    grid = WorkingGrid.for_slide((1024, 512), MPP)
    mask = np.zeros((2, 4), bool)
    mask[1, 2] = True
    tissue = TissueMask(mask, (256.0, 256.0), MPP)
    (region,) = cut_regions(grid, tissue, 256, 128)
    assert (region.index, region.read_box_w) == (6, (384, 128, 896, 544))


def test_a_window_holds_the_tissue_of_its_core_and_no_more_than_a_halo_round_it() -> None:
    grid = WorkingGrid.for_slide((4096, 4096), MPP)
    mask = np.zeros((256, 256), bool)
    mask[70:81, 140:150] = True  # x 2240 to 2400, y 1120 to 1296
    (region,) = cut_regions(grid, TissueMask(mask, (16.0, 16.0), MPP), 2048, 256)
    assert region.core_w == (2048, 0, 4096, 2048)
    assert region.read_box_w == (2240 - 256, 1120 - 256, 2400 + 256, 1312 + 256)


def test_nuclei_off_the_tissue_are_dropped(slide_path: Path, drawn: Drawn) -> None:
    run_models = models()
    with open_slide(slide_path, MPP) as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        half = TissueMask(np.array([[True, False]]), (WIDTH / 2, float(HEIGHT)), MPP)
        regions = cut_regions(grid, half, 512, 128)
        nuclei, _ = collect(list(process_regions(slide, grid, half, regions, run_models, 64, 1)))
    assert len(nuclei) == (drawn.centres[:, 0] < WIDTH / 2).sum()


def test_crops_are_the_slide_s_own_pixels() -> None:
    pixels = np.arange(200 * 300 * 3, dtype=np.uint32).astype(np.uint8).reshape(200, 300, 3)
    crops = cut_crops(pixels, np.array([[100.4, 90.0], [32.0, 32.0]]), 1)
    np.testing.assert_array_equal(crops[0], pixels[58:122, 68:132])
    np.testing.assert_array_equal(crops[1], pixels[:64, :64])
    assert cut_crops(pixels, np.array([[100.0, 90.0]]), 2).shape == (1, 32, 32, 3)
    assert cut_crops(pixels, np.zeros((0, 2)), 1).shape == (0, 64, 64, 3)


@pytest.mark.parametrize("mpp", [0.2, 0.33, 0.5])
def test_any_pixel_size_finds_the_same_ellipses(tmp_path: Path, mpp: float) -> None:
    """The same drawing at another pixel size, enlarged or shrunk by whole pixels where it can be."""
    drawn = draw_slide(704, 528, spacing=48 if mpp == 0.5 else 60, seed=1)
    path = drawn.save(tmp_path / "slide.png")
    run_models = models()
    with open_slide(path, mpp) as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        tissue = tissue_from("none", slide)
        regions = cut_regions(grid, tissue, 256, halo_w(run_models.detector))
        nuclei, rows = collect(list(process_regions(slide, grid, tissue, regions, run_models, 64, 2)))
    assert len(nuclei) == len(drawn.centres) == len(rows)
    # The detector sees pixels of 0.5 um: a centre may move by a fraction of one.
    true, found = match_by_distance(drawn.centres, nuclei.centroids, 0.25 / mpp)
    assert len(true) == len(nuclei)
    assert nuclei.area_um2[found] == pytest.approx(drawn.areas_px[true] * mpp * mpp, rel=0.25)
