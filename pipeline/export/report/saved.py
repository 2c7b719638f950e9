"""A slide's figures that the report of many slides shows, kept beside the slide's own report.

To gather them anew from each of thousands of stores takes minutes to hours; they are a few kilobytes of a slide.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nucpipe.files import written_whole
from pipeline.export.report.stats import AREA_EDGES_UM2, P_EDGES, Counts, Distribution, ReportStats
from pipeline.store.reader import Store

T = TypeVar("T", np.int64, np.float32, np.float64)


def write_figures(path: Path, store: Store, facts: ReportStats) -> None:
    """Write what :func:`pipeline.export.report.stats.compute_batch_stats` gives of a store.

    Args:
        path: of the JSON file.
        store: all nuclei of it.
        facts: of these nuclei.

    Raises:
        OutputError: the file cannot be written.
    """
    counts = [table for tables in (facts.counts, facts.areas, facts.confidence) for table in tables.values()]
    counts += [facts.crosswalk[pair] for pair in combinations(facts.counts, 2)]
    content = {
        "of": _mark(store),
        "unlike": facts.unlike,
        "counts": _packed(np.concatenate([table.ravel() for table in counts])),
        "mean_p": _packed(np.concatenate(list(facts.mean_p.values()))),
        "area_um2": _packed(facts.area_um2.values),
        "area_counts": _packed(facts.area_um2.counts),
    }
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content), "utf-8")


def read_figures(path: Path, store: Store) -> ReportStats | None:
    """Return what was written of the very same nuclei and labels; None where nothing was, or of others."""
    outputs = store.info.outputs
    sizes = {library.name: len(library.labels) + 1 for library in outputs.libraries}
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["of"] != _mark(store):
            return None
        unlike = None if content["unlike"] is None else int(content["unlike"])
        rest = _unpacked(content["counts"], np.int64)

        def take(*shape: int) -> Counts:
            nonlocal rest
            size = math.prod(shape)
            table, rest = rest[:size].reshape(shape), rest[size:]
            return table

        counts = {name: take(size) for name, size in sizes.items()}
        areas = {name: take(size, len(AREA_EDGES_UM2) - 1) for name, size in sizes.items()}
        confidence = {name: take(len(P_EDGES) - 1) for name in sizes}
        crosswalk = {}
        for a, b in combinations(sizes, 2):
            crosswalk[a, b] = take(sizes[a], sizes[b])
            crosswalk[b, a] = crosswalk[a, b].T
        means = np.split(_unpacked(content["mean_p"], np.float64), np.cumsum(list(sizes.values()))[:-1])
        mean_p = {name: mean.reshape(sizes[name]) for name, mean in zip(sizes, means, strict=True)}
        values = _unpacked(content["area_um2"], np.float32)
        area = Distribution(values, _unpacked(content["area_counts"], np.int64))
    except (OSError, ValueError, KeyError, TypeError, zlib.error):
        return None
    nothing = Distribution.merge([])
    return ReportStats(outputs, len(store), counts, mean_p, area, nothing, areas, confidence, crosswalk, {}, (), unlike)


def _mark(store: Store) -> str:
    """Return what changes with the nuclei that are told of: those of a stricter filter or with adapted labels, too."""
    made_from = json.dumps([len(store), store.info.to_dict()])
    return hashlib.sha256(made_from.encode()).hexdigest()


def _packed(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes())).decode("ascii")


def _unpacked(text: str, dtype: type[T]) -> npt.NDArray[T]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
