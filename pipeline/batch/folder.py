"""Which folder a slide's results lie in: it depends on the slide, not on what else is run with it or lies beside it.

A slide keeps the folder that has its results. A new slide takes the first of these that no other slide has or may want:
its name (``b``), its name with the extension (``b_png``), or that with some digits of its content's hash.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from nucpipe.addresses import RemotePath, is_remote
from nucpipe.errors import OutputError, SlideError
from pipeline.batch.lock import Lock
from pipeline.batch.plan import Job, holds_run
from pipeline.batch.remote import exists, folders_in, read, version
from pipeline.slide.identity import slide_fingerprint, valid_utf8
from pipeline.store.journal import JOURNAL, JOURNAL_SLIDE
from pipeline.store.run_record import RUN_JSON, STORE

SOURCE = "source.json"
"""Beside results at an address: what they were made from, so that a finished slide need not be fetched again."""
DIGITS = 8
MAX_NAME_BYTES = 200


def choose_folder(job: Job, root: Path, address: RemotePath | None = None, stems: frozenset[str] | None = None) -> Job:
    """Return the job with the folder that its results are in, or go to.

    Args:
        job: planned.
        root: of all results, on this disk.
        address: where they are sent, if they are.
        stems: what :func:`stems_with_digits` gave of ``root``; None: it is looked at now.

    Raises:
        OutputError: the folder that a manifest names lies inside the results of another slide, or the address cannot
            be asked.
    """
    for folder in job.choices:
        if _has_results_of(job.slide, root, address, folder):
            return replace(job, folder=folder)
    last = None
    # The content is not read where no folder looks as if it were named after it.
    stems = stems_with_digits(root) if stems is None else stems
    if not job.is_named and (address is not None or _stem(job) in stems):
        last = _unmistakable(job)
        if _has_results_of(job.slide, root, address, last):
            return replace(job, folder=last)
    for folder in job.choices[job.clashes :]:
        if _is_free(root, address, folder):
            return replace(job, folder=folder)
    if not job.is_named:
        return replace(job, folder=last or _unmistakable(job))
    if _outer(root, address, job.folder) is not None:
        raise OutputError(f"{job.folder}: lies inside the results of another slide; give the slide another name.")
    return job


def identity(slide: Path | RemotePath) -> str:
    """Return what tells a slide from another of the same name.

    Raises:
        SlideError: the address is not there.
        OSError: the file is not.
    """
    return version(slide) if isinstance(slide, RemotePath) else slide_fingerprint(slide)


def _unmistakable(job: Job) -> Path:
    """Return a folder that no other slide has, at the top, where it can lie in no result."""
    content = ""
    with suppress(SlideError, OSError):  # what cannot be read has no result, and fails when it is opened
        content = identity(job.slide)
    digest = hashlib.sha256(f"{job.choices[0].as_posix()}\n{content}".encode()).hexdigest()[:DIGITS]
    return Path(f"{_stem(job)}_{digest}")


def _stem(job: Job) -> str:
    """Return how the name of the folder that its content names begins."""
    return job.choices[1].name.encode()[:MAX_NAME_BYTES].decode("utf-8", "ignore")


def stems_with_digits(root: Path) -> frozenset[str]:
    """Return what stands before the digits in the names of folders that seem to be named after a slide's content.

    For thousands of slides it is looked at once, not for each: every slide that is begun adds a folder.
    """
    try:
        parts = [path.name.rpartition("_") for path in root.iterdir()]
    except OSError:  # it is not there yet
        return frozenset()
    return frozenset(stem for stem, _, digits in parts if len(digits) == DIGITS)


def _has_results_of(slide: Path | RemotePath, root: Path, address: RemotePath | None, folder: Path) -> bool:
    """Tell whether a folder has the finished or unfinished result of a slide, or one of which that cannot be told."""
    record = _record(root, address, folder)
    if record is None:
        return False
    stated, content = record.get("slide"), record.get("slide_fingerprint")
    if not isinstance(stated, str):
        return True
    if (RemotePath(stated).name if is_remote(stated) else Path(stated).name) != valid_utf8(slide.name):
        return False
    if stated in {valid_utf8(slide), valid_utf8(slide if isinstance(slide, RemotePath) else slide.absolute())}:
        return True
    try:
        now = identity(slide)
    except (SlideError, OSError):
        return True
    # The version of an object and the hash of a file tell nothing of each other.
    return not isinstance(content, str) or _is_hash(content) != _is_hash(now) or content == now


def _record(root: Path, address: RemotePath | None, folder: Path) -> dict[str, Any] | None:
    """Return what the result in a folder says of its slide; None where there is no result, finished or not."""
    if address is not None:
        for name in (SOURCE, RUN_JSON):
            if (content := read(address / folder / name)) is not None:
                return _parsed(content)
    here = root / folder
    for path in (here / RUN_JSON, here / JOURNAL / JOURNAL_SLIDE):
        with suppress(OSError):
            return _parsed(path.read_bytes())
    return {} if holds_run(here) else None  # of an earlier release, or damaged


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _is_hash(text: str) -> bool:
    return text.startswith("sha256:")


def _is_free(root: Path, address: RemotePath | None, folder: Path) -> bool:
    """Tell whether a folder has no result in it, nor below it, nor lies in one."""
    if _record(root, address, folder) is not None or _outer(root, address, folder) is not None:
        return False
    if address is not None and set(folders_in(address / folder)) - {STORE}:
        return False
    try:
        inside = [path for path in (root / folder).iterdir() if path.is_dir()]
    except OSError:
        return True
    ours = (JOURNAL, STORE)
    return not any(holds_run(path) or not path.name.startswith(ours) for path in inside)


def _outer(root: Path, address: RemotePath | None, folder: Path) -> PurePosixPath | Path | None:
    """Return the result, finished or under way, that a folder lies inside; None where it lies in none."""
    for parent in folder.parents[:-1]:
        here = root / parent
        if holds_run(here) or Lock(here).seems_held():
            return parent
        if address is not None and exists(address / parent / RUN_JSON):
            return parent
    return None
