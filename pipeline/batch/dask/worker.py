"""What a worker of a cluster does: open a slide, do some of its regions, finish it.

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

import nucpipe
from nucpipe.backends.device import pick_device
from nucpipe.backends.processors import available_processors
from nucpipe.errors import OutputError, UsageError
from pipeline.batch.lock import Lock, held
from pipeline.batch.run import explain, is_disk_gone
from pipeline.config import RunConfig
from pipeline.inference.models import Models
from pipeline.run_slide import (
    Clock,
    SlideResult,
    Work,
    begin,
    conclude,
    cut,
    fingerprint,
    finished_before,
    process,
    store_info,
)
from pipeline.slide.base import open_slide
from pipeline.store.journal import Journal

P = ParamSpec("P")
R = TypeVar("R")
OPEN_SLIDES = 2
"""Slides that a worker keeps open, for its next regions of them."""
_one_at_a_time = threading.RLock()  # a worker with several threads has one device all the same


@dataclass(frozen=True)
class Order:
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
    """What there is to do on a slide: nothing where ``before`` is its finished result.

    Attributes:
        before: the result that stands there.
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


def reported(work: Callable[Concatenate[Order, P], R]) -> Callable[Concatenate[Order, P], R | Failed]:
    """Give what goes wrong back as a value; one order at a time."""

    def inner(order: Order, /, *args: P.args, **kwargs: P.kwargs) -> R | Failed:
        with _one_at_a_time:
            try:
                return work(order, *args, **kwargs)
            except Exception as error:
                stops = isinstance(error, UsageError) or (isinstance(error, OutputError) and is_disk_gone(error))
                return Failed(explain(error), stops, isinstance(error, UsageError))

    return update_wrapper(inner, work)  # so that it is found by its name when it is sent


@reported
def open_order(order: Order) -> Opened:
    """Open a slide and see what is to be done; its journal is begun."""
    _close(order)
    work, _ = _work(order)
    config = order.config
    if not config.overwrite and (before := finished_before(order.slide, order.folder, work.info, config)):
        return Opened(before)
    if work.store_path.exists() and not config.overwrite:
        return Opened(None, (), len(work.regions), work.tissue.area_mm2)
    done = begin(work, config).done
    todo = tuple((region.index, work.mm2(region)) for region in work.regions if region.index not in done)
    return Opened(None, todo, len(work.regions), work.tissue.area_mm2)


@reported
def do_regions(order: Order, indices: tuple[int, ...]) -> int:
    """Do some regions of a slide; those that another worker did before it died are left alone. Gives their number."""
    work, models = _work(order)
    journal = Journal.join(work.journal_path, fingerprint(work, order.config))
    regions = [region for region in work.regions if region.index in indices and not journal.is_whole(region.index)]
    config = replace(order.config, workers=_threads(order))
    for done in process(work.slide, work.grid, work.tissue, regions, models, config):
        journal.write(done.region.index, done.nuclei_l0, done.labels)
        _tell(order, nuclei=len(done.nuclei_l0), mm2=work.mm2(done.region))
    return len(indices)


@reported
def finish_order(order: Order, seconds: float) -> SlideResult:
    """Finish a slide whose regions are done, ``seconds`` after it was begun."""
    lock = Lock(order.folder, "finish")
    while not lock.acquire():  # a worker that was given up on may still be at it
        time.sleep(1)
    with held(lock):
        work, _ = _work(order)
        clock = Clock()
        clock.began -= seconds
        clock.stages["nuclei"] = round(seconds, 3)
        journal = Journal.open(work.journal_path, fingerprint(work, order.config))
        whole = {region.index for region in work.regions} <= journal.done
        # Without a whole journal a worker that died had finished the store, and maybe begun to remove the journal.
        to_finish = whole and (order.config.overwrite or not work.store_path.exists())
        if not (to_finish or work.store_path.exists()):
            raise OutputError(f"{order.folder}: regions are missing or damaged; run the same command again.")
        result = conclude(work, journal if to_finish else None, order.config, clock, order.slide)
    _close(order)
    return result


def nucpipe_version() -> str:
    """Of this worker."""
    return nucpipe.__version__


_open: OrderedDict[Order, tuple[Work, Models]] = OrderedDict()


def _work(order: Order) -> tuple[Work, Models]:
    """The slide, open and cut into regions, and the models; both are kept for the next order."""
    models = _models(order)
    if order in _open:
        _open.move_to_end(order)
        return _open[order]
    config = order.config
    slide = open_slide(order.slide, config.mpp)
    try:
        work = cut(slide, order.folder, store_info(slide, models, config), models, config)
    except BaseException:
        slide.close()
        raise
    _open[order] = (work, models)
    while len(_open) > OPEN_SLIDES:
        _, (oldest, _) = _open.popitem(last=False)
        oldest.slide.close()
    return work, models


def _close(order: Order) -> None:
    if order in _open:
        _open.pop(order)[0].slide.close()


def _models(order: Order) -> Models:
    config = order.config
    device = _device(config.device, order.share)
    return _loaded(config.segmentor, config.classifier, device, config.precision, config.tta, _threads(order))


def _threads(order: Order) -> int:
    """The processors of this worker, which shares a machine with others."""
    return order.config.workers or max(1, available_processors() // max(1, order.share))


@cache
def _loaded(segmentor: str, classifier: str, device: str, precision: str, tta: bool, threads: int) -> Models:
    from pipeline.inference.models import load_models

    return load_models(segmentor, classifier, device, precision, tta, threads)


def _device(device: str, share: int) -> str:
    """The device of this worker: on one machine with several GPUs, each worker takes another."""
    if device != "auto" or share < 2 or pick_device("auto") == "cpu":
        return device
    import torch
    from distributed import get_worker

    if torch.cuda.device_count() < 2:
        return device
    return f"cuda:{int(get_worker().name) % torch.cuda.device_count()}"


def _tell(order: Order, **facts: Any) -> None:
    """For the live table; the work does not depend on whether it arrives."""
    from distributed import get_worker

    with suppress(Exception):
        worker = get_worker()
        worker.log_event(order.topic, {"folder": str(order.folder), "worker": worker.address, **facts})
