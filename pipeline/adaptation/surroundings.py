"""What nuclei are like round each nucleus: a Gaussian mean of their features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix

FWHM_UM = 100.0
"""Full width at half maximum of the Gaussian."""
SIGMA_UM = FWHM_UM / 2.3548
CELL_UM = SIGMA_UM / 2
AT_ONCE = 8
"""Features that are spread over the slide at a time."""


def mean_around(values: npt.NDArray[np.float32], points_um: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the Gaussian mean of each feature over the nuclei round each nucleus, itself among them.

    A nucleus counts in the four cells of a grid whose centres are nearest, the grid is blurred, and a nucleus has what
    lies between the four: the time grows with nuclei and area, not with their density.

    Args:
        values: (N, F), without NaN.
        points_um: (N, 2) x and y, not negative, micrometres.

    Returns:
        (N, F).
    """
    means = np.empty(values.shape, np.float32)
    if not len(values):
        return means
    shape, spread = _spread(points_um / CELL_UM)
    nuclei = np.maximum(spread @ _blurred(spread.T @ np.ones((len(values), 1), np.float32), shape), 1e-6)
    for start in range(0, values.shape[1], AT_ONCE):
        part = np.s_[:, start : start + AT_ONCE]
        means[part] = spread @ _blurred(spread.T @ values[part], shape) / nuclei
    return means


def _spread(points: npt.NDArray[np.float64]) -> tuple[tuple[int, int], csr_matrix]:
    """Return rows and columns of a grid, and (N, cells) how much of each nucleus counts in each cell."""
    across, down = (int(length) + 2 for length in points.max(0))
    corner = points.astype(np.int64)
    right, below = (points - corner).T
    left, above = 1 - right, 1 - below
    first = corner[:, 1] * across + corner[:, 0]
    cells = np.stack([first, first + 1, first + across, first + across + 1], 1)
    weights = np.stack([left * above, right * above, left * below, right * below], 1).astype(np.float32)
    starts = np.arange(0, 4 * len(points) + 1, 4)
    return (down, across), csr_matrix((weights.reshape(-1), cells.reshape(-1), starts), (len(points), down * across))


def _blurred(sums: npt.NDArray[np.float32], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    sigma = SIGMA_UM / CELL_UM
    grid = gaussian_filter(sums.reshape(*shape, -1), (sigma, sigma, 0), mode="constant", truncate=3)
    return np.asarray(grid.reshape(sums.shape), np.float32)
