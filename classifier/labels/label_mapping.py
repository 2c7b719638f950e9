"""Mapping between the labels of libraries: which label teaches which.

The method matches a sample's label against every library's set and lets each library that has it learn from the
sample. By equal or similar text it also makes wrong pairs (PanNuke's epithelial is non-neoplastic only, MoNuSAC's takes
both), so the default is the curated, directed table of ``label_mapping.toml``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from classifier.labels.libraries import Library, plain
from nucpipe.errors import DataError, UsageError

MODES = ("own", "exact", "similar", "table")
SIMILARITY = 0.8


@dataclass(frozen=True)
class Pair:
    """A label of one library that teaches another library.

    Attributes:
        source, label: the label that teaches.
        library: the other library.
        taught: its labels of which a nucleus that bears ``label`` must have one: several where ``label`` is
            coarser.
        why: by which rule.
    """

    source: str
    label: str
    library: str
    taught: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Matching:
    """Targets that the samples of each library teach.

    Attributes:
        libraries: in the order of the classifier's outputs.
        pairs: between different libraries, at most one for a label and a taught library; every label teaches its own
            library besides.
        partial: libraries whose labels are no outputs; they teach by ``pairs`` alone.
    """

    libraries: tuple[Library, ...]
    pairs: tuple[Pair, ...] = ()
    partial: tuple[Library, ...] = ()
    _starts: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Lay the columns out and check that every name of the pairs is known.

        Raises:
            DataError: it is not.
        """
        start = 0
        for library in self.libraries:
            self._starts[library.name] = start
            start += len(library.labels)
        labels = {library.name: library.labels for library in self.sources}
        for pair in self.pairs:
            for name, label in ((pair.source, pair.label), *((pair.library, label) for label in pair.taught)):
                if label not in labels.get(name, ()):
                    raise DataError(
                        f"the label table names '{label}' of {name}, which no library here has; correct it."
                    )

    @property
    def sources(self) -> tuple[Library, ...]:
        """All whose nuclei teach: the libraries, then the partial ones."""
        return (*self.libraries, *self.partial)

    @property
    def columns(self) -> int:
        """The number of outputs."""
        return sum(len(library.labels) for library in self.libraries)

    @cached_property
    def _taught(self) -> dict[tuple[str, int, str], tuple[int, ...]]:
        place = {library.name: library for library in self.sources}
        return {
            (p.source, place[p.source].labels.index(p.label), p.library): tuple(
                place[p.library].labels.index(label) for label in p.taught
            )
            for p in self.pairs
        }

    def targets(self, library: str, text: str) -> npt.NDArray[np.bool_]:
        """Return what one sample teaches: (columns,) bool, in each library's part the labels that it may have there.

        A part without a True teaches that library nothing. A group's name gives all of its labels; it teaches another
        library only if each of its labels does.

        Raises:
            DataError: the library has no such label or group.
        """
        own = next((lib for lib in self.sources if lib.name == library), None)
        if own is None:
            raise DataError(f"label '{text}': there is no library {library}.")
        row = np.zeros(self.columns, bool)
        numbers = own.resolve(text)
        for other in self.libraries:
            found = [(n,) if other is own else self._taught.get((library, n, other.name), ()) for n in numbers]
            if all(found):
                row[[self._starts[other.name] + n for some in found for n in some]] = True
        return row

    def taught(self, targets: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return how many samples teach each column: (columns,) int64; a column of 0 is untrained.

        A sample that is known only by a group counts for none: its labels are not told apart by it.

        Args:
            targets: (N, columns), rows as :meth:`targets` gives them.
        """
        counts = []
        for library in self.libraries:
            part = targets[:, self._starts[library.name] : self._starts[library.name] + len(library.labels)]
            counts.append(part[part.sum(1) == 1].sum(0))
        return np.concatenate(counts).astype(np.int64)


def make_matching(
    libraries: Sequence[Library], mode: str = "table", similarity: float = SIMILARITY, table: Path | None = None
) -> Matching:
    """Return pairs between libraries.

    Args:
        libraries: in the order of the outputs; partial ones have none and may stand anywhere. What a library itself
            says of its labels (``Library.teaches``) holds in every mode, but for what a table of the user's says.
        mode: ``own`` (none), ``exact`` (equal text), ``similar`` (equal text, or a ratio of difflib's SequenceMatcher
            above ``similarity``) or ``table`` (a curated file).
        similarity: 0 to 1.
        table: a file in the form of ``label_mapping.toml``; None for that one.

    Raises:
        UsageError: an unknown mode, a similarity out of range, or a table without the mode ``table``.
        DataError: the table cannot be read or names unknown labels.
    """
    if mode not in MODES:
        raise UsageError(f"--match {mode}: expected one of {', '.join(MODES)}.")
    if not 0 < similarity < 1:
        raise UsageError(f"--similarity {similarity}: expected a number between 0 and 1.")
    if table is not None and mode != "table":
        raise UsageError(f"--match-table is read with --match table only, not with --match {mode}.")
    partial = tuple(library for library in libraries if library.partial)
    libraries = tuple(library for library in libraries if not library.partial)
    pairs = {
        (source.name, label, other): Pair(source.name, label, other, taught, "its own library.toml")
        for source in (*libraries, *partial)
        for label, others in source.teaches.items()
        for other, taught in others.items()
    }
    if mode == "table":
        pairs |= {(p.source, p.label, p.library): p for p in _read_table(table, [*libraries, *partial])}
    for source in libraries if mode in ("exact", "similar") else ():
        for label in source.labels:
            for other in libraries:
                if other is not source and (pair := _by_text(source, label, other, mode, similarity)) is not None:
                    pairs.setdefault((source.name, label, other.name), pair)
    return Matching(libraries, tuple(pairs.values()), partial)


def _by_text(source: Library, label: str, other: Library, mode: str, similarity: float) -> Pair | None:
    """Return the label of ``other`` whose text is the same as, or most like, ``label``."""
    for taught in other.labels:
        if plain(taught) == plain(label):
            return Pair(source.name, label, other.name, (taught,), "equal text")
    if mode == "exact":
        return None
    ratios = [difflib.SequenceMatcher(None, plain(label), plain(taught)).ratio() for taught in other.labels]
    best = int(np.argmax(ratios))
    if ratios[best] <= similarity:
        return None
    return Pair(source.name, label, other.name, (other.labels[best],), f"similar text, {ratios[best]:.2f}")


def _read_table(path: Path | None, libraries: Sequence[Library]) -> list[Pair]:
    file = path or resources.files("classifier.labels").joinpath("label_mapping.toml")
    try:
        table = tomllib.loads(file.read_text("utf-8"))
        rows = [
            Pair(source, label, library, (taught,) if isinstance(taught, str) else tuple(map(str, taught)), "table")
            for source, labels in table.items()
            for label, taughts in labels.items()
            for library, taught in taughts.items()
        ]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file}: expected [library.label] sections of library = 'label' ({error}).") from error
    if path is not None:
        return rows
    # The published table speaks of the five; a training may do without some of them.
    known = {library.name for library in libraries}
    return [row for row in rows if row.source in known and row.library in known]
