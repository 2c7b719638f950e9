"""Corrections while a result is viewed: kept in its file at once, and all nuclei relabelled after each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from classifier.decision_rule import best_labels, label_probabilities
from classifier.labels.libraries import LabelSpace
from nucpipe.errors import UsageError
from pipeline.adaptation.clicks import Clicks, clicks_of
from pipeline.adaptation.corrections import (
    CORRECTIONS,
    CORRECTIONS_LOCK,
    Contradiction,
    Correction,
    locate,
    now,
    read_corrections,
    replaced,
    spelled,
    write_corrections,
)
from pipeline.adaptation.model import confirmed, features_of, fit, standard_of
from pipeline.adaptation.suggest import suggest
from pipeline.batch.lock import Lock, waiting_for
from pipeline.result import Result
from pipeline.store.schema import NOT_A_NUCLEUS
from pipeline.web.viewer.nuclei import Adapted, Labels, NucleiMap

Rows = npt.NDArray[np.int64]
MOST_AT_ONCE = 20_000
"""Nuclei that one correction may speak of."""


@dataclass
class _Slide:
    """What relabelling needs of all nuclei."""

    base: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    standard: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


class Corrector:
    """The corrections of a result that is viewed. Safe to be used from several threads.

    Args:
        result: with ``corrections.csv`` beside it, or without.
        nuclei: its nuclei; their adapted labels are set after every correction.

    Raises:
        DataError: ``corrections.csv`` cannot be read, or names labels that there are not.
    """

    def __init__(self, result: Result, nuclei: NucleiMap) -> None:
        self.path, self.store, self.nuclei = result.folder / CORRECTIONS, result.store.base(), nuclei
        self._lock = threading.Lock()
        self._said: list[Correction] = []
        self._contradictions: tuple[Contradiction, ...] = ()
        self._done: list[tuple[list[Correction], list[Correction]]] = []  # what each correction here added and removed
        self._rows: dict[tuple[float, float], int] = {}
        self._slide: _Slide | None = None
        with self._lock:
            self._read()
            if self._said:
                self._relabel()
            elif self.store.adapted_libraries:
                self._show_stored()

    @property
    def count(self) -> int:
        """How many nuclei are corrected."""
        return len({self._nucleus(c) for c in self._said})

    @property
    def can_undo(self) -> bool:
        """Whether something was corrected here that can be undone."""
        return bool(self._done)

    @property
    def contradictions(self) -> list[str]:
        """What is said of nuclei that contradicts itself, and is not used."""
        return [str(one) for one in self._contradictions]

    def of(self, number: int) -> dict[str, str]:
        """Return what is said of a nucleus: its label by library, or ``NOT_A_NUCLEUS`` under ""."""
        return {c.library: c.label for c in self._said if self._rows.get(c.place) == number}

    def corrected(self) -> Rows:
        """Return the numbers of all corrected nuclei."""
        return np.array(sorted({row for c in self._said if (row := self._rows[c.place]) >= 0}), np.int64)

    def correct(self, rows: Rows, library: str, label: str) -> None:
        """Say what nuclei are: a label of a library, or ``NOT_A_NUCLEUS`` with the library "".

        Raises:
            DataError: no such label.
            UsageError: no such library, or more nuclei than ``MOST_AT_ONCE``.
            OutputError: the file cannot be written.
        """
        if len(rows) > MOST_AT_ONCE:
            raise UsageError(
                f"{len(rows):,} nuclei: one correction speaks of {MOST_AT_ONCE:,} at most; draw round fewer."
            )
        if label != NOT_A_NUCLEUS:
            known = self.store.info.outputs.library(library)
            library, label = known.name, known.spelled(label)
        some = replace(self.store, rows=np.sort(rows))
        when = now()
        new = [
            Correction(round(x, 2), round(y, 2), library, label, str(uuid), when)
            for (x, y), uuid in zip(some.centroids_l0.tolist(), some.ids, strict=True)
        ]
        with self._nobody_else():
            self._read()
            self._rows |= {c.place: int(row) for c, row in zip(new, some.rows, strict=True)}
            before = self._said
            after = replaced(before, new, self._nucleus)
            kept = set(after)
            self._set(after)
            self._done.append((new, [c for c in before if c not in kept]))

    def undo(self) -> None:
        """Take the last correction back, if there is one."""
        with self._nobody_else():
            if not self._done:
                return
            self._read()
            added, removed = self._done[-1]
            gone = set(added)
            self._set([*(c for c in self._said if c not in gone), *removed])
            self._done.pop()

    def suggested(self, library: str, candidates: Rows, count: int) -> Rows:
        """Return the nuclei that a correction would teach most of, see :func:`pipeline.adaptation.suggest.suggest`."""
        with self._lock:
            slide = self._whole_slide()
            part = self.store.info.outputs.slices[library]
            base = slide.base[:, part]
            adapted = self.nuclei.adapted
            seen = base if adapted is None or library not in adapted.libraries else adapted.probabilities(library)
            corrected = self.corrected()
        size = self.store.info.size_l0
        return suggest(base, seen, self.nuclei.centroids_l0, size, candidates, corrected, count)

    @contextmanager
    def _nobody_else(self) -> Iterator[None]:
        """Let nobody else change the file in the block: no other page, and no other program."""
        with self._lock, waiting_for(Lock(self.path.parent, CORRECTIONS_LOCK)):
            yield

    def _nucleus(self, correction: Correction) -> int | tuple[float, float]:
        """Tell of which nucleus a correction speaks: its number, or the place where this result has none."""
        row = self._rows[correction.place]
        return row if row >= 0 else correction.place

    def _read(self) -> None:
        """Take in what stands in the file now; another program may have added to it."""
        said = spelled(read_corrections(self.path), self.store.info.outputs, self.path)
        if new := [c for c in said if c.place not in self._rows]:
            self._rows |= {c.place: row for c, row in zip(new, locate(new, self.store).tolist(), strict=True)}
        self._said = said

    def _set(self, said: Sequence[Correction]) -> None:
        write_corrections(self.path, said)
        self._said = list(said)
        self._relabel()

    def _relabel(self) -> None:
        places = np.array([self._rows[c.place] for c in self._said], np.int64)
        clicks = clicks_of(self._said, self.store, places)
        self._contradictions = clicks.contradictions
        self.nuclei.show_adapted(self._adapted(clicks) if self._said else None)

    def _adapted(self, clicks: Clicks) -> Adapted:
        slide, outputs, rows = self._whole_slide(), self.store.info.outputs, clicks.rows
        model = fit(slide.base[rows], slide.features[rows], clicks.teaches, outputs, slide.standard)

        def compute(library: str) -> npt.NDArray[np.float32]:
            part = outputs.slices[library]
            adapted = slide.base[:, part].copy()
            taught = model.libraries[library].columns - part.start
            adapted[:, taught] = model.of_library(library, slide.base, slide.features)
            adapted[rows] = confirmed(adapted[rows], clicks.allowed[:, part], self._alone(library))
            return adapted

        no_nuclei = np.zeros(len(slide.base), bool)
        no_nuclei[clicks.no_nuclei] = True
        return Adapted(tuple(model.libraries), no_nuclei, compute, self._decide)

    def _decide(self, library: str, probabilities: npt.NDArray[np.float32]) -> Labels:
        space = self._alone(library)
        numbers = best_labels(probabilities, space, self.store.info.rule)
        return numbers[library], label_probabilities(probabilities, space, numbers)[library]

    def _alone(self, library: str) -> LabelSpace:
        """Return one library's columns as a label space of their own."""
        outputs = self.store.info.outputs
        return LabelSpace((outputs.library(library),), outputs.trained_in(library))

    def _show_stored(self) -> None:
        """Show what ``nucpipe adapt`` wrote, as of another slide's corrections."""
        shown, store = self.store.adapted(), self.store
        no_nuclei = np.ones(len(store), bool)
        no_nuclei[np.asarray(shown.rows)] = False

        def compute(library: str) -> npt.NDArray[np.float32]:
            return store.with_labels(adapted=True).probabilities[:, store.info.outputs.slices[library]]

        self.nuclei.show_adapted(Adapted(store.adapted_libraries, no_nuclei, compute, self._decide))

    def _whole_slide(self) -> _Slide:
        if self._slide is None:
            base, features = self.store.probabilities, features_of(self.store)
            self._slide = _Slide(base, features, standard_of(features, base, self.store.info.outputs))
        return self._slide
