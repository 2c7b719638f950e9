"""The classifier as the pipeline drives it: patches and their contexts in, labels out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from classifier.labels.libraries import LabelSpace
from classifier.out_of_distribution import OodModel, read_ood
from classifier.predictions import Predictions, probabilities
from classifier.spec import (
    BATCH_SIZE,
    CONTEXT_PX,
    GPU_BATCH_SIZE,
    PATCH_PX,
    TWO_VIEWS,
    read_features,
    read_outputs,
)
from nucpipe.backends.base import Backend, Input
from nucpipe.backends.conversion_cache import network_key
from nucpipe.backends.model_file import read_header
from nucpipe.backends.select import select_backend
from nucpipe.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

ROWS = 8
"""Patches that OpenVINO computes at a time: their maps fit a core's cache."""

QUARTER_TURNS = 4


class Predictor:
    """A joint classifier, ready to run.

    Args:
        build: makes its network, see :func:`nucpipe.backends.select.select_backend`.
        outputs: its columns.
        device, precision: where and how it runs.
        threads: processors that it may use.
        key: names the network, so that it can be kept for the next time.
        context: whether the network looks at the context, too.
        features: how many numbers the network gives behind the logits.
        ood: tells by these how unlike the training data a nucleus is; None where nothing does.
        tta: average the logits over the four quarter turns of a nucleus; features and score are those of the first.

    Attributes:
        context, features, ood: the same.
        max_concurrency: how many calls at once use the device fully.
        batch_size: nuclei that are best given at a time.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        outputs: LabelSpace,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int = 1,
        key: str | None = None,
        context: bool = False,
        features: int = 0,
        ood: OodModel | None = None,
        tta: bool = False,
    ) -> None:
        self.outputs, self.context, self.features, self.ood = outputs, context, features, ood
        self.batch_size = BATCH_SIZE if device == "cpu" else GPU_BATCH_SIZE
        self._turns = QUARTER_TURNS if tta else 1
        self._ready = partial(select_backend, build, device, precision, threads, ROWS, key=key)
        self._runtimes: dict[int, Backend] = {}
        self._lock = threading.Lock()
        self.max_concurrency = self.runtime(PATCH_PX).max_concurrency

    def runtime(self, side_px: int) -> Backend:
        """Return the network for patches of one size; a fixed size is computed a seventh faster than a varying one."""
        with self._lock:
            if side_px not in self._runtimes:
                inputs = (Input(side_px), Input(CONTEXT_PX, 4)) if self.context else (Input(side_px),)
                self._runtimes[side_px] = self._ready(inputs=inputs)
            return self._runtimes[side_px]

    def empty(self) -> Predictions:
        """Return what it says of no nucleus."""
        return Predictions.empty(self.outputs, self.features, self.ood is not None)

    def __call__(self, crops: npt.NDArray[np.uint8], contexts: npt.NDArray[np.uint8] | None = None) -> Predictions:
        """Return the labels of patches.

        Args:
            crops: (N, S, S, 3) RGB uint8 patches of 16 um, each centred on its nucleus; enlarged here.
            contexts: (N, 64, 64, 4) uint8, see ``classifier.patches.cut_contexts``; None where they are not known.
                Not looked at by a network without context.
        """
        if not len(crops):
            return self.empty()
        views = [crops]
        if self.context:
            views.append(np.zeros((len(crops), CONTEXT_PX, CONTEXT_PX, 4), np.uint8) if contexts is None else contexts)
        runtime = self.runtime(crops.shape[1])
        logits, rest = np.split(runtime(*views), [len(self.outputs)], axis=1)
        for turn in range(1, self._turns):
            turned = runtime(*(np.ascontiguousarray(np.rot90(view, turn, (1, 2))) for view in views))
            logits = logits + turned[:, : len(self.outputs)]
        logits = logits / np.float32(self._turns)
        features = rest.astype(np.float16) if self.features else None
        scores = None if self.ood is None or features is None else self.ood.score(features)
        return Predictions(probabilities(logits, self.outputs), features, scores)


def load_predictor(
    path: Path, device: str = "cpu", precision: str = "fp32", threads: int = 1, tta: bool = False
) -> Predictor:
    """Return the classifier in a model file, ready to run.

    Args:
        path: of the file.
        device, precision: where and how it runs.
        threads: processors that it may use.
        tta: average the logits over quarter turns.

    Raises:
        ModelError: no such file, not a classifier, or weights that do not fit its header.
    """

    def build() -> nn.Module:
        from classifier.network import load_classifier, of_patches

        return of_patches(load_classifier(path)[0], "logits and features")

    header = read_header(path)
    outputs = read_outputs(path, header)
    key = network_key(path, [Path(__file__).with_name("network.py")])
    context = header.architecture.get("type") == TWO_VIEWS
    features, ood = read_features(path, header), read_ood(path, header)
    if ood is not None and ood.means.shape[1] != features:
        raise ModelError(f"{path}: its out-of-distribution score is of {ood.means.shape[1]} features, not {features}.")
    return Predictor(build, outputs, device, precision, threads, key, context, features, ood, tta)
