"""What a training of the classifier is shown: which samples a batch draws, and their pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from classifier.dataset import SOURCE_PX, PatchDataset, sampling_weights
from classifier.training.config import ClassifierTraining

SHARE_OF_GPU = 0.3
"""Largest share of a GPU's free memory that holds all samples' pixels."""
AT_ONCE = 2048
"""Samples whose pixels are cut together."""


class LibrarySampler:
    """Sampler of batches over libraries, labels and groups."""

    def __init__(self, config: ClassifierTraining, samples: PatchDataset, factors: Mapping[int, float]) -> None:
        weights = torch.from_numpy(sampling_weights(samples, config.balance, factors))
        of = torch.from_numpy(samples.library)
        # One set of weights for all, or one for each library that has samples.
        kinds = sorted(set(samples.library.tolist()))
        self.weights = [weights] if config.sampling == "random" else [weights * (of == k) for k in kinds]
        self.batch_size = config.batch_size

    def __call__(self, step: int, generator: torch.Generator) -> npt.NDArray[np.int64]:
        """Return the places (batch size,) of a step's samples."""
        kinds = len(self.weights)
        turn = (torch.arange(self.batch_size) + step * self.batch_size) % kinds
        chosen = torch.zeros(self.batch_size, dtype=torch.int64)
        for k, weights in enumerate(self.weights):
            rows = turn == k
            if rows.any():
                chosen[rows] = torch.multinomial(weights, int(rows.sum()), replacement=True, generator=generator)
        return chosen.numpy()


class SamplePixels:
    """Patches, and contexts where they are looked at, of samples on the training's device; cut when asked for.

    Args:
        samples: what is trained on.
        context: whether contexts are looked at.
        device: the training's.
    """

    def __init__(self, samples: PatchDataset, context: bool, device: torch.device) -> None:
        self.samples, self._context, self._device = samples, context, device
        self._channels = (3, 4) if context else (3,)
        self._kept: list[torch.Tensor] | None = None

    def fit_on_gpu(self) -> bool:
        """Tell whether the device is a CUDA GPU with room for the pixels of all samples."""
        size = len(self.samples) * SOURCE_PX**2 * sum(self._channels)
        return self._device.type == "cuda" and size < torch.cuda.mem_get_info(self._device)[0] * SHARE_OF_GPU

    def keep(self) -> None:
        """Cut the pixels of all samples now and keep them on the device."""
        shapes = ((len(self.samples), n, SOURCE_PX, SOURCE_PX) for n in self._channels)
        kept = [torch.empty(shape, dtype=torch.uint8, device=self._device) for shape in shapes]
        for start in range(0, len(self.samples), AT_ONCE):
            rows = np.arange(start, min(start + AT_ONCE, len(self.samples)))
            for stored, view in zip(kept, self._cut(rows), strict=True):
                stored[start : start + len(rows)] = view
        self._kept = kept

    def __call__(self, rows: npt.NDArray[np.int64]) -> list[torch.Tensor]:
        """Return patches (n, 3, S, S), and contexts (n, 4, S, S), uint8, of the samples at ``rows``."""
        if self._kept is None:
            return self._cut(rows)
        places = torch.from_numpy(rows).to(self._device)
        return [view[places] for view in self._kept]

    def _cut(self, rows: npt.NDArray[np.int64]) -> list[torch.Tensor]:
        views = [self.samples.patches(rows)]
        if self._context:
            views.append(self.samples.contexts(rows, SOURCE_PX))
        return [torch.from_numpy(view).to(self._device).permute(0, 3, 1, 2).contiguous() for view in views]
