"""The journal: exact, whole or not at all, and for one run only."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier.predictions import Predictions
from nucpipe.errors import OutputError
from pipeline.store.journal import Journal
from segmentation.nuclei import Nuclei
from tests.support.paths import ROOT


def some_nuclei(count: int, seed: int = 0) -> Nuclei:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 50, count)
    return Nuclei(
        centroids=rng.uniform(0, 1e5, (count, 2)),
        contour_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        contour_points=rng.uniform(0, 1e5, (int(lengths.sum()), 2)),
        detection_p=rng.uniform(0, 1, count).astype(np.float32),
        area_um2=rng.uniform(5, 90, count).astype(np.float32),
    )


def some_labels(count: int, seed: int = 0) -> Predictions:
    return Predictions(np.random.default_rng(seed).uniform(0, 1, (count, 35)).astype(np.float32))


def assert_same(a: Nuclei, b: Nuclei) -> None:
    for name in ("centroids", "contour_offsets", "contour_points", "detection_p", "area_um2"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)


@contextmanager
def no_room(limit_bytes: int) -> Iterator[None]:
    """No file can grow beyond the limit: the system refuses the write, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("count", [0, 1, 137])
def test_a_region_comes_back_to_the_bit(tmp_path: Path, count: int) -> None:
    journal = Journal.open(tmp_path / "journal", {"slide": "a"})
    journal.write(7, some_nuclei(count), some_labels(count))
    assert journal.done == {7}
    nuclei, labels = Journal.open(tmp_path / "journal", {"slide": "a"}).read(7)
    assert_same(nuclei, some_nuclei(count))
    assert labels.probabilities.dtype == np.float32
    np.testing.assert_array_equal(labels.probabilities, some_labels(count).probabilities)


def test_nuclei_and_labels_must_be_equally_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 nuclei with 2 rows"):
        Journal.open(tmp_path / "journal", {}).write(0, some_nuclei(3), some_labels(2))


def test_resuming_finds_what_is_done(tmp_path: Path) -> None:
    fingerprint = {"slide": {"size_l0": (10, 20)}, "mpp": 0.25}  # a tuple is as good as a list
    journal = Journal.open(tmp_path / "journal", fingerprint)
    for index in (0, 3, 1234567):
        journal.write(index, some_nuclei(2), some_labels(2))
    assert Journal.open(tmp_path / "journal", fingerprint).done == {0, 3, 1234567}


def test_torn_damaged_and_partial_files_count_as_not_done(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = Journal.open(folder, {})
    for index in range(5):
        journal.write(index, some_nuclei(20, index), some_labels(20))
    files = sorted(folder.glob("*.region"))
    content = files[1].read_bytes()
    files[1].write_bytes(content[: len(content) // 2])
    files[2].write_bytes(b"")
    flipped = bytearray(files[3].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    files[3].write_bytes(flipped)
    files[4].rename(files[4].with_name(files[4].name + ".partial"))
    resumed = Journal.open(folder, {})
    assert resumed.done == {0}
    with pytest.raises(OutputError, match=r"000003\.region: this finished region is missing or damaged"):
        resumed.read(3)
    for index in range(1, 5):
        resumed.write(index, some_nuclei(20, index), some_labels(20))
    assert Journal.open(folder, {}).done == {0, 1, 2, 3, 4}
    assert_same(resumed.read(3)[0], some_nuclei(20, 3))


def test_killed_while_writing_leaves_only_whole_regions(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        import numpy as np
        from classifier.predictions import Predictions
        from pipeline.store.journal import Journal
        from segmentation.nuclei import Nuclei
        journal = Journal.open(Path(sys.argv[1]), {})
        for index in range(10**6):
            points = np.full((400_000, 2), float(index))
            one = np.full(1, index, np.float32)
            offsets = np.array([0, len(points)])
            nuclei = Nuclei(points[:1], offsets, points, one, one)
            print(index, flush=True)
            journal.write(index, nuclei, Predictions(np.full((1, 35), index, np.float32)))
    """)
    command = [sys.executable, "-c", program, str(tmp_path / "journal")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "4":
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    journal = Journal.open(tmp_path / "journal", {})
    assert journal.done >= {0, 1, 2, 3}
    for index in journal.done:
        nuclei, labels = journal.read(index)
        assert nuclei.contour_points.shape == (400_000, 2)
        assert (nuclei.contour_points == index).all()
        assert (labels.probabilities == index).all()


FINGERPRINT: dict[str, Any] = {
    "slide_name": "a",
    "slide_fingerprint": "sha256:1",
    "size_l0": [400, 300],
    "mpp": 0.25,
    "outputs": {"libraries": []},
    "models": {
        "segmentor": {"name": "hovernet-compact", "fingerprint": "sha256:2"},
        "classifier": {"name": "fast", "fingerprint": "sha256:3"},
    },
    "settings": {"tissue": "auto", "precision": "fp32", "decide": {"kind": "argmax"}},
    "nucpipe_version": "0.1.0",
    "region_size": 1280,
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {
                "models": {
                    "segmentor": {"name": "hovernet-compact", "fingerprint": "sha256:2"},
                    "classifier": {"name": "joint-context", "fingerprint": "sha256:4"},
                },
                "outputs": {"libraries": ["another"]},
            },
            "--classifier was fast, is joint-context",
        ),
        (
            {
                "models": {
                    "segmentor": {"name": "hovernet-compact", "fingerprint": "sha256:9"},
                    "classifier": {"name": "fast", "fingerprint": "sha256:3"},
                }
            },
            "--segmentor hovernet-compact is another file of that name",
        ),
        (
            {
                "settings": {
                    "tissue": {"file": "roi.geojson", "sha256": "00"},
                    "precision": "fp32",
                    "decide": {"kind": "best", "threshold": 0.7},
                    "tta": True,
                }
            },
            "--tissue was auto, is roi.geojson; --decide was argmax, is best --threshold 0.7; --tta was off, is on",
        ),
        (
            {"slide_fingerprint": "sha256:5", "size_l0": [4, 3]},
            "the slide's file was changed, or is another of the same name",
        ),
        (
            {"mpp": 0.5, "region_size": 640},
            "the pixel size (--mpp) was 0.25 µm, is 0.5 µm; --region-size was 1280, is 640",
        ),
        ({"settings": 3, "models": None, "mpp": "x", "new_thing": [1]}, "new thing was not set, is [1]"),
    ],
)
def test_another_fingerprint_is_refused_and_a_person_reads_what_changed(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    Journal.open(tmp_path / "journal", FINGERPRINT)
    with pytest.raises(OutputError) as caught:
        Journal.open(tmp_path / "journal", FINGERPRINT | changed)
    start, end = str(caught.value).split(told)
    assert start.startswith(f"{tmp_path / 'journal'}: an unfinished run with other settings already exists (")
    assert end == "); give the earlier settings, --overwrite to start again, or another --out."
    assert "sha256" not in start
    assert "absent" not in start


def test_regions_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", {})
    journal.write(0, some_nuclei(1), some_labels(1))
    (tmp_path / "journal" / "journal.json").unlink()
    with pytest.raises(OutputError, match=r"without their journal\.json"):
        Journal.open(tmp_path / "journal", {})


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_journal_json_is_refused(tmp_path: Path, text: str) -> None:
    Journal.open(tmp_path / "journal", {})
    (tmp_path / "journal" / "journal.json").write_text(text)
    with pytest.raises(OutputError, match=r"journal\.json: .*another --out"):
        Journal.open(tmp_path / "journal", {})


def test_no_room_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", {})
    with no_room(20_000), pytest.raises(OutputError, match=r"000000\.region: cannot be written \(File too large\)"):
        journal.write(0, some_nuclei(500), some_labels(500))
    assert journal.done == frozenset()
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["journal.json"]
    journal.write(0, some_nuclei(500), some_labels(500))
    assert Journal.open(tmp_path / "journal", {}).done == {0}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Journal.open(tmp_path / "file" / "journal", {})


def test_remove_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", {})
    journal.write(0, some_nuclei(1), some_labels(1))
    (tmp_path / "journal" / "000001.region.partial").write_bytes(b"torn")
    journal.remove()
    assert not (tmp_path / "journal").exists()
    assert journal.done == frozenset()
