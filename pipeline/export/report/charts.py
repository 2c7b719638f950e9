"""Charts of a report, as HTML and SVG without scripts: they print, and need no network."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int]

WIDTH, HEIGHT, LEFT, BOTTOM = 320, 120, 14, 22


def css(colour: Colour) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def words(label: str) -> str:
    """A label as people read it, safe in HTML."""
    return html.escape(label.replace("_", " "))


def histogram(
    series: Sequence[tuple[str, Colour, npt.NDArray[np.int64]]], edges: npt.NDArray[np.float64], unit: str
) -> str:
    """Bars of several series on top of one another; ``series`` are (name, colour, count in each bin)."""
    stacked = np.cumsum([np.zeros(len(edges) - 1, np.int64), *(values for _, _, values in series)], axis=0)
    most = max(1, int(stacked[-1].max()))
    step = (WIDTH - 2 * LEFT) / (len(edges) - 1)
    bars = []
    for (name, colour, values), below in zip(series, stacked[:-1], strict=True):
        for i in np.flatnonzero(values).tolist():
            height = values[i] / most * HEIGHT
            y = HEIGHT - (below[i] + values[i]) / most * HEIGHT
            title = f"{words(name)}: {values[i]:,} at {edges[i]:.3g} to {edges[i + 1]:.3g} {unit}"
            bars.append(
                f'<rect x="{LEFT + i * step:.1f}" y="{y:.1f}" width="{step * 0.92:.1f}" height="{height:.1f}" '
                f'fill="{css(colour)}"><title>{title}</title></rect>'
            )
    ticks = []
    for part in (0, 0.25, 0.5, 0.75, 1):
        x, value = LEFT + part * (WIDTH - 2 * LEFT), edges[0] + part * (edges[-1] - edges[0])
        ticks.append(f'<text x="{x:.1f}" y="{HEIGHT + 14}" text-anchor="middle">{value:.3g}</text>')
    axis = f'<line x1="{LEFT}" y1="{HEIGHT}" x2="{WIDTH - LEFT}" y2="{HEIGHT}" stroke="#888"/>'
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT + BOTTOM}" role="img">{"".join(bars)}{axis}{"".join(ticks)}'
        f'<text x="{WIDTH - LEFT}" y="10" text-anchor="end" class="faint">{html.escape(unit)}</text></svg>'
    )


def stacked_bar(parts: Sequence[tuple[str, Colour, int]]) -> str:
    """One bar that shows the shares of (name, colour, count)."""
    total = max(1, sum(count for _, _, count in parts))
    pieces = [
        f'<span style="width:{100 * count / total:.2f}%;background:{css(colour)}" '
        f'title="{words(name)}: {count:,} ({100 * count / total:.1f} %)"></span>'
        for name, colour, count in parts
        if count
    ]
    return f'<div class="stack">{"".join(pieces)}</div>'


def heat_table(
    rows: Sequence[tuple[str, Colour]],
    columns: Sequence[tuple[str, Colour]],
    counts: npt.NDArray[np.int64],
    expected: npt.NDArray[np.bool_],
    corner: str,
) -> str:
    """Counts of pairs of labels, coloured by their share of the row.

    Args:
        rows, columns: (label, colour).
        counts: (rows, columns).
        expected: (rows, columns), where the label table says that both labels mean the same nuclei; framed.
        corner: what stands in the corner.
    """
    head = "".join(f'<th class="slant"><span>{dot(colour)}{words(label)}</span></th>' for label, colour in columns)
    lines = []
    for (label, colour), row, right in zip(rows, counts, expected, strict=True):
        total = int(row.sum())
        cells = []
        for count, yes in zip(row.tolist(), right.tolist(), strict=True):
            share = count / max(1, total)
            shade = round(255 - 175 * share)
            style = f"background:rgb({shade},{min(255, shade + 25)},255);color:{'#fff' if share > 0.75 else '#111'}"
            title = f"{count:,} nuclei, {100 * share:.1f} % of the row"
            text = f"{100 * share:.0f}" if share >= 0.005 else ("·" if count else "")
            cells.append(f'<td class="{"meant" if yes else ""}" style="{style}" title="{title}">{text}</td>')
        name = f"<th>{dot(colour)}{words(label)}</th>"
        lines.append(f'<tr>{name}{"".join(cells)}<td class="num faint">{total:,}</td></tr>')
    titles = f'<tr><th class="corner">{corner}</th>{head}<th class="faint">nuclei</th></tr>'
    return f'<table class="heat"><thead>{titles}</thead><tbody>{"".join(lines)}</tbody></table>'


def dot(colour: Colour) -> str:
    """A label's colour, as a dot before its name."""
    return f'<i style="background:{css(colour)}"></i>'


def tabs(group: str, panels: Sequence[tuple[str, str]], first: str) -> str:
    """Panels (name, content) of which radio buttons, and no script, choose the one that is shown. All of them print."""
    inputs, labels, bodies = [], [], []
    for i, (name, content) in enumerate(panels):
        key, checked = f"{group}-{i}", " checked" if name == first else ""
        inputs.append(f'<input type="radio" name="{group}" id="{key}"{checked}>')
        labels.append(f'<label for="{key}">{words(name)}</label>')
        bodies.append(f'<div class="panel"><h3 class="printed">{words(name)}</h3>{content}</div>')
    return f'<div class="tabs">{"".join(inputs)}<nav>{"".join(labels)}</nav>{"".join(bodies)}</div>'
