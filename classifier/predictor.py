"""The classifier as the pipeline drives it: crops in, labels out."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from classifier.labels import Labels
from classifier.libraries import Outputs
from classifier.model import WINDOW_PX, JointClassifier, enlarge, probabilities
from nucpipe.common.runtime import Runtime, ready

ROWS = 8
"""Windows that OpenVINO computes at a time: their maps fit a core's cache."""


class Enlarged(nn.Module):
    """A network behind the enlargement of its windows."""

    def __init__(self, model: JointClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, columns)."""
        logits: Tensor = self.model(enlarge(crops, self.model.size_px))
        return logits


class Predictor:
    """A joint classifier, ready to run.

    Args:
        model: with weights.
        outputs: its columns.
        device, precision: where and how it runs; None is float32.
        threads: processors that it may use.

    Attributes:
        calls: how many calls at once use the device fully.
    """

    def __init__(
        self,
        model: JointClassifier,
        outputs: Outputs,
        device: torch.device,
        precision: torch.dtype | None = None,
        threads: int = 1,
    ) -> None:
        self.outputs = outputs
        network = Enlarged(model).eval()
        self._ready = partial(ready, network, device, precision, threads, ROWS)
        self._runtimes: dict[int, Runtime] = {}
        self._lock = threading.Lock()
        self.calls = self.runtime(WINDOW_PX).calls

    def runtime(self, side_px: int) -> Runtime:
        """The network for windows of one size; a fixed size is computed a seventh faster than a varying one."""
        with self._lock:
            if side_px not in self._runtimes:
                self._runtimes[side_px] = self._ready(side_px)
            return self._runtimes[side_px]

    def __call__(self, crops: npt.NDArray[np.uint8]) -> Labels:
        """The labels of windows.

        Args:
            crops: (N, S, S, 3) RGB uint8 windows of 16 um, each centred on its nucleus; enlarged here.
        """
        if not len(crops):
            return Labels(np.zeros((0, len(self.outputs)), np.float32))
        logits = torch.from_numpy(self.runtime(crops.shape[1])(crops))
        return Labels(probabilities(logits, self.outputs).numpy())
