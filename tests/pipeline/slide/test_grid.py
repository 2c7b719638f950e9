"""The working grid, and what resampling to it keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tests.support.slides as make
from pipeline.slide.base import Slide
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.open import open_slide
from pipeline.slide.resample import fold


def grid_of(slide: Slide) -> WorkingGrid:
    return WorkingGrid.for_slide(slide.size_l0, slide.mpp)


@pytest.mark.parametrize(
    ("mpp", "l0_per_w", "stride", "mpp_w", "size_w"),
    [
        (0.25, 1, 1, 0.25, (1000, 700)),
        (0.2485, 1, 1, 0.2485, (1000, 700)),
        (0.2375, 1, 1, 0.2375, (1000, 700)),
        (0.2625, 1, 1, 0.2625, (1000, 700)),
        (0.499, 0.5, 2, 0.2495, (2000, 1400)),
        (0.475, 0.5, 2, 0.2375, (2000, 1400)),
        (0.194, 0.25 / 0.194, 1, 0.25, (776, 544)),
        (0.33, 0.25 / 0.33, 1, 0.25, (1320, 924)),
        (0.474, 0.25 / 0.474, 1, 0.25, (1896, 1328)),
        (0.7, 0.25 / 0.7, 2, 0.25, (2800, 1960)),
        (0.3, 0.25 / 0.3, 1, 0.25, (1200, 840)),
    ],
)
def test_working_grid(mpp: float, l0_per_w: float, stride: int, mpp_w: float, size_w: tuple[int, int]) -> None:
    grid = WorkingGrid.for_slide((1000, 700), mpp)
    assert (grid.l0_per_w, grid.stride, grid.mpp_w) == pytest.approx((l0_per_w, stride, mpp_w))
    assert grid.size_w == size_w
    points = np.array([[3.0, 4.0], [120.5, 0.0]])
    assert np.allclose(grid.to_w(grid.to_l0(points)), points)
    assert grid.to_l0(2.0) == pytest.approx(2 * l0_per_w)


def test_fold_is_opencv_reflection_without_end() -> None:
    assert fold(np.arange(-5, 9), 4).tolist() == [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert fold(np.arange(-3, 3), 1).tolist() == [0] * 6


def test_a_window_many_times_larger_than_the_slide(tmp_path: Path) -> None:
    tiny = make.tissue_texture(10, 7)
    make.write_image(tmp_path / "tiny.png", tiny)
    with open_slide(tmp_path / "tiny.png", 0.25) as slide:
        window = slide.read(grid_of(slide), (-100, -100, 200, 150))
    rows, columns = fold(np.arange(-100, 150), 7), fold(np.arange(-100, 200), 10)
    assert np.array_equal(window, tiny[rows][:, columns])


@pytest.mark.parametrize("mpp", [0.1, 0.16, 0.194, 0.33, 0.43, 0.7])
def test_resampling_keeps_flat_fields_and_places(tmp_path: Path, mpp: float) -> None:
    """White stays white up to the edge, and a ramp keeps its value at every place."""
    ramp = np.repeat(np.linspace(20, 235, 600).round().astype(np.uint8)[None, :, None], 3, axis=2).repeat(80, axis=0)
    white = np.full((40, 600, 3), 255, np.uint8)
    make.write_image(tmp_path / "ramp.png", np.concatenate([ramp, white]))
    with open_slide(tmp_path / "ramp.png", mpp) as slide:
        grid = grid_of(slide)
        read = slide.read(grid, (0, 0, *grid.size_w))
    x_l0 = (np.arange(read.shape[1]) + 0.5) * grid.l0_per_read
    inner = slice(8, -8)
    assert np.abs(read[2, inner, 0] - (20 + 215 * (x_l0 - 0.5) / 599)[inner]).max() < 1
    assert (read[-5:] == 255).all()


@pytest.mark.parametrize(("mpp", "most"), [(0.13, 0.06), (0.16, 0.13), (0.194, 0.3)])
def test_resampling_does_not_alias(tmp_path: Path, mpp: float, most: float) -> None:
    """Stripes finer than the working grid can show come out grey, not as moiré."""
    stripes = np.zeros((60, 1000, 3), np.uint8)
    stripes[:, ::2] = 255
    make.write_image(tmp_path / "stripes.png", stripes)
    with open_slide(tmp_path / "stripes.png", mpp) as slide:
        grid = grid_of(slide)
        read = slide.read(grid, (0, 0, *grid.size_w))[:, 10:-10].astype(float)
    assert read.mean() == pytest.approx(127.5, abs=1)
    assert read.std() < 127.5 * most


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path: Path) -> None:
    """At 0.125 um the working grid is level 1 itself."""
    make.write_tiled_tiff(tmp_path / "fine.tif", make.tissue_texture(400, 300), 0.125)
    with open_slide(tmp_path / "fine.tif") as slide:
        grid = grid_of(slide)
        assert grid.l0_per_read == 2
        level = slide.read_level(1, (0, 0, 200, 150))
        assert np.abs(slide.read(grid, (0, 0, 200, 150)).astype(int) - level).max() == 0


def test_levels_that_are_no_whole_number_apart(tmp_path: Path) -> None:
    """OpenSlide interpolates such a level by where a read begins; windows must agree all the same."""
    picture = make.tissue_texture(1501, 1103)
    make.write_tiled_tiff(tmp_path / "odd.tif", picture, 0.1, levels=2)
    with open_slide(tmp_path / "odd.tif") as slide:
        assert slide.levels[1].downsample == pytest.approx(1501 / 750, abs=2e-3)
        whole = slide.read_level(1, (0, 0, 750, 551))
        for box in ((1, 2, 700, 500), (333, 77, 749, 551), (10, 500, 11, 501)):
            assert np.array_equal(slide.read_level(1, box), whole[box[1] : box[3], box[0] : box[2]])
        assert np.abs(whole.astype(int) - make.halved(picture)).mean() < 3
