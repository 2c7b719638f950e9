"""Nuclei as AnnData: a copy of the store's table, or of some of its rows, element by element."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import zarr

from classifier.decision_rule import decide
from nucpipe.files import written_whole
from pipeline.export.select import columns_of, is_multilabel
from pipeline.store.anndata_encoding import VERSIONS, add_array, add_string_array
from pipeline.store.reader import Store
from pipeline.store.schema import ADAPTED, CHUNK_ROWS_X

if TYPE_CHECKING:
    from typing_extensions import Buffer

BY_ROW = ("X", "obs", "obsm", "layers")
"""The elements of a table that have a row for each nucleus."""


class Target(Protocol):
    """Group of HDF5 or zarr; both hold AnnData in the same hierarchy."""

    def group(self, path: str, attributes: dict[str, Any]) -> None:
        """Add a group; the path ``""`` is the table itself."""

    def array(self, path: str, shape: tuple[int, ...], dtype: Any, attributes: dict[str, Any]) -> Any:
        """Add an array to be filled by slices; ``dtype`` str is for Python strings."""


def write_h5ad(store: Store, path: Path) -> None:
    """Write an ``.h5ad`` that ``anndata.read_h5ad`` and scanpy open; memory does not grow with the number of nuclei.

    It holds what the store's table holds. Where the rule gives several labels of a library, the layer ``given`` tells
    (0 or 1) which labels each nucleus has, and ``obs`` the best of them.

    Args:
        store: the nuclei.
        path: of the file.

    Raises:
        OutputError: the file cannot be written.
    """
    import h5py

    with written_whole(path) as partial, _Disk(partial, "wb+") as disk:
        try:
            with h5py.File(disk, "w") as file:
                copy_table(store, _HDF5(file))
        except (OSError, RuntimeError):  # HDF5 misses what was not written
            if disk.error is None:
                raise
        if disk.error is not None:
            raise disk.error


class _Disk(io.FileIO):
    """A file that keeps the error of a full disk for later: HDF5, told while it closes a file, crashes the process."""

    error: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Write all of it, or nothing more once an error came."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while self.error is None and len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """As :meth:`write`."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = error
            return size or 0


def copy_table(store: Store, target: Target) -> None:
    """Write the table of these nuclei, with labels by the store's rule."""
    store = store.base()  # the table has both sets of labels
    source = zarr.open_group(store.path / "table", mode="r")
    by_row: dict[str, Any] = {}
    target.group("", dict(source.attrs))
    for path, node in _walk(source):
        attributes = dict(node.attrs)
        if isinstance(node, zarr.Group):
            target.group(path, attributes)
            continue
        text = attributes["encoding-type"] in ("string", "string-array")
        by_rows = path.split("/")[0] in BY_ROW and not path.endswith("/categories")
        shape = (len(store), *node.shape[1:]) if by_rows else node.shape
        array = target.array(path, shape, str if text else node.dtype, attributes)
        if by_rows:
            by_row[path] = array
        else:
            array[...] = json.dumps(store.info.settings) if path == "uns/settings" else np.asarray(node[...])
    if is_multilabel(store):
        shape = (len(store), len(store.info.outputs))
        encoding = {"encoding-type": "array", "encoding-version": VERSIONS["array"]}
        if "layers" not in source:
            target.group("layers", {"encoding-type": "dict", "encoding-version": VERSIONS["dict"]})
        by_row["layers/given"] = target.array("layers/given", shape, np.dtype(np.int8), encoding)
    _fill(store, by_row)


def _walk(group: zarr.Group, above: str = "") -> Iterator[tuple[str, zarr.Group | zarr.Array[Any]]]:
    """Yield everything in a group, each group before what is in it."""
    for name, node in sorted(group.members()):
        yield above + name, node
        if isinstance(node, zarr.Group):
            yield from _walk(node, f"{above}{name}/")


def _fill(store: Store, arrays: dict[str, Any]) -> None:
    start = 0
    for part in store.batches(CHUNK_ROWS_X):
        stop = start + len(part)
        values = _decided(part)
        for path, array in arrays.items():
            array[start:stop] = values[path] if path in values else part.column(path)
        start = stop


def _decided(part: Store) -> dict[str, npt.NDArray[Any]]:
    """Return what depends on the rule, by path."""
    columns = columns_of(part)
    values: dict[str, npt.NDArray[Any]] = {}
    for library in part.info.outputs.libraries:
        values[f"obs/{library.name}/codes"] = np.asarray(columns[library.name].codes, np.int8)  # type: ignore[union-attr]
        values[f"obs/{library.name}_p"] = np.asarray(columns[f"{library.name}_p"])
    if adapted := part.adapted_libraries:
        columns = columns_of(part.with_labels(adapted=True))
        for name in adapted:
            values[f"obs/{name}{ADAPTED}/codes"] = np.asarray(columns[name].codes, np.int8)  # type: ignore[union-attr]
            values[f"obs/{name}{ADAPTED}_p"] = np.asarray(columns[f"{name}_p"])
    if is_multilabel(part):
        given = decide(part.probabilities, part.info.outputs, part.info.rule)
        values["layers/given"] = given.astype(np.int8)
    return values


class _HDF5:
    """A table in an HDF5 file."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def group(self, path: str, attributes: dict[str, Any]) -> None:
        group = self.file.require_group(path) if path else self.file
        group.attrs.update(_hdf5_attributes(attributes))

    def array(self, path: str, shape: tuple[int, ...], dtype: Any, attributes: dict[str, Any]) -> Any:
        import h5py

        many = bool(shape) and shape[0] > 0
        array = self.file.create_dataset(
            path,
            shape,
            h5py.string_dtype() if dtype is str else dtype,
            chunks=(min(shape[0], CHUNK_ROWS_X), *shape[1:]) if many else None,
            compression="gzip" if many else None,
            compression_opts=1 if many else None,
            shuffle=True if many and dtype is not str else None,
        )
        array.attrs.update(_hdf5_attributes(attributes))
        return array


def _hdf5_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Turn lists of names into arrays of strings, which h5py does not make of an empty list by itself."""
    import h5py

    return {k: np.array(v, h5py.string_dtype()) if isinstance(v, list) else v for k, v in attributes.items()}


class ZarrTable:
    """A table in a zarr group, which is made at the path given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def group(self, path: str, attributes: dict[str, Any]) -> None:  # noqa: D102
        zarr.open_group(self.folder / path, mode="a", zarr_format=3, attributes=attributes)

    def array(self, path: str, shape: tuple[int, ...], dtype: Any, attributes: dict[str, Any]) -> Any:  # noqa: D102
        above, _, name = path.rpartition("/")
        parent = zarr.open_group(self.folder / above, mode="a")
        if not shape:
            return parent.create_array(name, shape=(), dtype=dtype, attributes=attributes)
        if dtype is str:
            array = add_string_array(parent, name, shape[0], CHUNK_ROWS_X)
        else:
            array = add_array(parent, name, shape, dtype, CHUNK_ROWS_X)
        array.attrs.update(attributes)
        return array
