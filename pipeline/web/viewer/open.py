"""Opening a result to be viewed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nucpipe.errors import NucpipeError
from pipeline.result import open_result
from pipeline.slide.base import Slide
from pipeline.web.viewer.app import Viewed
from pipeline.web.viewer.correct import Corrector
from pipeline.web.viewer.nuclei import NucleiMap


def open_viewed(
    path: Path,
    slide: Path | None,
    primary: str | None,
    min_area: float | None = None,
    min_detection: float | None = None,
    regions: Path | None = None,
) -> Viewed:
    """Return a result with its nuclei in memory and its slide open.

    Args:
        path: a slide's folder of results, or its ``nuclei.zarr``.
        slide: where the slide is; None for where the run found it. Where that is no longer true, the nuclei are shown
            alone.
        primary: name of a library, in any case of letters; None for that of the run.
        min_area, min_detection: the least area (square micrometres) and detection probability of the nuclei that are
            shown at first; None: as in the run.
        regions: a GeoJSON of regions of interest; None: none are shown.

    Raises:
        OutputError: no finished result.
        UsageError: no such library; ``slide`` is not there; nuclei are asked for that the run left out.
        SlideError: ``slide`` cannot be read or is another one; ``regions`` cannot be read or meet no slide.
        DataError: the corrections beside the result cannot be read.
    """
    result = open_result(path)
    mark = result.store.mark()
    if regions is not None:
        result = replace(result, store=result.store.with_regions(regions))
    library = result.store.info.outputs.library(primary or result.primary).name
    kept = result.store.stricter_filter(min_area, min_detection)
    opened: Slide | None = None
    note = ""
    try:
        opened = result.open_slide(slide)
    except NucpipeError as error:
        if slide is not None:
            raise
        note = str(error)
    nuclei = NucleiMap(result.store)
    return Viewed(result, nuclei, Corrector(result, nuclei), opened, library, note, kept, mark)
