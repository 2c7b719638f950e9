"""A finished result in Python: ``nucpipe.open("results/slide")``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nucpipe.counts import counted
from nucpipe.errors import OutputError, SlideError, UsageError
from pipeline.store.journal import JOURNAL
from pipeline.store.reader import Store, open_store
from pipeline.store.run_record import RUN_JSON, STORE, label_counts

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from pipeline.slide.base import Slide

BBox = tuple[float, float, float, float]
"""x0, y0, x1, y1 in level-0 pixels; the nuclei whose centroid has ``x0 <= x < x1`` and ``y0 <= y < y1`` are in it."""

COMMON_LABELS = 3
"""Labels of each library that a printed result names."""


@dataclass(frozen=True)
class Result:
    """One slide's finished result. Arrays are read from the disk when they are asked for.

    Nuclei are in the store's order, so row k of one method's answer is row k of another's for the same bbox.

    Attributes:
        folder: the slide's folder of results.
        store: its nuclei, as arrays.
    """

    folder: Path
    store: Store

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return f"<Result {self.name}: {counted(len(self), 'nucleus', 'nuclei')}, {self.folder}>"

    def __str__(self) -> str:
        """Return a few lines for people: the slide, its nuclei, each library's commonest labels, and the folder."""
        width, height = self.size_l0
        lines = [
            f"{self.name}: {counted(len(self), 'nucleus', 'nuclei')} in {self.folder}",
            f"  {width:,} x {height:,} pixels of {self.mpp:.4g} µm "
            f"({width * self.mpp / 1000:.2f} x {height * self.mpp / 1000:.2f} mm)",
        ]
        wide = max(map(len, self.libraries))
        for library in self.store.info.outputs.libraries:
            counts = label_counts(self.store, library.name, library.labels)
            common = sorted(counts, key=lambda label: -counts[label])[:COMMON_LABELS]
            texts = [f"{label} {counts[label]:,}" for label in common if counts[label]]
            others = len(self) - sum(counts[label] for label in common)
            texts += [f"others {others:,}"] if others else []
            lines.append(f"  {library.name:<{wide}}  {', '.join(texts) or 'no label'}")
        return "\n".join(lines)

    @property
    def name(self) -> str:
        """The slide's name."""
        return self.store.info.slide_name

    @property
    def mpp(self) -> float:
        """Micrometres per level-0 pixel."""
        return self.store.info.mpp

    @property
    def size_l0(self) -> tuple[int, int]:
        """(width, height) in level-0 pixels."""
        return self.store.info.size_l0

    @property
    def libraries(self) -> tuple[str, ...]:
        """The names of the label systems."""
        return tuple(library.name for library in self.store.info.outputs.libraries)

    @property
    def run_facts(self) -> dict[str, Any]:
        """Content of ``run.json``; empty without it, for a store can be used alone."""
        try:
            facts = json.loads((self.folder / RUN_JSON).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        # Anybody may have written to it: what is no text or no table there tells nothing.
        facts = facts if isinstance(facts, dict) else {}
        if not isinstance(facts.get("settings", {}), dict):
            del facts["settings"]
        if not isinstance(facts.get("slide", ""), str):
            del facts["slide"]
        return facts

    @property
    def primary(self) -> str:
        """The library that gave the colours in the run; the last one where the run does not say."""
        name = self.run_facts.get("settings", {}).get("primary")
        return name if name in self.libraries else self.libraries[-1]

    @property
    def table(self) -> AnnData:
        """All nuclei as AnnData: probabilities in ``X``, labels in ``obs``, centroids in ``obsm["spatial"]``."""
        return self.store.table

    def within(self, bbox: BBox | None) -> Store:
        """Return the nuclei of a bounding box, as arrays; all of them for None."""
        return self.store if bbox is None else self.store.in_bbox(*bbox)

    def filtered(self, min_area: float | None = None, min_detection: float | None = None) -> Result:
        """Return the same result without the nuclei below an area or a detection probability.

        Args:
            min_area: square micrometres; None: as in the run.
            min_detection: 0-1; None: as in the run.

        Raises:
            UsageError: a number cannot be, or the run left out nuclei that are asked for.
        """
        return replace(self, store=self.store.filtered(min_area, min_detection))

    def adapted(self) -> Result:
        """Return the same result with the labels that ``nucpipe adapt`` wrote, without what is no nucleus.

        Raises:
            UsageError: there are no adapted labels.
        """
        return replace(self, store=self.store.adapted())

    def labels(self, library: str, bbox: BBox | None = None) -> pd.Series[str]:
        """Return each nucleus's label in one library's words.

        Args:
            library: its name, in any case of letters.
            bbox: only the nuclei in it.

        Returns:
            A categorical series of all labels of the library, missing where a nucleus has none; its index are the
            nuclei's UUIDs.

        Raises:
            UsageError: no such library.
        """
        import pandas as pd

        part, known = self.within(bbox), self.store.info.outputs.library(library)
        values = pd.Categorical.from_codes(part.label_numbers(known.name), pd.Index(known.labels))
        return pd.Series(values, index=pd.Index(part.ids, dtype=object), name=known.name)

    def probabilities(self, library: str, bbox: BBox | None = None) -> pd.DataFrame:
        """Return each nucleus's probability of each label of one library; rows sum to 1, untrained labels have 0."""
        import pandas as pd

        part, known = self.within(bbox), self.store.info.outputs.library(library)
        values = part.probabilities[:, part.info.outputs.slices[known.name]]
        return pd.DataFrame(values, index=pd.Index(part.ids, dtype=object), columns=list(known.labels))

    def centroids(self, bbox: BBox | None = None) -> npt.NDArray[np.float64]:
        """Return (N, 2) x and y of each nucleus's centre of mass, level-0 pixels."""
        return self.within(bbox).centroids_l0

    def contours(self, bbox: BBox | None = None) -> list[npt.NDArray[np.float32]]:
        """Return the outline of each nucleus: (K, 2) x and y in level-0 pixels, on pixel corners, not closed."""
        offsets, points = self.within(bbox).contours()
        return np.split(points, offsets[1:-1]) if len(offsets) > 1 else []

    def slide_path(self, given: str | Path | None = None) -> Path:
        """Return where the slide lies: ``given``, else where the run found it.

        Raises:
            UsageError: it is not there (any more).
        """
        remembered = self.run_facts.get("slide")
        path = Path(given) if given is not None else Path(remembered) if remembered else None
        if path is None or not path.exists():
            where = "its place is not known" if path is None else f"it is not at {path}"
            raise UsageError(f"the slide {self.name} is needed, but {where}; give its path (--slide).")
        return path

    def open_slide(self, given: str | Path | None = None) -> Slide:
        """Return the slide itself, to read pixels from; to be closed, or used in a ``with``.

        Raises:
            UsageError: it is not there (any more).
            SlideError: it cannot be read, or is not the one of this result.
        """
        from pipeline.slide.open import open_slide

        path = self.slide_path(given)
        slide = open_slide(path, self.mpp)
        if slide.size_l0 != self.size_l0:
            slide.close()
            raise SlideError(
                f"{path.name}: {slide.size_l0[0]} x {slide.size_l0[1]} pixels, but this result is of a slide of "
                f"{self.size_l0[0]} x {self.size_l0[1]}; give the slide {self.name}."
            )
        return slide


def is_result(path: Path) -> bool:
    """Tell whether a path is a slide's folder of results, or the store in one."""
    return (path / STORE).is_dir() or path.name == STORE


def open_result(result: str | Path) -> Result:
    """Open a finished result.

    Args:
        result: a slide's folder, or the ``nuclei.zarr`` in it.

    Raises:
        UsageError: no such path.
        OutputError: it is no result, its run is not finished, or it is of a later version of nucpipe.
    """
    path = Path(result)
    if not path.exists():
        raise UsageError(f"{path}: no such folder; expected a slide's folder of results, or the {STORE} in it.")
    if (path / STORE).exists():
        return Result(path, open_store(path / STORE))
    if (path / JOURNAL).is_dir():
        raise OutputError(f"{path}: the run of this slide is not finished; give the same run command again.")
    if path.is_dir() and not (path / "zarr.json").exists():
        inside = next((f", such as {store.parent}" for store in sorted(path.glob(f"*/{STORE}"))), "")
        raise OutputError(f"{path}: expected a slide's folder of results, with {STORE} in it{inside}.")
    return Result(path.parent, open_store(path))


def open_results(folder: str | Path) -> list[Result]:
    """Return every finished result in a folder and its sub-folders, by name of the folder.

    Raises:
        UsageError: no such folder.
        OutputError: it holds no result, or one is of a later version of nucpipe.
    """
    if not Path(folder).exists():
        raise UsageError(f"{folder}: no such folder; expected one that nucpipe run wrote to.")
    found = sorted(results_in(Path(folder)))
    if not found:
        raise OutputError(f"{folder}: holds no finished result; expected a folder that nucpipe run wrote to.")
    return [open_result(path) for path in found]


def results_in(folder: Path) -> Iterator[Path]:
    """Yield each slide's folder of results in a folder and its sub-folders."""
    for here, names, _ in os.walk(folder):
        if STORE in names:
            yield Path(here)
            names.clear()  # a result holds no other
