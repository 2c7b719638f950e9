"""The report of one slide, and that of a batch: one HTML file each, with all that it shows inside."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from classifier.libraries import Library
from nucpipe._version import __version__
from nucpipe.files import written_whole
from pipeline.export.report import sections
from pipeline.export.report.charts import stacked_bar, tabs, words
from pipeline.export.report.pictures import Picture, legend_colour, stain
from pipeline.export.report.stats import ReportStats, compute_stats, libraries_without_images, merge_stats
from pipeline.result import Result
from pipeline.slide.base import Slide
from pipeline.store.reader import Store


def write_report(
    store: Store, slide: Slide | None, path: Path, primary: str, run: dict[str, Any], thumbnail: Picture | None = None
) -> None:
    """Write the report of one slide.

    Args:
        store: its nuclei.
        slide: open, or None where it is gone: then there are no pictures of tissue, no crops and no stain.
        path: of the HTML file.
        primary: name of the library that is shown first.
        run: what ``run.json`` says; {} for nothing.
        thumbnail: (h, w, 3) uint8 RGB, the whole slide; None: it is read.

    Raises:
        UsageError: the store has no library ``primary``.
        OutputError: the file cannot be written.
        SlideError: the slide cannot be read.
    """
    first = store.info.outputs.library(primary).name
    facts = compute_stats(store)
    mm2 = run.get("tissue_mm2")
    info = store.info
    (width, height), mpp = info.size_l0, info.mpp
    body = [
        f"<h1>{html.escape(info.slide_name)}</h1>",
        f'<p class="faint">{width:,} × {height:,} pixels, {width * mpp / 1000:.3g} × {height * mpp / 1000:.3g} mm, '
        f"{mpp:.4g} µm per pixel</p>",
        sections.numbers(facts, mm2),
        sections.caveats(facts, libraries_without_images(info.models), info.rule),
        sections.overview(store, slide, thumbnail, facts, first),
        sections.counts(facts, mm2, first),
        sections.density(facts, info, first),
        sections.distributions(facts, stain(store, slide) if slide is not None and len(store) else {}, first),
        sections.crosswalk(facts, first),
        sections.gallery(facts, store, slide),
        sections.methods_table(info, run),
    ]
    _write(path, f"{info.slide_name}: nuclei", body)


def write_batch_report(results: Sequence[Result], path: Path, primary: str) -> None:
    """Write the report of several slides; each slide's own report is linked where it is there.

    Args:
        results: of one classifier's libraries.
        path: of the HTML file.
        primary: name of the library that is shown first.

    Raises:
        UsageError: the results have no library ``primary``, or different libraries.
        OutputError: the file cannot be written.
    """
    outputs = results[0].store.info.outputs
    first = outputs.library(primary).name
    sections.check_same_libraries(results)
    each = [compute_stats(result.store) for result in results]
    facts = merge_stats(each)
    areas = [result.run_facts.get("tissue_mm2") for result in results]
    mm2 = sum(area for area in areas if area is not None) if None not in areas else None
    untaught = libraries_without_images(results[0].store.info.models)
    body = [
        f"<h1>{len(results):,} slides</h1>",
        sections.numbers(facts, mm2),
        sections.caveats(facts, untaught, results[0].store.info.rule),
        "<h2>Slides</h2>",
        tabs("slides", [(lib.name, _slides(results, each, areas, lib, path)) for lib in outputs.libraries], first),
        sections.counts(facts, mm2, first),
        sections.distributions(facts, {}, first),
        sections.crosswalk(facts, first),
        sections.methods_table(results[0].store.info, {}),
    ]
    _write(path, f"{len(results):,} slides: nuclei", body)


def _slides(
    results: Sequence[Result], each: Sequence[ReportStats], areas: Sequence[float | None], library: Library, path: Path
) -> str:
    """A line a slide: its size, and the shares of one library's labels."""
    lines = []
    for result, facts, mm2 in zip(results, each, areas, strict=True):
        report = result.folder / "report.html"
        name = html.escape(result.name)
        if report.is_file():
            place = Path(os.path.relpath(report, path.parent)).as_posix()
            name = f'<a href="{html.escape(place, quote=True)}">{name}</a>'
        labels = [*library.labels, "no label"]
        parts = [
            (label, legend_colour(library, k), int(facts.counts[library.name][k])) for k, label in enumerate(labels)
        ]
        density = f"{facts.nuclei / mm2:,.0f}" if mm2 else ""
        lines.append(
            f'<tr><td>{name}</td><td class="num">{"" if mm2 is None else f"{mm2:.2f}"}</td>'
            f'<td class="num">{facts.nuclei:,}</td><td class="num">{density}</td><td>{stacked_bar(parts)}</td></tr>'
        )
    legend = " ".join(
        f"<small>{sections.dotted(library, k)}</small>"
        for k in range(len(library.labels))
        if sum(int(facts.counts[library.name][k]) for facts in each)
    )
    head = (
        '<th>slide</th><th class="num">tissue, mm²</th><th class="num">nuclei</th><th class="num">per mm²</th>'
        f"<th>{words(library.name)}</th>"
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table><p>{legend}</p>"


def _write(path: Path, title: str, body: Sequence[str]) -> None:
    style = resources.files("pipeline.export.report").joinpath("report.css").read_text("utf-8")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>{''.join(body)}"
        f'<p class="faint">Made by nucpipe {html.escape(__version__)}. For research; not a medical device.</p>'
        "</body></html>\n"
    )
    with written_whole(path) as partial:
        partial.write_text(page, "utf-8")
