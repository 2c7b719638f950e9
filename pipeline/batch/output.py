"""Where results go: a folder on a disk, or an address, for which they are made on this disk and then sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucpipe.errors import OutputError
from nucpipe.files import written_whole
from pipeline.batch.lock import file_system_now
from pipeline.batch.plan import Job
from pipeline.batch.remote import RemotePath, fetched, is_remote, local_folder, read, send, version, write
from pipeline.batch.summary import SUMMARY, Summary
from pipeline.config import RunConfig
from pipeline.run_slide import SlideResult, file_settings
from pipeline.slide.identity import slide_fingerprint
from pipeline.store.journal import check_unchanged

if TYPE_CHECKING:
    from pipeline.inference.models import Models

SOURCE = "source.json"
"""Beside results at an address: what they were made from, so that a finished slide need not be fetched again."""

Runner = Callable[[Path, Path, RunConfig], SlideResult]


class OutputLocation:
    """The ``--out`` of a command.

    Attributes:
        root: the folder on this disk; in the cache where ``--out`` is an address.
        address: None for a folder.
    """

    def __init__(self, out: str | Path) -> None:
        """Make the folder.

        Raises:
            OutputError: it cannot be written, or the address cannot be reached.
            UsageError: no such kind of address.
        """
        self.address = RemotePath(str(out).rstrip("/")) if is_remote(str(out)) else None
        self.root = Path(out) if self.address is None else local_folder(self.address, "results")
        if self.address is not None:
            before = read(self.address / SUMMARY)
            (self.root / SUMMARY).unlink(missing_ok=True)
            if before is not None:
                self.root.mkdir(parents=True, exist_ok=True)
                with written_whole(self.root / SUMMARY) as partial:
                    partial.write_bytes(before)
        self.summary = Summary(self.root)
        self.began = file_system_now(self.root)

    def folder(self, job: Job) -> Path:
        """Where a slide's results are made."""
        return self.root / job.folder

    def shown(self, job: Job) -> Path | RemotePath:
        """Where a person finds them."""
        return self.folder(job) if self.address is None else self.address / job.folder

    def summary_line(self, result: SlideResult, job: Job) -> None:
        """Write a slide's line of the summary.

        Raises:
            OutputError: it cannot be written.
        """
        self.summary.write(result, job.folder)
        if self.address is not None:
            write(self.address / SUMMARY, self.summary.path.read_bytes())

    def run(self, job: Job, models: Models, run: Runner) -> SlideResult:
        """Run a slide with what is here or fetched, and send its results where they belong.

        Raises:
            NucpipeError: whatever stops the slide.
        """
        config = replace(job.config, overwrite=job.config.overwrite and not self.made_meanwhile(job))
        if self.address is None:
            with local(job.slide) as path:
                return run(path, self.folder(job), config)
        target, folder = self.address / job.folder, self.folder(job)
        source = self._source(job, models)
        if not config.overwrite and (before := finished_there(target, source, job)):
            return before
        with local(job.slide) as path:
            result = run(path, folder, config)
        with written_whole(folder / SOURCE) as partial:
            partial.write_text(json.dumps(source, indent=1), "utf-8")
        send(folder, target)
        shutil.rmtree(folder, ignore_errors=True)
        return replace(result, status="done")

    def made_meanwhile(self, job: Job) -> bool:
        """Whether another process of the same batch has finished the slide since this one began."""
        try:
            return (self.folder(job) / "run.json").stat().st_mtime > self.began
        except OSError:
            return False

    def _source(self, job: Job, models: Models) -> dict[str, Any]:
        """What the results of a slide depend on."""
        config = job.config
        return {
            "slide": str(job.slide),
            "slide_version": version(job.slide) if isinstance(job.slide, RemotePath) else slide_fingerprint(job.slide),
            "models": models.described,
            "mpp": config.mpp,
            "tissue": file_settings(config.tissue),
            "precision": str(models.precision),
            "decide": config.rule.to_dict(),
            "primary": config.primary,
            "nuclei": config.nuclei,
            "tta": config.tta,
            "geojson": config.geojson,
        }


def local(slide: Path | RemotePath) -> AbstractContextManager[Path]:
    """The slide as a file on this disk."""
    return fetched(slide) if isinstance(slide, RemotePath) else nullcontext(slide)


def finished_there(target: RemotePath, source: dict[str, Any], job: Job) -> SlideResult | None:
    """The result that stands at an address, if it is whole.

    Raises:
        OutputError: one of another slide, or of other models or settings, stands there.
    """
    facts, before = read(target / "run.json"), read(target / SOURCE)
    if facts is None or before is None:
        return None
    try:
        check_unchanged(target, "a finished result", json.loads(before), json.loads(json.dumps(source)))
        found = json.loads(facts)
        return SlideResult(
            job.slide, target, "finished before", found["nuclei"], found["tissue_mm2"], counts=found["counts"]
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{target}: no result of nucpipe; use --overwrite or another --out.") from error
