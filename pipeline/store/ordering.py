"""The order of a slide's nuclei, and their names: both the same however the slide was cut into regions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import numpy as np
import numpy.typing as npt

from classifier.predictions import Predictions
from segmentation.nuclei import Nuclei

NUCLEUS_NAMESPACE = UUID("9a56c65d-5301-47c3-a672-879a9d8a9fa1")
VARIANT = {f"{digit:x}": f"{digit & 3 | 8:x}" for digit in range(16)}
"""Replacement of the UUID's version digit."""
BLOCK_L0 = 1024  # side of the blocks by which nuclei are ordered, row by row
BATCH_ROWS = 65536  # nuclei to hold at once
# Added before hundredths of a pixel are cut off. Not 0.5: a mean over pixels is a fraction of small numbers and often
# lies just on half a hundredth, where the last digit of a float would decide.
ROUNDING = 0.618034


@dataclass(frozen=True)
class RegionIndex:
    """Numbers of nuclei and outline points, and the regions with nuclei in each row of blocks."""

    nuclei: int
    points: int
    regions_of_row: dict[int, list[int]]


class Regions(Protocol):
    """Finished regions, such as a journal holds."""

    def read(self, index: int) -> tuple[Nuclei, Predictions]:
        """Return the nuclei and labels of one of them."""


def index_regions(journal: Regions, regions: Iterable[int]) -> RegionIndex:
    """Read the regions once, to know what will come."""
    count, points, regions_of_row = 0, 0, dict[int, list[int]]()
    for region in regions:
        nuclei, _ = journal.read(region)
        count += len(nuclei)
        points += int(nuclei.contour_offsets[-1])
        for row in np.unique(blocks_of(nuclei)[:, 1]).tolist():
            regions_of_row.setdefault(row, []).append(region)
    return RegionIndex(count, points, regions_of_row)


def _hundredths(nuclei: Nuclei) -> npt.NDArray[np.int64]:
    """Return centroids in hundredths of a level-0 pixel: one number however the last digits of the floats fell."""
    return np.floor(nuclei.centroids * 100 + ROUNDING).astype(np.int64)


def blocks_of(nuclei: Nuclei) -> npt.NDArray[np.int64]:
    """Return (N, 2): column and row of each nucleus's block, in blocks of ``BLOCK_L0``."""
    return _hundredths(nuclei) // (100 * BLOCK_L0)


def iterate_ordered(journal: Regions, found: RegionIndex) -> Iterator[tuple[Nuclei, Predictions]]:
    """Yield all nuclei in the store's order, in batches of whole rows of blocks."""
    rows: list[tuple[Nuclei, Predictions]] = []
    held: dict[int, tuple[Nuclei, Predictions]] = {}
    for row in sorted(found.regions_of_row):
        # A region is higher than a row: keep it in memory until the rows have passed it.
        held = {i: held[i] if i in held else journal.read(i) for i in found.regions_of_row[row]}
        rows.append(_sorted_row(row, held.values()))
        if sum(len(nuclei) for nuclei, _ in rows) >= BATCH_ROWS:
            yield _concatenated(rows)
            rows = []
    if rows:
        yield _concatenated(rows)


def _sorted_row(row: int, parts: Iterable[tuple[Nuclei, Predictions]]) -> tuple[Nuclei, Predictions]:
    inside = [
        (nuclei.select(which), labels.select(which))
        for nuclei, labels in parts
        for which in [blocks_of(nuclei)[:, 1] == row]
    ]
    nuclei, labels = _concatenated(inside)
    x, y = _hundredths(nuclei).T
    order = np.lexsort((nuclei.detection_p, nuclei.area_um2, x, y, blocks_of(nuclei)[:, 0]))
    return nuclei.select(order), labels.select(order)


def _concatenated(parts: list[tuple[Nuclei, Predictions]]) -> tuple[Nuclei, Predictions]:
    return Nuclei.concatenate([nuclei for nuclei, _ in parts]), Predictions.concatenate([labels for _, labels in parts])


def nucleus_ids(nuclei: Nuclei, slide_name: str, size_l0: tuple[int, int]) -> npt.NDArray[np.object_]:
    """Return a UUID for each nucleus: its own, or one made of its slide and centroid to 0.01 px; unique on the slide.

    Args:
        nuclei: whole rows of blocks, in the store's order.
        slide_name, size_l0: of the slide.

    Returns:
        (N,) strings.
    """
    at = _hundredths(nuclei)
    # Nuclei of one place are neighbours in the order: number them from the first of the place.
    new_place = np.ones(len(at), bool)
    new_place[1:] = (at[1:] != at[:-1]).any(1)
    index = np.arange(len(at))
    repeat = index - np.maximum.accumulate(np.where(new_place, index, 0))
    # As uuid5 makes them, which takes several times as long: what all names begin with is hashed once.
    slide = f"{slide_name}|{size_l0[0]}x{size_l0[1]}|".encode()
    begun = hashlib.sha1(NUCLEUS_NAMESPACE.bytes + slide, usedforsecurity=False)
    ids = []
    for (x, y), n in zip(at.tolist(), repeat.tolist(), strict=True):
        name = begun.copy()
        name.update(f"{x},{y}|{n}".encode() if n else f"{x},{y}".encode())
        text = name.hexdigest()
        ids.append(f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{VARIANT[text[16]]}{text[17:20]}-{text[20:32]}")
    made = np.array(ids, object)
    return made if nuclei.ids is None else np.where(nuclei.ids == b"", made, nuclei.ids.astype(str).astype(object))
