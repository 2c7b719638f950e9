"""A second set of labels in a finished store, beside the base labels and never in their place.

``table/layers/adapted`` holds the probabilities, ``table/obs/<library>_adapted`` and ``..._adapted_p`` the labels of
each library that was adapted, ``table/obs/not_a_nucleus`` what was found and is none, ``table/uns/adaptation`` what all
this was made from, as JSON. The arrays are written first; the set is there once the columns stand in the data frame's
list, which is one rename.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from classifier.decision_rule import best_labels, label_probabilities
from nucpipe.errors import OutputError
from nucpipe.files import cannot_write, written_whole
from pipeline.store.anndata_encoding import add_array, add_categorical, add_group, add_scalar
from pipeline.store.reader import Store, read_obs_columns
from pipeline.store.run_record import ADAPTED_REPORT, REPORT_MARK
from pipeline.store.schema import ADAPTED, ADAPTED_X, CHUNK_ROWS, CHUNK_ROWS_X, NOT_A_NUCLEUS

WRITTEN_IN = "adapted.partial"
MADE_FROM = "uns/adaptation"


def write_adapted(
    store: Store,
    libraries: Sequence[str],
    probabilities: Iterable[npt.NDArray[np.float32]],
    no_nuclei: npt.NDArray[np.int64],
    made_from: dict[str, Any],
) -> None:
    """Write adapted labels; those of before are replaced, and their report is removed.

    Args:
        store: the whole store.
        libraries: names of those that were adapted.
        probabilities: (n, columns) of its nuclei, in order and in parts of any size.
        no_nuclei: places of what is no nucleus.
        made_from: what is said of the set, as JSON can hold it.

    Raises:
        OutputError: it cannot be written. The base labels are as they were then, and so is the set of before unless
            the new one was ready.
    """
    import zarr

    count, info = len(store), store.info
    partial = store.path / WRITTEN_IN
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        new = zarr.open_group(partial, mode="w-", zarr_format=3)
        adapted = add_array(new, "X", (count, len(info.outputs)), np.float32, CHUNK_ROWS_X)
        known = [info.outputs.library(name) for name in libraries]
        columns: dict[str, tuple[Any, Any]] = {
            library.name: (
                add_categorical(new, library.name + ADAPTED, library.labels, count, CHUNK_ROWS),
                add_array(new, f"{library.name}{ADAPTED}_p", (count,), np.float32, CHUNK_ROWS),
            )
            for library in known
        }
        marked = np.zeros(count, bool)
        marked[no_nuclei] = True
        add_array(new, NOT_A_NUCLEUS, (count,), np.bool_, CHUNK_ROWS)[:] = marked
        start = 0
        for part in probabilities:
            stop = start + len(part)
            adapted[start:stop] = part
            numbers = best_labels(part, info.outputs, info.rule)
            p = label_probabilities(part, info.outputs, numbers)
            for name, (codes, of_label) in columns.items():
                codes[start:stop], of_label[start:stop] = numbers[name], p[name]
            start = stop
        add_scalar(new, "adaptation", json.dumps(made_from))
        table = store.path / "table"
        names = [name + ending for name in columns for ending in (ADAPTED, f"{ADAPTED}_p")] + [NOT_A_NUCLEUS]
        _remove(store.path)
        if not (table / "layers").exists():
            add_group(zarr.open_group(table, mode="a"), "layers", "dict")
        for name in names:
            (partial / name).rename(table / "obs" / name)
        (partial / "X").rename(table / ADAPTED_X)
        (partial / "adaptation").rename(table / MADE_FROM)
        _list_columns(store.path, [*_listed(store.path), *names])
        remove_adapted_report(store.path.parent)  # it was of other labels
    except OSError as error:
        raise cannot_write(store.path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_adapted(path: Path) -> bool:
    """Remove the adapted labels of the store at ``path``, and what a killed process left of some.

    Returns:
        Whether there were any.

    Raises:
        OutputError: they cannot be removed.
    """
    try:
        shutil.rmtree(path / WRITTEN_IN, ignore_errors=True)
        return _remove(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def remove_adapted_report(folder: Path) -> bool:
    """Remove the report of adapted labels that are gone, if nucpipe wrote the file of that name.

    Returns:
        Whether there was one.

    Raises:
        OutputError: it cannot be read or removed.
    """
    path = folder / ADAPTED_REPORT
    try:
        if not path.is_file() or REPORT_MARK not in path.read_text("utf-8", "replace"):
            return False
        path.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error
    return True


def _remove(path: Path) -> bool:
    table = path / "table"
    listed = _listed(path)
    kept = [name for name in listed if not _is_adapted(name)]
    if kept != listed:
        _list_columns(path, kept)
    for left in (
        *(p for p in (table / "obs").iterdir() if _is_adapted(p.name)),
        table / ADAPTED_X,
        table / MADE_FROM,
    ):
        if left.exists():
            shutil.rmtree(left)
    layers = table / "layers"
    if layers.exists() and [p.name for p in layers.iterdir()] == ["zarr.json"]:
        shutil.rmtree(layers)
    return kept != listed


def made_from(store: Store) -> dict[str, Any]:
    """Return what is said of a store's adapted labels; nothing where it has none."""
    import zarr

    if not store.adapted_libraries and not (store.path / "table" / MADE_FROM).exists():
        return {}
    text = zarr.open_array(store.path / "table" / MADE_FROM, mode="r")[()]
    facts: dict[str, Any] = json.loads(str(text))
    return facts


def _is_adapted(name: str) -> bool:
    return name == NOT_A_NUCLEUS or name.endswith((ADAPTED, f"{ADAPTED}_p"))


def _listed(path: Path) -> list[str]:
    try:
        return read_obs_columns(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: its table cannot be read ({error}); run the slide again.") from error


def _list_columns(path: Path, names: Sequence[str]) -> None:
    file = path / "table/obs/zarr.json"
    content = json.loads(file.read_text("utf-8"))
    content["attributes"]["column-order"] = list(names)
    with written_whole(file) as partial:
        partial.write_text(json.dumps(content, indent=2), "utf-8")
