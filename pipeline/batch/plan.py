"""Plan of a batch: its slides, and the result folder of each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nucpipe.addresses import RemotePath, is_remote
from nucpipe.errors import UsageError
from pipeline.batch.manifest import MANIFESTS, read_manifest
from pipeline.batch.remote import list_slides
from pipeline.batch.summary import SUMMARY
from pipeline.config import RunConfig
from pipeline.regions.external_nuclei import check_nuclei_option
from pipeline.regions.tissue import check_tissue_option
from pipeline.slide.identity import is_slide_file, is_slide_folder, is_slide_name, is_special, printable, slide_name
from pipeline.store.journal import JOURNAL, JOURNAL_HEADER
from pipeline.store.run_record import STORE

LISTS = (".vms", ".vmu")
"""Hamamatsu's text files that name the images which make up the slide."""


@dataclass(frozen=True)
class Job:
    """One slide of a command.

    Attributes:
        slide: the file or folder, or the address.
        folder: where its results go, relative to the command's ``--out``, which
            :func:`pipeline.batch.folder.choose_folder` settles.
        config: its settings.
        choices: the folders that the slide's path suggests: its name, and its name with the extension; one alone
            where a manifest names it.
        clashes: how many of these other slides of the command may want as well.
    """

    slide: Path | RemotePath
    folder: Path
    config: RunConfig
    choices: tuple[Path, ...]
    clashes: int = 0

    @classmethod
    def of(cls, slide: Path | RemotePath, folder: Path, config: RunConfig, name: str = "") -> Job:
        """Return the job of a slide that its name files under ``folder``, or that a manifest calls ``name``."""
        if name:
            return cls(slide, Path(name), config, (Path(name),))
        return cls(slide, folder, config, (folder, folder.with_name(printable(slide.name).replace(".", "_"))))

    @property
    def is_named(self) -> bool:
        """Tell whether no other folder than the one that a manifest names will do."""
        return len(self.choices) == 1


def plan(inputs: Sequence[str | Path], config: RunConfig) -> list[Job]:
    """Return every slide once, with the folder that its name and the other slides of the command suggest.

    Args:
        inputs: slides, folders, patterns (``slides/*.svs``), manifests (``.csv``, ``.tsv``) and addresses
            (``s3://bucket/folder/``).
        config: the settings of slides for which a manifest states no others.

    Raises:
        UsageError: a path does not exist, a folder or a pattern has no slide, or a manifest is wrong.
    """
    check_tissue_option(config.tissue)
    check_nuclei_option(config.nuclei)
    jobs: dict[str, Job] = {}
    for job in (job for one in inputs for job in _jobs(one, config)):
        jobs.setdefault(str(job.slide if isinstance(job.slide, RemotePath) else job.slide.absolute()), job)
    if config.nuclei is not None and len(jobs) > 1 and not Path(config.nuclei).is_dir():
        raise UsageError(f"--nuclei {config.nuclei}: one file for {len(jobs)} slides; expected a folder of such files.")
    return _with_clashes(list(jobs.values()))


def _with_clashes(jobs: list[Job]) -> list[Job]:
    """Count the clashes of each job, whatever their order.

    Raises:
        UsageError: two slides are given one name, or one inside the other.
    """
    wanted = Counter([Path(SUMMARY), *(job.folder for job in jobs)])
    with_slides = {parent for folder in wanted for parent in folder.parents}
    names = Counter(job.folder for job in jobs if job.is_named)
    for name, count in names.items():
        if count > 1 or name == Path(SUMMARY):
            what = "the summary" if name == Path(SUMMARY) else "another slide"
            raise UsageError(f"name '{name}' in a manifest is that of {what}; give each slide its own.")
        if outer := next((parent for parent in name.parents if parent in names), None):
            raise UsageError(f"name '{name}' in a manifest would lie inside the results of '{outer}'; give it another.")

    def clashing(folder: Path) -> bool:
        return wanted[folder] > 1 or folder in with_slides or any(parent in names for parent in folder.parents)

    jobs = [replace(job, clashes=int(not job.is_named and clashing(job.choices[0]))) for job in jobs]
    wanted.update(job.choices[1] for job in jobs if job.clashes)
    return [replace(job, clashes=2) if job.clashes and clashing(job.choices[1]) else job for job in jobs]


def _jobs(given: str | Path, config: RunConfig) -> Iterator[Job]:
    text = str(given)
    if is_remote(text):
        for address, place in list_slides(RemotePath(text), is_slide_name):
            yield Job.of(address, Path(place), config)
        return
    path = Path(given)
    if path.suffix.lower() in MANIFESTS and path.is_file():
        for row in read_manifest(path, config):
            if is_remote(row.slide):
                address = RemotePath(row.slide)
                yield Job.of(address, Path(slide_name(Path(address.name))), row.config, row.name)
            else:
                slide = path.parent / row.slide
                yield Job.of(slide, Path(slide_name(slide)), row.config, row.name)
        return
    for slide, folder in _matches(path) if not os.path.lexists(path) and is_pattern(text) else _slides(path):
        yield Job.of(slide, folder, config)


def is_pattern(text: str) -> bool:
    """Tell whether a text has the marks of a pattern."""
    return any(mark in text for mark in "*?[")


def _matches(pattern: Path) -> Iterator[tuple[Path, Path]]:
    """Yield what a pattern means, for shells that leave it as it is; ``**`` stands for any folders."""
    try:
        # Path.glob does not follow links to folders, which could lead round in a circle.
        found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except (ValueError, OSError, NotImplementedError) as error:
        raise UsageError(f"{pattern}: not a pattern that can be followed ({error}).") from error
    slides = [path for path in found if not is_special(path) and not path.name.startswith(".")]
    if not slides:
        raise UsageError(f"{pattern}: no such file, and no slide matches it as a pattern.")
    for path in slides:
        if not path.is_dir() or is_slide_folder(path):
            yield path, Path(slide_name(path))
        elif not holds_run(path):
            yield from _in_folder(path)


def _slides(path: Path) -> Iterator[tuple[Path, Path]]:
    try:
        if not os.path.lexists(path):
            raise UsageError(f"{path}: no such slide, folder or manifest.")
        if not path.is_dir() or is_slide_folder(path):
            yield path, Path(slide_name(path))
            return
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    found = False
    for slide in _in_folder(path):
        found = True
        yield slide
    if not found:
        raise UsageError(f"{path}: no slide in this folder; expected files such as .svs, .ndpi, .mrxs, .tif or .png.")


def _in_folder(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the slides in a folder and below. Links to folders are followed, but no folder is entered twice."""
    entered = set()
    for folder, names, files in os.walk(path, followlinks=True):
        here = Path(folder)
        try:
            status = here.stat()
        except OSError:
            names.clear()
            continue
        if (status.st_dev, status.st_ino) in entered or holds_run(here):
            names.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        # A slide may be a folder (DICOM, zarr); what lies in it is no slide of its own. Nor is what belongs to a file.
        slide_folders = [name for name in names if is_slide_folder(here / name)]
        owned = _owned(here, files)
        names[:] = sorted(n for n in names if n not in slide_folders and n not in owned and not n.startswith("."))
        slides = [name for name in files if name not in owned and is_slide_file(here / name)]
        for name in sorted(slides + slide_folders):
            yield here / name, here.relative_to(path) / slide_name(here / name)


def _owned(folder: Path, files: list[str]) -> set[str]:
    """Return names in a folder that belong to another file's slide: MRXS's folder, images that a VMS lists."""
    owned = {Path(name).stem for name in files if name.lower().endswith(".mrxs")}
    for name in (name for name in files if name.lower().endswith(LISTS)):
        try:
            text = (folder / name).read_text("utf-8", "replace")
        except OSError:
            continue
        owned |= {image for image in files if image != name and image in text}
    return owned


def holds_run(folder: Path) -> bool:
    """Tell whether a folder holds what a run wrote for a slide, finished or not: its pictures are no slides."""
    return (folder / STORE).is_dir() or (folder / JOURNAL / JOURNAL_HEADER).is_file()
