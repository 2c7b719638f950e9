"""``corrections.csv`` beside a result: what people say a nucleus is, a line a statement."""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from classifier.labels.libraries import LabelSpace
from nucpipe.errors import DataError, UsageError
from nucpipe.files import cannot_write, written_whole
from pipeline.store.reader import Store
from pipeline.store.schema import NOT_A_NUCLEUS

CORRECTIONS = "corrections.csv"
CORRECTIONS_LOCK = "corrections"
"""Names the lock (:mod:`pipeline.batch.lock`) of who changes the file."""
MATCH_UM = 3.0
"""How far from a nucleus' centroid a correction may lie that speaks of it."""


@dataclass(frozen=True)
class Correction:
    """What somebody says of one nucleus.

    Attributes:
        x, y: its centroid, level-0 pixels.
        library: the name of a label system; "" for ``NOT_A_NUCLEUS``.
        label: a label of the library, or a group of its labels.
        id: the nucleus' UUID; "" where it is not known.
        when: the time, ISO 8601; "" where it is not known.
    """

    x: float
    y: float
    library: str
    label: str
    id: str = ""
    when: str = ""

    @property
    def place(self) -> tuple[float, float]:
        """Tells nuclei apart: the centroid to a hundredth of a pixel, of which their UUIDs are made."""
        return round(self.x, 2), round(self.y, 2)

    @property
    def is_nucleus(self) -> bool:
        """Whether it says a label, and not that there is no nucleus."""
        return self.label != NOT_A_NUCLEUS


@dataclass(frozen=True)
class Contradiction:
    """Several labels of one library, or a label and "not a nucleus", for one nucleus."""

    place: tuple[float, float]
    library: str
    labels: tuple[str, ...]

    def __str__(self) -> str:
        of = f"{self.library} " if self.library else ""
        return f"x {self.place[0]:.1f}, y {self.place[1]:.1f}: {of}{' or '.join(self.labels)}"


def now() -> str:
    """Return the time as corrections state it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_corrections(path: Path) -> list[Correction]:
    """Return the corrections of a file, in its order; none where there is no file.

    Raises:
        DataError: it is no table of corrections.
    """
    names = [field.name for field in fields(Correction)]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := {"x", "y", "library", "label"} - set(reader.fieldnames or ()):
                raise DataError(
                    f"{path}: its first line lacks {', '.join(sorted(missing))}; expected {','.join(names)}."
                )
            return [_parsed(path, line, row) for line, row in enumerate(reader, start=2)]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a table of corrections; it cannot be read ({error}).") from error


def _parsed(path: Path, line: int, row: dict[str, str | None]) -> Correction:
    texts = {field.name: (row.get(field.name) or "").strip() for field in fields(Correction)}
    try:
        x, y = float(texts["x"]), float(texts["y"])
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        raise DataError(f"{path}, line {line}: expected numbers for x and y, found {texts['x']!r}, {texts['y']!r}.")
    if not texts["label"] or bool(texts["library"]) == (texts["label"] == NOT_A_NUCLEUS):
        raise DataError(
            f"{path}, line {line}: expected a library and one of its labels, or {NOT_A_NUCLEUS} without a library."
        )
    return Correction(x, y, texts["library"], texts["label"], texts["id"], texts["when"])


def write_corrections(path: Path, corrections: Sequence[Correction]) -> None:
    """Write a file of corrections, whole or not at all; no corrections leave no file.

    Raises:
        OutputError: it cannot be written.
    """
    if not corrections:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        return
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Correction))
        writer.writerows((f"{c.x:.2f}", f"{c.y:.2f}", *astuple(c)[2:]) for c in corrections)


def spelled(corrections: Iterable[Correction], outputs: LabelSpace, path: Path) -> list[Correction]:
    """Return corrections with libraries and labels as these are written, whatever way people wrote them.

    Raises:
        DataError: one names no library or label of these.
    """
    try:
        return [spelled_one(c, outputs) for c in corrections]
    except (DataError, UsageError) as error:
        raise DataError(f"{path}: {error}") from error


def spelled_one(correction: Correction, outputs: LabelSpace) -> Correction:
    """Return one correction, as :func:`spelled`.

    Raises:
        DataError: there is no such label.
        UsageError: there is no such library.
    """
    if not correction.is_nucleus:
        return correction
    library = outputs.library(correction.library)
    return replace(correction, library=library.name, label=library.spelled(correction.label))


def merged(old: Iterable[Correction], new: Iterable[Correction]) -> list[Correction]:
    """Return both, what both say once; of equal statements the first one stays."""
    kept: dict[tuple[tuple[float, float], str, str], Correction] = {}
    for c in (*old, *new):
        kept.setdefault((c.place, c.library.lower(), c.label), c)
    return list(kept.values())


def replaced(
    old: Iterable[Correction],
    new: Sequence[Correction],
    nucleus: Callable[[Correction], Hashable] = lambda c: c.place,
) -> list[Correction]:
    """Return the new statements, and of the old ones those that they leave standing.

    A label takes the place of all earlier ones of its library and of "not a nucleus"; that takes the place of all.

    Args:
        old, new: statements.
        nucleus: tells of which nucleus one speaks.
    """
    labels = {(nucleus(c), c.library.lower()) for c in new if c.is_nucleus}
    labelled = {of for of, _ in labels}
    none = {nucleus(c) for c in new if not c.is_nucleus}
    kept = [
        c
        for c in old
        if (of := nucleus(c)) not in none
        and (of, c.library.lower()) not in labels
        and (c.is_nucleus or of not in labelled)
    ]
    return [*kept, *new]


def contradictions(corrections: Iterable[Correction]) -> list[Contradiction]:
    """Return the nuclei of which different things are said, in the order of the file."""
    said: dict[tuple[float, float], dict[str, list[str]]] = {}
    for c in corrections:
        labels = said.setdefault(c.place, {}).setdefault(c.library, [])
        if c.label not in labels:
            labels.append(c.label)
    found = []
    for place, of in said.items():
        found += [Contradiction(place, name, tuple(labels)) for name, labels in of.items() if len(labels) > 1]
        if "" in of and len(of) > 1:
            others = [f"{name} {labels[0]}" for name, labels in of.items() if name]
            found.append(Contradiction(place, "", (NOT_A_NUCLEUS, *others)))
    return found


def agreed(corrections: Sequence[Correction]) -> list[Correction]:
    """Return the corrections without those that contradict each other."""
    bad = {(c.place, c.library) for c in contradictions(corrections)}
    whole = {place for place, library in bad if not library}
    return [c for c in corrections if c.place not in whole and (c.place, c.library) not in bad]


def locate(corrections: Sequence[Correction], store: Store) -> npt.NDArray[np.int64]:
    """Return (M,) the place in ``store`` of the nucleus that each correction speaks of; -1 where there is none.

    That is the nucleus whose centroid is nearest, at most ``MATCH_UM`` away: a result of another segmentor has other
    nuclei, and its corrections still hold where these lie at the same places.
    """
    if not corrections or not len(store):
        return np.full(len(corrections), -1, np.int64)
    distance, row = cKDTree(store.centroids_l0).query(np.array([(c.x, c.y) for c in corrections]))
    return np.where(distance * store.info.mpp <= MATCH_UM, row, -1).astype(np.int64)


def at_one_place(corrections: Sequence[Correction], rows: npt.NDArray[np.int64]) -> list[Correction]:
    """Return corrections with all that speak of one nucleus at the place of the first of them: people may have pointed
    beside it, or at nuclei of another segmentor, and yet speak of one.

    Args:
        corrections: any; those that speak of no nucleus stay where they are.
        rows: (M,) of which nucleus each speaks, from :func:`locate`.
    """
    first: dict[int, Correction] = {}
    places = [first.setdefault(row, c) if row >= 0 else c for c, row in zip(corrections, rows.tolist(), strict=True)]
    return [replace(c, x=place.x, y=place.y) for c, place in zip(corrections, places, strict=True)]
