"""Clusters: the workers give what one process gives, also when one of them is killed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import nucpipe
from nucpipe.errors import UsageError
from pipeline.batch.dask import coordinator, worker
from pipeline.batch.dask.view import ClusterView
from pipeline.batch.lock import Lock, held
from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import Job
from pipeline.batch.progress import Bars
from pipeline.batch.tracker import BatchTracker
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.slide.base import Slide
from pipeline.store.reader import open_store
from pipeline.store.run_record import SilentReporter
from tests.support.synthetic import MPP, draw_slide

distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Dask's own, of ports and of workers that are killed
]


def kill_a_worker_at_work(journal: Path, killed: list[int]) -> None:
    """SIGKILL one worker's process as soon as the first region is written."""
    until = time.monotonic() + 300
    while time.monotonic() < until and not list(journal.glob("*.region")):
        time.sleep(0.01)
    workers = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and is_worker(entry) and entry.name != str(os.getpid())
    ]
    os.kill(workers[0], signal.SIGKILL)
    killed.append(workers[0])


def is_worker(entry: Path) -> bool:
    """Whether a process is one that a nanny of ours started: they are our grandchildren by ``spawn``."""
    try:
        command = (entry / "cmdline").read_bytes()
        parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return False
    return b"spawn_main" in command and parent == os.getpid()


def test_one_slide_over_two_workers_of_which_one_is_killed(tmp_path: Path) -> None:
    """Regions of one slide go to both; the killed one's are done by the other, or by the one that takes its place."""
    path = draw_slide(900, 700).save(tmp_path / "slide.png")
    settings = {"mpp": MPP, "tissue": "none", "region_size": 256, "precision": "fp32"}
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_at_work, args=(tmp_path / "out" / "slide" / "journal", killed))
    killer.start()
    (result,) = nucpipe.run(path, tmp_path / "out", cluster="local:2", **settings)
    killer.join()
    assert len(killed) == 1
    assert result.status == "done", result.cause
    (alone,) = nucpipe.run(path, tmp_path / "alone", **settings)
    a, b = open_store(alone.folder / "nuclei.zarr"), open_store(result.folder / "nuclei.zarr")
    assert result.nuclei == len(a) > 0
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.contours()[1], b.contours()[1])
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)
    assert {p.name for p in result.folder.iterdir()} == {p.name for p in alone.folder.iterdir()}
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["nuclei"]) == ("done", str(len(a)))


def test_a_scheduler_s_workers_share_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that stands there already, its workers threads of this process.

    Given again, the command takes locks and workers for what is not finished alone.
    """
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for k in range(2):
        draw_slide(300, 260, seed=k).save(folder / f"s{k}.png")
    (folder / "bad.svs").write_text("no slide")
    acquire, taken = Lock.acquire, list[str]()
    open_slide, opened = worker.open_slide, list[str]()

    def acquired(lock: Lock) -> bool:
        taken.append(f"{lock.folder.name}/{lock.name}")
        return acquire(lock)

    def opened_by_a_worker(path: Path, mpp: float | None) -> Slide:
        opened.append(path.name)
        return open_slide(path, mpp)

    monkeypatch.setattr(Lock, "acquire", acquired)
    monkeypatch.setattr(worker, "open_slide", opened_by_a_worker)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as workers:
        run = ["run", str(folder), "--out", str(out), "--cluster", workers.scheduler_address, "--mpp", str(MPP)]
        result = CliRunner().invoke(main, run)
        assert sorted(set(opened)) == ["bad.svs", "s0.png", "s1.png"]
        for names in (taken, opened):
            names.clear()
        again = CliRunner().invoke(main, run)
    assert result.exit_code == again.exit_code == 1
    assert "2 of 3 slides done" in result.output
    assert f"{folder / 'bad.svs'}: expected a slide" in result.output
    assert again.output.count("finished before") == 2
    for k in range(2):
        assert (out / f"s{k}" / "nuclei.geojson").is_file()
        assert not (out / f"s{k}" / "journal").exists()
    assert not list(out.rglob("*.lock"))
    assert opened == ["bad.svs"]
    assert set(taken) == {"bad/run", ".summary/run"}


def beside_progress(lines: Iterable[str]) -> list[str]:
    """Lines but those that tell how it goes on, of which there are more on a slow machine."""
    progress = (" regions", " under way on ", "no worker is left; waiting for some")
    return [line for line in lines if not any(words in line for words in progress)]


@contextmanager
def running(tmp_path: Path, address: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a session of its own, as on a terminal, that has its first region."""
    path = draw_slide(1500, 1200).save(tmp_path / "s.png")
    command = [sys.executable, "-m", "nucpipe", "run", str(path), "--out", str(tmp_path / "out"), "--mpp", str(MPP)]
    command += ["--tissue", "none", "--region-size", "256", "--cluster", address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            while not list((tmp_path / "out" / "s" / "journal").glob("*.region")):
                assert process.poll() is None
                time.sleep(0.01)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("whom", "number", "status", "said"),
    [
        ("all", signal.SIGINT, 130, "nucpipe: stopped; the same command goes on where it stopped.\n"),
        ("one", signal.SIGTERM, 143, "nucpipe: stopped by SIGTERM; the same command goes on where it stopped.\n"),
        ("one", signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_local_cluster_that_is_stopped_says_so_and_no_more(
    tmp_path: Path, whom: str, number: int, status: int, said: str
) -> None:
    """Its processes end with it, without tracebacks or warnings of their own."""
    with running(tmp_path, "local:2") as process:
        if whom == "all":
            os.killpg(process.pid, number)  # Ctrl-C on a terminal
        else:
            process.send_signal(number)
        assert process.stderr is not None
        lines = beside_progress(process.stderr)  # to its end: no process has it open
        assert process.wait(60) == status
    assert "".join(lines) == said


SCHEDULER = """
import time
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as workers:
        print(workers.scheduler_address, flush=True)
        time.sleep(600)
"""


def test_a_scheduler_that_is_killed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "scheduler.py").write_text(SCHEDULER)
    command = [sys.executable, str(tmp_path / "scheduler.py")]
    with subprocess.Popen(
        command, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as scheduler:
        assert scheduler.stdout is not None
        with running(tmp_path, scheduler.stdout.readline().strip()) as process:
            os.killpg(scheduler.pid, signal.SIGKILL)
            assert process.stderr is not None
            lines = beside_progress(process.stderr)
            assert process.wait(60) == 1
    assert "".join(lines) == "nucpipe: the Dask scheduler is gone; what is done stays, and the same command goes on.\n"
    assert list((tmp_path / "out" / "s" / "journal").glob("*.region"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("local:0", "expected local:N"),
        ("local:many", "expected local:N"),
        ("tcp://127.0.0.1:9", "no Dask scheduler answers there"),
        ("nonsense://x", "no Dask scheduler answers there"),
    ],
)
def test_a_cluster_that_is_none(tmp_path: Path, address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "CONNECT_S", 1)
    path = draw_slide(100, 100).save(tmp_path / "s.png")
    with pytest.raises(UsageError, match=message):
        nucpipe.run(path, tmp_path / "out", mpp=MPP, cluster=address)


def test_processes_that_are_slow_to_end_do_not_make_a_finished_batch_fail() -> None:
    class Slow:
        closed = 0

        def close(self) -> None:
            self.closed += 1
            raise TimeoutError

    slow = Slow()
    coordinator._close(slow)  # type: ignore[arg-type]
    assert slow.closed == 1


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    path = draw_slide(100, 100).save(tmp_path / "s.png")
    with pytest.raises(UsageError, match="--segmentor nobody"):
        nucpipe.run(path, tmp_path / "out", mpp=MPP, cluster="local:1", segmentor="nobody")


def test_the_table_shows_slides_and_workers() -> None:
    with ClusterView(SilentReporter(), 7) as view:
        view.begin_slide("/out/a", "a.svs")
        view.count_regions("/out/a", 12, 9)
        view.workers({"tcp://1": {"name": "w0", "host": "node1"}, "tcp://2": {"name": "w1", "host": "node2"}})
        view.progress({"folder": "/out/a", "worker": "tcp://1", "nuclei": 1500, "mm2": 0.26})
        bars = Bars()
        with bars.console.capture() as capture:
            bars.console.print(view.table())
    lines = capture.get().splitlines()
    assert lines[0].startswith("0 of 7 slides, 0 failed, 1 under way on 2 workers")
    assert lines[2].split() == ["a.svs", "regions", "4/12", "1,500"]
    assert lines[4].split()[:6] == ["w0", "on", "node1", "a.svs", "1", "1,500"]
    assert lines[5].split()[:3] == ["w1", "on", "node2"]


@pytest.mark.parametrize(("slides", "tasks"), [(1, 932), (20, 94), (5000, 59)])
def test_a_slide_among_many_is_cut_into_few_tasks_however_many_workers(tmp_path: Path, slides: int, tasks: int) -> None:
    """A thousand workers: a slide alone gives each a region, while a scheduler that has thousands is spared."""
    jobs = [Job.of(Path(f"{k}.svs"), Path(str(k)), RunConfig()) for k in range(slides)]
    with ClusterView(SilentReporter(), slides) as view:
        tracker = BatchTracker(OutputLocation(tmp_path), view, None)
        coordinating = coordinator.Coordinator(None, jobs, tracker, view, 0)  # type: ignore[arg-type]
        coordinating.workers = 1000
        task = worker.SlideTask(jobs[0].slide, tmp_path / "0", RunConfig(), "topic", 0)  # type: ignore[arg-type]
        one = coordinator.Active(jobs[0], task, None, ExitStack(), 0.0)
        view.begin_slide(str(task.folder), "0.svs")
        regions = tuple((k, 0.1) for k in range(932))
        coordinating._cut(one, worker.Opened(None, regions, 932, 95.5))
    assert len(one.waiting) == one.open_chunks == tasks
    assert sorted(index for chunk in one.waiting for index in chunk) == list(range(932))


def test_a_lock_on_the_finish_is_waited_for(tmp_path: Path) -> None:
    """A worker that was given up on but still finishes a slide is not disturbed."""
    path = draw_slide(200, 200).save(tmp_path / "s.png")
    config = RunConfig(mpp=MPP, tissue="none")
    task = worker.SlideTask(path, tmp_path / "out", config, "topic", 0)
    opened = worker.open_task(task)
    assert isinstance(opened, worker.Opened)
    worker.do_regions(task, tuple(index for index, _ in opened.regions))
    lock = Lock(task.folder, "finish")
    assert lock.acquire()
    finisher = threading.Thread(target=worker.finish_task, args=(task, 1.0))
    with held(lock):
        finisher.start()
        time.sleep(0.5)
        assert not (task.folder / "nuclei.zarr").exists()
    finisher.join()
    assert (task.folder / "run.json").is_file()
    again = worker.finish_task(task, 1.0)  # a task that is given twice does no harm
    assert not isinstance(again, worker.Failed)
    assert again.nuclei == len(open_store(task.folder / "nuclei.zarr"))
