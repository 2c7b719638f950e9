"""What a model owes to the models that it was made from: their names, data and licences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nucpipe.backends.model_file import ModelHeader, read_header

KEPT = ("name", "images", "held_out", "licence", "citation")
"""What is told of a data set that taught an earlier model."""


def earlier_models(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return ``ModelHeader.made_from`` of a model that starts from some models, or is taught by them.

    Raises:
        ModelError: no such model.
    """
    models: list[dict[str, Any]] = []
    for path in dict.fromkeys(paths):
        header = read_header(path)
        data = [{key: one[key] for key in KEPT if key in one} for one in header.data if one.get("images")]
        itself = {"name": path.stem, "licence": header.licence, "data": data}
        models += [model for model in (itself, *header.made_from) if model not in models]
    return models


def all_licences(own: Iterable[str], models: Sequence[dict[str, Any]]) -> str:
    """Return the licences of a model's data and of the data of those that it was made from, each once.

    Args:
        own: of the data of its own training.
        models: see :func:`earlier_models`.
    """
    licences = {*own}
    for model in models:
        of_data = [one.get("licence") for one in model["data"]]
        licences |= {*of_data} if of_data and all(of_data) else {model["licence"]}
    return "; ".join(sorted(filter(None, licences)))


def lineage_lines(header: ModelHeader) -> list[str]:
    """Return, for a model card, a line for each model that a model was made from: what that one learnt from."""
    lines = []
    for model in header.made_from:
        sets = [
            f"{one['name']} ({one['images']} images{', ' + one['licence'] if one.get('licence') else ''})"
            for one in model["data"]
        ]
        known = f"learnt from {', '.join(sets)}" if sets else "its file does not say what it learnt from"
        lines.append(f"- Made from {model['name']}: {known}. Licence: {model['licence'] or 'none stated'}.")
    return lines
