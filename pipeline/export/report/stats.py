"""The figures of a report, gathered from a store in one pass.

Memory grows by the distinct areas and stains alone: 8 to 16 bytes a nucleus at most.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np
import numpy.typing as npt

from classifier.decision_rule import best_labels, label_probabilities
from classifier.labels.label_mapping import Matching, make_matching
from classifier.labels.libraries import LabelSpace, Library
from classifier.out_of_distribution import UNLIKE
from pipeline.store.reader import Store

AREA_EDGES_UM2 = np.arange(0, 205, 5.0)  # what is larger counts into the last bin
P_EDGES = np.linspace(0, 1, 21)
STAIN_EDGES = np.linspace(0, 2, 41)  # optical density; what is beyond counts into the first and the last bin
DENSITY_CELLS = 72  # along the longer side
GALLERY = 24

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Distribution:
    """Every value of a measure, each distinct one once: areas of pixelated outlines repeat a lot.

    Attributes:
        values: (K,) ascending, without NaN.
        counts: (K,) how many nuclei have each.
    """

    values: npt.NDArray[np.float32]
    counts: Counts

    @classmethod
    def of(cls, values: npt.NDArray[np.float32]) -> Distribution:
        """Return the distribution of (N,) values; NaN counts as missing."""
        found, counts = np.unique(values[~np.isnan(values)], return_counts=True)
        return cls(found, counts.astype(np.int64))

    @classmethod
    def merge(cls, parts: Sequence[Distribution]) -> Distribution:
        """Return several as one."""
        if not parts:
            return cls.of(np.zeros(0, np.float32))
        values, place = np.unique(np.concatenate([part.values for part in parts]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, place, np.concatenate([part.counts for part in parts]))
        return cls(values, counts)

    @property
    def total(self) -> int:
        """Number of nuclei that have a value."""
        return int(self.counts.sum())

    @property
    def median(self) -> float | None:
        """The median, as numpy's: the mean of the two middle values of an even number; None where there is none."""
        if not self.total:
            return None
        middle = np.searchsorted(np.cumsum(self.counts), [(self.total - 1) // 2, self.total // 2], side="right")
        return float(self.values[middle].astype(np.float64).mean())

    def histogram(self, edges: npt.NDArray[np.float64]) -> Counts:
        """Return nuclei in each bin; what lies beyond the edges counts into the first and the last one."""
        return np.histogram(np.clip(self.values, edges[0], edges[-1]), edges, weights=self.counts)[0].astype(np.int64)


@dataclass(frozen=True)
class Uncertain:
    """A nucleus whose labels are least certain.

    Attributes:
        row: its number in the store.
        centroid_l0: x, y.
        entropy: mean over the libraries of its probabilities' entropy, 0 (certain) to 1 (all labels equally likely).
        labels: by library, its label and the label's probability; "no label" and NaN where it has none.
    """

    row: int
    centroid_l0: tuple[float, float]
    entropy: float
    labels: dict[str, tuple[str, float]]


@dataclass(frozen=True)
class Contradiction:
    """Nuclei with a label of one library whose counterpart in another library they do not have.

    Attributes:
        library, label: what they are called in one library.
        other, expected: what the other library calls such nuclei by the label table.
        found: what it calls most of these instead.
        nuclei: how many these are.
        of: how many nuclei have ``label``.
    """

    library: str
    label: str
    other: str
    expected: tuple[str, ...]
    found: str
    nuclei: int
    of: int


@dataclass(frozen=True)
class ReportStats:
    """Statistics of a report. By library, arrays have a place for each label and a last one for "no label".

    Attributes:
        outputs: the libraries.
        nuclei: how many.
        counts: by library, nuclei of each label.
        mean_p: by library, mean probability of each label where it was given; NaN where it never was.
        area_um2, haematoxylin_od: every nucleus's, as the store has them.
        areas: by library, (labels + 1, bins) nuclei by area.
        confidence: by library, (bins,) nuclei by the probability of their label.
        crosswalk: by pair of libraries, (labels + 1, labels + 1) nuclei that have both labels.
        density: by library, (labels + 1, cells down, cells across) nuclei.
        uncertain: the least certain nuclei, the worst first.
        unlike: nuclei that are unlike the training data; None where the classifier cannot tell.
    """

    outputs: LabelSpace
    nuclei: int
    counts: dict[str, Counts]
    mean_p: dict[str, npt.NDArray[np.float64]]
    area_um2: Distribution
    haematoxylin_od: Distribution
    areas: dict[str, Counts]
    confidence: dict[str, Counts]
    crosswalk: dict[tuple[str, str], Counts]
    density: dict[str, Counts]
    uncertain: tuple[Uncertain, ...]
    unlike: int | None = None

    @property
    def unlike_share(self) -> float | None:
        """Share of nuclei that are unlike the training data, 0-1."""
        return None if self.unlike is None or not self.nuclei else self.unlike / self.nuclei

    @cached_property
    def matching(self) -> Matching:
        """Pairs of labels that mean the same, by the label table."""
        return make_matching(self.outputs.libraries)

    def trained(self, library: Library) -> tuple[bool, ...]:
        """Return which labels of a library the classifier was taught."""
        return self.outputs.trained_in(library.name)

    def contradictions(self) -> list[Contradiction]:
        """Return where libraries contradict each other by the label table, the most nuclei first."""
        found = []
        for a, b in permutations(self.outputs.libraries, 2):
            table = self.crosswalk[a.name, b.name]
            for i, label in enumerate(a.labels):
                allowed = self.matching.targets(a.name, label)[self.outputs.slices[b.name]]
                allowed = allowed & np.array(self.trained(b))
                others = np.where(allowed, 0, table[i, :-1])
                if allowed.any() and others.sum():
                    expected = tuple(name for name, yes in zip(b.labels, allowed, strict=True) if yes)
                    most = b.labels[int(others.argmax())]
                    counts = int(others.sum()), int(table[i].sum())
                    found.append(Contradiction(a.name, label, b.name, expected, most, *counts))
        return sorted(found, key=lambda c: -c.nuclei)

    def agreement(self, a: Library, b: Library) -> tuple[int, int]:
        """Count nuclei whose label in ``a`` has a counterpart in ``b``: those that have it there, and all of them."""
        agree, total = 0, 0
        for i, label in enumerate(a.labels):
            allowed = self.matching.targets(a.name, label)[self.outputs.slices[b.name]] & np.array(self.trained(b))
            if allowed.any():
                row = self.crosswalk[a.name, b.name][i]
                agree, total = agree + int(row[:-1][allowed].sum()), total + int(row.sum())
        return agree, total


def compute_stats(store: Store, of_batch: bool = False) -> ReportStats:
    """Return the figures of a store.

    Args:
        store: finished.
        of_batch: leave out, and do not read, what only a slide's own report shows: stain, density, uncertain nuclei.
    """
    outputs = store.info.outputs
    libraries = outputs.libraries
    sizes = {lib.name: len(lib.labels) + 1 for lib in libraries}
    width, height = store.info.size_l0
    cell = max(width, height) / DENSITY_CELLS
    down, across = max(1, int(np.ceil(height / cell))), max(1, int(np.ceil(width / cell)))
    counts = {name: np.zeros(n, np.int64) for name, n in sizes.items()}
    sums = {name: np.zeros(n) for name, n in sizes.items()}
    areas = {name: np.zeros((n, len(AREA_EDGES_UM2) - 1), np.int64) for name, n in sizes.items()}
    confidence = {name: np.zeros(len(P_EDGES) - 1, np.int64) for name in sizes}
    density = {} if of_batch else {name: np.zeros((n, down, across), np.int64) for name, n in sizes.items()}
    crosswalk = {(a, b): np.zeros((sizes[a], sizes[b]), np.int64) for a, b in permutations(sizes, 2)}
    worst: list[tuple[float, int, Uncertain]] = []
    area_parts, stain_parts = [], []
    unlike = 0 if store.info.has_ood_scores else None
    first = 0
    for part in store.batches():
        probabilities, area_um2 = part.probabilities, part.area_um2
        # "No label" is -1, which counts into the last place.
        numbers = best_labels(probabilities, outputs, part.info.rule)
        label_p = label_probabilities(probabilities, outputs, numbers)
        area_parts.append(Distribution.of(area_um2))
        area = np.clip(np.digitize(area_um2, AREA_EDGES_UM2) - 1, 0, len(AREA_EDGES_UM2) - 2)
        for name, number in numbers.items():
            np.add.at(counts[name], number, 1)
            np.add.at(sums[name], number, label_p[name])  # NaN for no label
            np.add.at(areas[name], (number, area), 1)
            confidence[name] += np.histogram(np.clip(label_p[name][number >= 0], 0, 1), P_EDGES)[0]
        for a, b in crosswalk:
            np.add.at(crosswalk[a, b], (numbers[a], numbers[b]), 1)
        if unlike is not None and (scores := part.ood_scores) is not None:
            unlike += int((scores >= UNLIKE).sum())
        if of_batch:
            continue
        stain_parts.append(Distribution.of(part.measure("haematoxylin_od")))
        centroids = part.centroids_l0
        x, y = np.clip(np.floor(centroids / cell).astype(np.int64), 0, [across - 1, down - 1]).T
        for name, number in numbers.items():
            np.add.at(density[name], (number, y, x), 1)
        entropy = _entropy(probabilities, outputs)
        for i in np.argsort(-entropy)[:GALLERY].tolist():
            item = _uncertain(i, first + i, centroids, entropy, label_p, numbers, outputs)
            heapq.heappush(worst, (item.entropy, -item.row, item))
            if len(worst) > GALLERY:
                heapq.heappop(worst)
        first += len(part)
    means = {n: np.divide(sums[n], counts[n], out=np.full(sizes[n], np.nan), where=counts[n] > 0) for n in sizes}
    uncertain = tuple(item for _, _, item in sorted(worst, reverse=True))
    all_areas, stain = Distribution.merge(area_parts), Distribution.merge(stain_parts)
    return ReportStats(
        outputs, len(store), counts, means, all_areas, stain, areas, confidence, crosswalk, density, uncertain, unlike
    )


def compute_batch_stats(store: Store) -> ReportStats:
    """Return the figures of one slide of a batch, small on any slide: without what only its own report shows."""
    return compute_stats(store, of_batch=True)


def merge_stats(parts: Sequence[ReportStats]) -> ReportStats:
    """Return the figures of several slides as of one, without what has a place on a slide."""
    first = parts[0]
    counts = {name: np.sum([p.counts[name] for p in parts], 0) for name in first.counts}
    means = {}
    for name, total in counts.items():
        sums = np.sum([np.nan_to_num(p.mean_p[name]) * p.counts[name] for p in parts], 0)
        means[name] = np.divide(sums, total, out=np.full(len(total), np.nan), where=total > 0)
    unlike = [p.unlike for p in parts if p.unlike is not None]
    return ReportStats(
        first.outputs,
        sum(p.nuclei for p in parts),
        counts,
        means,
        Distribution.merge([p.area_um2 for p in parts]),
        Distribution.merge([p.haematoxylin_od for p in parts]),
        {name: np.sum([p.areas[name] for p in parts], 0) for name in first.areas},
        {name: np.sum([p.confidence[name] for p in parts], 0) for name in first.confidence},
        {pair: np.sum([p.crosswalk[pair] for p in parts], 0) for pair in first.crosswalk},
        {},
        (),
        sum(unlike) if len(unlike) == len(parts) else None,
    )


def _entropy(probabilities: npt.NDArray[np.float32], outputs: LabelSpace) -> npt.NDArray[np.float64]:
    """Return (N,) mean over libraries of the entropy of the trained labels' probabilities, each scaled to 0-1."""
    total, libraries = np.zeros(len(probabilities)), 0
    for columns in outputs.slices.values():
        taught = np.flatnonzero(outputs.trained[columns]) + columns.start
        if len(taught) > 1:
            p = np.clip(probabilities[:, taught].astype(np.float64), 1e-12, 1)
            total += -(p * np.log(p)).sum(1) / np.log(len(taught))
            libraries += 1
    return total / max(1, libraries)


def _uncertain(
    i: int,
    row: int,
    centroids: npt.NDArray[np.float64],
    entropy: npt.NDArray[np.float64],
    label_p: dict[str, npt.NDArray[np.float32]],
    numbers: dict[str, npt.NDArray[np.int8]],
    outputs: LabelSpace,
) -> Uncertain:
    labels = {}
    for library in outputs.libraries:
        number = int(numbers[library.name][i])
        p = float(label_p[library.name][i])
        labels[library.name] = ("no label", p) if number < 0 else (library.labels[number], p)
    x, y = centroids[i].tolist()
    return Uncertain(row, (x, y), float(entropy[i]), labels)
