"""Stores of made-up nuclei, for what is made from a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier.labels.libraries import LabelSpace, published_libraries
from classifier.predictions import Predictions
from pipeline.store.journal import Journal
from pipeline.store.reader import Store, open_store
from pipeline.store.schema import StoreInfo
from pipeline.store.writer import finish
from segmentation.nuclei import Nuclei

UNTRAINED = ("NuCLS:plasma_cell", "BreCaHAD:non_mitosis")
TYPES = ["round", "long"]  # of the detector


def published_outputs() -> LabelSpace:
    """The five libraries; two labels are untrained."""
    outputs = LabelSpace(published_libraries(), (True,) * 35)
    trained = tuple(f"{library}:{label}" not in UNTRAINED for library, label in outputs.columns)
    return LabelSpace(outputs.libraries, trained)


def random_store(
    folder: Path,
    count: int = 200,
    size_l0: tuple[int, int] = (4000, 3000),
    origin_l0: tuple[int, int] = (0, 0),
    settings: dict[str, Any] | None = None,
    name: str = "slide",
    seed: int = 0,
) -> Store:
    """Octagons at random places that lie on half pixels, with random probabilities; deterministic.

    Each octagon's area in the table is its true one at 0.25 µm. The detector's own types are in the table too.
    """
    rng = np.random.default_rng(seed)
    outputs = published_outputs()
    centroids = np.round(rng.uniform(12, np.array(size_l0) - 12, (count, 2)))
    angle = (np.arange(8) + 0.5) / 8 * 2 * np.pi
    directions = np.stack([np.cos(angle), np.sin(angle)], 1)
    radius = rng.uniform(4, 10, (count, 1, 1))
    rings = np.round((centroids[:, None] + radius * directions) * 2) / 2
    x, y = rings[..., 0], rings[..., 1]
    areas_px = 0.5 * np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1))
    nuclei = Nuclei(
        centroids,
        np.arange(0, 8 * count + 1, 8),
        rings.reshape(-1, 2),
        rng.uniform(0.5, 1, count).astype(np.float32),
        (areas_px * 0.25**2).astype(np.float32),
        rng.integers(-1, len(TYPES), count).astype(np.int8),
    )
    probabilities = np.where(outputs.trained, rng.exponential(1, (count, len(outputs))) ** 2, 0)
    for columns in outputs.slices.values():
        probabilities[:, columns] /= probabilities[:, columns].sum(1, keepdims=True)
    journal = Journal.open(folder / "journal", {})
    journal.write(0, nuclei, Predictions(probabilities.astype(np.float32)))
    info = StoreInfo(name, size_l0, 0.25, origin_l0, outputs, {"segmentor": {"types": TYPES}}, settings or {}, "0.1.0")
    finish(journal, [0], folder / "nuclei.zarr", info)
    journal.remove()
    return open_store(folder / "nuclei.zarr")


@contextmanager
def stopped_after(regions: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Stop the run in the block, as Ctrl-C does, after so many regions; yields the numbers of those written."""
    write, written = Journal.write, list[int]()

    def write_or_stop(journal: Journal, index: int, *rest: object) -> None:
        if len(written) == regions:
            raise KeyboardInterrupt
        write(journal, index, *rest)  # type: ignore[arg-type]
        written.append(index)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            yield written
