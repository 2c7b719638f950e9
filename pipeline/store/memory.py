"""A store that was never written: the nuclei of one image in memory, for what is made from a store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from classifier.predictions import Predictions
from pipeline.store.ordering import index_regions, iterate_ordered
from pipeline.store.reader import Store
from pipeline.store.schema import StoreInfo
from pipeline.store.writer import table_rows
from segmentation.nuclei import Nuclei


@dataclass(frozen=True)
class MemoryStore(Store):
    """A :class:`~pipeline.store.reader.Store` in memory: same nuclei, same order, but no ``path`` and no ``table``.

    Attributes:
        arrays: by their path in a store.
    """

    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, nuclei: Nuclei, labels: Predictions, info: StoreInfo) -> MemoryStore:
        """Return the nuclei of an image, in any order, in level-0 pixels."""
        regions = _OneRegion(nuclei, labels)
        parts = list(iterate_ordered(regions, index_regions(regions, [0])))
        ordered = Nuclei.concatenate([part for part, _ in parts])
        named = Predictions.concatenate([part for _, part in parts]) if parts else labels
        arrays = table_rows(ordered, named, info)
        arrays["contours/offsets"] = ordered.contour_offsets
        arrays["contours/points"] = ordered.contour_points.astype(np.float32)
        return cls(Path("memory"), info, range(len(ordered)), arrays=arrays)

    def measure(self, name: str) -> npt.NDArray[np.float32]:
        """As :meth:`pipeline.store.reader.Store.measure`."""
        return self._read(f"table/obs/{name}")

    def _read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        return self.arrays[name][start:stop]


@dataclass(frozen=True)
class _OneRegion:
    """Yield the parts that a journal of one region would."""

    nuclei: Nuclei
    labels: Predictions

    def read(self, index: int) -> tuple[Nuclei, Predictions]:
        return self.nuclei, self.labels
