"""Reports of finished results."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from nucpipe.errors import UsageError
from pipeline.export.quality import measured
from pipeline.export.report.page import write_batch_report, write_report
from pipeline.result import Result
from pipeline.store.run_record import REPORT


def report_slide(
    result: Result,
    path: Path | None = None,
    primary: str | None = None,
    slide: Path | None = None,
    regions: Path | None = None,
) -> Path:
    """Write the report of one slide; without the slide, which may have moved, it has no pictures of tissue.

    Args:
        result: of the slide.
        path: of the HTML file; None: in the result's folder.
        primary: name of the library that is shown first; None: the run's.
        slide: where the slide lies; None: where the run found it.
        regions: a GeoJSON of regions of interest; None: none are shown.

    Returns:
        The file.

    Raises:
        UsageError: no such library; ``slide`` is given and not there.
        SlideError: ``slide`` is given and not the one of this result, or cannot be read; so of ``regions``.
        OutputError: the file cannot be written.
    """
    path = path or result.folder / REPORT
    table = None
    if regions is not None and (found := result.store.with_regions(regions).regions) is not None:
        from pipeline.export.tables.region_table import region_table

        table = region_table(result.store, found)
    try:
        opened = result.open_slide(slide)
    except UsageError:
        if slide is not None:
            raise
        opened = None
    with opened or nullcontext():
        quality = None if opened is None else measured(opened)
        library = primary or result.primary
        write_report(result.store, opened, path, library, result.run_facts, table=table, quality=quality)
    return path


def report_batch(results: Sequence[Result], path: Path, primary: str | None = None) -> Path:
    """Write the report of several slides; see :func:`pipeline.export.report.page.write_batch_report`."""
    write_batch_report(results, path, primary or results[0].primary)
    return path
