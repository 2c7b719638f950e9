"""Nuclei as tiatoolbox's AnnotationStore, one SQLite file that its viewer and its queries take.

Written here and not with ``tiatoolbox.annotation.SQLiteStore``, which handles one annotation at a time and does not
open at all where Python's sqlite3 was built without loadable extensions (macOS, pyenv); reading is tiatoolbox's own.
"""

from __future__ import annotations

import json
import math
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from classifier.labels.libraries import Library
from nucpipe.files import cannot_write, written_whole
from pipeline.export.polygons import geometries_of
from pipeline.export.select import columns_of
from pipeline.store.reader import Store

# The schema of tiatoolbox's SQLiteStore 1.0.1, its names and its order of columns.
SCHEMA = """
CREATE TABLE metadata (key TEXT UNIQUE, value TEXT);
INSERT INTO metadata VALUES ('version', '"1.0.1"'), ('compression', '"zlib"'), ('compression_level', '1');
CREATE VIRTUAL TABLE rtree USING rtree(id, min_x, max_x, min_y, max_y);
CREATE TABLE annotations(
    id INTEGER PRIMARY KEY, key TEXT UNIQUE, objtype TEXT, cx FLOAT NOT NULL, cy FLOAT NOT NULL,
    geometry BLOB, properties TEXT, area FLOAT NOT NULL
);
"""


def write_annotation_store(
    store: Store, path: Path, primary: str, centroids: bool = False, exact_outlines: bool = False
) -> None:
    """Write an SQLiteStore: outlines at level 0, keys that are the nuclei's UUIDs, and their labels as properties.

    ``type`` is the label in the primary library, for that is the property by which the viewer colours. Memory does not
    grow with the number of nuclei.

    Args:
        store: the nuclei.
        path: of the file, ``.db``.
        primary: name of a library, in any case of letters.
        centroids: points instead of outlines.
        exact_outlines: outlines along the edges of pixels, as they are stored.

    Raises:
        UsageError: the store has no library ``primary``.
        OutputError: the file cannot be written.
    """
    library = store.info.outputs.library(primary)
    with written_whole(path) as partial:
        partial.unlink(missing_ok=True)  # SQLite would add to what a killed export left
        try:
            _write(store, partial, library, centroids, exact_outlines)
        except sqlite3.Error as error:
            raise cannot_write(path, error) from error


def _write(store: Store, path: Path, library: Library, centroids: bool, exact_outlines: bool) -> None:
    import shapely

    connection = sqlite3.connect(path, isolation_level=None)
    try:
        # No journal: a file that was not finished is thrown away.
        connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + SCHEMA)
        first = 1
        for part in store.batches():
            shapes = geometries_of(part, centroids, exact_outlines)
            numbers = range(first, first + len(part))
            first += len(part)
            centres = shapely.get_coordinates(shapely.centroid(shapes)).tolist()
            # Points are stored by their centre alone.
            packed = [None if centroids else zlib.compress(wkb, 1) for wkb in shapely.to_wkb(shapes)]
            kind, areas = "Point" if centroids else "Polygon", shapely.area(shapes).tolist()
            rows = zip(numbers, part.ids, centres, packed, _properties(part, library), areas, strict=True)
            connection.execute("BEGIN")
            connection.executemany(
                "INSERT INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                ((i, key, kind, x, y, wkb, text, area) for i, key, (x, y), wkb, text, area in rows),
            )
            boxes = zip(numbers, shapely.bounds(shapes)[:, [0, 2, 1, 3]].tolist(), strict=True)
            connection.executemany("INSERT INTO rtree VALUES (?, ?, ?, ?, ?)", ((i, *box) for i, box in boxes))
            connection.execute("COMMIT")
    finally:
        connection.close()


def _properties(part: Store, primary: Library) -> Iterator[str]:
    """Yield what stands with each annotation, as JSON; what a nucleus has not is left out, for JSON has no NaN."""
    columns = columns_of(part)
    for name in ("id", "x_l0", "y_l0"):
        del columns[name]
    values = {"type": columns[primary.name], **columns}
    lists = [_plain(column) for column in values.values()]
    for row in zip(*lists, strict=True):
        members = {key: value for key, value in zip(values, row, strict=True) if value is not None}
        yield json.dumps(members, separators=(",", ":"))


def _plain(column: Any) -> list[Any]:
    """As JSON's values, numbers to six decimals; None for what is missing."""
    if column.dtype.kind == "f":
        return [round(v, 6) if math.isfinite(v) else None for v in column.tolist()]
    return [v if isinstance(v, str) and v else None for v in column.tolist()]
