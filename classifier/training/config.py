"""Settings of a training of the classifier."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier.dataset import BALANCES
from classifier.labels.label_mapping import SIMILARITY
from classifier.network import BACKBONE, PATCH_STRIDES
from classifier.training.losses import LOSSES
from nucpipe.backends.device import training_precision
from nucpipe.errors import UsageError
from nucpipe.training import trainer

MIN_SIZE_PX = 32
SAMPLINGS = ("random", "round-robin")
STOPS = ("steps", "converged")
KEEPS = ("last", "best")


@dataclass(frozen=True)
class ClassifierTraining:
    """Settings of a training.

    Attributes:
        libraries: (name, folder) of each annotated set; a library may come more than once.
        out: the model file to write; checkpoint, losses and model card stand beside it.
        hold_out: names of images or groups (patient, case, tissue) kept for validation, wildcards allowed. Of a set
            where none is found, about 15 % is held out.
        steps: number of batches.
        batch_size: patches a batch.
        learning_rate: the largest, of AdamW.
        seed: of the random numbers.
        device: a torch device.
        precision: ``auto``, ``fp32`` or ``bf16``; auto takes bfloat16 where the device is fast in it.
        backbone: timm name.
        sizes: (share of the steps, side in pixels) of each phase. Patches are enlarged to this side: small ones first,
            because more of them are seen in the same time; the last side is the model's own. 64 enlarges nothing.
        context: whether the tissue round a nucleus is looked at, too, by a second network of the same backbone. The
            patch is then enlarged to 224 px throughout, whose first layer is a ``classifier.network.PatchStem``;
            ``sizes`` is not read, and ``strides`` are those of the stages behind that layer.
        context_dropout: share of the samples whose context is left out in training, 0-1.
        colour_exchange, sharpness_exchange: shares of the samples that are given the colours, and the sharpness, of
            another image, 0-1; with context only.
        always_exchanged: names of libraries of which every sample is given another one's look. All that one laboratory
            says else teaches its look.
        strides: of an EfficientNet's stem and stages, see ``classifier.network.set_strides``; empty: as published.
        start_from: a classifier whose weights the training starts from, instead of ImageNet's, or several of the same
            labels and layers, whose mean is taken; outputs of labels that it has too start as they are there.
        match, similarity, match_table: which label teaches another library's, see ``classifier.labels.label_mapping``.
        sampling: ``random`` draws from all libraries, ``round-robin`` takes a sample of each library in turn.
        balance: how samples are drawn, see ``classifier.dataset.sampling_weights``.
        library_weights: (name, factor) of libraries that are drawn more or less often than ``balance`` says.
        loss: ``cross-entropy`` or ``distance``, see ``classifier.training.losses``.
        mixup: patches and losses of two samples are mixed in shares drawn from Beta(mixup, mixup) (Zhang et al. 2018);
            0 mixes nothing.
        stop: ``steps`` trains them all; ``converged`` ends earlier, once the loss on what is held out has not fallen by
            the share ``tolerance`` for ``patience`` looks at it.
        keep: ``last`` or ``best``, the model of the smallest loss on what is held out.
        check_every: steps between two looks at the loss on what is held out.
        complete: a model whose confident predictions (at least ``complete_above``) teach what a sample's own label does
            not; a second round of training.
        distil: a model, or several, whose probabilities teach every library's labels of every nucleus, moved as the
            network is shown it but in its own colours, with ``distil_weight`` beside the nuclei's own labels and both
            softened by ``distil_temperature``, see ``classifier.training.distillation``.
        distil_turns: of how many quarter turns of a nucleus their logits are the mean, 1 to 4.
    """

    libraries: tuple[tuple[str, Path], ...]
    out: Path
    hold_out: tuple[str, ...] = ()
    steps: int = 1800
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    device: str = "cpu"
    precision: str = "auto"
    backbone: str = BACKBONE
    sizes: tuple[tuple[float, int], ...] = ((0.76, 96), (0.14, 144), (0.1, 224))
    context: bool = False
    context_dropout: float = 0.2
    colour_exchange: float = 0.0
    sharpness_exchange: float = 0.0
    always_exchanged: tuple[str, ...] = ()
    strides: tuple[int, ...] = ()
    start_from: tuple[Path, ...] = ()
    match: str = "table"
    similarity: float = SIMILARITY
    match_table: Path | None = None
    sampling: str = "random"
    balance: str = "root"
    library_weights: tuple[tuple[str, float], ...] = ()
    loss: str = "cross-entropy"
    mixup: float = 0.4
    stop: str = "steps"
    keep: str = "last"
    tolerance: float = 0.005
    patience: int = 5
    check_every: int = 100
    complete: Path | None = None
    complete_above: float = 0.99
    distil: tuple[Path, ...] = ()
    distil_weight: float = 1.0
    distil_temperature: float = 2.0
    distil_turns: int = 1

    def __post_init__(self) -> None:
        """Check what has a few values only, and numbers.

        Raises:
            UsageError: another value.
        """
        trainer.check_settings(self.steps, self.batch_size, self.learning_rate, self.seed)
        _ = self.computed_in
        known = {
            "sampling": SAMPLINGS,
            "balance": tuple(BALANCES),
            "loss": tuple(LOSSES),
            "stop": STOPS,
            "keep": KEEPS,
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UsageError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(values)}.")
        shares, sides = zip(*self.sizes, strict=True) if self.sizes else ((), ())
        if not sides or min(sides) < MIN_SIZE_PX or not abs(sum(shares) - 1) <= 1e-6:
            raise UsageError(f"sizes = {self.sizes}: expected shares that sum to 1 and sides from {MIN_SIZE_PX} px.")
        if not 0 <= self.context_dropout < 1:
            raise UsageError(f"context_dropout = {self.context_dropout}: expected 0 or more, and less than 1.")
        for name in ("colour_exchange", "sharpness_exchange"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} = {getattr(self, name)}: expected 0 to 1.")
        for name in ("colour_exchange", "sharpness_exchange", "always_exchanged"):
            if getattr(self, name) and not self.context:
                raise UsageError(f"{name} is for two views; expected context = true beside it.")
        if not all(0 < weight < math.inf for _, weight in self.library_weights):
            raise UsageError("library_weights: expected factors above 0.")
        for name in ("mixup", "tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} = {getattr(self, name)}: expected 0 or more.")
        for name in ("patience", "check_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: expected 1 or more.")
        if not 0 < self.complete_above < 1:
            raise UsageError(f"complete_above = {self.complete_above}: expected a number between 0 and 1.")
        if not (0 < self.distil_weight < math.inf and 0 < self.distil_temperature < math.inf):
            raise UsageError("distil_weight and distil_temperature: expected numbers above 0.")
        if not 1 <= self.distil_turns <= 4:
            raise UsageError(f"distil_turns = {self.distil_turns}: expected 1 to 4.")

    def settings(self) -> dict[str, Any]:
        """Return what a checkpoint must have been made with to be resumed."""
        left_out = {"libraries", "out", "device", "precision", "match_table", "complete", "start_from", "distil"}
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        settings["libraries"] = [[name, str(path)] for name, path in self.libraries]
        settings["precision"] = self.computed_in
        settings["strides"] = list(self.strides)
        settings |= {name: str(getattr(self, name)) for name in ("match_table", "complete")}
        settings["library_weights"] = [list(pair) for pair in self.library_weights]
        settings |= {name: [str(path) for path in getattr(self, name)] for name in ("start_from", "distil")}
        return settings

    @property
    def computed_in(self) -> str:
        """The precision of the convolutions: ``fp32`` or ``bf16``."""
        return training_precision(self.precision, self.device)

    @property
    def averaged_from(self) -> int:
        """The step from which on weights are averaged: of the training's second half, and of its last size only."""
        if self.context:
            return int(self.steps * (1 - trainer.AVERAGED_SHARE))
        last_size = sum(share for share, _ in self.sizes[:-1])
        return int(self.steps * max(1 - trainer.AVERAGED_SHARE, last_size))

    @property
    def patch_strides(self) -> tuple[int, ...]:
        """Those of the stages behind a ``PatchStem``; empty: as published."""
        return self.strides or (PATCH_STRIDES if self.backbone == BACKBONE else ())

    @property
    def watched(self) -> bool:
        """True if the loss on held-out nuclei is needed."""
        return self.stop == "converged" or self.keep == "best"

    def size_px(self, step: int) -> int:
        """Return the side to which the patches of a step are enlarged."""
        end = 0.0
        for share, side in self.sizes:
            end += share
            if step < end * self.steps:
                return side
        return self.sizes[-1][1]
