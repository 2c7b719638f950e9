"""The parts of a report, one function each; every one returns HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from classifier.decision_rule import DecisionRule
from classifier.libraries import Library
from nucpipe.errors import UsageError
from pipeline.export.figures.overview import round_length
from pipeline.export.report.charts import css, dot, heat_table, histogram, tabs, words
from pipeline.export.report.pictures import STAIN_EDGES, Picture, crop, density_map, legend_colour, overviews
from pipeline.export.report.stats import AREA_EDGES_UM2, P_EDGES, ReportStats
from pipeline.result import Result
from pipeline.slide.base import Slide
from pipeline.store.reader import Store, StoreInfo

BLUE = (31, 78, 140)
CONTRADICTIONS = 12
STAINS = {"haematoxylin": (90, 60, 160), "eosin": (220, 90, 150)}


def numbers(facts: ReportStats, mm2: float | None) -> str:
    """The figures that one looks for first."""
    median = median_area(facts)
    items = [("nuclei", f"{facts.nuclei:,}")]
    if mm2:
        items += [("mm² of tissue", f"{mm2:.2f}"), ("nuclei per mm²", f"{facts.nuclei / mm2:,.0f}")]
    if median is not None:
        items.append(("µm², median area", f"{median:.0f}"))
    return '<div class="big">' + "".join(f"<div><b>{value}</b>{name}</div>" for name, value in items) + "</div>"


def median_area(facts: ReportStats) -> float | None:
    """From the histogram, to the middle of its bin."""
    bins = next(iter(facts.areas.values())).sum(0)
    if not bins.sum():
        return None
    return float(AREA_EDGES_UM2[int(np.searchsorted(np.cumsum(bins), bins.sum() / 2))] + 2.5)


def caveats(facts: ReportStats, through_others: Sequence[str], rule: DecisionRule) -> str:
    """What one must know before one believes a figure."""
    lines = [
        "These labels are a model's, for research. Look at the pictures before you count: labels carry over badly to "
        "tissues, stains and scanners that the training images did not show."
    ]
    for name in through_others:
        lines.append(
            f"<b>{words(name)}</b>: the classifier saw no image of this library; its labels were taught only through "
            "other libraries' labels that mean the same, and could not be measured on its own data."
        )
    untaught = [f"{lib}: {label.replace('_', ' ')}" for (lib, label), yes in pairs(facts) if not yes]
    if untaught:
        lines.append(f"Taught by nothing, and so never given: {html.escape(', '.join(untaught))}.")
    if rule.kind != "argmax":
        lines.append(f"A label is given only where its probability reaches {rule.threshold:g}.")
    return '<div class="note">' + "".join(f"<p>{line}</p>" for line in lines) + "</div>"


def pairs(facts: ReportStats) -> list[tuple[tuple[str, str], bool]]:
    """((library, label), whether it was taught) of each column."""
    return list(zip(facts.outputs.columns, facts.outputs.trained, strict=True))


def overview(store: Store, slide: Slide | None, thumbnail: Picture | None, facts: ReportStats, first: str) -> str:
    """The slide in each library's colours."""
    width_um = store.info.size_l0[0] * store.info.mpp
    length = round_length(width_um / 4)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    scale = f'<div class="scale" style="width:{100 * length / width_um:.2f}%">{text}</div>'
    panels, pictures = [], overviews(store, slide, thumbnail)
    for library in facts.outputs.libraries:
        legend = " ".join(
            f"<small>{dotted(library, k)} {facts.counts[library.name][k]:,}</small>"
            for k in range(len(library.labels) + 1)
            if facts.counts[library.name][k]
        )
        uri = pictures[library.name]
        alt = html.escape(f"{store.info.slide_name} with its nuclei in the colours of {library.name}", quote=True)
        panels.append((library.name, f'<p>{legend}</p><img class="overview" src="{uri}" alt="{alt}">{scale}'))
    return "<h2>Overview</h2>" + tabs("overview", panels, first)


def dotted(library: Library, number: int) -> str:
    """A label's colour and name."""
    name = "no label" if number == len(library.labels) else library.labels[number]
    return dot(legend_colour(library, number)) + words(name)


def counts(facts: ReportStats, mm2: float | None, first: str) -> str:
    """Counts, shares and densities of each label of each library."""
    panels = []
    for library in facts.outputs.libraries:
        values, total = facts.counts[library.name], max(1, facts.nuclei)
        lines = []
        for k in range(len(library.labels) + 1):
            known = k == len(library.labels) or facts.trained(library)[k]
            if k == len(library.labels) and not values[k]:
                continue
            share, colour = 100 * values[k] / total, css(legend_colour(library, k))
            mean = facts.mean_p[library.name][k]
            cells = [
                f'<td class="num">{values[k]:,}</td><td class="num">{share:.1f} %</td>',
                f'<td><div class="bar"><span style="width:{share:.1f}%;background:{colour}"></span></div></td>',
                f'<td class="num">{values[k] / mm2:,.0f}</td>' if mm2 else "",
                f'<td class="num">{"" if math.isnan(mean) or k == len(library.labels) else f"{mean:.2f}"}</td>',
            ]
            if not known:
                cells = [f'<td colspan="{5 if mm2 else 4}">taught by nothing, never given</td>']
            lines.append(
                f'<tr class="{"" if known else "untaught"}"><td>{dotted(library, k)}</td>{"".join(cells)}</tr>'
            )
        head = (
            '<th>label</th><th class="num">nuclei</th><th class="num">share</th><th></th>'
            + ('<th class="num">per mm²</th>' if mm2 else "")
            + '<th class="num">mean probability</th>'
        )
        panels.append((library.name, f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"))
    return "<h2>Counts</h2>" + tabs("counts", panels, first)


def density(facts: ReportStats, info: StoreInfo, first: str) -> str:
    """Where nuclei, and those of each label, lie densest."""
    side_mm = max(info.size_l0) * info.mpp / 1000 / max(next(iter(facts.density.values())).shape[1:])
    everything = next(iter(facts.density.values())).sum(0)
    most = float(everything.max())
    panels = []
    for library in facts.outputs.libraries:
        maps = [("all nuclei", everything, BLUE, most)]
        for k, label in enumerate(library.labels):
            cells = facts.density[library.name][k]
            if cells.any():
                maps.append((label, cells, legend_colour(library, k), float(cells.max())))
        figures = [
            f'<figure><img src="{density_map(cells, top, colour)}" alt=""><figcaption>{words(label)}<br>'
            f'<span class="faint">up to {top / side_mm**2:,.0f} per mm²</span></figcaption></figure>'
            for label, cells, colour, top in maps
        ]
        panels.append((library.name, f'<div class="maps">{"".join(figures)}</div>'))
    text = f"<p>A cell is {1000 * side_mm:.0f} µm wide; each map is scaled to its own densest cell.</p>"
    return "<h2>Density</h2>" + text + tabs("density", panels, first)


def distributions(facts: ReportStats, stains: dict[str, npt.NDArray[np.float64]], first: str) -> str:
    """Areas by label, certainty by library, and the stain in nuclei."""
    areas = []
    for library in facts.outputs.libraries:
        series = [
            (label, legend_colour(library, k), facts.areas[library.name][k])
            for k, label in enumerate([*library.labels, "no label"])
        ]
        legend = " ".join(f"<small>{dotted(library, k)}</small>" for k, (_, _, v) in enumerate(series) if v.any())
        areas.append((library.name, f"{histogram(series, AREA_EDGES_UM2, 'µm²')}<p>{legend}</p>"))
    certain = [
        f"<div><h3>{words(library.name)}</h3>"
        f"{histogram([('nuclei', BLUE, facts.confidence[library.name])], P_EDGES, 'probability')}</div>"
        for library in facts.outputs.libraries
    ]
    parts = [
        "<h2>Size of nuclei</h2>",
        tabs("areas", areas, first),
        "<h2>Certainty</h2><p>The probability of the label that each nucleus was given: to the right, certain. A "
        "probability says how sure the model is, not how often it is right.</p>",
        f'<div class="charts">{"".join(certain)}</div>',
    ]
    if stains:
        drawn = [
            f"<div><h3>{name}</h3>"
            + histogram(
                [(name, colour, np.histogram(np.clip(stains[name], 0, 1.99), STAIN_EDGES)[0])], STAIN_EDGES, "OD"
            )
            + f"<small>median {np.median(stains[name]):.2f}</small></div>"
            for name, colour in STAINS.items()
            if len(stains[name])
        ]
        text = f"Mean optical density inside {len(stains['haematoxylin']):,} nuclei drawn at random, by stain."
        parts.append(f'<h2>Stain</h2><p>{text}</p><div class="charts">{"".join(drawn)}</div>')
    return "".join(parts)


def crosswalk(facts: ReportStats, first: str) -> str:
    """How the labels of one library meet those of another, and where they contradict each other."""
    if not facts.nuclei:
        return ""
    libraries = {library.name: library for library in facts.outputs.libraries}
    panels = []
    for a in libraries.values():
        tables = [_agreement(facts, a, b) + _heat(facts, a, b) for b in libraries.values() if b is not a]
        panels.append((f"rows: {a.name}", "".join(tables)))
    return (
        "<h2>Crosswalk between libraries</h2>"
        "<p>Each nucleus has a label in every library, so one sees what a label of one library is called in another. "
        "A cell gives the share of its row in per cent; a frame marks labels that mean the same nuclei by the "
        "libraries' own definitions (nucpipe's label table).</p>"
        + _contradictions(facts)
        + tabs("crosswalk", panels, f"rows: {first}")
    )


def _agreement(facts: ReportStats, a: Library, b: Library) -> str:
    agree, total = facts.agreement(a, b)
    if not total:
        return f"<h3>{words(a.name)} → {words(b.name)}</h3>"
    return (
        f"<h3>{words(a.name)} → {words(b.name)}: {100 * agree / total:.0f} % agree</h3>"
        f'<p class="faint">{agree:,} of {total:,} nuclei whose label has a counterpart in {words(b.name)} have it.</p>'
    )


def _heat(facts: ReportStats, a: Library, b: Library) -> str:
    table = facts.crosswalk[a.name, b.name]
    rows = [k for k in range(len(a.labels) + 1) if table[k].sum()]
    columns = [k for k in range(len(b.labels) + 1) if facts.counts[b.name][k]]
    meant = np.zeros(table.shape, bool)
    for k, label in enumerate(a.labels):
        meant[k, :-1] = facts.matching.targets(a.name, label)[facts.outputs.slices[b.name]]
    chosen = np.ix_(rows, columns)
    names = [
        [("no label" if k == len(lib.labels) else lib.labels[k], legend_colour(lib, k)) for k in which]
        for lib, which in ((a, rows), (b, columns))
    ]
    corner = f"{words(a.name)} ↓ {words(b.name)} →"
    return heat_table(names[0], names[1], table[chosen], meant[chosen], corner)


def _contradictions(facts: ReportStats) -> str:
    found = [c for c in facts.contradictions() if c.nuclei > 0.002 * facts.nuclei][:CONTRADICTIONS]
    if not found:
        return "<p>No contradiction by the label table in more than 0.2 % of the nuclei.</p>"
    lines = [
        f"<li><b>{c.nuclei:,}</b> of {c.of:,} nuclei that are <b>{words(c.label)}</b> to {words(c.library)} should be "
        f"{' or '.join(words(label) for label in c.expected)} to {words(c.other)}, which calls them something else, "
        f"most often <b>{words(c.found)}</b>.</li>"
        for c in found
    ]
    return f"<h3>The largest contradictions</h3><ol>{''.join(lines)}</ol>"


def gallery(facts: ReportStats, store: Store, slide: Slide | None) -> str:
    """The least certain nuclei, as crops."""
    if not facts.uncertain or slide is None:
        return ""
    figures = []
    for item in facts.uncertain:
        x, y = item.centroid_l0
        labels = "<br>".join(
            f"{words(name)}: {words(label) or 'no label'} {p:.2f}" for name, (label, p) in item.labels.items()
        )
        figures.append(
            f'<figure><img src="{crop(slide, store, item.row, item.centroid_l0)}" alt="nucleus at {x:.0f}, {y:.0f}">'
            f'<figcaption>{labels}<br><span class="faint">x {x:.0f}, y {y:.0f}</span></figcaption></figure>'
        )
    return (
        "<h2>The least certain nuclei</h2><p>Windows of 32 µm; the outlined nucleus is the one meant. These are where "
        "the probabilities of all libraries together are spread most evenly over their labels.</p>"
        f'<div class="crops">{"".join(figures)}</div>'
    )


def methods_table(info: StoreInfo, run: dict[str, Any]) -> str:
    """What made this, for a methods section."""
    rows = [("nucpipe", info.nucpipe_version)]
    for kind, model in info.models.items():
        rows.append((kind, f"{model.get('name', '')} ({str(model.get('fingerprint', ''))[:19]})"))
    rows += [(str(key), str(value)) for key, value in info.settings.items()]
    if "finished" in run:
        rows.append(("finished", str(run["finished"])))
    lines = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in rows)
    return f"<h2>How it was made</h2><table>{lines}</table>"


def check_same_libraries(results: Sequence[Result]) -> None:
    """Refuse to add up what means different things.

    Raises:
        UsageError: the results have different libraries.
    """
    for result in results:
        if result.store.info.outputs.columns != results[0].store.info.outputs.columns:
            raise UsageError(
                f"{result.folder} has other libraries than {results[0].folder}; report them one by one, or run them "
                "again with one classifier."
            )
