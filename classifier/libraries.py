"""The libraries (published label systems) and how their labels lie side by side in the classifier's outputs."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from nucpipe.common.errors import UsageError


@dataclass(frozen=True)
class Library:
    """One published label system.

    Attributes:
        name: as its owners write it, such as ``PanNuke``.
        labels: the labels; a label's place is its number.
        colours: (red, green, blue), 0-255, one a label.
        mpp: pixel size of the published images, micrometres.
        licence, citation: of the published data.
    """

    name: str
    labels: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    mpp: float
    licence: str
    citation: str

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Library:
        """From the form of ``libraries.toml`` and of a model's header."""
        labels: dict[str, Sequence[int]] = fields["labels"]
        colours = tuple((int(r), int(g), int(b)) for r, g, b in labels.values())
        return cls(fields["name"], tuple(labels), colours, float(fields["mpp"]), fields["licence"], fields["citation"])

    def to_dict(self) -> dict[str, Any]:
        """The form that :meth:`from_dict` reads."""
        return {
            "name": self.name,
            "mpp": self.mpp,
            "licence": self.licence,
            "citation": self.citation,
            "labels": {label: list(colour) for label, colour in zip(self.labels, self.colours, strict=True)},
        }


@dataclass(frozen=True)
class Outputs:
    """The columns of a classifier's result: the labels of every library, one library after another.

    Attributes:
        libraries: in the order of the columns.
        trained: one flag a column; a label that no sample has taught is False and is never predicted.
    """

    libraries: tuple[Library, ...]
    trained: tuple[bool, ...]

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
        """The library of that name, in any case of letters.

        Raises:
            UsageError: there is none.
        """
        for library in self.libraries:
            if library.name.lower() == name.lower():
                return library
        known = ", ".join(library.name for library in self.libraries)
        raise UsageError(f"unknown library '{name}'; this classifier has {known}.")

    def best(self, probabilities: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.int8]]:
        """The label number of the largest probability in each library.

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
    def from_dict(cls, fields: dict[str, Any]) -> Outputs:
        """From the form that :meth:`to_dict` gives."""
        return cls(tuple(Library.from_dict(f) for f in fields["libraries"]), tuple(map(bool, fields["trained"])))

    def to_dict(self) -> dict[str, Any]:
        """The form that a model's header and a store's metadata hold."""
        return {"libraries": [library.to_dict() for library in self.libraries], "trained": list(self.trained)}


def published_libraries() -> tuple[Library, ...]:
    """The five libraries of ``libraries.toml``, in the order of the outputs."""
    text = resources.files("classifier").joinpath("libraries.toml").read_text("utf-8")
    return tuple(Library.from_dict(fields) for fields in tomllib.loads(text)["library"])
