"""The slide-wide working frame ``_w``: pixels of about 0.25 um that every region, read box and patch stands on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

FINE_MPP = 0.25
"""Pixel size of the crops that the classifier sees."""
COARSE_MPP = 0.5
"""Pixel size that the detection network takes; a coarser slide is read at it and enlarged for the crops."""
TOLERANCE = 0.05
"""A slide this close to one of the two is used on its own grid, unresampled."""

Length = TypeVar("Length", float, npt.NDArray[np.float64])


@dataclass(frozen=True)
class WorkingGrid:
    """Mapping between working and level-0 pixels; both frames share their corner (0, 0).

    Attributes:
        mpp_w: size of a working pixel, micrometres; 0.25 or within 5 % of it.
        l0_per_w: level-0 pixels per working pixel.
        stride: working pixels per pixel that is READ from the slide: 1, or 2 where the slide is read at about 0.5 um.
        size_w: (width, height) of the slide in working pixels, a multiple of ``stride``; the last one may reach
            beyond the slide's extent by less than one read pixel.
    """

    mpp_w: float
    l0_per_w: float
    stride: Literal[1, 2]
    size_w: tuple[int, int]

    @classmethod
    def for_slide(cls, size_l0: tuple[int, int], mpp: float) -> WorkingGrid:
        """Return the grid of a slide of ``size_l0`` = (width, height) level-0 pixels of ``mpp`` micrometres.

        A slide within 5 % of 0.25 or 0.5 um is taken on its own grid; another is resampled to exactly 0.25 um, or,
        where it is coarser than 0.5 um, to exactly 0.5 um.
        """
        if abs(mpp - FINE_MPP) <= TOLERANCE * FINE_MPP + 1e-9:
            return cls._of(size_l0, mpp, 1.0, 1)
        if abs(mpp - COARSE_MPP) <= TOLERANCE * COARSE_MPP + 1e-9:
            return cls._of(size_l0, mpp / 2, 0.5, 2)
        return cls._of(size_l0, FINE_MPP, FINE_MPP / mpp, 1 if mpp < COARSE_MPP else 2)

    @classmethod
    def _of(cls, size_l0: tuple[int, int], mpp_w: float, l0_per_w: float, stride: Literal[1, 2]) -> WorkingGrid:
        # The small allowance keeps a whole number of read pixels whole in floating point.
        width, height = (stride * math.ceil(length / (l0_per_w * stride) - 1e-6) for length in size_l0)
        return cls(mpp_w, l0_per_w, stride, (max(width, stride), max(height, stride)))

    @property
    def l0_per_read(self) -> float:
        """Level-0 pixels per pixel that is read; exactly 1 where the slide's own grid is used."""
        return self.l0_per_w * self.stride

    @property
    def mpp_read(self) -> float:
        """Size of a pixel that is read, micrometres."""
        return self.mpp_w * self.stride

    @property
    def size_read(self) -> tuple[int, int]:
        """(width, height) of the slide in pixels that are read."""
        return self.size_w[0] // self.stride, self.size_w[1] // self.stride

    def to_l0(self, w: Length) -> Length:
        """Return working coordinates or lengths -> level 0."""
        return w * self.l0_per_w

    def to_w(self, l0: Length) -> Length:
        """Return level-0 coordinates or lengths -> working frame."""
        return l0 / self.l0_per_w
