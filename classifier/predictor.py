"""The classifier as the pipeline drives it: crops in, labels out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from classifier.labels import Labels
from classifier.libraries import Outputs
from classifier.model import JointClassifier, enlarge, probabilities
from nucpipe.common.runtime import ready

ROWS = 8
"""Windows that OpenVINO computes at a time: their maps fit a core's cache."""
EXAMPLE_PX = 48
"""Side of the window that the network is traced with: of no size that it takes, so that enlarging is traced too."""


class _Enlarged(nn.Module):
    """The network behind the enlargement of its windows."""

    def __init__(self, model: JointClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> Tensor:
        logits: Tensor = self.model(enlarge(crops, self.model.size_px))
        return logits


class Predictor:
    """A joint classifier, ready to run.

    Args:
        model: with weights.
        outputs: its columns.
        device, precision: where and how it runs; None is float32.
        threads: processors that it may use.
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
        self.runtime = ready(_Enlarged(model).eval(), device, precision, threads, ROWS, example_px=EXAMPLE_PX)

    @property
    def calls(self) -> int:
        """How many calls at once use the device fully."""
        return self.runtime.calls

    def __call__(self, crops: npt.NDArray[np.uint8]) -> Labels:
        """The labels of windows.

        Args:
            crops: (N, S, S, 3) RGB uint8 windows of 16 um, each centred on its nucleus; enlarged here.
        """
        if not len(crops):
            return Labels(np.zeros((0, len(self.outputs)), np.float32))
        logits = torch.from_numpy(self.runtime(crops))
        return Labels(probabilities(logits, self.outputs).numpy())
