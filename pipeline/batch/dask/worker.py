"""Tasks of a cluster's worker: open a slide, process some of its regions, finish it.

The workers share the disk with the slides and the results. Every finished region goes straight into the slide's
journal, so that a worker which dies costs the regions that it had under way and no more.
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
from nucpipe.backends.device import pick_device
from nucpipe.backends.processors import available_processors
from nucpipe.errors import OutputError, UsageError
from pipeline.batch.lock import Lock, held
from pipeline.batch.tracker import explain, is_disk_gone
from pipeline.config import RunConfig
from pipeline.inference.models import Models, load_models
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


def reported(prepared: Callable[Concatenate[SlideTask, P], R]) -> Callable[Concatenate[SlideTask, P], R | Failed]:
    """Give what goes wrong back as a value; one order at a time."""

    def inner(task: SlideTask, /, *args: P.args, **kwargs: P.kwargs) -> R | Failed:
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
    prepared, _ = _prepared(task)
    config = task.config
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
        result = finalize(prepared, journal if to_finish else None, task.config, clock, task.slide)
    _close(task)
    return result


def nucpipe_version() -> str:
    """Return the version of this worker."""
    return __version__


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


def _models(task: SlideTask) -> Models:
    config = task.config
    device = _device(config.device, task.share)
    return _loaded(config.segmentor, config.classifier, device, config.precision, config.tta, _threads(task))


def _threads(task: SlideTask) -> int:
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


def _tell(task: SlideTask, **facts: Any) -> None:
    """Send an event for the live table; the work does not depend on whether it arrives."""
    from distributed import get_worker

    with suppress(Exception):
        worker = get_worker()
        worker.log_event(task.topic, {"folder": str(task.folder), "worker": worker.address, **facts})
