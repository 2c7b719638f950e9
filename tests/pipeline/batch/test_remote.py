"""Slides and results in an object store: an S3-compatible server on this machine, and fsspec's store in memory."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import nucpipe
import tests.support.slides as make
from nucpipe.addresses import RemotePath, is_remote
from nucpipe.errors import OutputError, SlideError, UsageError
from pipeline.batch import remote
from pipeline.batch.lock import Lock, held
from pipeline.batch.output import OutputRoot
from pipeline.batch.remote import STAGED, check_reachable, fetched, list_slides, send
from pipeline.slide.identity import is_slide_name
from pipeline.store.reader import open_store
from pipeline.store.run_record import RESULT_FILES
from tests.support.s3 import s3_server
from tests.support.synthetic import MPP, draw_slide

BUCKET = "s3://bucket"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUCPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """An empty bucket on moto's server."""
    with s3_server(monkeypatch) as (files, _):
        yield files


def summary(files: fsspec.AbstractFileSystem) -> dict[str, dict[str, str]]:
    text = files.cat_file("bucket/out/summary.csv").decode()
    return {row["folder"]: row for row in csv.DictReader(io.StringIO(text))}


@pytest.mark.filterwarnings("default")
def test_slides_and_results_in_s3(
    store: fsspec.AbstractFileSystem, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("a", 1), ("deep/b", 2)):
        path = tmp_path / f"{Path(name).name}.png"
        draw_slide(220, 200, seed=seed).save(path)
        store.put_file(str(path), f"bucket/in/{name}.png")
    store.pipe_file("bucket/in/bad.svs", b"no slide")
    store.pipe_file("bucket/in/notes.txt", b"ignored")
    settings = {"mpp": MPP, "tissue": "none"}
    results = nucpipe.run(f"{BUCKET}/in/", f"{BUCKET}/out", **settings)
    assert [(str(r.slide), r.status) for r in results] == [
        (f"{BUCKET}/in/a.png", "done"),
        (f"{BUCKET}/in/bad.svs", "failed"),
        (f"{BUCKET}/in/deep/b.png", "done"),
    ]
    assert "expected a slide" in results[1].cause
    assert str(results[2].folder) == f"{BUCKET}/out/deep/b"
    (alone,) = nucpipe.run(tmp_path / "a.png", tmp_path / "alone", **settings)
    store.get("bucket/out/a/", str(tmp_path / "fetched") + "/", recursive=True)
    a, b = open_store(alone.folder / "nuclei.zarr"), open_store(tmp_path / "fetched" / "nuclei.zarr")
    assert len(a) == results[0].nuclei > 0
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.probabilities, b.probabilities)
    assert (tmp_path / "fetched" / "nuclei.geojson").read_bytes() == (alone.folder / "nuclei.geojson").read_bytes()
    run = json.loads(store.cat_file("bucket/out/a/run.json"))
    assert run["slide"] == f"{BUCKET}/in/a.png"
    assert run["command"].startswith(f"nucpipe run {BUCKET}/in/a.png --out {BUCKET}/out --")
    statuses = {key: row["status"] for key, row in summary(store).items()}
    assert statuses == {"a": "done", "bad": "failed", "deep/b": "done"}
    left = {path.relative_to(cache) for path in cache.rglob("*") if path.is_file() and path.name != "summary.csv"}
    assert {path.parts[0] for path in left} <= {"networks", "numba"}  # no slide and no result

    fetches = []
    get = remote._get

    def counted(files: fsspec.AbstractFileSystem, source: str, target: Path) -> None:
        fetches.append(source)
        get(files, source, target)

    monkeypatch.setattr(remote, "_get", counted)
    again = nucpipe.run(f"{BUCKET}/in/", f"{BUCKET}/out", **settings)
    assert [r.status for r in again] == ["finished before", "failed", "finished before"]
    assert again[0].counts == results[0].counts
    assert fetches == ["bucket/in/bad.svs"]  # a finished slide is not fetched again

    draw_slide(220, 200, seed=3).save(tmp_path / "a.png")
    store.put_file(str(tmp_path / "a.png"), "bucket/in/a.png")
    (changed,) = nucpipe.run(f"{BUCKET}/in/a.png", f"{BUCKET}/out", **settings)
    assert changed.status == "failed"
    assert "the slide's file was changed" in changed.cause
    assert "--overwrite" in changed.cause
    (redone,) = nucpipe.run(f"{BUCKET}/in/a.png", f"{BUCKET}/out", overwrite=True, **settings)
    assert redone.status == "done"
    assert summary(store)["a"]["nuclei"] == str(redone.nuclei)
    (filtered,) = nucpipe.run(f"{BUCKET}/in/a.png", f"{BUCKET}/out", min_area=6, **settings)
    assert filtered.status == "failed"
    assert "--min-area was 4, is 6" in filtered.cause


@pytest.mark.filterwarnings("default")
def test_a_result_is_none_until_it_is_whole(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    """The files that make a result one go last, and are the first to go when it is replaced."""
    path = draw_slide(220, 200).save(tmp_path / "a.png")
    (alone,) = nucpipe.run(path, tmp_path / "alone", mpp=MPP, tissue="none")
    sent: list[str] = []
    put = type(store).put_file

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def put_file(self, source: str, target: str) -> None:
            sent.append(target)
            put(store, source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "file_system", lambda address: (Watched(), "bucket/out/a"))
        remote.send(Path(alone.folder), RESULT_FILES, RemotePath(f"{BUCKET}/out/a"))
    assert sent[-2:] == ["bucket/out/a/nuclei.zarr/zarr.json", "bucket/out/a/run.json"]
    assert len(sent) == len({p for p in Path(alone.folder).rglob("*") if p.is_file()})


def test_what_is_a_slide_at_an_address(cache: Path) -> None:
    files = fsspec.filesystem("memory")
    for path in ("a.svs", "sub/b.tif", "c.zarr/.zattrs", "c.zarr/0/0.0", "r/nuclei.zarr/zarr.json", "t.txt", "m.mrxs"):
        files.pipe_file(f"/look/{path}", b"x")
    files.pipe_file("/look/m/Data0000.dat", b"pixels")
    found = list(list_slides(RemotePath("memory://look/"), is_slide_name))
    assert [(str(address), str(folder)) for address, folder in found] == [
        ("memory://look/a.svs", "a"),
        ("memory://look/c.zarr", "c"),
        ("memory://look/m.mrxs", "m"),
        ("memory://look/sub/b.tif", "sub/b"),
    ]
    assert list(list_slides(RemotePath("memory://look/a.svs"), is_slide_name)) == [
        ("memory://look/a.svs", PurePosixPath("a"))
    ]
    with fetched(RemotePath("memory://look/m.mrxs")) as path:
        assert (path.parent / "m" / "Data0000.dat").read_bytes() == b"pixels"
    assert not path.parent.exists()
    with fetched(RemotePath("memory://look/c.zarr")) as path:
        assert (path / "0" / "0.0").read_bytes() == b"x"
    with pytest.raises(SlideError, match="cannot be fetched"), fetched(RemotePath("memory://look/none.svs")):
        pass
    with pytest.raises(UsageError, match="no slide at this address"):
        list(list_slides(RemotePath("memory://look/sub/none/"), is_slide_name))


def test_an_ngff_at_an_address_is_run(cache: Path, tmp_path: Path) -> None:
    make.write_ngff(tmp_path / "n.zarr", draw_slide(220, 200).image, MPP)
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "n.zarr") + "/", "/ngff/n.zarr/", recursive=True)
    (result,) = nucpipe.run("memory://ngff/n.zarr", tmp_path / "out", tissue="none")
    assert result.status == "done", result.cause
    assert json.loads((tmp_path / "out" / "n" / "run.json").read_text())["slide"] == "memory://ngff/n.zarr"


@pytest.mark.parametrize("address", ["nonsense://bucket/a.svs", "s3a+x://b/c.svs"])
def test_an_address_of_no_known_kind_is_one_line(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="cannot be reached") as error:
        nucpipe.run(address, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_which_texts_are_addresses() -> None:
    assert is_remote("s3://b/c")
    assert is_remote("gs://b")
    assert not is_remote("/a/b://c")
    assert not is_remote("slides/a.svs")
    assert not is_remote("C:\\x")
    assert (RemotePath("s3://b/out/") / "x/y").name == "y"


def test_changed_external_nuclei_are_no_finished_result(tmp_path: Path, cache: Path) -> None:
    """Results at an address remember the content of ``--nuclei``, not its path."""
    tile = draw_slide(220, 200).save(tmp_path / "tile.png")
    nuclei = tmp_path / "nuclei.npy"
    labels = np.zeros((200, 220), np.int32)
    labels[60:80, 60:80] = 1
    np.save(nuclei, labels)
    settings = {"mpp": MPP, "tissue": "none", "nuclei": str(nuclei)}
    out = "memory://external/out"
    assert [r.status for r in nucpipe.run(tile, out, **settings)] == ["done"]
    assert [r.status for r in nucpipe.run(tile, out, **settings)] == ["finished before"]
    labels[100:120, 100:120] = 2
    np.save(nuclei, labels)
    (changed,) = nucpipe.run(tile, out, **settings)
    assert changed.status == "failed"
    assert "segmentor" in changed.cause
    (redone,) = nucpipe.run(tile, out, overwrite=True, **settings)
    assert (redone.status, redone.nuclei) == ("done", 2)


def test_one_slide_is_fetched_by_two_at_once_and_what_a_killed_process_left_is_removed(cache: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/twice/a.svs", b"pixels")
    address = RemotePath("memory://twice/a.svs")
    killed, alive, other = (cache / "slides" / name for name in ("killed", "alive", "no-lock"))
    ended = subprocess.Popen(["true"])
    ended.wait()
    for folder in (killed, alive, other):
        folder.mkdir(parents=True)
        (folder / "slide.svs").write_bytes(b"half")
    lock = Lock(alive, STAGED)
    assert lock.acquire()
    holder = json.loads((alive / f".{STAGED}.0.lock").read_text())
    (killed / f".{STAGED}.0.lock").write_text(json.dumps({**holder, "pid": ended.pid}))
    with held(lock), fetched(address) as first, fetched(address) as second:
        assert first != second
        assert first.read_bytes() == second.read_bytes() == b"pixels"
        assert not killed.exists()
        assert (alive / "slide.svs").exists()
    assert not first.parent.exists()
    assert not second.parent.exists()
    assert (other / "slide.svs").exists()  # not known to be ours


class BadConnection(MemoryFileSystem):  # type: ignore[misc]
    """A store that sends half of a file and no more, and which holds one that is larger than any disk."""

    protocol = "badconnection"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("badconnection://", "memory://")))

    def get_file(self, rpath: str, lpath: str, **options: object) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath)[:3])

    def du(self, path: str, **options: object) -> int:
        return 10**18 if path.endswith("huge.svs") else 6

    def pipe_file(self, path: str, value: bytes, **options: object) -> None:
        if "closed" in path:
            raise PermissionError("Access Denied")
        super().pipe_file(path, value, **options)


@pytest.fixture
def bad_connection() -> fsspec.AbstractFileSystem:
    fsspec.register_implementation("badconnection", BadConnection, clobber=True)
    return fsspec.filesystem("badconnection")


def test_half_a_slide_and_one_larger_than_the_disk_are_named(
    cache: Path, bad_connection: fsspec.AbstractFileSystem
) -> None:
    for name in ("a", "huge"):
        bad_connection.pipe_file(f"/s/{name}.svs", b"pixels")
    with (
        pytest.raises(SlideError, match="broke off after 3 of 6 bytes"),
        fetched(RemotePath("badconnection://s/a.svs")),
    ):
        pass
    message = "huge.svs: 1000000000.0 GB, but .* are free in .*; make room, or let NUCPIPE_CACHE"
    with pytest.raises(SlideError, match=message), fetched(RemotePath("badconnection://s/huge.svs")):
        pass
    assert list((cache / "slides").iterdir()) == []


def test_an_output_that_cannot_be_written_is_named_at_the_start(
    cache: Path, bad_connection: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    tile = draw_slide(220, 200).save(tmp_path / "tile.png")
    with pytest.raises(OutputError, match=r"badconnection://closed/out: cannot be written .*Access Denied"):
        nucpipe.run(tile, "badconnection://closed/out", mpp=MPP)
    check_reachable(RemotePath("badconnection://open/out"))
    assert not bad_connection.exists("/open/out")  # nothing of the trial stays


def test_no_file_of_an_older_result_stays_beside_a_new_one(cache: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    new = tmp_path / "new"
    for name in ("nuclei.zarr/zarr.json", "nuclei.zarr/table/c/0", "run.json"):
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_text("new")
    for name in (
        "nuclei.zarr/zarr.json",
        "nuclei.zarr/table/c/0",
        "nuclei.zarr/table/c/1",
        "nuclei.geojson",
        "run.json",
    ):
        files.pipe_file(f"/again/out/{name}", b"old")
    files.pipe_file("/again/out/notes.txt", b"the user's")
    send(new, RESULT_FILES, RemotePath("memory://again/out"))
    assert {path: files.cat_file(path) for path in files.find("/again/out")} == {
        "/again/out/notes.txt": b"the user's",
        "/again/out/nuclei.zarr/table/c/0": b"new",
        "/again/out/nuclei.zarr/zarr.json": b"new",
        "/again/out/run.json": b"new",
    }


def test_what_was_sent_by_another_machine_is_removed_here(cache: Path) -> None:
    """A result that a stopped process left on this disk is of no use once another machine has sent it."""
    files = fsspec.filesystem("memory")
    to = OutputRoot("memory://elsewhere/out")
    for name in ("sent", "deep/sent", "unsent", "locked"):
        (to.root / name / "journal").mkdir(parents=True)
        (to.root / name / "journal" / "journal.json").write_text("{}")
        if name != "unsent":
            files.pipe_file(f"/elsewhere/out/{name}/run.json", b"{}")
    lock = Lock(to.root / "locked")
    assert lock.acquire()
    with held(lock):
        to.remove_published()
        left = {str(path.parent.relative_to(to.root)) for path in to.root.rglob("journal")}
    assert left == {"unsent", "locked"}
