"""Several slides in one command: the models are loaded once, and one bad slide never stops the others."""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nucpipe.common.errors import NucpipeError, UsageError
from pipeline.config import RunConfig
from pipeline.files import cannot_write, written_whole
from pipeline.run import Reporter, SlideResult, run_slide
from pipeline.slide import is_slide_folder, printable, slide_name
from pipeline.tissue import check_tissue_option

if TYPE_CHECKING:
    from pipeline.models import Models

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in "svs ndpi mrxs scn vms vmu bif svslide tif tiff btf dcm zarr jp2 png jpg jpeg".split()  # noqa: SIM905
)
"""What is taken for a slide in a folder; a file named on the command line is tried whatever its name."""
SUMMARY = "summary.csv"
COLUMNS = [field.name for field in dataclasses.fields(SlideResult)]


def run_batch(paths: Sequence[Path], out: Path, config: RunConfig, reporter: Reporter) -> list[SlideResult]:
    """Run every slide; see :func:`pipeline.run.run`."""
    jobs = plan(paths, out)
    check_tissue_option(config.tissue)
    # OpenMP's threads shall sleep when they have nothing to do: they would take the time of the other stages.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pipeline.models import load_models

    models = load_models(config.segmentor, config.classifier, config.device, config.precision)
    config = dataclasses.replace(config, primary=models.outputs.library(config.primary).name)
    results = []
    with summary(out) as write:
        for slide, folder in jobs:
            result = try_slide(slide, folder, models, config, reporter)
            write(result)
            reporter.end(result)
            results.append(result)
    return results


def try_slide(slide: Path, folder: Path, models: Models, config: RunConfig, reporter: Reporter) -> SlideResult:
    """One slide; what stops it is kept as the result's cause, for the other slides go on."""
    try:
        return run_slide(slide, folder, models, config, reporter)
    except NucpipeError as error:
        cause = str(error)
    except MemoryError:
        cause = "out of memory; use a smaller --region-size or --batch-size."
    except Exception as error:  # of a library, on a file that none of its authors thought of
        logging.getLogger(__name__).debug("%s failed", slide, exc_info=True)
        cause = f"unexpected {type(error).__name__}: {error}; please report it."
    return SlideResult(slide, folder, "failed", cause=printable(cause))


def plan(paths: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each slide with the folder of its results; sub-folders are kept, and no two slides share a folder.

    Raises:
        UsageError: a path does not exist, or a folder has no slide.
    """
    jobs: dict[Path, Path] = {}
    taken = {out / SUMMARY}
    for path in paths:
        for slide, folder in _slides(path, out):
            if slide in jobs:
                continue
            if folder in taken:  # a.svs and a.tif, or one name from two folders
                folder = folder.with_name(slide.name.replace(".", "_"))
            base, k = folder, 2
            while folder in taken:
                folder, k = base.with_name(f"{base.name}_{k}"), k + 1
            taken.add(folder)
            jobs[slide] = folder
    return list(jobs.items())


def _slides(path: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    try:
        if not os.path.lexists(path):
            raise UsageError(f"{path}: no such slide or folder.")
        if not path.is_dir() or is_slide_folder(path):
            yield path, out / slide_name(path)
            return
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    found = False
    for folder, names, files in os.walk(path):
        here = Path(folder)
        if is_result(here):
            names.clear()
            continue
        # A slide may be a folder (DICOM, zarr); what lies in it is no slide of its own.
        slide_folders = [name for name in names if is_slide_folder(here / name)]
        names[:] = sorted(name for name in names if name not in slide_folders and not name.startswith("."))
        slides = [name for name in files if is_slide_name(name) and not is_special(here / name)]
        for name in sorted(slides + slide_folders):
            found = True
            yield here / name, out / here.relative_to(path) / slide_name(here / name)
    if not found:
        raise UsageError(f"{path}: no slide in this folder; expected files such as .svs, .ndpi, .mrxs, .tif or .png.")


def is_slide_name(name: str) -> bool:
    """Whether a file in a folder is taken for a slide."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def is_special(path: Path) -> bool:
    """Whether a path is a pipe, a socket or a device, which would be read for ever."""
    return path.exists() and not path.is_file()


def is_result(folder: Path) -> bool:
    """Whether a folder holds what a run wrote for a slide, so that an overview is not taken for a slide."""
    return (folder / "nuclei.zarr").is_dir() or (folder / "journal" / "journal.json").is_file()


@contextmanager
def summary(out: Path) -> Iterator[Callable[[SlideResult], None]]:
    """``summary.csv``: a line a slide, written as soon as the slide is finished; lines of other slides stay."""
    path = out / SUMMARY
    lines: dict[str, list[str]] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                lines = {row["folder"]: list(row.values()) for row in csv.DictReader(file) if set(row) == set(COLUMNS)}
    except (OSError, csv.Error) as error:
        raise cannot_write(path, error) from error

    def write(result: SlideResult) -> None:
        lines[printable(result.folder)] = [printable(value) for value in dataclasses.astuple(result)]
        with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *lines.values()])

    yield write
