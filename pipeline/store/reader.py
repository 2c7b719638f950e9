"""The store of one slide's nuclei, ``nuclei.zarr``: written once from the journal, then read by every export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from classifier.decision_rule import DecisionRule, best_labels, label_probabilities, short_form
from classifier.labels.libraries import LabelSpace
from classifier.predictions import Predictions
from nucpipe.errors import OutputError, UsageError
from nucpipe.files import cannot_write
from pipeline.regions.regions_of_interest import RegionsOfInterest, read_regions
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
from pipeline.store.ordering import BLOCK_L0, RegionIndex, blocks_of, index_regions, iterate_ordered, nucleus_ids
from segmentation.nuclei import MEASURES, Nuclei, NucleusFilter

if TYPE_CHECKING:
    import zarr
    from anndata import AnnData

SCHEMA_VERSION = 1
CHUNK_ROWS = 65536  # of a column
CHUNK_ROWS_X = 16384  # of the probabilities
CHUNK_POINTS = 262144  # of the outlines
ADAPTED = "_adapted"
"""Ends the name of a column of adapted labels, see ``pipeline.store.adapted``."""
ADAPTED_X = "layers/adapted"
NOT_A_NUCLEUS = "not_a_nucleus"
"""A column beside adapted labels, and what a correction without a library says: found, but no nucleus."""
OOD_SCORE = "ood_score"
"""A column of how unlike the training data a nucleus is, see ``classifier.out_of_distribution``."""
GAP_ROWS = 8192  # rows closer than that are read in one go: a chunk that is opened anyway costs no more


@dataclass(frozen=True)
class StoreInfo:
    """Metadata of a store.

    Attributes:
        slide_name: name of the slide.
        size_l0: (width, height), level-0 pixels.
        mpp: micrometres per level-0 pixel.
        origin_l0: (x, y) that QuPath subtracts from level-0 coordinates.
        outputs: the libraries and the labels of the classifier.
        models: the models' names, fingerprints and what else tells them apart, as JSON can hold it.
        settings: of the run, as JSON can hold it.
        nucpipe_version: that wrote the store.
        slide_fingerprint: of the slide's content, see :func:`pipeline.slide.identity.slide_fingerprint`.
    """

    slide_name: str
    size_l0: tuple[int, int]
    mpp: float
    origin_l0: tuple[int, int]
    outputs: LabelSpace
    models: dict[str, Any]
    settings: dict[str, Any]
    nucpipe_version: str
    slide_fingerprint: str = ""

    @property
    def segmentor_types(self) -> tuple[str, ...]:
        """The detector's own names of the types that it gives to nuclei; empty where it gives none."""
        return tuple(self.models.get("segmentor", {}).get("types", ()))

    @property
    def rule(self) -> DecisionRule:
        """Decision rule of the run."""
        return DecisionRule.from_dict(self.settings.get("decide", {}))

    def with_segmentor_types(self, types: tuple[str, ...]) -> StoreInfo:
        """Return the same with the detector's own names of the types that it gives to nuclei."""
        segmentor = {**self.models["segmentor"], "types": list(types)}
        return replace(self, models={**self.models, "segmentor": segmentor})

    def fingerprint(self) -> dict[str, Any]:
        """Return all that the nuclei and labels depend on, as JSON gives it back: slide, models and settings.

        nucpipe's version is not part of it, nor are the segmentor's types, which follow from its file.
        """
        fields: dict[str, Any] = json.loads(json.dumps(self.to_dict()))
        del fields["nucpipe_version"]
        fields["models"].get("segmentor", {}).pop("types", None)
        return fields

    @property
    def nucleus_filter(self) -> NucleusFilter:
        """The least area and detection probability of the nuclei that were kept."""
        return NucleusFilter.from_dict(self.settings)

    @property
    def features(self) -> int:
        """How many features of the classifier are stored of each nucleus; 0 for none."""
        return int(self.settings.get("features", 0))

    @property
    def has_ood_scores(self) -> bool:
        """Whether each nucleus has a score of how unlike the training data it is."""
        return bool(self.settings.get("ood_score", False))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> StoreInfo:
        """Make it of the form that :meth:`to_dict` gives."""
        width, height = fields["size_l0"]
        x, y = fields["origin_l0"]
        # Thousands of results have one classifier: they share what is made of its labels.
        outputs = _label_space(json.dumps(fields["outputs"]))
        return cls(**{**fields, "size_l0": (width, height), "origin_l0": (x, y), "outputs": outputs})

    def to_dict(self) -> dict[str, Any]:
        """Return the form that the store's metadata hold."""
        return {**vars(self), "outputs": self.outputs.to_dict()}


@lru_cache(maxsize=16)
def _label_space(text: str) -> LabelSpace:
    return LabelSpace.from_dict(json.loads(text))


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
    partial = path.with_name(path.name + ".partial")
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


def blocks_across(size_l0: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of blocks that cover the slide, and the rim by which the working grid may reach beyond
    it.
    """
    width, height = size_l0
    return height // BLOCK_L0 + 2, width // BLOCK_L0 + 2


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


def read_obs_columns(path: Path) -> list[str]:
    """Return the names of the columns of the table of the store at ``path``.

    Raises:
        OSError, ValueError, KeyError, TypeError: there is no such table.
    """
    attributes = json.loads((path / "table/obs/zarr.json").read_text("utf-8"))["attributes"]
    return list(map(str, attributes["column-order"]))


@dataclass(frozen=True)
class Store:
    """A finished store, or some nuclei of it; every array is read from the disk when asked for.

    Nuclei are numbered from 0 in the store's order. N below is the number of nuclei, ``len(store)``.

    Attributes:
        path: of ``nuclei.zarr``.
        info: what the store says of itself.
        rows: the nuclei of the whole store that these are, by number, ascending.
        regions: of interest, which the user drew; None where no file of them was given. They are not in the store.
    """

    path: Path
    info: StoreInfo
    rows: range | npt.NDArray[np.int64]
    regions: RegionsOfInterest | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int = 16384, *, at_least_one: bool = False) -> Iterator[Store]:
        """Yield these nuclei in parts of ``size``, in order.

        Args:
            size: nuclei in a part.
            at_least_one: without nuclei yield one empty part, of which a table takes its columns; else none.
        """
        for start in range(0, max(len(self), at_least_one), size):
            yield replace(self, rows=self.rows[start : start + size])

    def where(self, test: Callable[[Store], npt.NDArray[np.bool_]]) -> Store:
        """Return those of these nuclei that pass a test.

        Args:
            test: from n nuclei to (n,) bool; called with parts, so that memory does not grow with the number of nuclei.
        """
        passed = np.concatenate([np.zeros(0, bool), *map(test, self.batches())])
        return replace(self, rows=np.asarray(self.rows)[np.flatnonzero(passed)])

    def in_bbox(self, x0: float, y0: float, x1: float, y1: float) -> Store:
        """Return those of these nuclei whose centroid lies in a box of level-0 pixels, ``x0 <= x < x1`` and ``y0 <= y <
        y1``.

        Only the blocks that the box touches are read, so it takes as long on a large slide as on a small one.

        Raises:
            OutputError: the store was written before stores had the index that this needs.
        """
        rows = self._rows_of_blocks(x0, y0, x1, y1)
        if isinstance(self.rows, range):
            rows = rows[(rows >= self.rows.start) & (rows < self.rows.stop)]
        else:
            rows = np.intersect1d(rows, self.rows, assume_unique=True)
        near = replace(self, rows=rows)
        x, y = near.centroids_l0.T
        return replace(self, rows=rows[(x >= x0) & (x < x1) & (y >= y0) & (y < y1)])

    @property
    def adapted_libraries(self) -> tuple[str, ...]:
        """The libraries of which the store holds adapted labels, too; empty where ``nucpipe adapt`` wrote none."""
        columns = self._obs_columns()
        return tuple(lib.name for lib in self.info.outputs.libraries if lib.name + ADAPTED in columns)

    def _obs_columns(self) -> list[str]:
        try:
            return read_obs_columns(self.path)
        except OSError:  # a store in memory
            return []

    def adapted(self) -> Store:
        """Return these nuclei with their adapted labels and probabilities, without what is said to be no nucleus.

        Libraries that were not adapted have their base labels.

        Raises:
            UsageError: the store has no adapted labels.
        """
        if NOT_A_NUCLEUS not in self._obs_columns():
            raise UsageError(
                f"{self.path.parent}: has no adapted labels; correct some nuclei and run nucpipe adapt first."
            )
        rows = np.asarray(self.rows)[~self._read(f"table/obs/{NOT_A_NUCLEUS}")]
        return replace(self, rows=self.rows if len(rows) == len(self.rows) else rows).with_labels(adapted=True)

    def base(self) -> Store:
        """Return these nuclei with the labels and probabilities of the run."""
        return self.with_labels(adapted=False)

    def with_labels(self, adapted: bool) -> Store:
        """Return the same nuclei with the adapted labels, which the store must have, or with those of the run."""
        settings = {key: value for key, value in self.info.settings.items() if key != "labels"}
        settings |= {"labels": "adapted"} if adapted else {}
        return replace(self, info=replace(self.info, settings=settings))

    @property
    def shows_adapted(self) -> bool:
        """Whether labels and probabilities are the adapted ones, see :meth:`adapted`."""
        return self.info.settings.get("labels") == "adapted"

    def filtered(self, min_area: float | None = None, min_detection: float | None = None) -> Store:
        """Return those of these nuclei that have at least that area and detection probability.

        Args:
            min_area: square micrometres; None: as in the run.
            min_detection: 0-1; None: as in the run.

        Returns:
            A store whose ``info.nucleus_filter`` says what was kept.

        Raises:
            UsageError: a number cannot be, or the run left out nuclei that are asked for.
        """
        kept = self.stricter_filter(min_area, min_detection)
        if kept == self.info.nucleus_filter:
            return self
        store = self.where(lambda part: kept.keeps(part.area_um2, part.detection_p))
        return replace(store, info=replace(self.info, settings={**self.info.settings, **kept.to_dict()}))

    def with_regions(self, path: Path) -> Store:
        """Return these nuclei with the regions of interest of a GeoJSON, see
        :func:`pipeline.regions.regions_of_interest.read_regions`.

        Raises:
            SlideError: the file cannot be read, holds no region, or none that meets the slide.
        """
        info = self.info
        return replace(self, regions=read_regions(path, info.slide_name, info.size_l0, info.origin_l0, info.mpp))

    def stricter_filter(self, min_area: float | None = None, min_detection: float | None = None) -> NucleusFilter:
        """Return the filter that :meth:`filtered` applies, see there."""
        before = self.info.nucleus_filter
        kept = NucleusFilter(
            before.min_area_um2 if min_area is None else min_area,
            before.min_detection_p if min_detection is None else min_detection,
        )
        for option, wanted, least in (
            ("--min-area", kept.min_area_um2, before.min_area_um2),
            ("--min-detection", kept.min_detection_p, before.min_detection_p),
        ):
            if wanted < least:
                raise UsageError(
                    f"{option} {wanted:g}: the run on {self.info.slide_name} left out nuclei below {least:g}, so its "
                    f"result has none; expected {least:g} or more, or run the slide again with {option} {wanted:g}."
                )
        return kept

    def _rows_of_blocks(self, x0: float, y0: float, x1: float, y1: float) -> npt.NDArray[np.int64]:
        """Return the nuclei of the blocks that a box touches, by number."""
        if not (self.path / "index/blocks").is_dir():
            raise OutputError(f"{self.path}: written by an earlier nucpipe, without an index; run the slide again.")
        down, across = blocks_across(self.info.size_l0)
        # A centroid just below a block's edge counts as in the next one, by less than a hundredth of a pixel.
        left, top = (max(0, int(edge // BLOCK_L0)) for edge in (x0, y0))
        right, bottom = min(across, int((x1 + 0.01) // BLOCK_L0) + 1), min(down, int((y1 + 0.01) // BLOCK_L0) + 1)
        if left >= right or top >= bottom:
            return np.zeros(0, np.int64)
        first = self._read_rows("index/blocks", top * across, (bottom - 1) * across + right + 1)
        runs = [(first[row * across + left], first[row * across + right]) for row in range(bottom - top)]
        return np.concatenate([np.arange(start, stop) for start, stop in runs])

    @property
    def table(self) -> AnnData:
        """The table: probabilities, labels and centroids (see the design of the store)."""
        import anndata

        table = anndata.read_zarr(self.path / "table")
        return table if len(table) == len(self) else table[np.asarray(self.rows)].copy()

    @property
    def centroids_l0(self) -> npt.NDArray[np.float64]:
        """(N, 2) float64, x and y in level-0 pixels."""
        return self._read("table/obsm/spatial")

    @property
    def ids(self) -> npt.NDArray[np.object_]:
        """(N,) UUIDs as strings, unique in the store and the same in every run on this slide."""
        return self._read("table/obs/_index").astype(object)

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(N, columns) float32, of every label of every library."""
        return self._read(f"table/{ADAPTED_X}" if self.shows_adapted else "table/X")

    @property
    def features(self) -> npt.NDArray[np.float16] | None:
        """(N, F) float16, a projection of what the classifier's last layer saw; None where the run stored none."""
        return self._read("table/obsm/features") if self.info.features else None

    @property
    def ood_scores(self) -> npt.NDArray[np.float32] | None:
        """(N,) float32, 0-1: the share of nuclei of images held out of the classifier's training that are less unlike
        what taught it; None where the classifier could not tell.
        """
        return self._read(f"table/obs/{OOD_SCORE}") if self.info.has_ood_scores else None

    @property
    def detection_p(self) -> npt.NDArray[np.float32]:
        """(N,) float32, 0-1."""
        return self._read("table/obs/detection_p")

    @property
    def area_um2(self) -> npt.NDArray[np.float32]:
        """(N,) float32, square micrometres."""
        return self._read("table/obs/area_um2")

    def measure(self, name: str) -> npt.NDArray[np.float32]:
        """Return (N,) float32, one of ``segmentation.nuclei.MEASURES``; NaN where it was not measured."""
        if not (self.path / "table" / "obs" / name).is_dir():  # a store from before there were measures
            return np.full(len(self), np.nan, np.float32)
        return self._read(f"table/obs/{name}")

    @property
    def type_numbers(self) -> npt.NDArray[np.int8]:
        """(N,) int8, number of each nucleus's type in ``info.segmentor_types``; -1 where the detector gave none."""
        if not self.info.segmentor_types:
            return np.full(len(self), -1, np.int8)
        return self._read("table/obs/segmentor_type/codes")

    def label_numbers(self, library: str) -> npt.NDArray[np.int8]:
        """Return (N,) int8, the number of each nucleus's label in that library; -1 where it has none.

        Raises:
            UsageError: the store has no such library.
        """
        return self._read(f"table/obs/{self._label_column(library)}/codes")

    def label_probabilities(self, library: str) -> npt.NDArray[np.float32]:
        """Return (N,) float32, the probability of each nucleus's label in that library; NaN where it has none.

        Raises:
            UsageError: the store has no such library.
        """
        return self._read(f"table/obs/{self._label_column(library)}_p")

    def _label_column(self, library: str) -> str:
        name = self.info.outputs.library(library).name
        return name + ADAPTED if self.shows_adapted and name in self.adapted_libraries else name

    def contours(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the outlines: offsets (N+1,) int64 from 0, and points (M, 2) float32, x and y in level-0 pixels.

        Nucleus i is the ring ``points[offsets[i]:offsets[i + 1]]``, as in :class:`segmentation.nuclei.Nuclei`.
        """
        lengths, parts = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.float32)]
        for start, stop, which in self._spans():
            offsets = self._read_rows("contours/offsets", start, stop + 1)
            points = self._read_rows("contours/points", int(offsets[0]), int(offsets[-1]))
            chosen = np.zeros(stop - start, bool)
            chosen[which] = True
            lengths.append(np.diff(offsets)[which])
            parts.append(points if chosen.all() else points[np.repeat(chosen, np.diff(offsets))])
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))]), np.concatenate(parts)

    def column(self, path: str) -> npt.NDArray[Any]:
        """Return (N, ...) of any array of the table that has a row for each nucleus, by its path such as
        ``obs/area_um2``.
        """
        values = self._read(f"table/{path}")
        return values.astype(object) if values.dtype.kind == "T" else values

    def _read(self, name: str) -> npt.NDArray[Any]:
        spans = self._spans() or [(0, 0, slice(0))]
        return np.concatenate([self._read_rows(name, start, stop)[which] for start, stop, which in spans])

    def _spans(self) -> list[tuple[int, int, slice | npt.NDArray[np.int64]]]:
        """Return start and stop of rows that are read together for these nuclei, and which of those they are."""
        rows = self.rows
        if isinstance(rows, range):
            return [(rows.start, rows.stop, slice(None))] if rows else []
        parts = np.split(rows, np.flatnonzero(np.diff(rows) > GAP_ROWS) + 1)
        return [(int(part[0]), int(part[-1]) + 1, part - part[0]) for part in parts if len(part)]

    def _read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        import zarr

        return np.asarray(zarr.open_array(self.path / name, mode="r")[start:stop])


def open_store(path: Path) -> Store:
    """Open a finished store.

    Args:
        path: of ``nuclei.zarr``.

    Raises:
        OutputError: there is none, or it is of a later version of nucpipe.
    """
    if not path.is_dir():
        raise OutputError(f"{path}: no such folder; expected the nuclei.zarr of a finished run.")
    try:
        fields = json.loads((path / "zarr.json").read_text("utf-8"))["attributes"]["nucpipe"]
        version, count = int(fields.pop("schema_version")), int(fields.pop("nuclei"))
        info = StoreInfo.from_dict(fields) if version == SCHEMA_VERSION else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path}: expected a store that nucpipe wrote (nuclei.zarr); this is something else."
        ) from error
    if info is None:
        raise OutputError(
            f"{path}: written by another nucpipe (store version {version}, this one reads {SCHEMA_VERSION}); "
            "update nucpipe or run the slide again."
        )
    return Store(path, info, range(count))
