"""Which nuclei lie round each nucleus: the distance to the nearest one of each label, and counts within a radius."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from classifier.labels.libraries import Library
from nucpipe.backends.processors import available_processors
from pipeline.export.select import columns_of
from pipeline.export.tables.csv import write_frames
from pipeline.store.reader import Store

LINES = 65536  # of the table, written at a time


@dataclass(frozen=True)
class Neighbours:
    """What is round N nuclei, by each of the L labels of a library.

    Attributes:
        library: its labels are counted.
        radius_um: within which nuclei are counted.
        nearest_um: (N, L) float32, from a nucleus to the nearest other one of the label; NaN where there is none.
        within: (N, L) int32, other nuclei of the label whose centroid is at most ``radius_um`` away.
    """

    library: Library
    radius_um: float
    nearest_um: npt.NDArray[np.float32]
    within: npt.NDArray[np.int32]


def find_neighbours(store: Store, library: str, radius_um: float) -> Neighbours:
    """Measure the distances of centroids with a k-d tree (Maneewongvatana and Mount, 1999; scipy's) for each label.

    All nuclei of ``store`` are looked at, so that a region's edge takes no neighbours away.

    Args:
        store: the nuclei.
        library: its name, in any case of letters.
        radius_um: micrometres, above 0.

    Raises:
        UsageError: the store has no such library.
    """
    from scipy.spatial import cKDTree

    known = store.info.outputs.library(library)
    points = store.centroids_l0 * store.info.mpp
    numbers, workers = store.label_numbers(known.name), available_processors()
    nearest = np.full((len(points), len(known.labels)), np.nan, np.float32)
    within = np.zeros(nearest.shape, np.int32)
    for k in range(len(known.labels)):
        own = numbers == k
        if not own.any():
            continue
        tree = cKDTree(points[own])
        # A nucleus is the nearest one of its own label to itself.
        for which, rank in ((~own, 1), (own, 2)):
            if which.any():
                distances, _ = tree.query(points[which], k=[rank], workers=workers)
                away = np.asarray(distances)[:, 0]
                nearest[which, k] = np.where(np.isinf(away), np.nan, away)
        within[:, k] = tree.query_ball_point(points, radius_um, return_length=True, workers=workers)
        within[own, k] -= 1
    return Neighbours(known, radius_um, nearest, within)


def write_neighbours(store: Store, found: Neighbours, path: Path) -> None:
    """Write a CSV with a line a nucleus: its id, its place, its label, its region if ``store`` has regions, neighbours.

    Columns ``<label>_um``, the distance to the nearest nucleus of that label, and ``<label>_within_<radius>um``, both
    empty for a label that nothing taught the classifier.

    Args:
        store: the nuclei that ``found`` speaks of, in the same order.
        found: from :func:`find_neighbours`.
        path: of the file.

    Raises:
        OutputError: the file cannot be written.
    """
    write_frames(_frames(store, found), path)


def _frames(store: Store, found: Neighbours) -> Iterator[pd.DataFrame]:
    labels, radius = found.library.labels, f"{found.radius_um:g}"
    trained = store.info.outputs.trained_in(found.library.name)
    kept = ["id", "x_l0", "y_l0", *(["region"] if store.regions is not None else []), found.library.name]
    start = 0
    for part in store.batches(LINES, at_least_one=True):
        stop = start + len(part)
        columns = columns_of(part)
        frame = pd.DataFrame({name: columns[name] for name in kept})
        nearest = pd.DataFrame(found.nearest_um[start:stop], columns=[f"{label}_um" for label in labels])
        within = pd.DataFrame(found.within[start:stop], columns=[f"{label}_within_{radius}um" for label in labels])
        within = within.astype("Int64").where(np.tile(trained, (len(within), 1)))  # 0 would be an answer
        yield pd.concat([frame, nearest, within], axis=1)
        start = stop
