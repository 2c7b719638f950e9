"""What corrections say of nuclei in every library's labels: their own, and by the label table "one of these"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from classifier.labels.label_mapping import make_matching
from classifier.labels.libraries import LabelSpace
from pipeline.adaptation.corrections import Contradiction, Correction, agreed, at_one_place, contradictions, locate
from pipeline.store.reader import Store


@dataclass(frozen=True)
class Clicks:
    """What is known of M corrected nuclei of a store.

    Attributes:
        rows: (M,) their places in the store, ascending.
        allowed: (M, columns) bool, in each library's columns the labels that the nucleus may have there; all False
            where nothing is known. Never an untrained label.
        teaches: (M, columns) the same, without libraries to which the label table carries one statement only, such as
            "epithelial" of every tumour cell and nothing of the others: learning it would call all nuclei that.
        points_l0: (M, 2) where they lie.
        no_nuclei: (K,) the places of what is said to be no nucleus.
        contradictions: what is left out because it contradicts itself.
        lost: how many corrections lie where the store has no nucleus.
        untaught: how often a label was given that nothing taught, by "library label"; the label teaches other
            libraries, but not its own.
    """

    rows: npt.NDArray[np.int64]
    allowed: npt.NDArray[np.bool_]
    teaches: npt.NDArray[np.bool_]
    points_l0: npt.NDArray[np.float64]
    no_nuclei: npt.NDArray[np.int64]
    contradictions: tuple[Contradiction, ...] = ()
    lost: int = 0
    untaught: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


def clicks_of(corrections: Sequence[Correction], store: Store, places: npt.NDArray[np.int64] | None = None) -> Clicks:
    """Return what corrections say of the nuclei of a store.

    A nucleus' own correction in a library stands above what the label table carries over from another one; where
    several are carried over, the nucleus may have the labels that all of them allow, and nothing is known where they
    allow none together.

    Args:
        corrections: any, spelled as :func:`pipeline.adaptation.corrections.spelled` does.
        store: the whole store.
        places: (M,) of the nucleus that each correction speaks of, where they are known; -1 for none.

    Raises:
        DataError: a correction's label is none of its library's.
        UsageError: there is no such library.
    """
    outputs = store.info.outputs
    found = locate(corrections, store) if places is None else places
    corrections = at_one_place(corrections, found)
    row_of = dict(zip(map(id, corrections), found.tolist(), strict=True))
    kept = agreed(corrections)
    by_row: dict[int, list[Correction]] = {}
    for c in kept:
        if (row := row_of[id(c)]) >= 0:
            by_row.setdefault(row, []).append(c)
    no_nuclei = sorted(row for row, said in by_row.items() if not all(c.is_nucleus for c in said))
    rows = sorted(set(by_row) - set(no_nuclei))
    says = LabelTable(outputs)
    untaught: Counter[str] = Counter()
    allowed = np.array([says.of(by_row[row], untaught) for row in rows], bool).reshape(-1, len(outputs))
    corrected = {outputs.library(c.library).name for row in rows for c in by_row[row]}
    return Clicks(
        np.array(rows, np.int64),
        allowed,
        _teaching(allowed, corrected, outputs),
        np.array([(by_row[row][0].x, by_row[row][0].y) for row in rows], float).reshape(-1, 2),
        np.array(no_nuclei, np.int64),
        tuple(contradictions(corrections)),
        int((found < 0).sum()),
        tuple(untaught.items()),
    )


def _teaching(allowed: npt.NDArray[np.bool_], corrected: set[str], outputs: LabelSpace) -> npt.NDArray[np.bool_]:
    teaches = allowed.copy()
    for name, columns in outputs.slices.items():
        if name not in corrected and says_one_thing(allowed[:, columns]):
            teaches[:, columns] = False
    return teaches


def says_one_thing(allowed: npt.NDArray[np.bool_]) -> bool:
    """Tell whether all rows (M, labels) of which something is known, if any, allow the same labels."""
    return len(np.unique(allowed[allowed.any(1)], axis=0)) < 2


class LabelTable:
    """What each label says of every library."""

    def __init__(self, outputs: LabelSpace) -> None:
        self.outputs = outputs
        self.matching = make_matching(outputs.libraries)
        self.trained = np.array(outputs.trained, bool)
        self.known: dict[tuple[str, str], npt.NDArray[np.bool_]] = {}

    def of(self, said: Sequence[Correction], untaught: Counter[str]) -> npt.NDArray[np.bool_]:
        """Return (columns,) what one nucleus' corrections allow."""
        allowed = np.zeros(len(self.outputs), bool)
        own = {self.outputs.library(c.library).name: c for c in said}
        rows = {name: self.row(name, c.label) for name, c in own.items()}
        for name, columns in self.outputs.slices.items():
            if name in own:
                allowed[columns] = rows[name][columns]
                if not allowed[columns].any():
                    untaught[f"{name} {own[name].label}"] += 1
                continue
            spoken = [row[columns] for row in rows.values() if row[columns].any()]
            if spoken:
                together = np.logical_and.reduce(spoken)
                # Whatever the library has: that says nothing.
                allowed[columns] = together & (together != self.trained[columns]).any()
        return allowed

    def row(self, library: str, label: str) -> npt.NDArray[np.bool_]:
        """Return (columns,) bool, what a nucleus that bears one label may be in every library."""
        if (library, label) not in self.known:
            self.known[library, label] = self.matching.targets(library, label) & self.trained
        return self.known[library, label]
