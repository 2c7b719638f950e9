"""Tasks of a cluster's worker: open a slide, process some of its regions, finish it; or process a whole slide.

On a disk that the workers share every finished region goes straight into the slide's journal, so that a worker which
dies costs the regions that it had under way and no more. Where slides or results lie at addresses, a worker does whole
slides: it fetches one, runs it on its own disk and sends the result.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, update_wrapper
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from nucpipe._version import __version__
from nucpipe.addresses import RemotePath
from nucpipe.backends.device import pick_device
from nucpipe.backends.processors import available_processors
from nucpipe.errors import NucpipeError, OutputError, UsageError
from pipeline.batch.lock import Lock, LostLock, held
from pipeline.batch.one_slide import try_slide
from pipeline.batch.output import OutputRoot
from pipeline.batch.plan import Job
from pipeline.batch.remote import check_readable
from pipeline.batch.tracker import explain, is_disk_gone
from pipeline.config import RunConfig
from pipeline.inference.models import ModelIdentity, Models, identify_models, load_models
from pipeline.inference.profiling import RunClock
from pipeline.run_slide import (
    PreparedSlide,
    finalize,
    find_finished,
    journal_fingerprint,
    open_journal,
    prepare,
    run_regions,
    store_info,
)
from pipeline.slide.open import open_slide
from pipeline.store.journal import Journal
from pipeline.store.run_record import SlideResult

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", "SlideTask", "WholeSlideTask")
OPEN_SLIDES = 2
"""Slides that a worker keeps open, for its next regions of them."""
_one_at_a_time = threading.RLock()  # a worker with several threads has one device all the same


@dataclass(frozen=True)
class SlideTask:
    """A slide for the workers.

    Attributes:
        slide, folder: absolute paths, the same for every worker.
        config: absolute paths likewise.
        topic: of the events that tell how it goes on.
        share: how many workers share this machine's processors; 0 where each has its own.
    """

    slide: Path
    folder: Path
    config: RunConfig
    topic: str
    share: int


@dataclass(frozen=True)
class WholeSlideTask:
    """A slide that one worker does alone, since it or its results lie at an address.

    Attributes:
        job: the slide and its settings; paths are absolute.
        out: of the command; an address, or an absolute path that is the same for every worker.
        folder: of the results as the command sees it; names the slide in events.
        topic, share: as in :class:`SlideTask`.
    """

    job: Job
    out: str
    folder: Path
    topic: str
    share: int

    @property
    def config(self) -> RunConfig:
        """The slide's settings."""
        return self.job.config


@dataclass(frozen=True)
class Busy:
    """Another process works on the slide: ``holder``."""

    holder: str


@dataclass(frozen=True)
class Opened:
    """Open slide of a worker; ``before`` is its finished result, if there is one.

    Attributes:
        before: the existing result.
        regions: index and square millimetres of each region that is not in the journal yet.
        total: number of the slide's regions.
        mm2: area of its tissue.
    """

    before: SlideResult | None
    regions: tuple[tuple[int, float], ...] = ()
    total: int = 0
    mm2: float = 0.0


@dataclass(frozen=True)
class Failed:
    """Why a slide failed on a worker; exceptions lose their causes on the way.

    Attributes:
        cause: for the user.
        stops_all: no other slide would fare better.
        is_usage: the command was wrong.
    """

    cause: str
    stops_all: bool
    is_usage: bool


def reported(prepared: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R | Failed]:
    """Give what goes wrong back as a value; one order at a time."""

    def inner(task: T, /, *args: P.args, **kwargs: P.kwargs) -> R | Failed:
        with _one_at_a_time:
            try:
                return prepared(task, *args, **kwargs)
            except Exception as error:
                stops = isinstance(error, UsageError) or (isinstance(error, OutputError) and is_disk_gone(error))
                return Failed(explain(error), stops, isinstance(error, UsageError))

    return update_wrapper(inner, prepared)  # so that it is found by its name when it is sent


@reported
def open_task(task: SlideTask) -> Opened:
    """Open a slide and see what is to be done; its journal is begun."""
    _close(task)
    config = task.config
    prepared, _ = _prepared(task)
    if before := find_finished(task.slide, task.folder, prepared.info, config):
        return Opened(before)
    journal = open_journal(prepared, config, task.slide)
    if journal is None:
        return Opened(None, (), len(prepared.regions), prepared.tissue.area_mm2)
    done = journal.done
    todo = tuple((region.index, prepared.mm2(region)) for region in prepared.regions if region.index not in done)
    return Opened(None, todo, len(prepared.regions), prepared.tissue.area_mm2)


@reported
def do_regions(task: SlideTask, indices: tuple[int, ...]) -> int:
    """Do some regions of a slide; those that another worker did before it died are left alone. Gives their number."""
    prepared, models = _prepared(task)
    journal = Journal.join(prepared.journal_path, journal_fingerprint(prepared, task.config))
    regions = [region for region in prepared.regions if region.index in indices and not journal.is_whole(region.index)]
    config = replace(task.config, workers=_threads(task))

    def advance(nuclei: int, mm2: float) -> None:
        _tell(task, nuclei=nuclei, mm2=mm2)

    run_regions(prepared, regions, journal, models, config, RunClock(), advance)
    return len(indices)


@reported
def finish_task(task: SlideTask, seconds: float) -> SlideResult:
    """Finish a slide whose regions are done, ``seconds`` after it was begun."""
    lock = Lock(task.folder, "finish")
    while not lock.acquire():  # a worker that was given up on may still be at it
        time.sleep(1)
    with held(lock):
        prepared, _ = _prepared(task)
        clock = RunClock(began_before=seconds)
        clock.parts["nuclei"] = round(seconds, 3)
        journal = Journal.open(prepared.journal_path, journal_fingerprint(prepared, task.config))
        whole = {region.index for region in prepared.regions} <= journal.done
        # Without a whole journal a worker that died had finished the store, and maybe begun to remove the journal.
        to_finish = whole and (task.config.overwrite or not prepared.store_path.exists())
        if not (to_finish or prepared.store_path.exists()):
            raise OutputError(f"{task.folder}: regions are missing or damaged; run the same command again.")
        result = finalize(prepared, journal if to_finish else None, task.config, clock, task.slide, task.folder.parent)
    _close(task)
    return result


@reported
def whole_slide(task: WholeSlideTask) -> SlideResult | Busy | Failed:
    """Do a slide from its file to its published result, as a run without a cluster does."""
    try:
        to = OutputRoot(task.out)
        to.remove_published()
        if isinstance(task.job.slide, RemotePath):
            _check_store(task.job.slide)
    except NucpipeError as error:  # this worker would fail every slide that it is given
        return Failed(f"worker {_address()} cannot work: {explain(error)}", stops_all=True, is_usage=False)
    lock = Lock(to.folder(task.job))
    if not lock.acquire():
        return Busy(str(lock.holder() or "another process"))
    try:
        with held(lock):
            return try_slide(task.job, to, _models(task), _Events(task), lock.check)
    except LostLock as error:
        return Busy(str(error))


_stores_seen: set[str] = set()


def _check_store(address: RemotePath) -> None:
    """Check, once for each bucket, that this worker can read there."""
    store = "/".join(address.split("/", 3)[:3])
    if store not in _stores_seen:
        check_readable(address)
        _stores_seen.add(store)


class _Events:
    """A reporter that tells the command."""

    def __init__(self, task: WholeSlideTask) -> None:
        self.task = task

    def begin(self, name: str, mm2: float, regions: int, mm2_before: float = 0.0, regions_before: int = 0) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`."""
        _tell(self.task, total=regions, todo=regions - regions_before)

    def advance(self, nuclei: int, mm2: float) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`."""
        if nuclei or mm2 > 1e-9:  # else what is in no region, see run_slide
            _tell(self.task, nuclei=nuclei, mm2=mm2)

    def end(self, result: SlideResult) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`; the result itself goes back."""


def nucpipe_version() -> str:
    """Return the version of this worker."""
    return __version__


def identify(config: RunConfig, share: int) -> ModelIdentity:
    """Identify the models that this worker runs, which need not be loaded for it; ``share`` as in a task.

    Raises:
        UsageError: no such model, device or precision here.
        ModelError: a model file is broken.
    """
    return identify_models(config.segmentor, config.classifier, _device(config.device, share), config.precision)


_open: OrderedDict[SlideTask, tuple[PreparedSlide, Models]] = OrderedDict()


def _prepared(task: SlideTask) -> tuple[PreparedSlide, Models]:
    """Return the slide, open and cut into regions, and the models; both are kept for the next order."""
    models = _models(task)
    if task in _open:
        _open.move_to_end(task)
        return _open[task]
    config = task.config
    slide = open_slide(task.slide, config.mpp)
    try:
        prepared = prepare(slide, task.folder, store_info(slide, models.identity, config), models, config)
    except BaseException:
        slide.close()
        raise
    _open[task] = (prepared, models)
    while len(_open) > OPEN_SLIDES:
        _, (oldest, _) = _open.popitem(last=False)
        oldest.slide.close()
    return prepared, models


def _close(task: SlideTask) -> None:
    if task in _open:
        _open.pop(task)[0].slide.close()


def _models(task: SlideTask | WholeSlideTask) -> Models:
    config = task.config
    device = _device(config.device, task.share)
    return _loaded(config.segmentor, config.classifier, device, config.precision, config.tta, _threads(task))


def _threads(task: SlideTask | WholeSlideTask) -> int:
    """Return the processors of this worker, which shares a machine with others."""
    return task.config.workers or max(1, available_processors() // max(1, task.share))


@cache
def _loaded(segmentor: str, classifier: str, device: str, precision: str, tta: bool, threads: int) -> Models:
    return load_models(segmentor, classifier, device, precision, tta, threads)


def _device(device: str, share: int) -> str:
    """Return the device of this worker: on one machine with several GPUs, each worker takes another."""
    if device != "auto" or share < 2 or pick_device("auto") == "cpu":
        return device
    import torch
    from distributed import get_worker

    if torch.cuda.device_count() < 2:
        return device
    return f"cuda:{int(get_worker().name) % torch.cuda.device_count()}"


def _tell(task: SlideTask | WholeSlideTask, **facts: Any) -> None:
    """Send an event for the live table; the work does not depend on whether it arrives."""
    from distributed import get_worker

    with suppress(Exception):
        worker = get_worker()
        worker.log_event(task.topic, {"folder": str(task.folder), "worker": worker.address, **facts})


def _address() -> str:
    from distributed import get_worker

    return str(get_worker().address)
