"""Nuclei ready for drawing: a spatial index in memory, outlines from the store."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.errors import UsageError
from pipeline.store.reader import Store
from segmentation.nuclei import KEEP_ALL, NucleusFilter

Rows = npt.NDArray[np.int64]
BoxL0 = tuple[float, float, float, float]
Labels = tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]
"""Numbers and probabilities of the labels of all nuclei in one library."""

CELL_L0 = 1024
"""Side of the index's cells; nuclei of one lie together in the store, which has blocks of the same size."""
REACH_UM = 30.0
"""Largest reach of an outline from its centroid: nuclei longer than 60 um are drawn cut off at the edges of tiles."""
CELLS_KEPT = 2048
"""Cells whose outlines stay in memory: about 300 MB where they are full of nuclei."""


@dataclass(frozen=True)
class Choice:
    """Selection and colouring of the nuclei that are shown.

    Attributes:
        library: whose labels count.
        off: numbers of labels that are switched off; the number of labels stands for "no label".
        least_p: nuclei whose label is less probable are hidden.
        kept: nuclei of a smaller area or a lower detection probability are hidden.
        adapted: whether labels are the adapted ones, and what is no nucleus is hidden.
        region: name of the region of interest whose nuclei are shown; "" for all.
        only_good: whether nuclei in places of poor quality are hidden, once that is measured.
    """

    library: str
    off: frozenset[int] = frozenset()
    least_p: float = 0.0
    kept: NucleusFilter = KEEP_ALL
    adapted: bool = False
    region: str = ""
    only_good: bool = False


@dataclass(frozen=True)
class Adapted:
    """Labels of all nuclei after corrections.

    Attributes:
        libraries: that corrections speak of.
        no_nuclei: (N,) bool, what is said to be no nucleus.
        compute: gives the probabilities (N, labels) of one of the libraries; called when it is first looked at.
        decide: gives the numbers (N,) and probabilities (N,) of its labels from these.
    """

    libraries: tuple[str, ...]
    no_nuclei: npt.NDArray[np.bool_]
    compute: Callable[[str], npt.NDArray[np.float32]]
    decide: Callable[[str, npt.NDArray[np.float32]], Labels]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: dict[str, tuple[npt.NDArray[np.float32], Labels]] = field(default_factory=dict)

    def probabilities(self, library: str) -> npt.NDArray[np.float32]:
        """Return (N, labels) of one of the libraries."""
        return self._of(library)[0]

    def labels(self, library: str) -> Labels:
        """Return (N,) numbers and (N,) probabilities of one of the libraries' labels."""
        return self._of(library)[1]

    def _of(self, library: str) -> tuple[npt.NDArray[np.float32], Labels]:
        with self._lock:
            if library not in self._known:
                probabilities = self.compute(library)
                self._known[library] = probabilities, self.decide(library, probabilities)
            return self._known[library]


@dataclass(frozen=True)
class Outlines:
    """Outlines of nuclei, in level-0 pixels.

    Attributes:
        rows: (N,) the nuclei's numbers in the store.
        offsets, points: as :meth:`pipeline.store.reader.Store.contours` gives them.
        boxes: (N, 4) x0, y0, x1, y1 of each outline.
    """

    rows: Rows
    offsets: npt.NDArray[np.int64]
    points: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]

    @classmethod
    def of(cls, rows: Rows, offsets: npt.NDArray[np.int64], points: npt.NDArray[np.float32]) -> Outlines:
        """Add the boxes; an outline has at least one point."""
        starts = offsets[:-1]
        if not len(starts):
            return cls(rows, offsets, points, np.zeros((0, 4), np.float32))
        least, most = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
        return cls(rows, offsets, points, np.concatenate([least, most], axis=1))

    def touching(self, box_l0: BoxL0) -> npt.NDArray[np.bool_]:
        """Return (N,) which outlines' boxes touch another box."""
        least, most = self.boxes[:, :2], self.boxes[:, 2:]
        touching: npt.NDArray[np.bool_] = np.all((most >= box_l0[:2]) & (least <= box_l0[2:]), axis=1)
        return touching

    def select(self, which: Rows) -> Outlines:
        """Return those at these places."""
        starts, lengths = self.offsets[which], np.diff(self.offsets)[which]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        points = self.points[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])]
        return Outlines(self.rows[which], offsets, points, self.boxes[which])

    def ring(self, i: int) -> npt.NDArray[np.float32]:
        """Return the outline at place ``i``: (K, 2)."""
        return self.points[self.offsets[i] : self.offsets[i + 1]]


class NucleiMap:
    """The nuclei of a store for a viewer. Safe to be used from several threads.

    In memory: 28 bytes a nucleus for its place, area and detection probability, 5 a library for its label, 1 a region
    that was looked at; outlines come from the disk.

    Attributes:
        store: the whole store.
        centroids_l0: (N, 2) float32.
        area_um2, detection_p: (N,) float32.
        diameter_l0: of a disc of the median area; 0 where there are no nuclei.
        adapted: labels after corrections; None where there are none.
        generation: how often ``adapted`` was set.
        causes: (N,) bool for each cause of poor quality; None as long as nobody has measured it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.centroids_l0 = store.centroids_l0.astype(np.float32)
        self.area_um2, self.detection_p = store.area_um2, store.detection_p
        median = float(np.median(self.area_um2)) if len(store) else 0.0
        self.diameter_l0 = 2 * math.sqrt(median / math.pi) / store.info.mpp
        width, height = store.info.size_l0
        self._columns, self._lines = width // CELL_L0 + 1, height // CELL_L0 + 1
        cells = self._cells(self.centroids_l0)
        self._rows = np.argsort(cells, kind="stable")
        self._starts = np.searchsorted(cells[self._rows], np.arange(self._columns * self._lines + 1))
        self._rank = np.random.default_rng(0).permutation(len(cells)).astype(np.int32)
        self._kept: OrderedDict[int, Outlines] = OrderedDict()
        self._lock = threading.Lock()
        self.adapted: Adapted | None = None
        self.generation = 0
        self.causes: dict[str, npt.NDArray[np.bool_]] | None = None
        self._labels: dict[str, Labels] = {}
        self._in_region: dict[str, npt.NDArray[np.bool_]] = {}

    def __len__(self) -> int:
        return len(self.centroids_l0)

    def _cells(self, points_l0: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        place = np.clip((points_l0 // CELL_L0).astype(np.int64), 0, (self._columns - 1, self._lines - 1))
        return np.ravel_multi_index((place[:, 1], place[:, 0]), (self._lines, self._columns)).astype(np.int64)

    @cached_property
    def _reach_l0(self) -> float:
        return REACH_UM / self.store.info.mpp

    def show_adapted(self, adapted: Adapted | None) -> None:
        """Set the labels after corrections."""
        self.adapted = adapted
        self.generation += 1

    def labels(self, library: str, adapted: bool = False) -> Labels:
        """Return (N,) the number of each nucleus's label, -1 for none, and (N,) its probability, NaN where it has none.

        Args:
            library: its name.
            adapted: as corrections have them, where they speak of the library.

        Raises:
            UsageError: no such library.
        """
        if adapted and (now := self.adapted) is not None and library in now.libraries:
            return now.labels(library)
        if library not in self._labels:
            self._labels[library] = (self.store.label_numbers(library), self.store.label_probabilities(library))
        return self._labels[library]

    def shown(self, rows: Rows | slice, choice: Choice) -> npt.NDArray[np.bool_]:
        """Return which of these nuclei are shown."""
        numbers, p = self.labels(choice.library, choice.adapted)
        count = len(self.store.info.outputs.library(choice.library).labels)
        on = np.ones(count + 1, bool)  # the last one is number -1
        on[[number for number in choice.off if number <= count]] = False
        visible: npt.NDArray[np.bool_] = on[numbers[rows]]
        if choice.least_p > 0:
            visible = visible & (p[rows] >= choice.least_p)
        if choice.adapted and (now := self.adapted) is not None:
            visible = visible & ~now.no_nuclei[rows]
        if choice.region:
            visible = visible & self.in_region(choice.region)[rows]
        if choice.only_good:
            for poor in (self.causes or {}).values():
                visible = visible & ~poor[rows]
        return visible & choice.kept.keeps(self.area_um2[rows], self.detection_p[rows])

    def in_region(self, name: str) -> npt.NDArray[np.bool_]:
        """Return (N,) which nuclei lie in a region of interest.

        Raises:
            UsageError: there is no such region.
        """
        if name not in self._in_region:
            if (regions := self.store.regions) is None:
                raise UsageError(f"region={name}: there are no regions here; give a file of them with --regions.")
            self._in_region[name] = regions.contain(regions.number_of(name), self.store.centroids_l0)
        return self._in_region[name]

    def counts(self, choice: Choice, box_l0: BoxL0 | None = None) -> npt.NDArray[np.int64]:
        """Return (labels + 1,) how many nuclei of each label the filters leave, "no label" last.

        A label that is switched off has the number that switching it on would show.

        Args:
            choice: with the filters.
            box_l0: x0, y0, x1, y1, in which centroids count; None: everywhere.
        """
        rows: Rows | slice = slice(None)
        if box_l0 is not None:
            near = self.rows_in(box_l0)
            x, y = self.centroids_l0[near].T
            rows = near[(x >= box_l0[0]) & (y >= box_l0[1]) & (x < box_l0[2]) & (y < box_l0[3])]
        shown = self.shown(rows, replace(choice, off=frozenset()))
        numbers = self.labels(choice.library, choice.adapted)[0][rows][shown]
        count = len(self.store.info.outputs.library(choice.library).labels)
        return np.bincount(np.where(numbers < 0, count, numbers), minlength=count + 1)

    def rows_in(self, box_l0: BoxL0, reach: bool = False) -> Rows:
        """Return numbers of the nuclei in the cells that a box touches: all in the box and some round it.

        Args:
            box_l0: x0, y0, x1, y1.
            reach: also those outside whose outline may reach into it.
        """
        parts = [self._rows[self._starts[first] : self._starts[last]] for first, last in self._runs(box_l0, reach)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _runs(self, box_l0: BoxL0, reach: bool) -> Iterator[tuple[int, int]]:
        """Cells that lie side by side: the first, and the one after the last."""
        margin = self._reach_l0 if reach else 0.0
        x0, y0 = (max(0, int((edge - margin) // CELL_L0)) for edge in box_l0[:2])
        x1 = min(self._columns - 1, int((box_l0[2] + margin) // CELL_L0))
        y1 = min(self._lines - 1, int((box_l0[3] + margin) // CELL_L0))
        if x0 <= x1:
            for line in range(y0, y1 + 1):
                yield line * self._columns + x0, line * self._columns + x1 + 1

    def shuffled(self, rows: Rows) -> Rows:
        """Return places in ``rows`` in an order by chance that is the same in every tile.

        What is drawn in it, one over another, shows a true mixture of colours, and no seams.
        """
        return np.argsort(self._rank[rows])

    def outlines(self, box_l0: BoxL0) -> list[Outlines]:
        """Return the outlines that may reach into a box, in parts."""
        cells = [cell for first, last in self._runs(box_l0, reach=True) for cell in range(first, last)]
        cells = [cell for cell in cells if self._starts[cell] < self._starts[cell + 1]]
        with self._lock:
            found = {cell: self._kept[cell] for cell in cells if cell in self._kept}
        if missing := [cell for cell in cells if cell not in found]:
            found.update(self._read(missing))
        with self._lock:
            for cell in cells:
                self._kept[cell] = found[cell]
                self._kept.move_to_end(cell)
            while len(self._kept) > CELLS_KEPT:
                self._kept.popitem(last=False)
        return [found[cell] for cell in cells]

    def _read(self, cells: list[int]) -> Iterator[tuple[int, Outlines]]:
        """Yield the outlines of cells, read from the store in one go."""
        parts = [np.sort(self._rows[self._starts[cell] : self._starts[cell + 1]]) for cell in cells]
        rows = np.sort(np.concatenate(parts))
        every = Outlines.of(rows, *replace(self.store, rows=rows).contours())
        return ((cell, every.select(np.searchsorted(rows, part))) for cell, part in zip(cells, parts, strict=True))

    def at(self, x_l0: float, y_l0: float, tolerance_l0: float, choice: Choice) -> int | None:
        """Return the number of the nucleus that is shown at a place: that round it, else the nearest within the
        tolerance.
        """
        near: tuple[float, int] | None = None
        box = (x_l0 - tolerance_l0, y_l0 - tolerance_l0, x_l0 + tolerance_l0, y_l0 + tolerance_l0)
        for part in self.outlines(box):
            for i in np.flatnonzero(part.touching(box) & self.shown(part.rows, choice)).tolist():
                distance = -cv2.pointPolygonTest(part.ring(i), (x_l0, y_l0), measureDist=True)
                if distance <= tolerance_l0 and (near is None or distance < near[0]):
                    near = (distance, int(part.rows[i]))
        return None if near is None else near[1]

    def least_certain(self, choice: Choice, start: int, count: int) -> Rows:
        """Return numbers of the nuclei whose label is least probable, of those that are shown and have one."""
        _, p = self.labels(choice.library, choice.adapted)
        rows = np.flatnonzero(self.shown(slice(None), choice) & ~np.isnan(p))
        stop = min(start + count, len(rows))
        if stop <= start:
            return np.zeros(0, np.int64)
        if stop < len(rows):
            rows = rows[np.argpartition(p[rows], stop - 1)[:stop]]
        return rows[np.lexsort((rows, p[rows]))][start:stop]

    def inside(self, polygon_l0: npt.NDArray[np.float32], choice: Choice) -> Rows:
        """Return numbers of the nuclei that are shown and whose centroid lies in a polygon (K, 2), K at least 3."""
        import shapely

        # A line by hand may cross itself.
        area = shapely.make_valid(shapely.Polygon(polygon_l0))
        rows = self.rows_in(area.bounds) if not area.is_empty else np.zeros(0, np.int64)
        rows = rows[self.shown(rows, choice)]
        inside: Rows = rows[shapely.contains_xy(area, self.centroids_l0[rows])]
        return inside
