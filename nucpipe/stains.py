"""The stains of H&E in optical density: one matrix for measurements and for augmentation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HAEMATOXYLIN, EOSIN = (0.651, 0.701, 0.29), (0.216, 0.801, 0.558)
"""Optical densities in red, green and blue, QuPath's defaults for H&E (after Ruifrok and Johnston 2001)."""


def stain_matrix() -> npt.NDArray[np.float64]:
    """Return (3, 3): haematoxylin, eosin and what is neither, one row each of length 1, in red, green and blue."""
    haematoxylin, eosin = (np.array(stain) / np.linalg.norm(stain) for stain in (HAEMATOXYLIN, EOSIN))
    residual = np.cross(haematoxylin, eosin)
    return np.array([haematoxylin, eosin, residual / np.linalg.norm(residual)])
