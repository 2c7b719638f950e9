"""The libraries (published label systems) and how their labels lie side by side in the classifier's outputs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nucpipe.datasets.base import LIBRARY_FILE, checked_mpp
from nucpipe.errors import DataError, UsageError

Colour = tuple[int, int, int]
"""Red, green, blue, 0-255."""


@cache
def _published() -> dict[str, Any]:
    """Return the content of ``libraries.toml``."""
    return tomllib.loads(resources.files("classifier.labels").joinpath("libraries.toml").read_text("utf-8"))


def no_label_colour() -> Colour:
    """Return the colour of a nucleus without a label."""
    red, green, blue = _published()["no_label"]
    return red, green, blue


def plain(text: str) -> str:
    """Return a label's text without what its writers differ in: case, spaces, hyphens, underscores."""
    return re.sub(r"[\s_-]+", "_", text.strip().lower())


@dataclass(frozen=True)
class Library:
    """One label system.

    Attributes:
        name: as its owners write it, such as ``PanNuke``.
        labels: the labels; a label's place is its number.
        colours: (red, green, blue), 0-255, one a label.
        mpp: pixel size of the published images, micrometres.
        licence, citation: of the published data.
        synonyms: other spellings of labels, by spelling.
        groups: coarser classes that the owners label or report in: {grouping: {group: its labels}}.
        teaches: which labels of other libraries a nucleus that bears a label may have: {label: {library: labels}}.
        partial: its labels are no outputs of a classifier; they only teach other libraries'.
    """

    name: str
    labels: tuple[str, ...]
    colours: tuple[Colour, ...]
    mpp: float
    licence: str
    citation: str
    synonyms: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    teaches: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    partial: bool = False

    def __post_init__(self) -> None:
        """Check that synonyms, groups and what is taught speak of labels.

        Raises:
            DataError: they do not, or a partial library teaches nothing.
        """
        for label in self.teaches:
            if label not in self.labels:
                raise DataError(f"{self.name}: 'teaches' names '{label}', which is not one of its labels.")
        if self.partial and not any(self.teaches.values()):
            raise DataError(f"{self.name}: it is partial and says by no [teaches.LABEL] what its labels teach.")
        named = [*self.synonyms.values(), *(x for g in self.groups.values() for some in g.values() for x in some)]
        for label in named:
            if label not in self.labels:
                raise DataError(f"{self.name}: its synonyms or groups name '{label}', which is not one of its labels.")

    @cached_property
    def _meanings(self) -> dict[str, tuple[int, ...]]:
        number = {label: i for i, label in enumerate(self.labels)}
        meanings: dict[str, tuple[int, ...]] = {plain(label): (i,) for label, i in number.items()}
        for spelling, label in self.synonyms.items():
            meanings.setdefault(plain(spelling), (number[label],))
        for grouping in self.groups.values():
            for group, labels in grouping.items():
                meanings.setdefault(plain(group), tuple(sorted(number[label] for label in labels)))
        return meanings

    def resolve(self, text: str) -> tuple[int, ...]:
        """Return the numbers of the labels that a text may mean: one for a label or a synonym, several for a group.

        Case, spaces, hyphens and underscores make no difference.

        Raises:
            DataError: the library has no such label.
        """
        try:
            return self._meanings[plain(text)]
        except KeyError:
            raise DataError(f"label '{text}' is not one of {self.name}'s ({', '.join(self.labels)}).") from None

    def spelled(self, text: str) -> str:
        """Return a label, or the name of a group of labels, as the library writes it.

        Raises:
            DataError: the library has no such label.
        """
        numbers = self.resolve(text)
        if len(numbers) == 1:
            return self.labels[numbers[0]]
        return next(group for some in self.groups.values() for group in some if plain(group) == plain(text))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Library:
        """Make a library of the form of ``libraries.toml`` and of a model's header."""
        labels: dict[str, Sequence[int]] = fields["labels"]
        colours = tuple((int(r), int(g), int(b)) for r, g, b in labels.values())
        groups = {
            str(grouping): {str(group): tuple(map(str, some)) for group, some in groups.items()}
            for grouping, groups in fields.get("groups", {}).items()
        }
        synonyms = {str(spelling): str(label) for spelling, label in fields.get("synonyms", {}).items()}
        teaches = {
            str(label): {
                str(library): (taught,) if isinstance(taught, str) else tuple(map(str, taught))
                for library, taught in others.items()
            }
            for label, others in fields.get("teaches", {}).items()
        }
        partial = fields.get("partial", False)
        if not isinstance(partial, bool):
            raise ValueError(f"partial is true or false, not {partial}")
        name, mpp = str(fields["name"]), float(fields["mpp"])
        licence, citation = fields["licence"], fields["citation"]
        return cls(name, tuple(labels), colours, mpp, licence, citation, synonyms, groups, teaches, partial)

    def to_dict(self) -> dict[str, Any]:
        """Return the form that :meth:`from_dict` reads."""
        fields: dict[str, Any] = {
            "name": self.name,
            "mpp": self.mpp,
            "licence": self.licence,
            "citation": self.citation,
            "labels": {label: list(colour) for label, colour in zip(self.labels, self.colours, strict=True)},
        }
        if self.synonyms:
            fields["synonyms"] = dict(self.synonyms)
        if self.groups:
            fields["groups"] = {k: {g: list(some) for g, some in groups.items()} for k, groups in self.groups.items()}
        if self.teaches:
            fields["teaches"] = {k: {n: list(some) for n, some in of.items()} for k, of in self.teaches.items()}
        if self.partial:
            fields["partial"] = True
        return fields


@dataclass(frozen=True)
class LabelSpace:
    """The columns of a classifier's result: the labels of every library, one library after another.

    Attributes:
        libraries: in the order of the columns.
        trained: one flag a column; a label that no sample has taught is False and is never predicted.
        temperatures: of each library's softmax; empty for 1 throughout.
    """

    libraries: tuple[Library, ...]
    trained: tuple[bool, ...]
    temperatures: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.trained)

    @cached_property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """(library, label) of each column."""
        return tuple((library.name, label) for library in self.libraries for label in library.labels)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """The columns of each library, by its name."""
        ends = np.cumsum([len(library.labels) for library in self.libraries])
        return {
            library.name: slice(int(end) - len(library.labels), int(end))
            for library, end in zip(self.libraries, ends, strict=True)
        }

    def library(self, name: str) -> Library:
        """Return the library of that name, in any case of letters.

        Raises:
            UsageError: there is none.
        """
        for library in self.libraries:
            if library.name.lower() == name.lower():
                return library
        known = ", ".join(library.name for library in self.libraries)
        raise UsageError(f"unknown library '{name}'; this classifier has {known}.")

    def trained_in(self, name: str) -> tuple[bool, ...]:
        """Return which labels of the library of that very name were taught, in its order."""
        return self.trained[self.slices[name]]

    def best(self, probabilities: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.int8]]:
        """Return the label number of the largest probability in each library.

        Args:
            probabilities: (N, columns).

        Returns:
            By library name, (N,) int8. Never the number of an untrained label; -1 where a library has no trained one.
        """
        masked = np.where(np.asarray(self.trained), probabilities, np.float32(-1))
        best = {}
        for name, columns in self.slices.items():
            some = any(self.trained[columns])
            best[name] = (masked[:, columns].argmax(1) if some else np.full(len(masked), -1)).astype(np.int8)
        return best

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LabelSpace:
        """Make a label space of what :meth:`to_dict` gives; published libraries have their colours of today."""
        libraries = tuple(_recoloured(Library.from_dict(f)) for f in fields["libraries"])
        trained, temperatures = tuple(map(bool, fields["trained"])), tuple(map(float, fields.get("temperatures", ())))
        if len(trained) != sum(len(library.labels) for library in libraries) or not trained:
            raise ValueError(f"{len(trained)} flags of trained labels do not fit the libraries")
        if temperatures and (len(temperatures) != len(libraries) or not min(temperatures) > 0):
            raise ValueError("its temperatures do not fit the libraries")
        return cls(libraries, trained, temperatures)

    def to_dict(self) -> dict[str, Any]:
        """Return the form that a model's header and a store's metadata hold."""
        return {
            "libraries": [library.to_dict() for library in self.libraries],
            "trained": list(self.trained),
            "temperatures": list(self.temperatures),
        }


@cache
def published_libraries() -> tuple[Library, ...]:
    """Return the five libraries of ``libraries.toml``, in the order of the outputs."""
    return tuple(Library.from_dict(fields) for fields in _published()["library"])


def _recoloured(library: Library) -> Library:
    """Return a published library in its colours of today, not in those of when a model was trained."""
    for published in published_libraries():
        if (published.name, published.labels) == (library.name, library.labels):
            return replace(library, colours=published.colours)
    return library


def load_library(path: Path) -> Library:
    """Return a library from its ``library.toml``: name, labels, mpp and licence, and what else is wanted.

    That is ``citation``, ``synonyms``, ``groups``, ``teaches`` and ``partial``.
    ``labels`` is a list, or a table of label and colour. ``[teaches.LABEL]`` sections in the form of
    ``label_mapping.toml`` say which labels of other libraries such a nucleus may have; with ``partial = true`` the
    library's own labels are no outputs of a classifier.

    Raises:
        DataError: no such file, no TOML, or a field that is missing or not what it should be.
    """
    try:
        fields = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a library in TOML; it cannot be read ({error}).") from error
    missing = [name for name in ("name", "labels", "mpp", "licence") if name not in fields]
    if missing:
        raise DataError(f"{path}: it lacks {', '.join(missing)}; a library needs name, labels, mpp and licence.")
    labels = fields["labels"]
    if isinstance(labels, list):
        if len(set(map(str, labels))) < len(labels):
            raise DataError(f"{path}: a label stands in it twice.")
        palette = _published()["palette"]
        labels = {str(label): palette[i % len(palette)] for i, label in enumerate(labels)}
    checked_mpp(fields["mpp"], path)
    try:
        library = Library.from_dict({"citation": "", **fields, "labels": labels})
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: a field is not what a library needs ({error}).") from error
    if not library.labels or not all(library.labels) or not library.name:
        raise DataError(f"{path}: expected a name and at least one label.")
    return library


def libraries_of(data: Sequence[tuple[str, Path]]) -> tuple[Library, ...]:
    """Return the published libraries, then those that users' data folders define by a ``library.toml`` of another name.

    Partial ones, whose labels are no outputs, are among them.

    Args:
        data: (name, folder) of each data set.

    Raises:
        DataError: a ``library.toml`` is broken, or has another name than the one given here.
        UsageError: a name is neither published nor defined by the folder.
    """
    libraries = {library.name.lower(): library for library in published_libraries()}
    for name, folder in data:
        file = folder / LIBRARY_FILE
        if name.lower() not in libraries and file.is_file():
            library = load_library(file)
            if library.name.lower() != name.lower():
                raise DataError(f"{file}: it defines '{library.name}', but '{name}' was asked for.")
            libraries[name.lower()] = library
        if name.lower() not in libraries:
            known = ", ".join(library.name for library in published_libraries())
            raise UsageError(
                f"--library {name}: not one of {known}, and {file} does not exist; write one for a library of your own."
            )
    return tuple(libraries.values())
