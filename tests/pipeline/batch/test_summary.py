"""The summary: a line a slide, added without writing the others again, whoever else adds or was killed."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import pytest

from nucpipe.errors import OutputError
from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import Job
from pipeline.batch.summary import COLUMNS, SUMMARY, Summary
from pipeline.config import RunConfig
from pipeline.store.run_record import SlideResult


def result(name: str, status: str = "done", count: int = 1, library: str = "PanNuke", cause: str = "") -> SlideResult:
    counts = {} if status == "failed" else {library: {"neoplastic": count, "dead": 0}}
    return SlideResult(Path(f"{name}.svs"), Path(name), status, count, 1.5, 2.0, cause, counts)


def lines(out: Path) -> list[dict[str, str]]:
    with (out / SUMMARY).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def statuses(out: Path) -> list[tuple[str, str]]:
    return [(line["folder"], line["status"]) for line in lines(out)]


def test_lines_are_added_at_the_end(tmp_path: Path) -> None:
    """The bytes that are there, and the file itself, stay; only a new column has it written anew."""
    summary = Summary(tmp_path)
    summary.write([(result("a", "failed", cause="no, slide"), Path("a"))])
    summary.write([(result("b"), Path("b"))])  # has the columns of the labels
    before = summary.path.read_bytes()
    file = summary.path.stat().st_ino
    for k in range(50):
        summary.write([(result(f"s{k}", count=k), Path(f"s{k}"))])
        assert summary.path.read_bytes().startswith(before)
    assert summary.path.stat().st_ino == file
    assert list(lines(tmp_path)[0]) == [*COLUMNS, "PanNuke:neoplastic", "PanNuke:dead"]
    assert [line["PanNuke:neoplastic"] for line in lines(tmp_path)] == ["", "1", *map(str, range(50))]
    summary.write([(result("c", library="NuCLS"), Path("c"))])
    assert list(lines(tmp_path)[0])[-2:] == ["NuCLS:neoplastic", "NuCLS:dead"]
    assert lines(tmp_path)[1]["PanNuke:neoplastic"] == "1"
    assert lines(tmp_path)[-1]["PanNuke:neoplastic"] == ""


def test_what_is_finished_before_writes_nothing(tmp_path: Path) -> None:
    Summary(tmp_path).write([(result("a"), Path("a"))])
    before = (tmp_path / SUMMARY).read_bytes()
    again = Summary(tmp_path)
    assert not again.write([(result("a", "finished before"), Path("a"))])
    assert not again.tidy()
    assert (tmp_path / SUMMARY).read_bytes() == before
    assert again.write([(result("b", "finished before"), Path("b"))])  # its line was lost
    assert statuses(tmp_path) == [("a", "done"), ("b", "finished before")]


def test_a_slide_run_again_has_one_line_in_the_end(tmp_path: Path) -> None:
    for name, status in (("a", "failed"), ("b", "done"), ("c", "failed")):
        Summary(tmp_path).write([(result(name, status), Path(name))])
    summary = Summary(tmp_path)
    summary.write([(result("a", count=7), Path("a"))])
    summary.write([(result("a", count=8), Path("a"))])
    assert lines(tmp_path)[-1]["nuclei"] == "8"
    assert summary.tidy()
    assert statuses(tmp_path) == [("a", "done"), ("b", "done"), ("c", "failed")]
    assert lines(tmp_path)[0]["nuclei"] == "8"
    assert not summary.tidy()


def test_several_processes_add_and_tidy_by_turns(tmp_path: Path) -> None:
    """None loses another's line, also where another has written the file anew meanwhile."""
    first, second = Summary(tmp_path), Summary(tmp_path)
    for k in range(12):
        first.write([(result(f"a{k}"), Path(f"a{k}"))])
        second.write([(result(f"b{k}", library="NuCLS" if k == 5 else "PanNuke"), Path(f"b{k}"))])
        first.write([(result(f"b{k}", "failed"), Path(f"b{k}"))])
        if k % 4 == 3:
            second.tidy()
    first.tidy()
    expected = {f"a{k}": "done" for k in range(12)} | {f"b{k}": "failed" for k in range(12)}
    assert sorted(statuses(tmp_path)) == sorted(expected.items())
    second.write([(result("c"), Path("c"))])
    assert dict(statuses(tmp_path)) == expected | {"c": "done"}


@pytest.mark.parametrize("cut", [1, 2, 3, 10, 40])
def test_a_line_that_was_cut_off_is_dropped_or_ended(tmp_path: Path, cut: int) -> None:
    for name in ("a", "b"):
        Summary(tmp_path).write([(result(name, count=12345), Path(name))])
    whole = (tmp_path / SUMMARY).read_bytes()
    (tmp_path / SUMMARY).write_bytes(whole[:-cut])
    summary = Summary(tmp_path)
    summary.write([(result("c"), Path("c"))])
    assert dict(statuses(tmp_path)).keys() - {"b"} == {"a", "c"}
    summary.write([(result("b"), Path("b"))])
    summary.tidy()
    assert sorted(statuses(tmp_path)) == [("a", "done"), ("b", "done"), ("c", "done")]


def test_a_full_disk_leaves_no_half_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = Summary(tmp_path)
    summary.write([(result("a"), Path("a"))])
    before = summary.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"summary\.csv: cannot be written \(No space left on device\)"):
            summary.write([(result("b"), Path("b"))])
    assert summary.path.read_bytes() == before
    summary.write([(result("b"), Path("b"))])
    assert statuses(tmp_path) == [("a", "done"), ("b", "done")]


def test_a_summary_that_was_removed_begins_anew(tmp_path: Path) -> None:
    summary = Summary(tmp_path)
    summary.write([(result("a"), Path("a"))])
    summary.path.unlink()
    summary.write([(result("b"), Path("b"))])
    assert statuses(tmp_path) == [("b", "done")]


def test_an_address_gets_the_summary_now_and_then_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.batch import output

    monkeypatch.setenv("NUCPIPE_CACHE", str(tmp_path / "cache"))
    sent: list[int] = []
    monkeypatch.setattr(output, "write", lambda _, content: sent.append(content.count(b"\n")))
    with OutputLocation("memory://summary/out") as to:
        for k in range(40):
            job = Job.of(Path(f"s{k}.svs"), Path(f"s{k}"), RunConfig())
            to.summary_line(result(f"s{k}"), job)
    assert sent == [2, 41]  # with the header
    sent.clear()

    def stopped() -> None:
        with OutputLocation("memory://summary/out") as to:
            for name in ("a", "b"):
                to.summary_line(result(name), Job.of(Path(f"{name}.svs"), Path(name), RunConfig()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert sent == [2, 3]
