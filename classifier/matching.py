"""Which label of one library teaches which label of another: the curated, directed table of ``matching.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

import numpy as np
import numpy.typing as npt

from classifier.libraries import Library
from nucpipe.common.errors import DataError


@dataclass(frozen=True)
class Matching:
    """What the samples of each library teach.

    Attributes:
        libraries: in the order of the classifier's outputs.
        table: {library: {label: {taught library: taught label}}}; every label teaches its own library besides.
    """

    libraries: tuple[Library, ...]
    table: dict[str, dict[str, dict[str, str]]]

    def __post_init__(self) -> None:
        """Check that every name of the table is known.

        Raises:
            DataError: it is not.
        """
        labels = {library.name: library.labels for library in self.libraries}
        pairs = [
            pair
            for library, rows in self.table.items()
            for label, taught in rows.items()
            for pair in ((library, label), *taught.items())
        ]
        for library, label in pairs:
            if label not in labels.get(library, ()):
                raise DataError(f"the label table names '{label}' of {library}, which no library here has; correct it.")

    @cached_property
    def _targets(self) -> dict[tuple[str, str], npt.NDArray[np.int64]]:
        rows = {}
        for source in self.libraries:
            for label in source.labels:
                taught = {**self.table.get(source.name, {}).get(label, {}), source.name: label}
                rows[source.name, label] = np.array(
                    [lib.labels.index(taught[lib.name]) if lib.name in taught else -1 for lib in self.libraries]
                )
        return rows

    def targets(self, library: str, label: str) -> npt.NDArray[np.int64]:
        """What one sample teaches: (L,) int64, for each library the number of a label, or -1 for nothing.

        Raises:
            DataError: the library has no such label.
        """
        try:
            return self._targets[library, label]
        except KeyError:
            known = next((", ".join(lib.labels) for lib in self.libraries if lib.name == library), "none")
            raise DataError(f"label '{label}' is not one of {library}'s ({known}).") from None

    def taught(self, targets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many samples teach each column.

        Args:
            targets: (N, L), rows as :meth:`targets` gives them.

        Returns:
            (columns,) int64; a column of 0 is untrained.
        """
        counts = [
            np.bincount(column[column >= 0], minlength=len(library.labels))
            for column, library in zip(targets.T, self.libraries, strict=True)
        ]
        return np.concatenate(counts)


def published_matching(libraries: Sequence[Library]) -> Matching:
    """The table of ``matching.toml``."""
    text = resources.files("classifier").joinpath("matching.toml").read_text("utf-8")
    return Matching(tuple(libraries), tomllib.loads(text))
