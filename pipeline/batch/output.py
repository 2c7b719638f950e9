"""Output locations: a folder on a disk, or an address to which finished results are sent."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nucpipe.addresses import RemotePath, is_remote
from nucpipe.errors import OutputError, UsageError
from nucpipe.files import cannot_write, written_whole
from pipeline.batch.folder import SOURCE, choose_folder, identity, stems_with_digits
from pipeline.batch.lock import Lock, file_system_now, held
from pipeline.batch.plan import Job, holds_run
from pipeline.batch.remote import check_reachable, exists, fetched, local_folder, read, send, write
from pipeline.batch.summary import BEFORE, SUMMARY, Summary
from pipeline.config import RunConfig
from pipeline.inference.models import ModelIdentity
from pipeline.run_slide import find_finished_unopened
from pipeline.store.journal import check_unchanged
from pipeline.store.run_record import (
    RESULT_FILES,
    RUN_JSON,
    SlideResult,
    described_models,
    expected_files,
    measured_counts,
    result_settings,
)

SEND_S = 30.0
"""How often an address gets the summary, which is sent whole."""
LINES = 500
"""Lines of slides finished before that are written together."""


class OutputRoot:
    """Where the results of slides go.

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
        if not str(out).strip():
            raise UsageError("--out is empty; expected a folder or an address for the results.")
        self.address = RemotePath(str(out).rstrip("/")) if is_remote(str(out)) else None
        self.root = Path(out) if self.address is None else local_folder(self.address, "results")
        if self.address is not None:
            check_reachable(self.address)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.began = file_system_now(self.root)
        except OSError as error:
            raise cannot_write(self.root, error) from error

    def folder(self, job: Job) -> Path:
        """Return where a slide's results are made."""
        return self.root / job.folder

    def shown(self, job: Job) -> Path | RemotePath:
        """Return where a person finds them."""
        return self.folder(job) if self.address is None else self.address / job.folder

    def out_of(self, job: Job) -> Path | RemotePath:
        """Return the ``--out`` that has them where the slide is run by itself, not found in a folder of slides."""
        return (self.root if self.address is None else self.address) / job.folder.parent

    def config_of(self, job: Job) -> RunConfig:
        """Return a slide's settings, without ``--overwrite`` where another process has just made the result."""
        return replace(job.config, overwrite=job.config.overwrite and not self.made_meanwhile(job))

    def find_finished(self, job: Job, models: ModelIdentity) -> SlideResult | None:
        """Return the whole result of a slide; None where there is none, or in a folder where only the open slide tells.

        Raises:
            SlideError: the slide is not there.
            OutputError: a result of another slide, or of other models or settings, lies at the address.
        """
        if job.config.overwrite:
            return None
        if self.address is None:
            if isinstance(job.slide, RemotePath):  # its content tells, and is not here yet
                return None
            return find_finished_unopened(job.slide, self.folder(job), models, self.config_of(job))
        return finished_there(self.address / job.folder, source_of(job, models), job)

    @contextmanager
    def local_slide(self, job: Job) -> Iterator[Path]:
        """Provide the slide as a file on this disk for as long as the block runs.

        Raises:
            SlideError: it is not there or cannot be fetched.
            OutputError: there is no room for it.
        """
        if isinstance(job.slide, RemotePath):
            with fetched(job.slide) as path:
                yield path
        else:
            yield job.slide

    def publish(self, job: Job, models: ModelIdentity, result: SlideResult) -> SlideResult:
        """Send the results to the address, if there is one, and remove the local copy.

        Raises:
            OutputError: they cannot be sent; the local files stay.
        """
        if self.address is None:
            return result
        folder = self.folder(job)
        with written_whole(folder / SOURCE) as partial:
            partial.write_text(json.dumps(source_of(job, models), indent=1), "utf-8")
        send(folder, [*RESULT_FILES, SOURCE], self.address / job.folder)
        shutil.rmtree(folder, ignore_errors=True)
        return replace(result, status="done")

    def remove_published(self) -> None:
        """Remove what stopped processes left on this disk of results that stand at the address by now.

        Raises:
            OutputError: the store cannot be asked.
        """
        if self.address is None:
            return
        for parent, names, _ in os.walk(self.root):
            if not holds_run(Path(parent)):
                continue
            names.clear()
            lock = Lock(Path(parent))
            if exists(self.address / Path(parent).relative_to(self.root) / RUN_JSON) and lock.acquire():
                with held(lock):
                    shutil.rmtree(parent, ignore_errors=True)

    def made_meanwhile(self, job: Job) -> bool:
        """Tell whether another process of the same batch has finished the slide since this one began."""
        try:
            return (self.folder(job) / RUN_JSON).stat().st_mtime > self.began
        except OSError:
            return False


class OutputLocation(OutputRoot):
    """The ``--out`` of a command, with the summary of all slides; as a context manager it tidies that at the end."""

    def __init__(self, out: str | Path) -> None:
        """Make the folder, and see that a summary that stands there is one; raises as :class:`OutputRoot` does."""
        super().__init__(out)
        if self.address is not None:
            before = read(self.address / SUMMARY)
            (self.root / SUMMARY).unlink(missing_ok=True)
            if before is not None:
                with written_whole(self.root / SUMMARY) as partial:
                    partial.write_bytes(before)
        self.summary = Summary(self.root)
        self._sent, self._is_sent = -math.inf, True
        self._lines: list[tuple[SlideResult, Path]] = []  # that are not written yet

    def with_folder(self, job: Job) -> Job:
        """Return the job with the folder that its results are in, or go to; see :func:`choose_folder`."""
        return choose_folder(job, self.root, self.address, self._stems)

    @cached_property
    def _stems(self) -> frozenset[str]:
        return stems_with_digits(self.root)

    def summary_line(self, result: SlideResult, job: Job) -> None:
        """Write a slide's line of the summary, that of a slide finished before together with others; an address gets
        the summary now and then, and at the end.

        Raises:
            OutputError: it cannot be written.
        """
        self._lines.append((result, job.folder))
        if result.status != BEFORE or len(self._lines) >= LINES:
            self._write_summary()
        if time.monotonic() - self._sent >= SEND_S:
            self._send_summary()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the summary tidy.

        Raises:
            OutputError: it cannot be written, and the block ended well.
        """
        try:
            self._write_summary()
            self._is_sent = not self.summary.tidy() and self._is_sent
            self._send_summary()
        except OutputError:
            if error is None:
                raise

    def _write_summary(self) -> None:
        lines, self._lines = self._lines, []
        self._is_sent = not (lines and self.summary.write(lines)) and self._is_sent

    def _send_summary(self) -> None:
        if self.address is not None and not self._is_sent:
            write(self.address / SUMMARY, self.summary.path.read_bytes())
            self._sent, self._is_sent = time.monotonic(), True


def source_of(job: Job, models: ModelIdentity) -> dict[str, Any]:
    """Return what the results of a slide depend on, before the slide is fetched.

    Raises:
        SlideError: the slide is not there, or its file of ``--nuclei``.
    """
    config = job.config
    return {
        "slide": str(job.slide),
        "slide_fingerprint": identity(job.slide),
        "mpp": config.mpp,
        "models": described_models(models.described, config, Path(job.slide.name)),
        "settings": result_settings(config, models.precision, models.default_filter, models.features, models.ood),
        "primary": config.primary,
        "geojson": config.geojson,
    }


def finished_there(target: RemotePath, source: dict[str, Any], job: Job) -> SlideResult | None:
    """Return the result that stands at an address, if it is whole.

    Raises:
        OutputError: one of another slide, or of other models or settings, already exists.
    """
    facts, before = read(target / RUN_JSON), read(target / SOURCE)
    if facts is None or before is None:
        return None
    if not all(exists(target / name) for name in expected_files(job.config)):
        return None
    try:
        check_unchanged(target, "a finished result", json.loads(before), json.loads(json.dumps(source)))
        found = json.loads(facts)
        return SlideResult(
            job.slide,
            target,
            "finished before",
            found["nuclei"],
            found["tissue_mm2"],
            counts=measured_counts(found),
            out_of_distribution=found.get("out_of_distribution"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{target}: not a result of nucpipe; use --overwrite or another --out.") from error
