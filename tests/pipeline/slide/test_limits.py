"""Slides that state more than they are: refused in one line, and nothing takes for ever."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

import tests.support.slides as make
from nucpipe.errors import SlideError, UsageError
from pipeline.regions.tissue import tissue_from
from pipeline.slide import limits, time_limit
from pipeline.slide.base import Slide
from pipeline.slide.open import open_slide

MPP = 0.25
PICTURE = make.tissue_texture(300, 260)


def pages_of(content: bytes) -> tuple[str, list[int], int]:
    """Byte order of a TIFF, places of its pages, and the place of the last one's pointer to the next."""
    order = "<" if content.startswith(b"II") else ">"
    pages, at = list[int](), 4
    while place := struct.unpack_from(f"{order}I", content, at)[0]:
        pages.append(place)
        at = place + 2 + 12 * struct.unpack_from(f"{order}H", content, place)[0]
    return order, pages, at


@pytest.mark.parametrize("write", [make.write_tiled_tiff, make.write_ome_tiff, make.write_plain_tiff])
def test_a_list_of_pages_that_leads_back_is_refused(tmp_path: Path, write: Callable[..., None]) -> None:
    path = tmp_path / "slide.tif"
    write(path, PICTURE, MPP)
    content = bytearray(path.read_bytes())
    order, pages, at = pages_of(content)
    struct.pack_into(f"{order}I", content, at, pages[0])
    path.write_bytes(content)
    with pytest.raises(SlideError, match=r"slide\.tif: expected a TIFF; its list of pages leads back to itself\."):
        open_slide(path)


def test_pages_and_tags_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slide.tif"
    make.write_tiled_tiff(path, PICTURE, MPP)
    order, pages, _ = pages_of(path.read_bytes())
    assert len(pages) == 3
    monkeypatch.setattr(limits, "MAX_PAGES", 3)
    open_slide(path).close()
    monkeypatch.setattr(limits, "MAX_PAGES", 2)
    with pytest.raises(SlideError, match="more than 2 entries"):
        open_slide(path)
    monkeypatch.setattr(limits, "MAX_PAGES", 3)
    content = bytearray(path.read_bytes())
    struct.pack_into(f"{order}H", content, pages[1], 5000)
    path.write_bytes(content)
    with pytest.raises(SlideError, match="one of its pages has 5,000 tags"):
        open_slide(path)


def sparse_ngff(path: Path, side: int, written_px: int = 0) -> Path:
    """An image without smaller levels, of which only a corner is stored."""
    make.write_ngff(path, PICTURE, MPP, levels=1)
    array = zarr.open_group(path).create_array(
        "0", shape=(1, 3, 1, side, side), dtype=np.uint8, chunks=(1, 3, 1, 256, 256), fill_value=255, overwrite=True
    )
    if written_px:
        noise = np.random.default_rng(0).integers(0, 256, (1, 3, 1, written_px, written_px))
        array[..., :written_px, :written_px] = noise
    return path


def test_a_size_of_which_next_to_nothing_is_there_is_refused(tmp_path: Path) -> None:
    empty = sparse_ngff(tmp_path / "empty.zarr", 200_000)
    with pytest.raises(SlideError, match=r"empty\.zarr: states 200000 x 200000 pixels, of which its [\d,]+ bytes hold"):
        open_slide(empty)
    with open_slide(sparse_ngff(tmp_path / "sparse.zarr", 20_000, 300)) as slide:  # a slide may be mostly empty
        assert slide.size_l0 == (20_000, 20_000)


def test_finding_the_tissue_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(sparse_ngff(tmp_path / "slow.zarr", 20_000, 300)) as slide:
        monkeypatch.setenv("NUCPIPE_SLIDE_TIMEOUT", "0.05")
        with pytest.raises(SlideError, match=r"slow\.zarr: finding its tissue took more than 0.05 s; .* NUCPIPE_SLIDE"):
            tissue_from("auto", slide)
        for thread in threading.enumerate():
            if thread.name == "nucpipe-slide":
                thread.join(60)
                assert not thread.is_alive()


def test_opening_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ended = tmp_path / "slide.png", threading.Event()
    make.write_image(path, PICTURE)

    def stuck() -> Slide:
        try:
            while True:
                time.sleep(0.001)
        finally:
            ended.set()

    monkeypatch.setenv("NUCPIPE_SLIDE_TIMEOUT", "0.05")
    with pytest.raises(SlideError, match=r"slide\.png: opening it took more than 0.05 s"):
        time_limit.within_time(path, "opening it", stuck)
    assert ended.wait(60)


def test_what_is_done_in_time_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slide.png"
    path.write_bytes(bytes(10**6))
    assert time_limit.time_limit_s(path) == 60
    assert time_limit.within_time(path, "opening it", lambda: 3) == 3

    def late() -> None:
        raise TimeoutError("of the disk")

    with pytest.raises(TimeoutError, match="of the disk"):
        time_limit.within_time(path, "opening it", late)
    for text in ("soon", "0", "nan"):
        monkeypatch.setenv("NUCPIPE_SLIDE_TIMEOUT", text)
        with pytest.raises(UsageError, match="expected a number of seconds"):
            open_slide(path)
