"""Training loop of both models: mean of the weights, checkpoints, table of losses, progress.

The loops are our own and not a framework's, so that a resumed training ends with the same weights to the bit.
"""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from nucpipe.backends.model_file import why_not_unpickled
from nucpipe.errors import DataError, UsageError
from nucpipe.files import written_whole

AVERAGED_SHARE = 0.5
"""Share of a training, at its end, whose weights are averaged."""

WARMUP_SHARE = 0.04


def check_settings(steps: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """See that the settings of a training can be.

    Raises:
        UsageError: one cannot.
    """
    if steps < 0:
        raise UsageError(f"--steps {steps}: expected 0 or more.")
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected at least 1.")
    if not 0 < learning_rate < math.inf:
        raise UsageError(f"--learning-rate {learning_rate:g}: expected a number above 0, such as 0.001.")
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: expected 0 or more.")


class WeightAverage(AveragedModel):
    """The plain mean of a model's weights and buffers over the last part of its training; the mean is what is released.

    A mean of weights from all over a wide valley carries over to other tissues better than its lowest point does (Cha
    et al. 2021, "SWAD"). ``module`` is the network that has it.

    Args:
        model: whose weights are averaged.
        start: the first step whose weights count; before it the mean is the weights themselves.
    """

    def __init__(self, model: nn.Module, start: int) -> None:
        super().__init__(model, avg_fn=_running_mean, use_buffers=True)
        self.module.eval().requires_grad_(False)
        self.start = start

    def update(self, model: nn.Module, step: int) -> None:
        """Add the weights after ``step``, the first of which is 0."""
        if step <= self.start:
            self.n_averaged.zero_()
        self.update_parameters(model)


def _running_mean(mean: torch.Tensor, value: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    # Counts of batches are no weights.
    return mean.lerp(value, 1 / (int(count) + 1)) if mean.is_floating_point() else value


@torch.no_grad()
def mean_weights(networks: Sequence[nn.Module]) -> dict[str, torch.Tensor]:
    """Return the mean of several networks' weights and buffers (Wortsman et al. 2022, "Model soups").

    Trainings that started from the same weights end in one valley, and the middle of it is often better than each of
    its sides.

    Raises:
        ValueError: the networks differ in their layers.
    """
    states = [network.state_dict() for network in networks]
    if any(
        state.keys() != states[0].keys() or any(state[k].shape != v.shape for k, v in states[0].items())
        for state in states[1:]
    ):
        raise ValueError("their layers differ")
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def lr_factor(step: int, steps: int) -> float:
    """Return the factor on the learning rate: a short linear rise, and half as much while weights are averaged.

    It does not fall to 0, so that the averaged weights differ.
    """
    warmup = max(1, round(WARMUP_SHARE * steps))
    return min((step + 1) / warmup, 1.0 if step < steps * (1 - AVERAGED_SHARE) else 0.5)


CHECKPOINT_SECONDS = 180
OTHER_RELEASE = (
    "this checkpoint is of another release of nucpipe; finish the training there, or delete it to start again."
)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    with written_whole(path) as partial:
        torch.save(state, partial)


def load_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the checkpoint at ``path``, or None where there is none.

    Raises:
        DataError: it was made with other settings, or is broken.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken files make torch raise nearly anything
        raise DataError(
            f"{path}: the checkpoint cannot be read ({why_not_unpickled(error)}); delete it to start again."
        ) from error
    if not settings.keys() <= state["settings"].keys():
        raise DataError(f"{path}: {OTHER_RELEASE}")
    changed = [k for k, v in settings.items() if state["settings"].get(k) != v]
    if changed:
        raise DataError(
            f"{path}: this checkpoint was made with another "
            f"{', '.join(_changed(k, state['settings'].get(k), settings[k]) for k in changed)}; "
            "give the same settings to go on, or delete it to start again."
        )
    return state


def _changed(name: str, there: object, here: object) -> str:
    """Name a setting that differs, with both values unless they are long."""
    values = f" ({there} there, {here} here)"
    return name.replace("_", " ") + (values if len(values) <= 80 else "")


def keep_rows(log: Path, start: int, names: list[str]) -> None:
    """Keep a CSV log's rows before step ``start``, for later ones are written again; ``names`` follow ``step``."""
    rows = [["step", *names]]
    if start and log.is_file():
        with log.open(newline="") as file:
            rows += [row for row in list(csv.reader(file))[1:] if int(row[0]) < start]
    with log.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


class Optimization:
    """AdamW on a network, the schedule of its learning rate (:func:`lr_factor`), and the mean of its weights.

    Args:
        model: on its device.
        learning_rate: the largest.
        weight_decay: of AdamW.
        steps: of the training.
        averaged_from: the first step whose weights count in the mean.

    Attributes:
        optimizer: AdamW.
        average: the network that has the mean weights, in evaluation mode.
        parts: what a checkpoint holds.
    """

    def __init__(
        self, model: nn.Module, learning_rate: float, weight_decay: float, steps: int, averaged_from: int
    ) -> None:
        self.optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
        self._model, self._mean = model, WeightAverage(model, averaged_from)
        self._schedule = LambdaLR(self.optimizer, lambda step: lr_factor(step, steps))
        self.average: Any = self._mean.module
        self.parts: dict[str, Stateful] = {
            "model": model,
            "average": self._mean,
            "optimizer": self.optimizer,
            "schedule": self._schedule,
        }

    def advance(self, step: int) -> None:
        """Go on to the next learning rate, and add the weights after ``step`` to the mean."""
        self._schedule.step()
        self._mean.update(self._model, step)


class Stateful(Protocol):
    """A network, an optimizer or a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that it is made of."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Become what ``state_dict`` was taken from."""


class Trainer:
    """A training under way: the table of its losses, its progress, and the checkpoint that it goes on from.

    Args:
        title: for people.
        out: the model file that comes of it; table and checkpoint stand beside it.
        settings: what a checkpoint must have been made with.
        parts: what a checkpoint holds; they are given their states of the last one, if there is one.
        steps: how many there are at most.
        columns: names of the table's columns, after ``step``.
        say: receives progress messages.

    Attributes:
        start: the first step that is to be done.
        kept: what else the checkpoint held.
        log: the table, a CSV file.

    Raises:
        DataError: the checkpoint was made with other settings, is broken, or is of another release.
    """

    def __init__(
        self,
        title: str,
        out: Path,
        settings: dict[str, Any],
        parts: dict[str, Stateful],
        steps: int,
        columns: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self.log = out.with_suffix(".losses.csv")
        self.start = 0
        self.kept: dict[str, Any] = {}
        self._checkpoint, self._settings, self._parts = out.with_suffix(".checkpoint"), settings, parts
        self._title, self._steps, self._columns = title, steps, columns
        self._open = ExitStack()
        if (state := load_checkpoint(self._checkpoint, settings)) is not None:
            self.start, self.kept = state["step"], state.get("kept", {})
            try:
                for name, part in parts.items():
                    part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise DataError(f"{self._checkpoint}: {OTHER_RELEASE}") from error
            say(f"going on from step {self.start}")

    def __enter__(self) -> Self:
        keep_rows(self.log, self.start, list(self._columns))
        self._progress = self._open.enter_context(show_progress(self._title, self._steps, self.start))
        self._file = self._open.enter_context(self.log.open("a", newline=""))
        self._rows = csv.writer(self._file)
        self._saved = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def log_step(
        self, step: int, losses: Sequence[str], text: str, last: bool, kept: dict[str, Any] | None = None
    ) -> None:
        """Log a finished step.

        Args:
            step: its number, from 0.
            losses: a cell for each column.
            text: for the progress.
            last: whether it is the last one.
            kept: what a checkpoint shall hold beside the parts.
        """
        self._rows.writerow((step, *losses))
        self._progress(step + 1, text)
        if last or time.monotonic() - self._saved > CHECKPOINT_SECONDS:
            self._file.flush()
            states = {name: part.state_dict() for name, part in self._parts.items()}
            save_checkpoint(
                self._checkpoint, {"settings": self._settings, "step": step + 1, "kept": kept or {}, **states}
            )
            self._saved = time.monotonic()


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
    """Callback of every step."""

    def __call__(self, step: int, text: str) -> None:
        """Show that ``step`` is done; ``text`` has its figures."""


@contextmanager
def show_progress(title: str, steps: int, start: int = 0) -> Iterator[Progress]:
    """Yield a progress bar on a terminal; elsewhere a plain line now and then."""
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
