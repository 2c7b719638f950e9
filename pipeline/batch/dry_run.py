"""``nucpipe run --dry-run``: what would be done with each slide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from nucpipe.addresses import RemotePath, is_remote
from nucpipe.counts import counted
from nucpipe.errors import NucpipeError, OutputError
from pipeline.batch.folder import choose_folder, stems_with_digits
from pipeline.batch.lock import Lock
from pipeline.batch.output import finished_there, source_of
from pipeline.batch.plan import Job, plan
from pipeline.batch.remote import local_folder, version
from pipeline.config import RunConfig
from pipeline.inference.models import ModelIdentity, identify_models
from pipeline.regions.external_nuclei import nuclei_file, read_external_nuclei
from pipeline.regions.tissue import tissue_from
from pipeline.run_slide import find_finished, store_info
from pipeline.slide.base import Slide
from pipeline.slide.identity import printable
from pipeline.slide.open import open_slide
from pipeline.store.journal import JOURNAL
from pipeline.store.run_record import RUN_JSON, STORE


def dry_run(inputs: Sequence[str | Path], out: str | Path, config: RunConfig, say: Callable[[str], object]) -> int:
    """Say, a line a slide, what a run would do; nothing is written.

    Returns:
        The number of slides that cannot be opened, or whose nuclei or tissue that the settings name cannot.

    Raises:
        UsageError: a setting, a model's or a device's name is wrong, or no slide is found.
    """
    identify = cache(identify_models)
    stems = frozenset() if is_remote(str(out)) else stems_with_digits(Path(out))
    broken = 0
    for job in (jobs := plan(inputs, config)):
        one = job.config
        models = identify(one.segmentor, one.classifier, one.device, one.precision)
        try:
            job = _with_folder(job, out, stems)
            state, size = _look_ahead(job, out, models)
            say(f"{state:<12} {printable(job.slide)}  {size}  -> {printable(job.folder)}")
        except (NucpipeError, OSError) as error:
            broken += 1
            say(f"{'cannot':<12} {printable(job.slide)}  {printable(error)}")
    say(f"{counted(len(jobs), 'slide')}, {broken} of which cannot be opened; nothing was done")
    return broken


def _with_folder(job: Job, out: str | Path, stems: frozenset[str]) -> Job:
    if not is_remote(str(out)):
        return choose_folder(job, Path(out), stems=stems)
    address = RemotePath(str(out).rstrip("/"))
    return choose_folder(job, local_folder(address, "results"), address, stems)


def _look_ahead(job: Job, out: str | Path, models: ModelIdentity) -> tuple[str, str]:
    """Return what a run would do with a slide, and its size."""
    if isinstance(job.slide, RemotePath):
        version(job.slide)
        return _state(job, out, models, None), "to be fetched"
    with open_slide(job.slide, job.config.mpp) as slide:
        if job.config.nuclei is not None:
            read_external_nuclei(nuclei_file(job.config.nuclei, slide.path), slide)
        if job.config.tissue != "auto":
            tissue_from(job.config.tissue, slide)
        width, height = slide.size_l0
        return _state(job, out, models, slide), f"{width} x {height} pixels of {slide.mpp:.4g} um"


def _state(job: Job, out: str | Path, models: ModelIdentity, slide: Slide | None) -> str:
    try:
        if is_remote(str(out)):
            target = RemotePath(str(out)) / job.folder
            return "finished" if finished_there(target, source_of(job, models), job) else "run"
        folder = Path(out) / job.folder
        if folder.is_dir() and (holder := Lock(folder).holder()) is not None and not holder.is_dead():
            return "under way"
        if (folder / RUN_JSON).is_file() and (folder / STORE).is_dir():
            if job.config.overwrite:
                return "redo"
            if slide is None:  # only its content tells whether the result is of this slide
                return "finished"
            info = store_info(slide, models, job.config)
            return "finished" if find_finished(slide.path, folder, info, job.config) else "go on"
        return "go on" if (folder / JOURNAL).is_dir() else "run"
    except OutputError:  # a result of other models, settings or another slide
        return "changed"
