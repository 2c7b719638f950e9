"""Differences between two runs, in the words of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

MAX_CHARACTERS = 60
"""Longest value that is shown; the rest is cut off."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name what differs between two fingerprints, such as ``--classifier was fast, is joint-context``.

    Args:
        old, new: what two results depend on, as JSON holds it.

    Returns:
        A phrase for each thing that differs; none for what follows from another slide (its size) or from another
        classifier (its labels).
    """
    before, now = _fields(old), _fields(new)
    phrases: dict[str, str] = {}
    for key in {**before, **now}:
        a, b = before.get(key), now.get(key)
        if a == b or (key == "outputs" and before.get("classifier") != now.get("classifier")):
            continue
        name, show = SHOWN.get(key, (key.replace("_", " "), _text))
        if name in PHRASES:
            phrases[name] = PHRASES[name]
        elif show(a) == show(b):
            phrases[name] = f"{name} {show(b)} is another file of that name"
        else:
            phrases[name] = f"{name} was {show(a)}, is {show(b)}"
    return list(phrases.values())


def _fields(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields by name, those of ``settings`` and ``models`` among them."""
    fields: dict[str, Any] = {}
    for key, value in fingerprint.items():
        fields |= value if key in ("settings", "models") and isinstance(value, dict) else {key: value}
    return fields


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."


def _file(value: Any) -> str:
    """Return a model, or an option that may name a file, without its fingerprint."""
    return _text(value.get("name") or value.get("file")) if isinstance(value, dict) else _text(value)


def _rule(value: Any) -> str:
    if not isinstance(value, dict):
        return _text(value)
    threshold = f" --threshold {value['threshold']}" if "threshold" in value else ""
    return _text(value.get("kind")) + threshold


def _mpp(value: Any) -> str:
    return f"{value:.4g} µm" if isinstance(value, int | float) else "the slide's own"


def _least(value: Any) -> str:
    return f"{value or 0:g}"  # what keeps all is not stored


def _switch(value: Any) -> str:
    return "on" if value else "off"


SHOWN: dict[str, tuple[str, Callable[[Any], str]]] = {
    "segmentor": ("--segmentor", _file),
    "classifier": ("--classifier", _file),
    "tissue": ("--tissue", _file),
    "nuclei": ("--nuclei", _text),
    "min_area_um2": ("--min-area", _least),
    "min_detection_p": ("--min-detection", _least),
    "decide": ("--decide", _rule),
    "precision": ("--precision", _text),
    "features": ("stored features (see --no-features)", _least),
    "ood_score": ("the out-of-distribution score", _switch),
    "primary": ("--primary", _text),
    "tta": ("--tta", _switch),
    "geojson": ("nuclei.geojson", _switch),
    "region_size": ("--region-size", _text),
    "mpp": ("the pixel size (--mpp)", _mpp),
    "nucpipe_version": ("nucpipe", _text),
} | dict.fromkeys(
    ("slide", "slide_name", "slide_fingerprint", "slide_version", "size_l0", "origin_l0"), ("slide", _text)
)
"""Name and format of each field; others keep their name."""

PHRASES = {
    "slide": "the slide's file was changed, or is another of the same name",
    "outputs": "the labels of the classifier differ",
}
"""Messages for values that mean nothing to a person."""
