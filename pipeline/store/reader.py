"""The store of one slide's nuclei, ``nuclei.zarr``, as every export, the report and the viewer read it."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nucpipe.errors import OutputError, UsageError
from pipeline.regions.regions_of_interest import RegionsOfInterest, read_regions
from pipeline.store.anndata_encoding import EVERY_CHUNK
from pipeline.store.ordering import BLOCK_L0
from pipeline.store.schema import ADAPTED, ADAPTED_X, NOT_A_NUCLEUS, OOD_SCORE, SCHEMA_VERSION, StoreInfo, blocks_across
from segmentation.nuclei import NucleusFilter

if TYPE_CHECKING:
    import zarr
    from anndata import AnnData

UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)
"""What zarr raises of an array that is not there, or is cut off; RuntimeError is its decompressor's."""
GAP_ROWS = 8192  # rows closer than that are read in one go: a chunk that is opened anyway costs no more


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

    def mark(self) -> str:
        """Return what changes when another store comes in the place of this one; "" where it is gone."""
        try:
            found = (self.path / "zarr.json").stat()
        except OSError:
            return ""
        return f"{found.st_size} {found.st_mtime_ns}"

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
        if len(self) and not len(store):
            logging.getLogger(__name__).warning("%s: no nucleus of %d has %s.", self.info.slide_name, len(self), kept)
        return replace(store, info=replace(self.info, settings={**self.info.settings, **kept.to_dict()}))

    def with_regions(self, path: Path) -> Store:
        """Return these nuclei with the regions of interest of a GeoJSON, see
        :func:`pipeline.regions.regions_of_interest.read_regions`.

        Raises:
            UsageError: no such file.
            SlideError: the file cannot be read, holds no region, or none that meets the slide.
        """
        if not path.exists():
            raise UsageError(f"--regions {path}: no such file; expected a GeoJSON with regions drawn in QuPath.")
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

        try:
            array = zarr.open_array(self.path / name, mode="r")
            values = np.asarray(array[start:stop])
            self._check_chunks(name, array, start, stop)
            return values
        except UNREADABLE as error:
            why = getattr(error, "strerror", None) or error
            raise OutputError(
                f"{self.path}: its {name} cannot be read ({why}): it is damaged, was not copied whole, or was taken "
                "away; copy it anew, or run the slide again."
            ) from error

    def _check_chunks(self, name: str, array: zarr.Array[Any], start: int, stop: int) -> None:
        """Raise FileNotFoundError where a chunk of these rows is missing."""
        if array.attrs.get(EVERY_CHUNK):
            rows, columns = array.chunks[0], (0,) * (array.ndim - 1)
            for number in range(start // rows, -(-stop // rows)):
                chunk = array.metadata.encode_chunk_key((number, *columns))
                if not (self.path / name / chunk).is_file():
                    raise FileNotFoundError(errno.ENOENT, f"{chunk} is missing")


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
