"""Write the store of one slide's nuclei, ``nuclei.zarr``, once, from the journal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from classifier.decision_rule import best_labels, label_probabilities, short_form
from classifier.labels.libraries import LabelSpace
from classifier.predictions import Predictions
from nucpipe.errors import OutputError
from nucpipe.files import PARTIAL, cannot_write
from pipeline.store.anndata_encoding import (
    add_array,
    add_categorical,
    add_dataframe,
    add_group,
    add_scalar,
    add_string_array,
    add_strings,
    add_values,
)
from pipeline.store.journal import Journal
from pipeline.store.ordering import RegionIndex, blocks_of, index_regions, iterate_ordered, nucleus_ids
from pipeline.store.schema import CHUNK_ROWS, CHUNK_ROWS_X, OOD_SCORE, SCHEMA_VERSION, StoreInfo, blocks_across
from segmentation.nuclei import MEASURES, Nuclei

if TYPE_CHECKING:
    import zarr

CHUNK_POINTS = 262144  # of the outlines


def finish(journal: Journal, regions: Sequence[int], path: Path, info: StoreInfo) -> None:
    """Write the store from a journal: to ``<path>.partial`` first, then by one rename.

    The store depends on the nuclei alone, not on how the slide was cut into regions: nuclei are ordered by blocks of
    1024 level-0 pixels in row-major order, by y and then x within a block. Memory does not grow with the slide.

    Args:
        journal: all ``regions`` are done in it; it is left as it is.
        regions: indices of the slide's regions.
        path: of the store, ``nuclei.zarr``.
        info: what the store says of itself.

    Raises:
        OutputError: ``path`` is there already or cannot be written; a region is missing or damaged.
    """
    if path.exists():
        raise OutputError(f"{path}: already exists; use --overwrite to replace it, or another --out.")
    partial = path.with_name(path.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(journal, index_regions(journal, sorted(regions)), partial, info)
        partial.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(journal: Journal, found: RegionIndex, path: Path, info: StoreInfo) -> None:
    import zarr

    root = zarr.open_group(
        path,
        mode="w-",
        zarr_format=3,
        attributes={"nucpipe": {"schema_version": SCHEMA_VERSION, "nuclei": found.nuclei, **info.to_dict()}},
    )
    arrays = _create_table(root, found.nuclei, info)
    contours = root.create_group("contours")
    offsets = add_array(contours, "offsets", (found.nuclei + 1,), np.int64, CHUNK_ROWS)
    # float32 holds every half pixel of a slide up to 8 million pixels wide, and 0.01 px of one of 100,000.
    points = add_array(contours, "points", (found.points, 2), np.float32, CHUNK_POINTS)
    offsets[:1] = np.zeros(1, np.int64)
    counts = np.zeros(blocks_across(info.size_l0), np.int64)
    start, start_point = 0, 0
    for nuclei, labels in iterate_ordered(journal, found):
        end, end_point = start + len(nuclei), start_point + len(nuclei.contour_points)
        for name, values in table_rows(nuclei, labels, info).items():
            arrays[name][start:end] = values
        offsets[start + 1 : end + 1] = nuclei.contour_offsets[1:] + start_point
        points[start_point:end_point] = nuclei.contour_points
        np.add.at(counts, tuple(blocks_of(nuclei)[:, ::-1].T), 1)
        start, start_point = end, end_point
    first_rows = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    add_values(root.create_group("index"), "blocks", first_rows)


def _create_table(root: zarr.Group, count: int, info: StoreInfo) -> dict[str, zarr.Array[Any]]:
    """Return the table without its rows; returns the arrays that :func:`table_rows` fills, by path."""
    outputs = info.outputs
    names = [library.name for library in outputs.libraries]
    numbers = [*(f"{name}_p" for name in names), "detection_p", "area_um2", *MEASURES]
    numbers += [OOD_SCORE] if info.has_ood_scores else []
    table = add_group(root, "table", "anndata")
    types = {"segmentor_type": info.segmentor_types} if info.segmentor_types else {}
    obs = add_dataframe(table, "obs", [*names, *types, *numbers])
    obsm = add_group(table, "obsm", "dict")
    features = {"features": info.features} if info.features else {}
    arrays = [
        add_array(table, "X", (count, len(outputs)), np.float32, CHUNK_ROWS_X),
        add_array(obsm, "spatial", (count, 2), np.float64, CHUNK_ROWS),
        *(add_array(obsm, name, (count, width), np.float16, CHUNK_ROWS_X) for name, width in features.items()),
        add_string_array(obs, "_index", count, CHUNK_ROWS),
        *(add_categorical(obs, lib.name, lib.labels, count, CHUNK_ROWS) for lib in outputs.libraries),
        *(add_categorical(obs, name, labels, count, CHUNK_ROWS) for name, labels in types.items()),
        *(add_array(obs, number, (count,), np.float32, CHUNK_ROWS) for number in numbers),
    ]
    _add_var(table, outputs)
    _add_uns(table, info)
    return {array.path: array for array in arrays}


def table_rows(nuclei: Nuclei, labels: Predictions, info: StoreInfo) -> dict[str, npt.NDArray[Any]]:
    """Return what stands in the table of these nuclei, by the path of the array."""
    values: dict[str, npt.NDArray[Any]] = {
        "table/X": labels.probabilities,
        "table/obsm/spatial": nuclei.centroids,
        "table/obs/_index": nucleus_ids(nuclei, info.slide_name, info.size_l0),
        "table/obs/detection_p": nuclei.detection_p,
        "table/obs/area_um2": nuclei.area_um2,
    }
    for k, name in enumerate(MEASURES):
        values[f"table/obs/{name}"] = np.full(len(nuclei), np.nan) if nuclei.measures is None else nuclei.measures[:, k]
    if info.features and labels.features is not None:
        values["table/obsm/features"] = labels.features
    if info.has_ood_scores and labels.ood_scores is not None:
        values[f"table/obs/{OOD_SCORE}"] = labels.ood_scores
    if nuclei.types is not None and info.segmentor_types:
        values["table/obs/segmentor_type/codes"] = nuclei.types
    numbers = best_labels(labels.probabilities, info.outputs, info.rule)
    values |= {f"table/obs/{name}/codes": number for name, number in numbers.items()}
    for name, p in label_probabilities(labels.probabilities, info.outputs, numbers).items():
        values[f"table/obs/{name}_p"] = p
    return values


def _add_var(table: zarr.Group, outputs: LabelSpace) -> None:
    var = add_dataframe(table, "var", ["library", "label", "short", "trained"])
    add_strings(var, "_index", [f"{library}:{label}" for library, label in outputs.columns])
    add_strings(var, "library", [library for library, _ in outputs.columns])
    add_strings(var, "label", [label for _, label in outputs.columns])
    add_strings(var, "short", [short_form(lib.name, k) for lib in outputs.libraries for k in range(len(lib.labels))])
    add_values(var, "trained", np.array(outputs.trained, bool))


def _add_uns(table: zarr.Group, info: StoreInfo) -> None:
    uns = add_group(table, "uns", "dict")
    slide = add_group(uns, "slide", "dict")
    add_scalar(slide, "name", info.slide_name)
    add_values(slide, "size_l0", np.array(info.size_l0, np.int64))
    add_scalar(slide, "mpp", info.mpp)
    add_values(slide, "origin_l0", np.array(info.origin_l0, np.int64))
    # As JSON text: AnnData cannot hold every JSON value, and each value of a nested dict would be a file of its own.
    add_scalar(uns, "models", json.dumps(info.models))
    add_scalar(uns, "settings", json.dumps(info.settings))
    add_scalar(uns, "nucpipe_version", info.nucpipe_version)
    add_scalar(uns, "schema_version", SCHEMA_VERSION)
    for library in info.outputs.libraries:  # the name by which scanpy and squidpy find a column's colours
        colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in library.colours]
        add_strings(uns, f"{library.name}_colors", colours)
