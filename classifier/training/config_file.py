"""Read the settings of a training from a TOML file."""

from __future__ import annotations

import difflib
import json
import tomllib
import typing
from pathlib import Path
from typing import Any

from classifier.training.config import ClassifierTraining
from nucpipe.errors import UsageError

Fields = dict[str, Any]


def read_config(path: Path) -> Fields:
    """Return the fields of :class:`ClassifierTraining` that a TOML file sets.

    In the file ``[libraries]`` gives each library its folder, or a list of folders, and ``[library_weights]`` its
    factor. Relative paths start at the file's folder; ``start_from``, ``complete`` and ``distil`` take names of bundled
    models, too.

    Raises:
        UsageError: the file cannot be read, a field is unknown, or a value is of another type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path}: cannot be read ({error}).") from None
    fields = _checked(path, data)
    folder = path.parent
    libraries = [(name, at) for name, at in fields.pop("libraries", {}).items()]
    if libraries:
        fields["libraries"] = tuple((name, folder / p) for name, at in libraries for p in _several(at))
    if "library_weights" in fields:
        fields["library_weights"] = tuple(fields["library_weights"].items())
    for name in ("out", "match_table"):
        if fields.get(name) is not None:
            fields[name] = folder / fields[name]
    for name in ("start_from", "complete", "distil"):
        if fields.get(name) is not None:
            of = tuple(folder / model if model.suffix else model for model in _several(fields[name]))
            fields[name] = of[0] if name == "complete" else of
    return fields


def _checked(path: Path, data: Fields) -> Fields:
    """Return ``data`` with the types of the fields.

    Raises:
        UsageError: it does not fit them.
    """
    from pydantic import ConfigDict, ValidationError, create_model  # slow to import

    types = typing.get_type_hints(ClassifierTraining)
    types["libraries"] = dict[str, Path | tuple[Path, ...]]
    types["library_weights"] = dict[str, float]
    types |= dict.fromkeys(("start_from", "distil"), Path | tuple[Path, ...])
    if unknown := next((name for name in data if name not in types), None):
        near = difflib.get_close_matches(unknown, types, 1)
        raise UsageError(f"--config {path}: unknown field '{unknown}'{f', did you mean {near[0]}' if near else ''}.")
    fields: Fields = {name: (of, None) for name, of in types.items()}
    model = create_model("Config", __config__=ConfigDict(strict=True), **fields)
    try:
        # As JSON, where an array stands for a tuple and a text for a path, and nothing else is converted.
        return model.model_validate_json(json.dumps(data, default=str)).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        # Of what may be one of several types pydantic also names the type that it tried.
        place = ".".join(map(str, first["loc"][:2]))
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise UsageError(f"--config {path}: {place} = {first['input']!r}: {reason}.") from None


def _several(value: Path | tuple[Path, ...]) -> tuple[Path, ...]:
    return value if isinstance(value, tuple) else (value,)
