"""Which slides a command means: folders, patterns, contents and manifests, and where each one's results go."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.support.slides as make
from nucpipe.errors import UsageError
from pipeline.batch.manifest import read_manifest
from pipeline.batch.plan import plan
from pipeline.config import RunConfig
from pipeline.slide.identity import slide_fingerprint, slide_name

PICTURE = np.full((64, 64, 3), 200, np.uint8)


def planned(*inputs: Path | str) -> list[tuple[str, str]]:
    return [(job.slide.name, str(job.folder)) for job in plan(inputs, RunConfig())]


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_folder_by_extension_and_by_content(tmp_path: Path) -> None:
    make.write_tiled_tiff(touch(tmp_path / "scan 7"), PICTURE, 0.25)
    make.write_tiled_tiff(touch(tmp_path / "b" / "scan.img"), PICTURE, 0.25)
    for name in ("a.svs", "b/c.NDPI", "notes.txt", "table.csv", ".hidden.svs", ".cache/a.svs", "b/random.bin"):
        touch(tmp_path / name)
    make.write_ngff(tmp_path / "d.zarr", PICTURE, 0.25)
    assert planned(tmp_path) == [
        ("a.svs", "a"),
        ("d.zarr", "d"),
        ("scan 7", "scan 7"),
        ("c.NDPI", "b/c"),
        ("scan.img", "b/scan"),
    ]


def test_parts_of_a_slide_are_no_slides(tmp_path: Path) -> None:
    touch(tmp_path / "a.mrxs")
    touch(tmp_path / "a" / "Data0000.dat", b"II*\0")
    touch(tmp_path / "a" / "thumb.jpg")
    touch(tmp_path / "v.vms", b"[Virtual Microscope Specimen]\nImageFile=v-1.jpg\nMacroImage=v_macro.jpg\n")
    for name in ("v-1.jpg", "v_macro.jpg", "other.jpg"):
        touch(tmp_path / name)
    assert [name for name, _ in planned(tmp_path)] == ["a.mrxs", "other.jpg", "v.vms"]


def test_a_dicom_file_hides_no_other_slide(tmp_path: Path) -> None:
    dicom = bytes(128) + b"DICM"
    for name in ("alone/1.dcm", "alone/2.dcm", "alone/DICOMDIR", "mixed/1.dcm"):
        touch(tmp_path / name, dicom)
    touch(tmp_path / "alone" / "junk.dcm")
    touch(tmp_path / "alone" / "notes.txt")
    touch(tmp_path / "mixed" / "a.svs")
    touch(tmp_path / "mixed" / "junk.dcm")
    assert planned(tmp_path) == [
        ("alone", "alone"),
        ("1.dcm", "mixed/1"),
        ("a.svs", "mixed/a"),
        ("junk.dcm", "mixed/junk"),
    ]


def test_links_are_followed_and_never_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.svs")
    touch(tmp_path / "elsewhere" / "b.svs")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "loop.svs").symlink_to(tmp_path / "in" / "loop.svs")
    (tmp_path / "in" / "gone.svs").symlink_to(tmp_path / "nowhere")
    assert planned(tmp_path / "in") == [
        ("a.svs", "a"),
        ("gone.svs", "gone"),
        ("loop.svs", "loop"),
        ("b.svs", "link/b"),
    ]
    assert [name for name, _ in planned(str(tmp_path / "in" / "**" / "*.svs"))] == ["a.svs", "gone.svs", "loop.svs"]


def test_patterns(tmp_path: Path) -> None:
    for name in ("a1.svs", "a2.svs", "b1.svs", "sub/a3.svs", "odd[1].svs"):
        touch(tmp_path / name)
    assert [name for name, _ in planned(f"{tmp_path}/a*.svs")] == ["a1.svs", "a2.svs"]
    assert [name for name, _ in planned(f"{tmp_path}/**/a?.svs")] == ["a1.svs", "a2.svs", "a3.svs"]
    assert planned(f"{tmp_path}/odd[1].svs") == [("odd[1].svs", "odd[1]")]
    assert planned(f"{tmp_path}/s*") == [("a3.svs", "a3")]
    with pytest.raises(UsageError, match="no slide matches it"):
        planned(f"{tmp_path}/z*.svs")
    with pytest.raises(UsageError, match="no such slide, folder or manifest"):
        planned(f"{tmp_path}/z.svs")


def test_names_never_lead_out_of_the_results(tmp_path: Path) -> None:
    for name in ("...svs", "..svs", ".svs"):
        folder = Path(slide_name(touch(tmp_path / name)))
        assert ".." not in folder.parts
        assert (tmp_path / "out" / folder).resolve().is_relative_to(tmp_path / "out")
    assert slide_name(Path("..")) == slide_name(Path("/")) == "slide"


@given(st.text(max_size=30))
def test_any_name_is_one_folder(text: str) -> None:
    name = slide_name(Path(text.replace("\0", "")))
    assert name.strip(".")
    assert "/" not in name
    assert "\n" not in name


def manifest(folder: Path, text: str, name: str = "slides.csv") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_manifest_gives_each_slide_its_own_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "roi.geojson")
    text = (
        "slide,mpp,tissue,patient,name,primary,decide,threshold\n"
        'a.svs,0.5,none,7,"p 7/first",,,\n'
        "sub/b.svs,,roi.geojson,8,,CoNSeP,best,0.6\n"
        "/abs/c.svs,,,9,,,,\n"
        "s3://bucket/d.svs,0.25,,9,,,,\n"
    )
    config = RunConfig(mpp=0.3, tissue="auto")
    with caplog.at_level(logging.WARNING):
        jobs = plan([manifest(tmp_path, "\ufeff" + text)], config)
    assert [(str(job.slide), str(job.folder)) for job in jobs] == [
        (str(tmp_path / "a.svs"), "p 7/first"),
        (str(tmp_path / "sub/b.svs"), "b"),
        ("/abs/c.svs", "c"),
        ("s3://bucket/d.svs", "d"),
    ]
    assert jobs[0].config == RunConfig(mpp=0.5, tissue="none")
    assert jobs[1].config == RunConfig(
        mpp=0.3, tissue=str(tmp_path / "roi.geojson"), primary="CoNSeP", decide="best", threshold=0.6
    )
    assert jobs[2].config == config
    assert "columns that are not used: patient" in caplog.text
    tabbed = plan([manifest(tmp_path, text.replace(",", "\t"), "slides.tsv")], config)
    assert tabbed == jobs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a column 'slide', found nothing"),
        ("file,mpp\na.svs,1\n", "expected a column 'slide', found file, mpp"),
        ("slide\n", "expected a line for each slide"),
        ("slide,mmp\na.svs,0.5\n", "column 'mmp' is not known; is 'mpp' meant"),
        ("slide,slide\na,b\n", "column 'slide' appears twice"),
        ("slide,mpp\na.svs,quarter\n", "line 2: mpp 'quarter' is not a number"),
        ("slide,mpp\na.svs,-1\n", "line 2: --mpp -1: expected micrometres"),
        ("slide,mpp\na.svs,nan\n", "line 2: --mpp nan"),
        ("slide,mpp\na.svs,0.5,7\n", "line 2: another number of fields"),
        ("slide,mpp\na.svs\n", "line 2: another number of fields"),
        ("slide,mpp\n,0.5\n", "line 2: the field 'slide' is empty"),
        ("slide,decide\na.svs,best\n", "line 2: --decide best needs --threshold"),
        ("slide,tissue\na.svs,nowhere.png\n", "line 2: --tissue .*nowhere.png: no such file"),
        ('slide,mpp\n"a.svs,0.5\n', "cannot be read"),
        ("slide,name\na.svs,../../etc\n", "line 2: name '../../etc': expected a folder below --out"),
        ("slide,name\na.svs,/etc/x\n", "expected a folder below --out"),
        ("slide,name\na.svs,a/../../b\n", "expected a folder below --out"),
        ("slide,name\na.svs,..\\..\\b\n", "expected a folder below --out"),
        ("slide,name\na.svs,C:\\b\n", "expected a folder below --out"),
        ("slide,name\na.svs,.locks\n", "expected a folder below --out"),
        ("slide,name\na.svs,t1\nb.svs,t2\nc.svs,t1\n", "line 4: name 't1' stands in line 2 already"),
        ("slide,mpp\na.svs,0.25\na.svs,0.5\n", "line 3: slide 'a.svs' stands in line 2 already"),
    ],
)
def test_a_wrong_manifest_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        plan([manifest(tmp_path, text)], RunConfig())
    assert "slides.csv" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,name\na.svs,p7\nb.svs,p7/second\n", "'p7/second' in a manifest would lie inside the results of 'p7'"),
        ("slide,name\na.svs,summary.csv\n", "'summary.csv' in a manifest is that of the summary"),
    ],
)
def test_a_name_that_would_harm_another_result_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan([manifest(tmp_path, text)], RunConfig())


@given(st.binary(max_size=200) | st.text("slide,mpp\t\n\r\"'./\\\0nameé=0123456789", max_size=120).map(str.encode))
def test_any_manifest_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed-{os.getpid()}.csv"
    path.write_bytes(content)
    try:
        rows = read_manifest(path, RunConfig())
    except UsageError:
        return
    for row in rows:
        assert row.slide
        assert ".." not in Path(row.name).parts
        assert not Path(row.name).is_absolute()


def test_fingerprints_tell_slides_apart(tmp_path: Path) -> None:
    small = touch(tmp_path / "small.svs", bytes(1000))
    before = slide_fingerprint(small)
    small.write_bytes(bytes(500) + b"\1" + bytes(499))
    assert slide_fingerprint(small) != before
    large = touch(tmp_path / "large.svs", bytes(2**24 + 7))
    before = slide_fingerprint(large)
    with large.open("r+b") as file:
        file.seek(2**24)
        file.write(b"\1")
    assert slide_fingerprint(large) != before
    mrxs = touch(tmp_path / "a.mrxs")
    data = touch(tmp_path / "a" / "Data0000.dat")
    before = slide_fingerprint(mrxs)
    data.write_bytes(b"other")
    assert slide_fingerprint(mrxs) != before
