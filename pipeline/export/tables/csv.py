"""Nuclei as a CSV: a line a nucleus."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from nucpipe.files import spreadsheet_text, written_whole
from pipeline.export.select import columns_of
from pipeline.store.reader import Store


def write_csv(store: Store, path: Path) -> None:
    """Write a CSV with the columns of :func:`pipeline.export.select.columns_of`; missing values are empty.

    Memory does not grow with the number of nuclei.

    Args:
        store: the nuclei.
        path: compressed where it ends in ``.gz``.

    Raises:
        OutputError: the file cannot be written.
    """
    write_frames((pd.DataFrame(columns_of(part)) for part in store.batches(at_least_one=True)), path)


def write_frames(frames: Iterable[pd.DataFrame], path: Path) -> None:
    """Write tables of the same columns one below the other as one CSV, compressed where ``path`` ends in ``.gz``.

    No name of a region is a formula in a spreadsheet; all else is nucpipe's own.

    Raises:
        OutputError: the file cannot be written.
    """
    with written_whole(path) as partial, partial.open("wb") as file:
        # No name and no time in its header: the same nuclei give the same bytes.
        packed = gzip.GzipFile("", "wb", 5, file, mtime=0) if path.suffix.lower() == ".gz" else file
        with packed:
            for k, frame in enumerate(frames):
                if "region" in frame:
                    frame = frame.assign(region=frame["region"].map(spreadsheet_text, na_action="ignore"))
                text = frame.to_csv(index=False, header=k == 0, float_format="%.6g", lineterminator="\n")
                packed.write(text.encode("utf-8"))
