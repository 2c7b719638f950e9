"""The nuclei that a detector found: arrays in one object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nucpipe.errors import UsageError

MEASURES = (
    "perimeter_um",
    "circularity",
    "solidity",
    "max_diameter_um",
    "min_diameter_um",
    "haematoxylin_od",
)
"""Measurements of each nucleus besides its area, see :func:`segmentation.morphology.with_morphology`."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Nuclei:
    """N nuclei with their outlines, in one frame of pixels (the owner of the object says which).

    Coordinates are (x, y); pixel (i, j) covers the square [i, i+1) x [j, j+1), so outlines run through pixel corners
    and a square of 10x10 pixels has area 100.

    Attributes:
        centroids: (N, 2) float64, x and y of each outline's centre of mass.
        contour_offsets: (N+1,) int64; the outline of nucleus i is ``contour_points[offsets[i]:offsets[i+1]]``.
        contour_points: (M, 2) float64, x and y; rings are simple, run clockwise as seen on screen (y down) and are
            NOT closed (the first point is not repeated).
        detection_p: (N,) float32, mean nuclear probability inside the outline, 0-1.
        area_um2: (N,) float32, area inside the outline in square micrometres.
        types: (N,) int8, the detector's own type of each nucleus, a number in its ``types`` or -1; None from a detector
            that gives no types.
        measures: (N, 6) float32, :data:`MEASURES`; None before they are measured.
        ids: (N,) bytes of 36 characters, the UUID by which another tool knows each nucleus, b"" where it has none; None
            from a detector.
    """

    centroids: FloatArray
    contour_offsets: IntArray
    contour_points: FloatArray
    detection_p: npt.NDArray[np.float32]
    area_um2: npt.NDArray[np.float32]
    types: npt.NDArray[np.int8] | None = None
    measures: npt.NDArray[np.float32] | None = None
    ids: npt.NDArray[np.bytes_] | None = None

    def __len__(self) -> int:
        return len(self.centroids)

    @classmethod
    def empty(cls) -> Nuclei:
        """Return no nuclei."""
        return cls(
            np.zeros((0, 2)),
            np.zeros(1, np.int64),
            np.zeros((0, 2)),
            np.zeros(0, np.float32),
            np.zeros(0, np.float32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Nuclei]) -> Nuclei:
        """Join all nuclei of ``parts``, in order; empty parts may lack types, measures and ids that others have."""
        if not parts:
            return cls.empty()
        types = [p.types if p.types is not None else np.zeros(0, np.int8) for p in parts]
        nothing = np.zeros((0, len(MEASURES)), np.float32)
        measures = [p.measures if p.measures is not None else nothing for p in parts]
        ids = [p.ids if p.ids is not None else np.zeros(0, "S36") for p in parts]
        lengths = np.concatenate([np.diff(p.contour_offsets) for p in parts])
        return cls(
            np.concatenate([p.centroids for p in parts]),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            np.concatenate([p.contour_points for p in parts]),
            np.concatenate([p.detection_p for p in parts]),
            np.concatenate([p.area_um2 for p in parts]),
            None if all(p.types is None for p in parts) else np.concatenate(types),
            None if all(p.measures is None for p in parts) else np.concatenate(measures),
            None if all(p.ids is None for p in parts) else np.concatenate(ids),
        )

    def contour(self, i: int) -> FloatArray:
        """Return the outline of nucleus ``i``: (K, 2) float64."""
        return self.contour_points[self.contour_offsets[i] : self.contour_offsets[i + 1]]

    def select(self, which: npt.NDArray[np.bool_] | IntArray) -> Nuclei:
        """Return the nuclei that ``which`` names (a boolean mask (N,) or indices), in its order."""
        index = np.flatnonzero(which) if which.dtype == np.bool_ else which
        starts = self.contour_offsets[:-1][index]
        lengths = np.diff(self.contour_offsets)[index]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        # Row numbers of the chosen points: each outline's start, plus 0, 1, 2, ... within the outline.
        rows = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Nuclei(
            self.centroids[index],
            offsets,
            self.contour_points[rows],
            self.detection_p[index],
            self.area_um2[index],
            None if self.types is None else self.types[index],
            None if self.measures is None else self.measures[index],
            None if self.ids is None else self.ids[index],
        )

    def transformed(self, scale: float, origin: tuple[float, float]) -> Nuclei:
        """Return the same nuclei in another frame: every point times ``scale``, then plus ``origin`` (x, y)."""
        shift = np.asarray(origin, float)
        return Nuclei(
            self.centroids * scale + shift,
            self.contour_offsets,
            self.contour_points * scale + shift,
            self.detection_p,
            self.area_um2,
            self.types,
            self.measures,
            self.ids,
        )


@dataclass(frozen=True)
class NucleusFilter:
    """The least area and the least detection probability of a nucleus that is kept; by default all are.

    A nucleus is judged by itself, so the same ones are kept however the slide is cut into regions.

    Attributes:
        min_area_um2: least area inside the outline, square micrometres.
        min_detection_p: least mean nuclear probability inside the outline, 0-1.
    """

    min_area_um2: float = 0.0
    min_detection_p: float = 0.0

    def __post_init__(self) -> None:
        """Check both numbers.

        Raises:
            UsageError: one of them cannot be.
        """
        if not 0 <= self.min_area_um2 < math.inf:
            raise UsageError(f"--min-area {self.min_area_um2:g}: expected square micrometres, 0 or more.")
        if not 0 <= self.min_detection_p <= 1:
            raise UsageError(f"--min-detection {self.min_detection_p:g}: expected a probability, 0 to 1.")

    def __str__(self) -> str:
        """Describe the filter, such as ``at least 10 µm², detection at least 0.6``."""
        parts = [f"at least {self.min_area_um2:g} µm²"] if self.min_area_um2 else []
        parts += [f"detection at least {self.min_detection_p:g}"] if self.min_detection_p else []
        return ", ".join(parts) or "all"

    def keeps(self, area_um2: npt.NDArray[np.float32], detection_p: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Return (N,) which nuclei of these areas and probabilities, both (N,), are kept."""
        # In single precision, as stores hold them: a nucleus of just the least area is kept in a run and in an export.
        large = area_um2 >= np.float32(self.min_area_um2)
        return np.asarray(large & (detection_p >= np.float32(self.min_detection_p)))

    def apply(self, nuclei: Nuclei) -> Nuclei:
        """Return the nuclei that are kept."""
        return nuclei.select(self.keeps(nuclei.area_um2, nuclei.detection_p))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> NucleusFilter:
        """Make a filter of the form that :meth:`to_dict` gives; other entries are left alone."""
        return cls(**{name: float(fields[name]) for name in ("min_area_um2", "min_detection_p") if name in fields})

    def to_dict(self) -> dict[str, float]:
        """Return the entries of a store's settings; none for what keeps all."""
        values = {"min_area_um2": self.min_area_um2, "min_detection_p": self.min_detection_p}
        return {name: value for name, value in values.items() if value}


KEEP_ALL = NucleusFilter()
"""The filter of a detector whose model states none."""
