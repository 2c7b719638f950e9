"""Several slides in one command: the models are loaded once, and one bad slide never stops the others."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nucpipe.common.errors import NucpipeError, UsageError
from pipeline.config import RunConfig
from pipeline.files import cannot_write
from pipeline.run import Reporter, SlideResult, run_slide

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in "svs ndpi mrxs scn vms vmu bif svslide tif tiff btf dcm zarr jp2 png jpg jpeg".split()  # noqa: SIM905
)
"""What is taken for a slide in a folder; a file named on the command line is tried whatever its name."""


def run_batch(paths: Sequence[Path], out: Path, config: RunConfig, reporter: Reporter) -> list[SlideResult]:
    """Run every slide; see :func:`pipeline.run.run`."""
    jobs = plan(paths, out)
    # OpenMP's threads shall sleep when they have nothing to do: they would take the time of the other stages.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pipeline.models import load_models

    models = load_models(config.segmentor, config.classifier, config.device, config.precision)
    models.outputs.library(config.primary)
    results = []
    with summary(out) as write:
        for slide, folder in jobs:
            try:
                result = run_slide(slide, folder, models, config, reporter)
            except UsageError:
                raise
            except NucpipeError as error:
                result = SlideResult(slide, folder, "failed", cause=str(error))
            except MemoryError:
                cause = f"{slide}: out of memory; use a smaller --region-size or --batch-size."
                result = SlideResult(slide, folder, "failed", cause=cause)
            write(result)
            reporter.end(result)
            results.append(result)
    return results


def plan(paths: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each slide with the folder of its results; sub-folders are kept, and no two slides share a folder.

    Raises:
        UsageError: a path does not exist, or a folder has no slide.
    """
    jobs: dict[Path, Path] = {}
    taken: set[Path] = set()
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
    from pipeline.slide import is_slide_folder, slide_name

    if not path.exists():
        raise UsageError(f"{path}: no such slide or folder.")
    if not path.is_dir() or is_slide_folder(path):
        yield path, out / slide_name(path)
        return
    found = False
    for folder, names, files in os.walk(path):
        here = Path(folder)
        # A slide may be a folder (DICOM, zarr); what lies in it, or among earlier results, is no slide of its own.
        slide_folders = [name for name in names if is_slide_folder(here / name)]
        names[:] = sorted(
            name
            for name in names
            if name not in slide_folders and not name.startswith(".") and (here / name).resolve() != out.resolve()
        )
        slides = [name for name in files if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
        for name in sorted(slides + slide_folders):
            found = True
            yield here / name, out / here.relative_to(path) / slide_name(here / name)
    if not found:
        raise UsageError(f"{path}: no slide in this folder; expected files such as .svs, .ndpi, .mrxs, .tif or .png.")


@contextmanager
def summary(out: Path) -> Iterator[Callable[[SlideResult], None]]:
    """``summary.csv``: a line a slide, written as soon as the slide is finished."""
    path = out / "summary.csv"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        rows = csv.writer(file)
        rows.writerow(field.name for field in dataclasses.fields(SlideResult))

        def write(result: SlideResult) -> None:
            rows.writerow(str(value) for value in dataclasses.astuple(result))
            file.flush()

        yield write
