"""The size of a pixel: what the user gave, else what the file states where that can be true; never a guess."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nucpipe.errors import SlideError
from nucpipe.pixel_size import MAX_MPP, MIN_MPP, is_plausible_mpp

SQUARE_TOLERANCE = 0.02

MICROMETRES_PER_UNIT = {
    "inch": 25400.0,  # TIFF's two, as OpenSlide and tifffile spell them
    "centimeter": 1e4,
    "mm": 1e3,  # OME-XML
    "\N{MICRO SIGN}m": 1.0,
    "nm": 1e-3,
    "millimeter": 1e3,  # NGFF
    "micrometer": 1.0,
    "nanometer": 1e-3,
}

GIVE_ONE = "give one with --mpp (micrometres per pixel, about 0.25 at 40x, 0.5 at 20x)"

Mpp = tuple[float, float]
"""Micrometres per pixel in x and in y."""


def pixel_size(path: Path, given: float | None, stated: Callable[[], Mpp | None]) -> float:
    """Return the pixel size to work with, micrometres.

    Args:
        path: names the slide in errors.
        given: ``--mpp``; wins.
        stated: asks the file; None where it says nothing.

    Raises:
        SlideError: no pixel size, one that cannot be true, or pixels that are not square.
    """
    if given is not None:
        if not is_plausible_mpp(given):
            raise SlideError(f"{path.name}: --mpp {given:g} is outside {MIN_MPP} to {MAX_MPP} um; {GIVE_ONE}.")
        return given
    mpp = stated()
    if mpp is None:
        raise SlideError(f"{path.name} states no pixel size; {GIVE_ONE}.")
    x, y = mpp
    if not (is_plausible_mpp(x) and is_plausible_mpp(y)):
        raise SlideError(
            f"{path.name} states a pixel size of {x:g} x {y:g} um, outside {MIN_MPP} to {MAX_MPP}; {GIVE_ONE}."
        )
    if abs(x - y) > SQUARE_TOLERANCE * min(x, y):
        raise SlideError(
            f"{path.name} states pixels that are not square ({x:g} x {y:g} um); "
            "if that is wrong, give the right size with --mpp (micrometres per pixel)."
        )
    return (x + y) / 2


def from_resolution(x: float, y: float, unit: str) -> Mpp | None:
    """Turn TIFF's resolution tags into a pixel size; None where they say no more than 72 dpi does.

    Args:
        x, y: pixels per unit.
        unit: ``inch`` or ``centimeter``; anything else has no length.
    """
    length = MICROMETRES_PER_UNIT.get(unit.lower())
    if length is None or not (x > 0 and y > 0):
        return None
    mpp = length / x, length / y
    return mpp if is_plausible_mpp(mpp[0]) and is_plausible_mpp(mpp[1]) else None


def in_micrometres(length: str | float | None, unit: str | None) -> float | None:
    """Return a length as OME-XML and NGFF state it; None where it is missing, no number, or its unit no length."""
    scale = MICROMETRES_PER_UNIT.get((unit or "").replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}"))
    try:
        return None if length is None or scale is None else float(length) * scale
    except ValueError:
        return None
