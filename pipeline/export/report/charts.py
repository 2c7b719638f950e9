"""The geometry and colours of a report's charts, which its templates draw as HTML and SVG without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from classifier.labels.libraries import Library, no_label_colour

Colour = tuple[int, int, int]

WIDTH, HEIGHT, LEFT = 320, 120, 14  # of a chart without the texts round it, and its margin on both sides


@dataclass(frozen=True, slots=True)
class Label:
    """A label as a legend shows it: its name, and its colour as ``#rrggbb``."""

    name: str
    colour: str


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram, in the chart's own units, y down."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str


@dataclass(frozen=True)
class Histogram:
    """Bars, and the ticks of the x axis as (x, text)."""

    bars: list[Bar]
    ticks: list[tuple[float, str]]
    unit: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table of label pairs: nuclei, their share of the row in per cent, whether both labels mean the same
    nuclei by the label table, and the cell's colours."""

    count: int
    share: float
    meant: bool
    background: str
    colour: str


def css(colour: Colour) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def words(label: str) -> str:
    """Return a label as people read it."""
    return label.replace("_", " ")


def label_of(library: Library, number: int) -> Label:
    """Return the label of that number; "no label" for -1 and for the number after the last."""
    if number in (-1, len(library.labels)):
        return Label("no label", css(no_label_colour()))
    return Label(words(library.labels[number]), css(library.colours[number]))


def histogram(
    series: Sequence[tuple[Label, npt.NDArray[np.int64]]], edges: npt.NDArray[np.float64], unit: str
) -> Histogram:
    """Bars of several series on top of one another; ``series`` are (label, nuclei in each bin)."""
    stacked = np.cumsum([np.zeros(len(edges) - 1, np.int64), *(values for _, values in series)], axis=0)
    most = max(1, int(stacked[-1].max()))
    step = (WIDTH - 2 * LEFT) / (len(edges) - 1)
    bars = []
    for (label, values), below in zip(series, stacked[:-1], strict=True):
        for i in np.flatnonzero(values).tolist():
            title = f"{label.name}: {values[i]:,} at {edges[i]:.3g} to {edges[i + 1]:.3g} {unit}"
            y, height = HEIGHT - (below[i] + values[i]) / most * HEIGHT, values[i] / most * HEIGHT
            bars.append(Bar(LEFT + i * step, y, step * 0.92, height, label.colour, title))
    ticks = [
        (LEFT + part * (WIDTH - 2 * LEFT), f"{edges[0] + part * (edges[-1] - edges[0]):.3g}")
        for part in (0, 0.25, 0.5, 0.75, 1)
    ]
    return Histogram(bars, ticks, unit)


def heat_row(counts: npt.NDArray[np.int64], meant: npt.NDArray[np.bool_]) -> list[Cell]:
    """Return the cells of a row of label pairs, coloured by their share of the row."""
    total, cells = max(1, int(counts.sum())), []
    for count, same in zip(counts.tolist(), meant.tolist(), strict=True):
        share = count / total
        shade = round(255 - 175 * share)
        background = css((shade, min(255, shade + 25), 255))
        cells.append(Cell(count, 100 * share, same, background, "#fff" if share > 0.75 else "#111"))
    return cells
