"""A batch on the workers of a Dask cluster: slides side by side, and the regions of one slide over many workers.

Where slides or results lie at addresses a worker does whole slides, for it alone has the slide and its journal.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucpipe._version import __version__
from nucpipe.addresses import RemotePath, is_remote
from nucpipe.backends.model_file import read_header
from nucpipe.errors import NucpipeError, OutputError, UsageError
from nucpipe.optional.extras import install_command
from pipeline.batch.dask.view import ClusterView
from pipeline.batch.lock import Lock, LostLock, held
from pipeline.batch.look_ahead import looked_ahead
from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import Job
from pipeline.batch.tracker import POLL_S, BatchTracker
from pipeline.config import RunConfig
from pipeline.inference.models import ModelIdentity, find_model
from pipeline.slide.identity import printable
from pipeline.store.run_record import Reporter, SlideResult

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

    from pipeline.batch.dask.worker import Opened, SlideTask, WholeSlideTask

LOCAL = "local:"
CONNECT_S, WORKERS_WITHIN_S = 20, 120
LOOK_S = 0.1
SILENT = logging.CRITICAL + 1
MAX_REGIONS = 16
"""Regions that a worker gets at a time: several, for their stages overlap, and few, so that all workers have some."""


def run_on_cluster(
    address: str, jobs: list[Job], out: str | Path, reporter: Reporter, max_failures: int | None
) -> list[SlideResult]:
    """Run the jobs on a cluster; as :func:`pipeline.batch.run.run_batch`.

    Args:
        address: of a Dask scheduler (``tcp://host:8786``), or ``local:N``.
        jobs: their slides and ``out`` lie at addresses, or on a disk that every worker sees under the same path.
        out: folder of the results, or an address.
        reporter: receives finished slides.
        max_failures: stop after this many.

    Raises:
        UsageError: no such cluster, no worker, another nucpipe on the workers, or an address in this process' memory.
        OutputError: the results cannot be written any more, or the scheduler is gone.
    """
    if memory := [at for at in (str(out), *(str(job.slide) for job in jobs)) if at.startswith("memory://")]:
        raise UsageError(f"{memory[0]}: lies in this process; --cluster needs what every worker can reach.")
    if any(job.config.profile for job in jobs):
        raise UsageError("--profile tells of one process; leave it or --cluster out.")
    configs = {config: for_workers(config) for config in dict.fromkeys(job.config for job in jobs)}
    jobs = [replace(job, config=configs[job.config]) for job in jobs]
    with (
        connected(address) as (client, share),
        OutputLocation(out if is_remote(str(out)) else Path(out).absolute()) as to,
        ClusterView(reporter, len(jobs)) as view,
    ):
        tracker = BatchTracker(to, view, max_failures)
        results = Coordinator(client, jobs, tracker, view, share).run()
    tracker.tell_stopped(len(jobs))
    return results


def for_workers(config: RunConfig) -> RunConfig:
    """Return settings that mean the same in another process's folder.

    Raises:
        UsageError: they name a model or a library that is not there.
    """
    from classifier.labels.libraries import LabelSpace

    find_model("segmentor", config.segmentor)
    outputs = LabelSpace.from_dict(read_header(find_model("classifier", config.classifier)).outputs)
    return replace(config.with_absolute_paths(), primary=outputs.library(config.primary).name)


@contextmanager
def connected(address: str) -> Iterator[tuple[Client, int]]:
    """Yield a client of the cluster, and how many of its workers share this machine (0: it is not ours to know).

    Raises:
        UsageError: see :func:`run_on_cluster`.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UsageError(f"--cluster needs dask.distributed: {install_command('cluster')}") from error
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with ExitStack() as stack:
        stack.enter_context(_silent_dask())
        share = 0
        if address.startswith(LOCAL):
            share = _count(address)
            # Without a limit of memory: Dask would pause and kill workers that use what the settings let them use.
            with _shielded_processes():
                cluster = LocalCluster(
                    n_workers=share,
                    threads_per_worker=1,
                    memory_limit=None,
                    dashboard_address="127.0.0.1:0",  # a free port; of a taken one is warned, and None means 8787
                    scheduler_kwargs={"dashboard": False},
                    processes=True,
                    silence_logs=SILENT,
                )
            stack.callback(_close, cluster)
            client = stack.enter_context(Client(cluster))
        else:
            try:
                client = stack.enter_context(Client(address, timeout=CONNECT_S))
            except (OSError, ValueError, TypeError) as error:
                raise UsageError(
                    f"--cluster {address}: no Dask scheduler answers there ({error}); expected an address such as "
                    "tcp://host:8786, or local:N."
                ) from error
        _check_workers(client, address)
        yield client, share


@contextmanager
def _silent_dask() -> Iterator[None]:
    """Drop what Dask logs of workers that come and go, and the tracebacks of a scheduler that is gone."""
    known = [name for name in logging.root.manager.loggerDict if name.startswith(("distributed.", "tornado."))]
    names = {"distributed", "tornado", "asyncio", *known}
    before = {name: logging.getLogger(name).level for name in names}  # Dask gives some of them levels of their own
    for name in names:
        logging.getLogger(name).setLevel(SILENT)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _shielded_processes() -> Iterator[None]:
    """Keep Ctrl-C from the processes that are begun, and their helper quiet should this process be killed.

    A terminal sends Ctrl-C to all of them, and each would print a traceback; this process ends them in order. The
    helper removes the semaphores of a process that was killed; that it did so is of no use to anybody.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Dask's thread, which begins them, inherits what is blocked here, and they inherit it from that thread.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _close(cluster: LocalCluster) -> None:
    """End the processes; on a machine that is busy they may be slow to, which is no fault of a batch that is done."""
    with suppress(TimeoutError):
        cluster.close()


def _count(address: str) -> int:
    text = address.removeprefix(LOCAL)
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise UsageError(f"--cluster {address}: expected local:N, such as local:2, with N processes.")
    return int(text)


def _check_workers(client: Client, address: str) -> None:
    from pipeline.batch.dask.worker import nucpipe_version

    try:
        client.wait_for_workers(1, timeout=WORKERS_WITHIN_S)
    except TimeoutError as error:
        raise UsageError(f"--cluster {address}: no worker came within {WORKERS_WITHIN_S} s; start some.") from error
    try:
        versions = client.run(nucpipe_version)
    except Exception as error:  # whatever went wrong over there
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"--cluster {address}: the workers cannot run nucpipe ({first}); install it in their environment."
        ) from error
    for worker, version in versions.items():
        if version != __version__:
            raise UsageError(
                f"--cluster {address}: worker {worker} has nucpipe {version}, this is {__version__}; "
                "install the same everywhere."
            )


@dataclass
class Active:
    """A slide that is under way.

    Attributes:
        job, task: which, and the workers' task.
        lock, release: held, and the function that releases it; no lock where a worker takes it.
        began: on this process's clock.
        waiting: chunks of regions that no worker has yet.
        open_chunks: chunks that are not done yet, waiting or at a worker.
    """

    job: Job
    task: SlideTask | WholeSlideTask
    lock: Lock | None
    release: ExitStack
    began: float
    waiting: deque[tuple[int, ...]] = field(default_factory=deque)
    open_chunks: int = 0


class Coordinator:
    """Hands out the work, with two tasks a worker under way, and takes in what comes back."""

    def __init__(
        self, client: Client, jobs: Sequence[Job], tracker: BatchTracker, view: ClusterView, share: int
    ) -> None:
        self.client, self.tracker, self.view, self.share = client, tracker, view, share
        self.jobs, self.others = jobs, list[Job]()
        self.topic = f"nucpipe-{uuid.uuid4().hex}"
        self.active: list[Active] = []
        self.under_way: dict[Future, tuple[Active, str]] = {}
        self.workers = 1
        self._looked = -math.inf

    def run(self) -> list[SlideResult]:
        """Run until every slide is done."""
        models = self._identify_models()
        self.client.subscribe_topic(self.topic, lambda event: self.view.hear(event[1]))
        try:
            self._run_free(self.jobs, models)
            while self.others and not self.tracker.stopped:
                time.sleep(POLL_S)
                waiting, self.others = self.others, []
                self._run_free(waiting, models)
        finally:
            with suppress(Exception):  # the scheduler may be what failed
                self.client.cancel(list(self.under_way))
                self.client.unsubscribe_topic(self.topic)
            for one in self.active:
                one.release.close()
        return self.tracker.results

    def _run_free(self, jobs: Sequence[Job], models: ModelIdentity) -> None:
        """Run the slides that no other process works on; the others are kept for later."""
        with closing(looked_ahead(jobs, self.tracker.to, models)) as looked:
            while not self.tracker.stopped:
                self._look_at_workers()
                are_all_begun = self._hand_out(looked)
                if are_all_begun and not self.under_way:
                    break
                done = [future for future in self.under_way if future.done()]
                for future in done:
                    self._take_in(future)
                # Thousands of tiny slides are quick work: as many a second as there are looks, for each worker.
                if self.under_way:
                    time.sleep(LOOK_S / 10 if done else LOOK_S)

    def _identify_models(self) -> ModelIdentity:
        """Ask a worker, for this machine may compute in another precision than they do.

        Raises:
            UsageError: the worker has no such model, device or precision.
            OutputError: no worker can tell.
        """
        from pipeline.batch.dask.worker import Failed, identify

        value = self._value(self.client.submit(identify, self.jobs[0].config, self.share, pure=False))
        if isinstance(value, Failed):
            raise OutputError(value.cause)
        assert isinstance(value, ModelIdentity)
        return value

    def _look_at_workers(self) -> None:
        """Look which workers have come and gone."""
        if time.monotonic() - self._looked < POLL_S:
            return
        self._looked = time.monotonic()
        if self.client.status != "running":
            raise OutputError("the Dask scheduler is gone; what is done stays, and the same command goes on.")
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        self.workers = len(workers)
        self.view.workers(workers)

    def _hand_out(self, looked: Iterator[tuple[Job, SlideResult | None]]) -> bool:
        """Give the workers what they have room for; True where no slide is left to be begun."""
        room = 2 * max(1, self.workers) - len(self.under_way)
        for one in self.active:  # slides that were begun first are finished first
            while one.waiting and room > 0:
                self._submit(one, "regions", one.waiting.popleft())
                room -= 1
        until = time.monotonic() + LOOK_S  # thousands may be finished before, while the workers wait for more
        while room > 0 and len(self.active) <= self.workers and not self.tracker.stopped and time.monotonic() < until:
            job, before = next(looked, (None, None))
            if job is None:
                return True
            if before is not None:
                self.tracker.add(job, before)
            else:
                room -= self._begin(job)
        return False

    def _begin(self, job: Job) -> bool:
        """Take a slide and give it out; False where another process has it."""
        from pipeline.batch.dask.worker import SlideTask, WholeSlideTask

        to = self.tracker.to
        try:
            job = to.with_folder(job)
        except OutputError as error:
            self.tracker.add(job, SlideResult(job.slide, job.folder, "failed", cause=printable(error)))
            return False
        folder, release = to.folder(job), ExitStack()
        slide = job.slide if isinstance(job.slide, RemotePath) else job.slide.absolute()
        lock: Lock | None = None
        task: SlideTask | WholeSlideTask
        if isinstance(slide, RemotePath) or to.address is not None:
            job_there = replace(job, slide=slide, config=to.config_of(job))
            task = WholeSlideTask(job_there, str(to.address or to.root), folder, self.topic, self.share)
        else:
            lock = Lock(folder)
            if not lock.acquire():
                self.tracker.tell_once(job, lock.holder())
                self.others.append(job)
                return False
            release.enter_context(held(lock))
            task = SlideTask(slide, folder, to.config_of(job), self.topic, self.share)
        one = Active(job, task, lock, release, time.monotonic())
        self.active.append(one)
        self.view.begin_slide(str(folder), job.slide.name)
        self._submit(one, "whole" if lock is None else "open")
        return True

    def _submit(self, one: Active, what: str, *arguments: Any) -> None:
        from pipeline.batch.dask import worker as cluster_worker

        work = {
            "open": cluster_worker.open_task,
            "regions": cluster_worker.do_regions,
            "finish": cluster_worker.finish_task,
            "whole": cluster_worker.whole_slide,
        }[what]
        key = f"nucpipe-{what}-{uuid.uuid4().hex}"
        future = self.client.submit(work, one.task, *arguments, key=key, pure=False)
        self.under_way[future] = (one, what)

    def _take_in(self, future: Future) -> None:
        from pipeline.batch.dask.worker import Busy, Failed, Opened

        one, what = self.under_way.pop(future)
        if one not in self.active:  # it failed elsewhere meanwhile
            return
        value = self._value(future)
        try:
            if one.lock is not None:
                one.lock.check()
        except LostLock:
            self.others.append(one.job)
            self._let_go(one)
            return
        if isinstance(value, Failed):
            self._end(one, SlideResult(one.job.slide, one.job.folder, "failed", cause=value.cause))
            if value.is_usage:
                raise UsageError(value.cause)
            if value.stops_all:
                raise OutputError(f"stopped, for {value.cause} What is done stays; the same command goes on.")
        elif isinstance(value, Opened):
            if value.before is not None:
                self._end(one, value.before)
                return
            self._cut(one, value)
        elif isinstance(value, Busy):
            self.tracker.tell_once(one.job, value.holder)
            self.others.append(one.job)
            self._let_go(one)
        elif isinstance(value, SlideResult):
            self._end(one, value)
        elif what == "regions":
            one.open_chunks -= 1
            self._finish_if_done(one)

    def _value(self, future: Future) -> Any:
        """Return what a task gave; a Failed where its workers died."""
        from distributed import KilledWorker

        from pipeline.batch.dask.worker import Failed

        if future.cancelled():
            raise OutputError("the Dask scheduler is gone; what is done stays, and the same command goes on.")
        try:
            return future.result()
        except KilledWorker:
            return Failed(
                "every worker that tried it died, perhaps for want of memory; use a smaller --region-size, and see "
                "the workers' logs.",
                False,
                False,
            )
        except NucpipeError as error:
            return Failed(str(error), False, False)
        except Exception as error:  # of Dask, such as a result that cannot be unpacked
            return Failed(f"unexpected {type(error).__name__}: {error}; please report it.", False, False)

    def _cut(self, one: Active, opened: Opened) -> None:
        """Cut a slide's regions into chunks for the workers."""
        indices = [index for index, _ in opened.regions]
        # A slide that has all workers is cut fine, so that each has some; one of many would only be many tasks more.
        slides_left = max(1, len(self.jobs) - len(self.tracker.results))
        workers = max(1, math.ceil(self.workers / slides_left))
        size = max(1, min(MAX_REGIONS, math.ceil(len(indices) / (2 * workers))))
        one.waiting = deque(tuple(indices[k : k + size]) for k in range(0, len(indices), size))
        one.open_chunks = len(one.waiting)
        self.view.count_regions(str(one.task.folder), opened.total, len(indices))
        self._finish_if_done(one)

    def _finish_if_done(self, one: Active) -> None:
        if not one.open_chunks:
            self.view.finishing(str(one.task.folder))
            self._submit(one, "finish", time.monotonic() - one.began)

    def _end(self, one: Active, result: SlideResult) -> None:
        self._let_go(one)
        self.tracker.add(one.job, result)

    def _let_go(self, one: Active) -> None:
        self.active.remove(one)
        self.view.end_slide(str(one.task.folder))
        one.release.close()
