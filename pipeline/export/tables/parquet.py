"""Nuclei as GeoParquet, for geopandas, DuckDB, QGIS and R."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pandas as pd

from nucpipe.errors import UsageError
from nucpipe.files import written_whole
from nucpipe.optional.extras import install_command
from pipeline.export.polygons import geometries_of
from pipeline.export.select import Column, columns_of
from pipeline.store.reader import Store

if TYPE_CHECKING:
    import pyarrow as pa


def write_parquet(store: Store, path: Path, centroids: bool = False, exact_outlines: bool = False) -> None:
    """Write GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/): a row a nucleus, its outline in ``geometry``.

    The other columns are those of :func:`pipeline.export.select.columns_of`. Coordinates are level-0 pixels, y down,
    without a coordinate reference system. Memory does not grow with the number of nuclei.

    Args:
        store: the nuclei.
        path: of the file.
        centroids: points instead of outlines.
        exact_outlines: outlines along the edges of pixels, as they are stored.

    Raises:
        UsageError: pyarrow is not installed.
        OutputError: the file cannot be written.
    """
    with written_whole(path) as partial:
        write_table(store, partial, "Point" if centroids else "Polygon", exact_outlines=exact_outlines)


def write_table(store: Store, path: Path, kind: str, index: str | None = None, exact_outlines: bool = False) -> None:
    """As :func:`write_parquet`, without the care for what stands at ``path``.

    Args:
        store: the nuclei.
        path: of the file.
        kind: of the geometries, ``Polygon`` or ``Point``.
        index: the column that pandas shall take for the index; with it, there is no other column but the geometry.
        exact_outlines: outlines along the edges of pixels, as they are stored.
    """
    pq = _pyarrow_parquet()
    schema = None
    for part in store.batches(at_least_one=True):
        columns = columns_of(part)
        if index is not None:
            columns = {index: columns[index]}
        table = _table(columns, geometries_of(part, kind == "Point", exact_outlines), kind, index)
        if schema is None:
            schema = table.schema
            writer = pq.ParquetWriter(path, schema, compression="zstd")
        writer.write_table(table)
    writer.close()


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(f"this export needs pyarrow: {install_command('parquet')}") from error
    return pq


def _table(
    columns: dict[str, Column],
    geometries: npt.NDArray[Any],
    kind: str,
    index: str | None,
) -> pa.Table:
    import pyarrow as pa
    import shapely

    frame = pd.DataFrame(columns)
    if index is not None:
        frame = frame.set_index(index)
    table = pa.Table.from_pandas(frame.assign(geometry=shapely.to_wkb(geometries)))
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": [kind], "crs": None}},
    }
    return table.replace_schema_metadata({**table.schema.metadata, "geo": json.dumps(geo)})
