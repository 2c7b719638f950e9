"""AnnData's on-disk encoding in zarr format 3, element by element.

Written here and not with ``AnnData.write_zarr``, which wants the whole table in memory; reading is AnnData's own.
The encoding is specified at https://anndata.readthedocs.io/en/stable/fileformat-prose.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import zarr
    from zarr.core.array_spec import ArrayConfigParams

VERSIONS = {
    "anndata": "0.1.0",
    "dict": "0.1.0",
    "dataframe": "0.2.0",
    "categorical": "0.2.0",
    "array": "0.2.0",
    "string-array": "0.2.0",
    "string": "0.2.0",
    "numeric-scalar": "0.2.0",
}


EVERY_CHUNK = "every_chunk_is_written"
"""An attribute of arrays: a chunk that is not there is lost. Zarr else leaves out chunks of zeros, and reads a lost one
as zeros.
"""
WRITE_EVERY_CHUNK: ArrayConfigParams = {"write_empty_chunks": True}


def _attributes(encoding: str, **more: Any) -> dict[str, Any]:
    return {**more, "encoding-type": encoding, "encoding-version": VERSIONS[encoding]}


def add_group(parent: zarr.Group, name: str, encoding: str, **attributes: Any) -> zarr.Group:
    """Return a group of the encoding ``anndata`` or ``dict``."""
    return parent.create_group(name, attributes=_attributes(encoding, **attributes))


def add_dataframe(parent: zarr.Group, name: str, columns: Sequence[str]) -> zarr.Group:
    """Return a data frame; its columns and its index, ``_index``, are added to it by name."""
    return add_group(parent, name, "dataframe", **{"column-order": list(columns), "_index": "_index"})


def add_array(
    parent: zarr.Group, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, chunk_rows: int
) -> zarr.Array[Any]:
    """Return a numeric array to be filled, compressed in chunks of rows."""
    from zarr.codecs import BloscCodec

    return parent.create_array(
        name,
        shape=shape,
        dtype=np.dtype(dtype),
        chunks=(_chunk(shape[0], chunk_rows), *shape[1:]),
        # Bytes of equal rank side by side: what neighbouring floats share compresses away.
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
        attributes=_attributes("array", **{EVERY_CHUNK: True}),
        config=WRITE_EVERY_CHUNK,
    )


def add_string_array(parent: zarr.Group, name: str, length: int, chunk_rows: int) -> zarr.Array[Any]:
    """Return an array of strings to be filled with arrays of Python strings (dtype object)."""
    return parent.create_array(
        name,
        shape=(length,),
        dtype=str,  # zarr's variable-length UTF-8
        chunks=(_chunk(length, chunk_rows),),
        attributes=_attributes("string-array", **{EVERY_CHUNK: True}),
        config=WRITE_EVERY_CHUNK,
    )


def add_strings(parent: zarr.Group, name: str, values: Sequence[str]) -> None:
    """Add an array of these strings."""
    add_string_array(parent, name, len(values), len(values))[:] = np.array(values, object)


def add_values(parent: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    """Add a numeric array of these values."""
    add_array(parent, name, values.shape, values.dtype, len(values))[...] = values


def add_scalar(parent: zarr.Group, name: str, value: str | float) -> None:
    """Add one string or number."""
    text = isinstance(value, str)
    encoding = _attributes("string" if text else "numeric-scalar")
    dtype = str if text else np.asarray(value).dtype
    parent.create_array(name, shape=(), dtype=dtype, attributes=encoding)[...] = np.array(value)


def add_categorical(
    parent: zarr.Group, name: str, categories: Sequence[str], length: int, chunk_rows: int
) -> zarr.Array[Any]:
    """Return a categorical column; returns its int8 codes to be filled (-1 is missing)."""
    group = add_group(parent, name, "categorical", ordered=False)
    add_strings(group, "categories", categories)
    return add_array(group, "codes", (length,), np.int8, chunk_rows)


def _chunk(length: int, chunk_rows: int) -> int:
    return max(1, min(length, chunk_rows))
