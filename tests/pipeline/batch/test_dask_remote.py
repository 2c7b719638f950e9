"""Clusters whose slides and results lie in an object store, and what may go wrong between the two."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nucpipe
from nucpipe.cache import cache_folder
from nucpipe.errors import OutputError, UsageError
from pipeline.store.reader import open_store
from pipeline.store.run_record import SlideResult
from tests.support.s3 import Faults, remove_buckets, s3_server
from tests.support.synthetic import MPP, draw_slide

distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Dask's own, and s3fs's

SLIDES, OUT = "s3://bucket/in/", "s3://bucket/out"
SETTINGS: dict[str, Any] = {"mpp": MPP, "tissue": "none", "precision": "fp32"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache without slides and results; networks and compiled loops are the user's, for making them takes long."""
    folder = tmp_path_factory.mktemp("cache")
    for name in ("networks", "numba"):
        (cache_folder() / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(cache_folder() / name)
    return folder


@pytest.fixture
def s3(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Faults]]:
    monkeypatch.setenv("NUCPIPE_CACHE", str(cache))
    with s3_server(monkeypatch) as server:
        yield server


@pytest.fixture
def cluster() -> Iterator[str]:
    """A scheduler with one worker, a thread of this process."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as workers:
        yield workers.scheduler_address


def upload(files: Any, tmp_path: Path, name: str, width: int = 220, seed: int = 0) -> Path:
    path = draw_slide(width, 200, seed=seed).save(tmp_path / f"{name}.png")
    files.put_file(str(path), f"bucket/in/{name}.png")
    return path


def same_result(files: Any, name: str, alone: SlideResult, tmp_path: Path) -> None:
    """The result at the address is that of a run without address or cluster."""
    files.get(f"bucket/out/{name}/", str(tmp_path / "got" / name) + "/", recursive=True)
    a, b = open_store(Path(str(alone.folder)) / "nuclei.zarr"), open_store(tmp_path / "got" / name / "nuclei.zarr")
    assert len(a) == len(b) > 0
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)
    record = json.loads((tmp_path / "got" / name / "run.json").read_text())
    assert record["slide"] == f"{SLIDES}{name}.png"


def is_result(files: Any, name: str) -> bool:
    return any(files.exists(f"bucket/out/{name}/{last}") for last in ("run.json", "nuclei.zarr/zarr.json"))


def left_on_this_disk(cache: Path) -> list[str]:
    """What slides and results were left in the cache; its copy of the summary stays."""
    return [
        str(path.relative_to(cache))
        for place in ("slides", "results")
        for path in (cache / place).rglob("*")
        if path.is_file() and path.name != "summary.csv"
    ]


def kill_a_worker_at_work(cache: Path, killed: list[int]) -> None:
    """SIGKILL the process that holds the lock of a result whose first region is written."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        for region in (cache / "results").rglob("*.region"):
            lock = region.parents[1] / ".run.0.lock"
            killed.append(json.loads(lock.read_text())["pid"])
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.01)


def test_workers_fetch_their_own_slides_and_one_of_them_is_killed(
    s3: tuple[Any, Faults], cache: Path, tmp_path: Path
) -> None:
    files, _ = s3
    paths = [upload(files, tmp_path, "a", 900), upload(files, tmp_path, "b", seed=2)]
    files.pipe_file("bucket/in/bad.svs", b"no slide")
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_at_work, args=(cache, killed))
    killer.start()
    results = nucpipe.run(SLIDES, OUT, cluster="local:2", region_size=256, **SETTINGS)
    killer.join()
    assert len(killed) == 1
    assert killed[0] != os.getpid()
    statuses = {Path(str(r.folder)).name: (r.status, r.cause) for r in results}
    assert statuses["a"] == statuses["b"] == ("done", "")
    assert statuses["bad"][0] == "failed"
    assert "expected a slide" in statuses["bad"][1]
    for path in paths:
        (alone,) = nucpipe.run(path, tmp_path / "alone", region_size=256, **SETTINGS)
        same_result(files, path.stem, alone, tmp_path)
    rows = {
        row["folder"]: row for row in csv.DictReader(io.StringIO(files.cat_file("bucket/out/summary.csv").decode()))
    }
    assert {name: row["status"] for name, row in rows.items()} == {"a": "done", "b": "done", "bad": "failed"}
    assert int(rows["a"]["nuclei"]) > int(rows["b"]["nuclei"]) > 0
    again = nucpipe.run(SLIDES, OUT, cluster="local:1", region_size=256, **SETTINGS)
    assert sorted(r.status for r in again) == ["failed", "finished before", "finished before"]
    assert left_on_this_disk(cache) == []


def test_an_upload_that_breaks_off_leaves_no_result_and_the_next_run_sends_it(
    s3: tuple[Any, Faults], cache: Path, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, faults = s3
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    upload(files, tmp_path, "a")
    upload(files, tmp_path, "b", seed=2)
    sent = []

    def break_off(method: str, path: str) -> tuple[str, str, str] | None:
        if method == "PUT" and "/out/a/" in path:
            sent.append(path)
            if len(sent) > 3:
                return "400 Bad Request", "RequestTimeout", "Your socket connection to the server was not read from"
        return None

    faults.on_request = break_off
    a, b = nucpipe.run(SLIDES, OUT, cluster=cluster, **SETTINGS)
    assert (a.status, b.status) == ("failed", "done")
    assert a.cause.startswith(f"{OUT}/a: cannot be written")
    assert "socket connection" in a.cause
    assert len(files.find("bucket/out/a")) == 3
    assert not is_result(files, "a")
    faults.on_request = lambda method, path: None
    again = nucpipe.run(SLIDES, OUT, cluster=cluster, **SETTINGS)
    assert [r.status for r in again] == ["done", "finished before"]
    (alone,) = nucpipe.run(tmp_path / "a.png", tmp_path / "alone", **SETTINGS)
    same_result(files, "a", alone, tmp_path)
    assert left_on_this_disk(cache) == []


def test_a_bucket_that_vanishes_stops_the_batch_and_the_next_run_goes_on(
    s3: tuple[Any, Faults], cache: Path, cluster: str, tmp_path: Path
) -> None:
    files, faults = s3
    upload(files, tmp_path, "a")

    def vanish(method: str, path: str) -> None:
        if method == "PUT" and "/out/a/" in path:
            remove_buckets()

    faults.on_request = vanish
    with pytest.raises(OutputError, match=r"s3://bucket/out.* cannot be written .*bucket does not exist"):
        nucpipe.run(SLIDES, OUT, cluster=cluster, **SETTINGS)
    faults.on_request = lambda method, path: None
    files.mkdir("bucket")
    assert files.find("bucket") == []
    upload(files, tmp_path, "a")
    (result,) = nucpipe.run(SLIDES, OUT, cluster=cluster, **SETTINGS)
    assert result.status == "done", result.cause
    assert is_result(files, "a")
    assert left_on_this_disk(cache) == []


def test_a_bucket_that_is_not_there_is_named_before_anything_is_computed(
    s3: tuple[Any, Faults], cluster: str, tmp_path: Path
) -> None:
    path = draw_slide(220, 200).save(tmp_path / "a.png")
    for how in ({"cluster": cluster}, {}):
        with pytest.raises(OutputError, match=r"s3://nowhere/out: cannot be written .*bucket does not exist"):
            nucpipe.run(path, "s3://nowhere/out", **how, **SETTINGS)
    with pytest.raises(UsageError, match="s3://nowhere/in/"):
        nucpipe.run("s3://nowhere/in/", OUT, cluster=cluster, **SETTINGS)


def test_wrong_credentials_are_named_with_the_worker_that_has_them(s3: tuple[Any, Faults], tmp_path: Path) -> None:
    files, faults = s3
    upload(files, tmp_path, "a")
    faults.keys = frozenset({"testing"})
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, env={"AWS_ACCESS_KEY_ID": "wrong"}
    ) as workers:
        with pytest.raises(OutputError, match=r"worker tcp://\S+ cannot work: s3://bucket/out: .*Access Key") as error:
            nucpipe.run(SLIDES, OUT, cluster=workers.scheduler_address, **SETTINGS)
        with pytest.raises(OutputError, match=r"worker tcp://\S+ cannot work: s3://bucket/in/a.png: "):
            nucpipe.run(SLIDES, tmp_path / "out", cluster=workers.scheduler_address, **SETTINGS)
    assert "\n" not in str(error.value)
    assert files.find("bucket/out") == ["bucket/out/summary.csv"]  # which says why
    assert b"Access Key" in files.cat_file("bucket/out/summary.csv")
    assert not (tmp_path / "out" / "a").exists()


def test_addresses_that_only_this_process_knows_are_refused(tmp_path: Path) -> None:
    path = draw_slide(100, 100).save(tmp_path / "s.png")
    with pytest.raises(UsageError, match="memory://out: lies in this process"):
        nucpipe.run(path, "memory://out", mpp=MPP, cluster="local:1")
