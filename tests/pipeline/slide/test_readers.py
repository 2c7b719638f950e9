"""One contract for every reader: the same picture, the same numbers, whatever file it came in."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

import tests.support.slides as make
from nucpipe.errors import SlideError
from pipeline.slide.base import Slide, describe
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.open import open_slide
from pipeline.slide.resample import Box

WIDTH, HEIGHT = 421, 307
PICTURE = make.tissue_texture(WIDTH, HEIGHT)


@dataclass(frozen=True)
class Kind:
    """A format: how to write it, whether it states its pixel size, and how many levels it has."""

    file: str
    write: Callable[[Path, float], None]
    states_mpp: bool
    levels: int


def ome_without_tiles(path: Path, mpp: float) -> None:
    make.write_ome_tiff(path, PICTURE, mpp, levels=1, tiled=False)


KINDS = {
    "openslide": Kind("slide.tif", lambda path, mpp: make.write_tiled_tiff(path, PICTURE, mpp), True, 3),
    "ome-tiff": Kind("slide.ome.tif", lambda path, mpp: make.write_ome_tiff(path, PICTURE, mpp), True, 3),
    "ome-tiff in strips": Kind("slide.ome.tiff", ome_without_tiles, True, 1),
    "ngff": Kind("slide.ome.zarr", lambda path, mpp: make.write_ngff(path, PICTURE, mpp), True, 3),
    "dicom": Kind("slide", lambda path, mpp: make.write_dicom(path, PICTURE, mpp), True, 1),
    "tiff": Kind("slide.tiff", lambda path, mpp: make.write_plain_tiff(path, PICTURE, mpp), True, 1),
    "png": Kind("slide.png", lambda path, mpp: make.write_image(path, PICTURE), False, 1),
    "jpeg": Kind("slide.jpg", lambda path, mpp: make.write_image(path, PICTURE), False, 1),
    "named wrongly": Kind("slide.svs", lambda path, mpp: make.write_plain_tiff(path, PICTURE, mpp), True, 1),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def path(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("slides") / kind.file
    kind.write(file, 0.25)
    return file


@pytest.fixture
def slide(kind: Kind, path: Path) -> Iterator[Slide]:
    with open_slide(path, None if kind.states_mpp else 0.25) as opened:
        yield opened


@pytest.fixture
def pixels(kind: Kind, path: Path) -> make.Image:
    """What the file holds: the picture itself, or what OpenCV decodes of the JPEG."""
    if kind.file.endswith(".jpg"):
        return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
    return PICTURE


def grid_of(slide: Slide) -> WorkingGrid:
    return WorkingGrid.for_slide(slide.size_l0, slide.mpp)


def test_what_a_slide_says_of_itself(slide: Slide, kind: Kind, path: Path) -> None:
    assert slide.path == path
    assert slide.name == "slide"
    assert slide.size_l0 == (WIDTH, HEIGHT)
    assert slide.mpp == pytest.approx(0.25, rel=1e-6)
    assert slide.origin_l0 == (0, 0)
    assert slide.level_count == kind.levels
    assert [level.size for level in slide.levels] == [(WIDTH >> i, HEIGHT >> i) for i in range(kind.levels)]
    told = describe(slide)
    assert told["size"] == "421 x 307 pixels"
    assert told["pixel size"] == "0.25 um"
    assert told["read at"] == "0.25 um per pixel (its own pixels)"


def test_own_grid_gives_level_0_to_the_bit(slide: Slide, pixels: make.Image) -> None:
    whole = slide.read(grid_of(slide), (0, 0, WIDTH, HEIGHT))
    assert whole.dtype == np.uint8
    assert np.array_equal(whole, pixels)
    assert np.array_equal(slide.read(grid_of(slide), (13, 101, 300, 222)), pixels[101:222, 13:300])


def test_beyond_the_edges_the_slide_is_reflected(slide: Slide, pixels: make.Image) -> None:
    window = slide.read(grid_of(slide), (-40, -30, WIDTH + 50, HEIGHT + 60))
    assert np.array_equal(window, cv2.copyMakeBorder(pixels, 30, 60, 40, 50, cv2.BORDER_REFLECT_101))
    outside = slide.read(grid_of(slide), (WIDTH + 5, -20, WIDTH + 15, -10))
    assert np.array_equal(outside, window[10:20, WIDTH + 45 : WIDTH + 55])


@pytest.mark.parametrize("mpp", [0.1, 0.194, 0.33, 0.7])
def test_a_resampled_pixel_depends_on_its_place_alone(kind: Kind, path: Path, mpp: float) -> None:
    with open_slide(path, mpp) as slide:
        grid = grid_of(slide)
        width, height = grid.size_w
        window = (-64, -32, width + 30, height + 96)
        step = 90 * grid.stride
        whole = slide.read(grid, window)
        cut = [
            [slide.read(grid, (x, y, min(x + step, window[2]), min(y + step, window[3])))
             for x in range(window[0], window[2], step)]
            for y in range(window[1], window[3], step)
        ]  # fmt: skip
    assert np.array_equal(np.concatenate([np.concatenate(row, axis=1) for row in cut]), whole)
    assert whole.shape == ((height + 128) // grid.stride, (width + 94) // grid.stride, 3)


def test_every_level_is_the_slide_in_small(slide: Slide, pixels: make.Image) -> None:
    for index, (level, expected) in enumerate(zip(slide.levels, make.pyramid(pixels, 3), strict=False)):
        width, height = level.size
        assert np.array_equal(slide.read_level(index, (0, 0, width, height)), expected)
        part = slide.read_level(index, (3, 5, width - 7, height - 11))
        assert np.array_equal(part, expected[5 : height - 11, 3 : width - 7])


@pytest.mark.parametrize("shrink", [1, 2, 5.3, 16])
def test_a_part_in_small_is_cut_from_the_whole_in_small(
    slide: Slide, shrink: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, height = int(np.ceil(WIDTH / shrink)), int(np.ceil(HEIGHT / shrink))
    whole = slide.shrunk(shrink, (0, 0, width, height))
    if shrink == 1:
        np.testing.assert_array_equal(whole, slide.read_level(0, (0, 0, WIDTH, HEIGHT)))
    box = (width // 3, height // 4, width - 2, height)
    monkeypatch.setattr("pipeline.slide.base.BLOCK_PX", (64, 96))
    np.testing.assert_array_equal(slide.shrunk(shrink, box), whole[box[1] : box[3], box[0] : box[2]])


@pytest.mark.parametrize("max_px", [1, 40, 200, 10_000])
def test_thumbnail_is_the_whole_slide(slide: Slide, pixels: make.Image, max_px: int) -> None:
    thumbnail = slide.thumbnail(max_px)
    shrink = max(1.0, WIDTH / max_px)
    assert thumbnail.shape == (max(1, round(HEIGHT / shrink)), round(WIDTH / shrink), 3)
    expected = cv2.resize(pixels, thumbnail.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(thumbnail.astype(int) - expected).mean() < 4
    assert np.abs(thumbnail.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max() < 4


def test_a_thumbnail_reads_no_place_for_more_than_two_rows_of_blocks(
    slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbours in a row share what is read; where a slide has no small levels, that is most of finding its tissue."""
    whole, read_level, boxes = slide.thumbnail(100), slide.read_level, Counter[Box]()

    def counted(level: int, box: Box) -> make.Image:
        boxes[box] += 1
        return read_level(level, box)

    monkeypatch.setattr(slide, "read_level", counted)
    monkeypatch.setattr("pipeline.slide.base.BLOCK_PX", (64, 128))
    monkeypatch.setattr("pipeline.slide.base.SQUARE_PX", 32)
    np.testing.assert_array_equal(slide.thumbnail(100), whole)
    assert len(boxes) > 10
    assert all(x0 % 32 == y0 % 32 == 0 and max(x1 - x0, y1 - y0) <= 32 for x0, y0, x1, y1 in boxes)
    assert max(boxes.values()) <= 2


def test_threads_read_what_one_reads(slide: Slide, pixels: make.Image) -> None:
    grid, wrong = grid_of(slide), []

    def read(x: int) -> None:
        for y in range(0, 200, 20):
            if not np.array_equal(slide.read(grid, (x, y, x + 90, y + 60)), pixels[y : y + 60, x : x + 90]):
                wrong.append((x, y))

    threads = [threading.Thread(target=read, args=(x,)) for x in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_given_pixel_size_wins(path: Path) -> None:
    with open_slide(path, 0.5) as slide:
        assert slide.mpp == 0.5
        grid = grid_of(slide)
        assert (grid.stride, grid.size_w) == (2, (2 * WIDTH, 2 * HEIGHT))
        assert slide.read(grid, (0, 0, 20, 10)).shape == (5, 10, 3)
        with pytest.raises(ValueError, match="stride"):
            slide.read(grid, (1, 0, 21, 10))


@pytest.mark.parametrize("mpp", [0.049, 1.3])
def test_absurd_given_pixel_size(path: Path, mpp: float) -> None:
    with pytest.raises(SlideError, match=r"--mpp .* is outside 0\.05 to 1\.2 um"):
        open_slide(path, mpp)
