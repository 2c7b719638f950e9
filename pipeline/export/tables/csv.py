"""Nuclei as a CSV: a line a nucleus."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd

from nucpipe.files import written_whole
from pipeline.export.select import columns_of
from pipeline.store.reader import Store


def write_csv(store: Store, path: Path) -> int:
    """Write a CSV with the columns of :func:`pipeline.export.select.columns_of`; missing values are empty.

    Memory does not grow with the number of nuclei.

    Args:
        store: the nuclei.
        path: compressed where it ends in ``.gz``.

    Returns:
        The number of nuclei.

    Raises:
        OutputError: the file cannot be written.
    """
    with written_whole(path) as partial, partial.open("wb") as file:
        # No name and no time in its header: the same nuclei give the same bytes.
        packed = gzip.GzipFile("", "wb", 5, file, mtime=0) if path.suffix.lower() == ".gz" else file
        with packed:
            header = True
            for part in store.batches(at_least_one=True):
                frame = pd.DataFrame(columns_of(part))
                packed.write(frame.to_csv(index=False, header=header, float_format="%.6g").encode("utf-8"))
                header = False
    return len(store)
