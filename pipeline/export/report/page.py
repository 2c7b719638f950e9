"""The report of one slide, and that of a batch: one HTML file each, with all that it shows inside.

The figures come from :mod:`pipeline.export.report.stats`; what the page looks like stands in ``templates``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from classifier.labels.libraries import Library
from classifier.out_of_distribution import HIGH, in_words
from nucpipe._version import __version__
from nucpipe.errors import UsageError
from nucpipe.files import written_whole
from pipeline.export.figures.scale_bar import scale_bar
from pipeline.export.quality import MARKS, SlideQuality, hatched
from pipeline.export.report.charts import Cell, Label, heat_row, histogram, label_of, words
from pipeline.export.report.pictures import Picture, crop, data_uri, density_map, overviews
from pipeline.export.report.saved import read_figures, write_figures
from pipeline.export.report.stats import (
    AREA_EDGES_UM2,
    P_EDGES,
    STAIN_EDGES,
    ReportStats,
    compute_batch_stats,
    compute_stats,
    merge_stats,
)
from pipeline.inference.models import with_training_data
from pipeline.regions.quality import CAUSES, CELL_UM
from pipeline.result import Result
from pipeline.slide.base import Slide
from pipeline.store.adapted import made_from
from pipeline.store.reader import Store
from pipeline.store.run_record import FIGURES, REPORT, REPORT_MARK
from pipeline.store.schema import StoreInfo
from segmentation.nuclei import KEEP_ALL, NucleusFilter

if TYPE_CHECKING:
    import pandas as pd

BLUE, VIOLET = (31, 78, 140), "#5a3ca0"
MERGED_SLIDES = 256  # whose figures are kept apart at most
CONTRADICTIONS, MIN_CONTRADICTION = 12, 0.002  # listed at most, and the least share of the nuclei


@dataclass(frozen=True, slots=True)
class Row:
    """Statistics of a label from its counts."""

    label: Label
    count: int
    share: float
    per_mm2: float | None
    mean_p: float | None
    trained: bool


def write_report(
    store: Store,
    slide: Slide | None,
    path: Path,
    primary: str,
    run: dict[str, Any],
    thumbnail: Picture | None = None,
    table: pd.DataFrame | None = None,
    quality: SlideQuality | None = None,
) -> None:
    """Write the report of one slide; in the folder of its result, its figures for the report of a batch, too.

    Args:
        store: its nuclei.
        slide: open, or None where it is gone: then there are no pictures of tissue and no crops.
        path: of the HTML file.
        primary: name of the library that is shown first.
        run: what ``run.json`` says; {} for nothing.
        thumbnail: (h, w, 3) uint8 RGB, the whole slide; None: it is read.
        table: of the regions of interest, see ``pipeline.export.tables.region_table``; None: there are none.
        quality: of the slide; None: nothing is said of it.

    Raises:
        UsageError: the store has no library ``primary``.
        OutputError: the file cannot be written.
        SlideError: the slide cannot be read.
    """
    info, facts = store.info, compute_stats(store)
    first = info.outputs.library(primary).name
    width_um = info.size_l0[0] * info.mpp
    length_um, length = scale_bar(width_um)
    content = {
        "info": info,
        "overviews": overviews(store, slide, thumbnail),
        "scale": {"share": 100 * length_um / width_um, "text": length},
        "cell_um": _cell_um(facts, info),
        "maps": {library.name: _density_maps(facts, library) for library in info.outputs.libraries},
        "crops": {item.row: crop(slide, store, item.row, item.centroid_l0) for item in facts.uncertain if slide},
        "uncertain": facts.uncertain if slide else (),
        "methods": methods(info, run, made_from(store) if store.shows_adapted else None),
        "quality": None if quality is None else _quality(quality, info),
        "regions": {} if table is None else {lib.name: _regions(table, lib) for lib in info.outputs.libraries},
    }
    _write(path, "slide.html", _shared(facts, info, [info.nucleus_filter], run.get("tissue_mm2"), first) | content)
    if path == store.path.parent / REPORT and isinstance(store.rows, range):
        write_figures(path.with_name(FIGURES), store, facts)


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
    info = results[0].store.info
    outputs = info.outputs
    first = outputs.library(primary).name
    for result in results:
        if result.store.info.outputs.columns != outputs.columns:
            raise UsageError(
                f"{result.folder} has other libraries than {results[0].folder}; report them one by one, or run them "
                "again with one classifier."
            )
    slides: list[dict[str, Any]] = []
    parts: list[ReportStats] = []
    common = CommonMethods()
    for result in results:
        store, run = result.store, result.run_facts
        facts = read_figures(store.path.with_name(FIGURES), store) or compute_batch_stats(store)
        mm2 = run.get("tissue_mm2")
        each = {lib.name: [row for row in rows(facts, lib, mm2) if row.count] for lib in outputs.libraries}
        link = _link(result.folder / REPORT, path)
        about = {"name": result.name, "link": link, "mm2": mm2, "nuclei": facts.nuclei, "unlike": facts.unlike_share}
        slides.append({**about, "rows": each})
        common.add(methods(result.store.info, run, made_from(store) if store.shows_adapted else None))
        parts.append(facts)
        if len(parts) == MERGED_SLIDES:
            parts = [merge_stats(parts)]
    areas = [slide["mm2"] for slide in slides]
    mm2 = sum(areas) if None not in areas else None
    content = {"slides": slides, "methods": common.found()}
    filters = {result.store.info.nucleus_filter for result in results}
    _write(path, "batch.html", _shared(merge_stats(parts), info, filters, mm2, first) | content)


def _shared(
    facts: ReportStats, info: StoreInfo, filters: Iterable[NucleusFilter], mm2: float | None, first: str
) -> dict[str, Any]:
    """Return what the report of a slide and that of a batch both show."""
    libraries = facts.outputs.libraries
    pairs = zip(facts.outputs.columns, facts.outputs.trained, strict=True)
    data = with_training_data(info.models).get("classifier", {}).get("data", ())
    return {
        "facts": facts,
        "unlike": _unlike(facts.unlike_share),
        "mm2": mm2,
        "first": first,
        "names": [library.name for library in libraries],
        "rule": info.rule,
        "kept": sorted({str(one) for one in filters if one != KEEP_ALL}),
        "without_images": [one["name"] for one in data if one.get("images") == 0],
        "untrained": [column for column, trained in pairs if not trained],
        "rows": {library.name: rows(facts, library, mm2) for library in libraries},
        "areas": {
            library.name: histogram(
                [(label_of(library, k), values) for k, values in enumerate(facts.areas[library.name])],
                AREA_EDGES_UM2,
                "µm²",
            )
            for library in libraries
        },
        "certainty": {
            name: histogram([(Label("nuclei", "#1f4e8c"), values)], P_EDGES, "probability")
            for name, values in facts.confidence.items()
        },
        "stain": histogram(
            [(Label("haematoxylin", VIOLET), facts.haematoxylin_od.histogram(STAIN_EDGES))], STAIN_EDGES, "OD"
        ),
        "contradictions": [c for c in facts.contradictions() if c.nuclei > MIN_CONTRADICTION * facts.nuclei][
            :CONTRADICTIONS
        ],
        "crosswalk": {
            a.name: [_pair(facts, a, b) for b in libraries if b is not a] for a in (libraries if facts.nuclei else ())
        },
    }


def rows(facts: ReportStats, library: Library, mm2: float | None) -> list[Row]:
    """Return counts, shares, densities and mean probabilities of labels, with "no label" last if there is any."""
    result = []
    for k, (count, mean) in enumerate(
        zip(facts.counts[library.name].tolist(), facts.mean_p[library.name].tolist(), strict=True)
    ):
        if k < len(library.labels) or count:
            trained = k == len(library.labels) or facts.trained(library)[k]
            share = 100 * count / max(1, facts.nuclei)
            mean_p = None if np.isnan(mean) else mean
            result.append(Row(label_of(library, k), count, share, count / mm2 if mm2 else None, mean_p, trained))
    return result


def _unlike(share: float | None) -> dict[str, Any] | None:
    """Return what the report tells of nuclei that are unlike the training data; None where that is not known."""
    return None if share is None else {"text": in_words(share), "high": share >= HIGH}


def _quality(quality: SlideQuality, info: StoreInfo) -> dict[str, Any]:
    """Return what the report tells of places of poor quality: shares of the tissue, and a picture if there are any."""
    found = quality.map
    causes = [
        {"words": words, "share": 100 * found.share(cause), "colour": "#{:02x}{:02x}{:02x}".format(*MARKS[cause][0])}
        for cause, words in CAUSES.items()
        if found.causes[cause].any()
    ]
    picture = data_uri(hatched(quality.thumbnail, found, info.size_l0), "jpeg") if causes else None
    judged = bool(causes) or bool((~np.isnan(found.blur)).any())
    return {"judged": judged, "causes": causes, "picture": picture, "cell_um": CELL_UM}


def _regions(table: pd.DataFrame, library: Library) -> list[dict[str, Any]]:
    """Return what the report tells of each region in the words of a library: labels that occur in any of them."""
    part = table[table["library"] == library.name]
    occurs = part.groupby("label", sort=False)["count"].sum() > 0
    regions = []
    for name, rows in part.groupby("region", sort=False):
        first = rows.iloc[0]
        cells = [
            (label_of(library, library.labels.index(row["label"])), row)
            for row in rows.to_dict("records")
            if occurs[row["label"]]
        ]
        regions.append(
            {"name": name, "class": first["class"], "mm2": first["area_mm2"], "nuclei": first["nuclei"], "cells": cells}
        )
    return regions


def _cell_um(facts: ReportStats, info: StoreInfo) -> float:
    """Return the side of a cell of the density maps."""
    cells = next(iter(facts.density.values())).shape[1:]
    return float(max(info.size_l0) * info.mpp / max(cells))


def _density_maps(facts: ReportStats, library: Library) -> list[dict[str, Any]]:
    """Pictures of where nuclei, and those of each label, lie densest; each is scaled to its own densest cell."""
    cells = facts.density[library.name]
    maps = [(Label("all nuclei", ""), cells.sum(0), BLUE)]
    for k, colour in enumerate(library.colours):
        if cells[k].any():
            maps.append((label_of(library, k), cells[k], colour))
    return [
        {"name": label.name, "picture": density_map(counts, float(counts.max()), colour), "most": int(counts.max())}
        for label, counts, colour in maps
    ]


def _pair(facts: ReportStats, a: Library, b: Library) -> dict[str, Any]:
    """Return how the labels of one library meet those of another."""
    table = facts.crosswalk[a.name, b.name]
    lines = [k for k in range(len(a.labels) + 1) if table[k].sum()]
    columns = [k for k in range(len(b.labels) + 1) if facts.counts[b.name][k]]
    meant = np.zeros(table.shape, bool)
    for k, label in enumerate(a.labels):
        meant[k, :-1] = facts.matching.targets(a.name, label)[facts.outputs.slices[b.name]]
    cells: list[tuple[Label, list[Cell], int]] = [
        (label_of(a, k), heat_row(table[k, columns], meant[k, columns]), int(table[k].sum())) for k in lines
    ]
    agree, total = facts.agreement(a, b)
    columns_of = [label_of(b, k) for k in columns]
    return {"a": a.name, "b": b.name, "agree": agree, "total": total, "columns": columns_of, "rows": cells}


def methods(info: StoreInfo, run: dict[str, Any], adaptation: dict[str, Any] | None = None) -> dict[str, str]:
    """Return what a methods section says: date, slide, command, version, models and their data, settings.

    Args:
        info: of the store.
        run: what ``run.json`` says; {} for nothing.
        adaptation: what the labels were adapted from; None: they are those of the run.
    """
    width, height = info.size_l0
    slide = f"{info.slide_name}, {width:,} × {height:,} pixels of {info.mpp:.4g} µm"
    found = {"date": run["finished"].replace("T", " ").replace("+00:00", " UTC")} if "finished" in run else {}
    found |= {"slide": f"{slide} ({info.slide_fingerprint[:19]})" if info.slide_fingerprint else slide}
    found |= {"command": run["command"]} if "command" in run else {}
    found["nucpipe"] = info.nucpipe_version
    for kind, model in with_training_data(run.get("models", info.models)).items():
        found[kind] = f"{model.get('name', '')} ({str(model.get('fingerprint', ''))[:19]}){_learnt_from(model)}"
    found |= {"nuclei kept": str(info.nucleus_filter), "decision rule": info.rule.in_words}
    told = {"decide", *info.nucleus_filter.to_dict()}
    found |= {key: _setting(key, value) for key, value in info.settings.items() if key not in told}
    return found | (_adapted_methods(adaptation, info.rule.in_words) if adaptation else {})


def _adapted_methods(made_from: dict[str, Any], rule: str) -> dict[str, str]:
    """Return what :func:`methods` says otherwise of adapted labels.

    Args:
        made_from: see :func:`pipeline.store.adapted.made_from`.
        rule: the decision rule in words.
    """
    own = made_from["same_slide"]
    no_nuclei = f", and without {made_from['no_nuclei']} called no nucleus" if made_from["no_nuclei"] else ""
    libraries = made_from["libraries"]
    measured = [
        f"{name} {before:.3f} before and {after:.3f} after, on {one['accuracy']['nuclei']}"
        for name, one in libraries.items()
        if one["accuracy"]
        for before, after in [one["accuracy"]["plain"]]
    ]
    return {
        "labels": f"adapted by {made_from['corrected_nuclei']} corrected nuclei of "
        f"{'this slide' if own else made_from['corrections_of']}{no_nuclei} ({made_from['when']})",
        "libraries adapted": "; ".join(
            [*(f"{name} by {one['corrected_nuclei']}" for name, one in libraries.items()), "any other as in the run"]
        ),
        "accuracy on corrected nuclei left out": "; ".join(measured) or "too few to measure",
        "decision rule": f"{rule} The probabilities are adapted"
        + ("; a corrected nucleus has the label that it was given." if own else "."),
    }


def _learnt_from(model: dict[str, Any]) -> str:
    """Return the models that a model was made from and the data that taught it and them, with the licences."""
    data = [one for one in model.get("data", ()) if one.get("images") != 0]
    names = [f"{one['name']} ({one['licence']})" if "licence" in one else one["name"] for one in data]
    licence = model.get("licence") if not all("licence" in one for one in data) else ""
    earlier = f", made from {', '.join(model['made_from'])}" if model.get("made_from") else ""
    trained = f", trained on {', '.join(names)}" if names else ""
    return earlier + trained + (f". Licences: {licence}" if licence else "")


def _setting(key: str, value: Any) -> str:
    if key == "tissue":
        file = value.get("file") if isinstance(value, dict) else value
        return {"auto": "found by nucpipe", "none": "the whole slide"}.get(str(file), f"given by {file}")
    return "yes" if value is True else str(value)


class CommonMethods:
    """What is common to the methods of many slides; what is not says so."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}
        self._times: Counter[str] = Counter()
        self._slides = 0

    def add(self, one: dict[str, str]) -> None:
        """Add what :func:`methods` returns of a slide."""
        self._slides += 1
        for key, value in one.items():
            if key not in ("slide", "command"):
                self._values.setdefault(key, set()).add(value)
                self._times[key] += 1

    def found(self) -> dict[str, str]:
        """Return them: from when to when, and each other one."""
        dates = self._values.get("date")
        common = {"date": f"{min(dates)} to {max(dates)}"} if dates else {}
        for key, values in self._values.items():
            if key != "date":
                same = len(values) == 1 and self._times[key] == self._slides
                common[key] = next(iter(values)) if same else "differs between the slides, see their own reports"
        return common


def _link(report: Path, page: Path) -> str | None:
    """Return a slide's report as seen from the batch's; None where there is none."""
    return Path(os.path.relpath(report, page.parent)).as_posix() if report.is_file() else None


@cache
def _templates() -> jinja2.Environment:
    """Return the templates; every value is escaped."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.export.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["words"] = words
    templates.globals |= {"version": __version__, "mark": REPORT_MARK}
    return templates


def _write(path: Path, template: str, content: dict[str, Any]) -> None:
    with written_whole(path) as partial:
        partial.write_text(_templates().get_template(template).render(content), "utf-8")
