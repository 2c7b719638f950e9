"""What is ours to parse, given anything: read or refused in one line. And headers that would cost all memory."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.support.slides as make
from classifier.labels.libraries import load_library
from classifier.predictor import load_predictor
from nucpipe.backends.model_file import FORMAT, ModelHeader, load_model, read_header
from nucpipe.errors import DataError, ModelError, NucpipeError, SlideError
from nucpipe.optional.xml import parse_xml
from pipeline.inference.models import find_model
from pipeline.regions.tissue import tissue_from
from pipeline.slide.open import open_slide
from segmentation.registry import load_detector

PICTURE = make.tissue_texture(200, 160)
# A fast profile for the suite; NUCPIPE_FUZZ=5000 looks longer.
fast = settings(
    max_examples=int(os.environ.get("NUCPIPE_FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.integers(10**400, 10**400 + 1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
NUMBER = st.floats() | st.integers() | st.sampled_from([10**400, -(10**400), 1e308, 2**63, "1", None, True])
POSITION = st.lists(NUMBER, min_size=0, max_size=3) | st.lists(st.integers(-50, 250), min_size=2, max_size=2)
RINGS = st.lists(st.lists(POSITION, max_size=6), max_size=3)
GEOMETRY = st.fixed_dictionaries(
    {"type": st.sampled_from(["Polygon", "MultiPolygon", "GeometryCollection", "Point", "Feature"])},
    optional={
        "coordinates": RINGS | st.lists(RINGS, max_size=3) | JSON,
        "geometries": JSON,
        "geometry": JSON,
        "features": JSON,
    },
)
GEOJSON = JSON | GEOMETRY | st.fixed_dictionaries({"type": st.just("Feature"), "geometry": GEOMETRY})


def one_line(error: BaseException) -> bool:
    return bool(str(error)) and "\n" not in str(error)


@fast
@given(GEOJSON)
def test_any_geojson_of_regions(tmp_path: Path, parsed: Any) -> None:
    slide, roi = tmp_path / "s.png", tmp_path / "roi.geojson"
    if not slide.exists():
        make.write_image(slide, PICTURE)
    roi.write_text(json.dumps(parsed))
    with open_slide(slide, 0.25) as opened:
        try:
            mask = tissue_from(str(roi), opened)
        except SlideError as error:
            assert one_line(error)  # noqa: PT017
        else:
            assert mask.area_mm2 > 0


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"type":' * 50_000, "\0", "1e999", '{"type":"Polygon"}', "[[[]]]", ""]
)
def test_hostile_geojson(tmp_path: Path, text: str) -> None:
    make.write_image(tmp_path / "s.png", PICTURE)
    (tmp_path / "roi.geojson").write_text(text)
    with open_slide(tmp_path / "s.png", 0.25) as slide, pytest.raises(SlideError) as error:
        tissue_from(str(tmp_path / "roi.geojson"), slide)
    assert one_line(error.value)


def test_polygons_that_cover_the_slide_again_and_again(tmp_path: Path) -> None:
    make.write_image(tmp_path / "s.png", PICTURE)
    ring = [[0, 0], [200, 0], [200, 160], [0, 160], [0, 0]]
    (tmp_path / "roi.geojson").write_text(json.dumps({"type": "MultiPolygon", "coordinates": [[ring]] * 1000}))
    with open_slide(tmp_path / "s.png", 0.25) as slide, pytest.raises(SlideError, match="hundreds of times over"):
        tissue_from(str(tmp_path / "roi.geojson"), slide)


def safetensors(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@fast
@given(st.binary(max_size=100) | JSON.map(lambda h: safetensors({"__metadata__": h})) | JSON.map(
    lambda h: safetensors({"__metadata__": {"format": FORMAT, "nucpipe": json.dumps(h)}})
))  # fmt: skip
def test_any_model_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_header(path)
    assert one_line(error.value)


def header_of(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    path = find_model(kind, {"segmentor": "hovernet-compact", "classifier": "fast"}[kind])
    header, tensors = load_model(path)
    return asdict(header), tensors


HEADERS = {kind: header_of(kind) for kind in ("segmentor", "classifier")}


def load(kind: str, path: Path) -> None:
    load_detector(path) if kind == "segmentor" else load_predictor(path)


def write_model(path: Path, kind: str, header: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    metadata = {"format": FORMAT, "nucpipe": json.dumps(header)}
    save_file(HEADERS[kind][1], str(path), metadata=metadata)


@settings(fast, max_examples=max(10, fast.max_examples // 6))
@given(st.sampled_from(["segmentor", "classifier"]), st.data())
def test_headers_of_models_with_any_value_in_one_field(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    header = json.loads(json.dumps(HEADERS[kind][0]))
    node: Any = header
    key = data.draw(st.sampled_from(sorted(node)))
    while isinstance(node[key], dict) and node[key] and data.draw(st.booleans()):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node)))
    node[key] = data.draw(JSON)
    path = tmp_path / "m.safetensors"
    write_model(path, kind, header)
    try:
        load(kind, path)
    except NucpipeError as error:
        assert one_line(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("segmentor", {"widths": [20_000, 20_000, 20_000]}),
        ("segmentor", {"widths": [10**9, 10**9, 10**9]}),
        ("segmentor", {"encoder": "hf-hub:somebody/something"}),
        ("segmentor", {"encoder": "eva02_enormous_patch14_clip_224"}),
        ("classifier", {"backbone": "hf-hub:somebody/something"}),
        ("classifier", {"backbone": "vit_giant_patch14_clip_224"}),
        ("classifier", {"size_px": 10**6}),
    ],
)
def test_networks_that_the_file_does_not_hold(tmp_path: Path, kind: str, change: dict[str, Any]) -> None:
    """Refused before memory is taken for them, and never fetched from elsewhere."""
    header = json.loads(json.dumps(HEADERS[kind][0]))
    header["architecture"] |= change
    write_model(tmp_path / "m.safetensors", kind, header)
    with pytest.raises(ModelError, match=r"cannot be built|do not fit") as error:
        load(kind, tmp_path / "m.safetensors")
    assert one_line(error.value)


def test_the_bundled_headers_are_good(tmp_path: Path) -> None:
    for kind, (header, _) in HEADERS.items():
        write_model(tmp_path / "m.safetensors", kind, header)
        load(kind, tmp_path / "m.safetensors")
        assert read_header(tmp_path / "m.safetensors") == ModelHeader(
            **{**header, "mean": tuple(header["mean"]), "std": tuple(header["std"])}
        )


@pytest.mark.parametrize("change", [{"min_area_um2": -1}, {"min_area_um2": "4"}, {"min_detection_p": 1.5}])
def test_a_filter_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write_model(tmp_path / "m.safetensors", "segmentor", HEADERS["segmentor"][0] | change)
    with pytest.raises(ModelError, match="its least area is not 0 or more, or its least detection probability"):
        load("segmentor", tmp_path / "m.safetensors")


TOML_VALUE = st.sampled_from(
    ["1", "-1", "nan", "inf", '""', '"x"', "[]", '["a", "b"]', '["a", 1]', "{}", "{a = [1, 2, 3]}", "true", "0"]
)


@fast
@given(
    st.text(max_size=60)
    | st.dictionaries(
        st.sampled_from(["name", "labels", "mpp", "licence", "citation", "synonyms", "groups"]), TOML_VALUE
    ).map(lambda fields: "\n".join(f"{key} = {value}" for key, value in fields.items()))
)
def test_any_library_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "library.toml"
    path.write_text(text, "utf-8")
    try:
        library = load_library(path)
    except DataError as error:
        assert one_line(error)  # noqa: PT017
    else:
        assert library.labels
        assert 0 < library.mpp < float("inf")


@fast
@given(st.binary(max_size=80) | st.text(max_size=60) | st.text("<>/a&;!x='\" ", max_size=40))
def test_any_xml(text: str | bytes) -> None:
    try:
        parse_xml(text)
    except ValueError as error:
        assert one_line(error)  # noqa: PT017


def test_xml_with_entities_is_refused() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><x>&b;</x>'
    with pytest.raises(ValueError, match="document type"):
        parse_xml(bomb)
    with pytest.raises(ValueError, match="document type"):
        parse_xml('<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>')


def png(path: Path, width: int, height: int, data: bytes) -> None:
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + data, b"IEND"]
    packed = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def bomb_tile(path: Path) -> None:
    """A tiled TIFF whose one tile claims 65,536 pixels squared."""
    tifffile.imwrite(path, PICTURE, tile=(160, 208), photometric="rgb", compression="zlib", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        page = file.pages.first
        for tag in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
            page.tags[tag].overwrite(65536)


def wide(path: Path, width: int) -> None:
    """A TIFF of strips whose header states another width."""
    tifffile.imwrite(path, PICTURE, photometric="rgb", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["ImageWidth"].overwrite(width)


def ngff(path: Path, shape: list[int], chunks: list[int]) -> None:
    """An NGFF whose level 0 claims a shape."""
    make.write_ngff(path, PICTURE, 0.25)
    fields = json.loads((path / "0" / ".zarray").read_text())
    (path / "0" / ".zarray").write_text(json.dumps({**fields, "shape": shape, "chunks": chunks}))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("bomb.png", partial(png, width=20_000, height=20_000, data=zlib.compress(bytes(10**6)))),
        ("wide.png", partial(png, width=2**31 - 1, height=1, data=zlib.compress(bytes(100)))),
        ("none.png", partial(png, width=0, height=0, data=b"")),
        ("tile.tif", bomb_tile),
        ("wide.tif", partial(wide, width=2**32 - 1)),
        ("zero.tif", partial(wide, width=0)),
        ("vast.zarr", partial(ngff, shape=[1, 3, 1, 10**7, 10**7], chunks=[1, 1, 1, 128, 128])),
        ("chunk.zarr", partial(ngff, shape=[1, 3, 1, 10**5, 10**5], chunks=[1, 1, 1, 10**5, 10**5])),
        ("minus.zarr", partial(ngff, shape=[1, 3, 1, -5, 100], chunks=[1, 1, 1, 128, 128])),
        ("empty.zarr", partial(ngff, shape=[1, 3, 1, 0, 0], chunks=[1, 1, 1, 128, 128])),
        ("pipe.svs", os.mkfifo),
    ],
)
def test_absurd_headers_and_bombs_are_refused(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    with pytest.raises(SlideError) as error:
        open_slide(tmp_path / name, 0.25)
    assert one_line(error.value)
    assert name in str(error.value)


def test_a_device_is_no_slide() -> None:
    with pytest.raises(SlideError, match="a pipe or a device"):
        open_slide(Path("/dev/zero"), 0.25)


@fast
@given(st.data())
def test_flipped_bits_in_small_slides(tmp_path: Path, data: st.DataObject) -> None:
    """Opened and read, or refused; ``benchmarks/fuzz.py`` does this at length, a process for each file."""
    kinds = {"a.tif": make.write_tiled_tiff, "b.tif": make.write_plain_tiff, "c.png": make.write_image}
    name = data.draw(st.sampled_from(sorted(kinds)))
    path = tmp_path / name
    kinds[name](path, PICTURE)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        with open_slide(path, 0.25) as slide:
            width, height = slide.size_l0
            pixels = slide.read_level(0, (0, 0, min(width, 300), min(height, 300)))
            assert pixels.dtype == np.uint8
    except SlideError as error:
        assert one_line(error)  # noqa: PT017
