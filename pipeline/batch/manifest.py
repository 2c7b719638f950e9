"""Manifests: a table of slides with settings of their own."""

from __future__ import annotations

import csv
import difflib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from nucpipe.addresses import is_remote
from nucpipe.errors import UsageError
from pipeline.config import RunConfig
from pipeline.regions.tissue import check_tissue_option

MANIFESTS = {".csv": ",", ".tsv": "\t"}
"""Extensions of manifests, and what stands between their fields."""
SETTINGS: dict[str, Callable[[str], Any]] = {
    "mpp": float,
    "tissue": str,
    "primary": str,
    "decide": str,
    "threshold": float,
}
"""Settings that a slide may have of its own, each a column; an empty field leaves the command's."""


@dataclass(frozen=True)
class Row:
    """One slide of a manifest.

    Attributes:
        slide: path, relative to the manifest's folder, or an address.
        name: of the folder of its results; "" for the slide's own name.
        config: the command's settings with the slide's own.
    """

    slide: str
    name: str
    config: RunConfig


def read_manifest(path: Path, config: RunConfig) -> list[Row]:
    """Return the slides of a manifest: a CSV or TSV with a header line and at least the column ``slide``.

    Args:
        path: ``.csv`` or ``.tsv``, UTF-8. Columns: ``slide``; ``name``, the folder of the results; and ``SETTINGS``.
            Further columns are left alone, and named on the log.
        config: the command's settings.

    Raises:
        UsageError: it cannot be read, or says something that cannot be; the message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=MANIFESTS[path.suffix.lower()], strict=True)
            columns = list(reader.fieldnames or [])
            _check_columns(path, columns)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: expected a table in UTF-8; it cannot be read ({error}).") from error
    found: list[Row] = []
    lines: dict[tuple[str, str], int] = {}
    for number, row in rows:
        try:
            found.append(_row(path.parent, row, config))
            for key in (("slide", found[-1].slide), ("name", found[-1].name)):
                if key[1] and (before := lines.setdefault(key, number)) != number:
                    raise ValueError(f"{key[0]} '{key[1]}' stands in line {before} already; expected each once.")
        except (ValueError, UsageError) as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
    if not found:
        raise UsageError(f"{path}: expected a line for each slide below the header; the table is empty.")
    return found


def _check_columns(path: Path, columns: list[str]) -> None:
    known = ["slide", "name", *SETTINGS]
    if "slide" not in columns:
        raise UsageError(f"{path}: expected a column 'slide', found {', '.join(columns) or 'nothing'}.")
    if repeated := {name for name in columns if columns.count(name) > 1}:
        raise UsageError(f"{path}: column '{min(repeated)}' appears twice.")
    others = [name for name in columns if name not in known]
    absent = [name for name in known if name not in columns]
    for name in others:
        if near := difflib.get_close_matches(name.strip().lower(), absent, 1, 0.65):
            raise UsageError(f"{path}: column '{name}' is not known; is '{near[0]}' meant?")
    if others:
        logging.getLogger(__name__).warning("%s: columns that are not used: %s", path, ", ".join(others))


def _row(folder: Path, row: dict[str | Any, str | Any], config: RunConfig) -> Row:
    if None in row or None in row.values():
        raise ValueError("another number of fields than the header has.")
    slide, name = row["slide"].strip(), row.get("name", "").strip()
    if not slide or "\0" in slide:
        raise ValueError("the field 'slide' is empty or not a path.")
    _check_name(name)
    settings: dict[str, Any] = {}
    for key, convert in SETTINGS.items():
        text = row.get(key, "").strip()
        try:
            settings |= {key: convert(text)} if text else {}
        except ValueError as error:
            raise ValueError(f"{key} '{text}' is not a number.") from error
    tissue = settings.get("tissue", config.tissue)
    if "tissue" in settings and tissue not in ("auto", "none") and not is_remote(tissue):
        settings["tissue"] = str(folder / tissue)
        check_tissue_option(settings["tissue"])
    return Row(slide, name, replace(config, **settings))


def _check_name(name: str) -> None:
    """Refuse a folder that would lie outside ``--out``, on any system, or could be taken for another."""
    parts = name.replace("\\", "/").split("/") if name else []
    hidden = any(part.startswith(".") for part in parts)  # "." and ".." among them
    if "" in parts or hidden or PureWindowsPath(name).drive or not name.isprintable():
        raise ValueError(f"name {name!r}: expected a folder below --out, such as 'patient 7/slide 2'.")
