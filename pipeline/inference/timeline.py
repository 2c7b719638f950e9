"""A picture of a run: what each thread did when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nucpipe.files import written_whole
from pipeline.inference.profiling import Span

COLOURS = {"read": "#4878cf", "detect": "#6acc65", "outline": "#d65f5f", "classify": "#b47cc7", "write": "#c4ad66"}
SHORTEST = 1 / 4000
"""Least share of the whole time that is drawn; shorter spans could not be seen."""


def draw_timeline(spans: Sequence[Span], path: Path) -> None:
    """Draw a row a thread, a bar a piece of work, coloured by stage.

    Raises:
        OutputError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    end = max((span.ended for span in spans), default=1.0)
    threads = sorted({span.thread for span in spans}, reverse=True)
    figure = Figure((12, 1.2 + 0.35 * len(threads)), layout="constrained")
    axes = figure.subplots()
    for stage, colour in COLOURS.items():
        for row, thread in enumerate(threads):
            bars = [(s.began, s.ended - s.began) for s in spans if (s.stage, s.thread) == (stage, thread)]
            axes.broken_barh([bar for bar in bars if bar[1] > end * SHORTEST], (row - 0.4, 0.8), color=colour)
        axes.plot([], [], color=colour, linewidth=6, label=stage)
    axes.set_yticks(range(len(threads)), [thread.removeprefix("nucpipe-") for thread in threads])
    axes.set_xlim(0, end)
    axes.set_xlabel("seconds")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(COLOURS), frameon=False)
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
