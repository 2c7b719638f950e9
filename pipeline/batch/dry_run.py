"""``nucpipe run --dry-run``: what would be done with each slide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nucpipe.errors import NucpipeError
from pipeline.batch.lock import Lock
from pipeline.batch.plan import Job, plan
from pipeline.batch.remote import RemotePath, is_remote, version
from pipeline.config import RunConfig
from pipeline.slide.identity import printable
from pipeline.slide.open import open_slide


def dry_run(inputs: Sequence[str | Path], out: str | Path, config: RunConfig, say: Callable[[str], object]) -> int:
    """Say, a line a slide, what a run would do; nothing is written.

    Returns:
        The number of slides that cannot be opened.
    """
    jobs = plan(inputs, config)
    broken = 0
    for job in jobs:
        try:
            say(f"{_state(job, out):<12} {printable(job.slide)}  {_size(job)}  -> {printable(job.folder)}")
        except (NucpipeError, OSError) as error:
            broken += 1
            say(f"{'cannot':<12} {printable(job.slide)}  {printable(error)}")
    say(f"{len(jobs)} slides, {broken} of which cannot be opened; nothing was done")
    return broken


def _state(job: Job, out: str | Path) -> str:
    if is_remote(str(out)):
        return "run"
    folder = Path(out) / job.folder
    if folder.is_dir() and (holder := Lock(folder).holder()) is not None and not holder.is_dead():
        return "under way"
    if (folder / "run.json").is_file() and (folder / "nuclei.zarr").is_dir():
        return "redo" if job.config.overwrite else "finished"
    return "go on" if (folder / "journal").is_dir() else "run"


def _size(job: Job) -> str:
    if isinstance(job.slide, RemotePath):
        version(job.slide)
        return "to be fetched"
    with open_slide(job.slide, job.config.mpp) as slide:
        width, height = slide.size_l0
        return f"{width} x {height} pixels of {slide.mpp:.4g} um"
