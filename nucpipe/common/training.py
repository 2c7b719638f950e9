"""What both trainings need: checkpoints, a moving average of the weights, and lines of progress."""

from __future__ import annotations

import copy
import csv
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from nucpipe.common.errors import DataError

Network = TypeVar("Network", bound=nn.Module)


class WeightAverage(Generic[Network]):
    """A mean of a model's weights and buffers over its training; the mean is what is released.

    Args:
        model: whose weights are averaged.
        decay: of an exponential moving average; early on it forgets faster. None: the plain mean of all steps from
            ``start`` on (Cha et al. 2021, "SWAD"), and the weights themselves before.
        start: see ``decay``.
    """

    def __init__(self, model: Network, decay: float | None, start: int = 0) -> None:
        self.model: Network = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.start = start

    @torch.no_grad()
    def update(self, model: Network, step: int) -> None:
        """Take in the weights after ``step``, the first of which is 0."""
        if self.decay is not None:
            share = 1 - min(self.decay, (1 + step) / (10 + step))
        else:
            share = 1 / max(1, step - self.start + 1)
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate: a linear rise over ``warmup`` steps, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint at ``path``, or None where there is none.

    Raises:
        DataError: it was made with other settings, or is broken.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: the checkpoint cannot be read ({error}); delete it to start again.") from error
    changed = [k for k, v in settings.items() if state["settings"].get(k) != v]
    if changed:
        raise DataError(
            f"{path}: this checkpoint was made with another {', '.join(changed)}; "
            "give the same settings to go on, or delete it to start again."
        )
    return state


def keep_rows(log: Path, start: int, names: list[str]) -> None:
    """Keep a CSV log's rows before step ``start``, for later ones are written again; ``names`` follow ``step``."""
    rows = [["step", *names]]
    if start and log.is_file():
        with log.open(newline="") as file:
            rows += [row for row in list(csv.reader(file))[1:] if int(row[0]) < start]
    with log.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def plot_losses(log: Path, picture: Path) -> None:
    """Draw the columns of a CSV log over its steps, each as a moving mean."""
    import matplotlib.figure
    import numpy as np

    with log.open(newline="") as file:
        names, *rows = list(csv.reader(file))
    values = np.array([[float(cell) if cell else np.nan for cell in row] for row in rows]).reshape(-1, len(names))
    figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    width = max(1, len(values) // 50)
    for name, column in zip(names[1:], values[:, 1:].T, strict=True):
        there = np.isfinite(column)
        if there.any():
            steps, column = values[there, 0], column[there]
            n = min(width, len(column)) if there.mean() > 0.1 else 1
            mean = np.convolve(column, np.full(n, 1 / n), "valid")
            axes.plot(steps[len(steps) - len(mean) :], mean, label=name, marker="." if n == 1 else None)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture)


class Progress(Protocol):
    """Told of every step."""

    def __call__(self, step: int, text: str) -> None:
        """``step`` of the training is done; ``text`` has its figures."""


@contextmanager
def show_progress(title: str, steps: int, start: int = 0) -> Iterator[Progress]:
    """A progress bar on a terminal; elsewhere a plain line now and then."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=steps, completed=start, text="")
            yield lambda step, text: bar.update(task, completed=step, text=text)
        return
    began = last = time.monotonic()

    def line(step: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 30 or step == steps:
            last = now
            left = (now - began) / max(1, step - start) * (steps - step)
            print(f"{title}: step {step}/{steps}, {left / 60:.0f} min left, {text}", file=sys.stderr, flush=True)

    yield line
