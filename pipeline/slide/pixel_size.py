"""The size of a pixel: what the user gave, else what the file states where that can be true; never a guess."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nucpipe.errors import SlideError
from nucpipe.pixel_size import MAX_MPP, MIN_MPP, is_plausible_mpp
from pipeline.slide.causes import cause
from pipeline.slide.identity import printable

SQUARE_TOLERANCE = 0.02
SAME_TOLERANCE = 0.02
"""Pixel sizes that differ by less are one: scanners round theirs, people say 0.25 of 0.2485."""

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
        given: ``--mpp``; wins, for a file may be wrong, and a warning says so where the file states another one.
        stated: asks the file; None where it says nothing.

    Raises:
        SlideError: no pixel size, one that cannot be true, or pixels that are not square.
    """
    if given is not None:
        if not is_plausible_mpp(given):
            raise SlideError(f"{path.name}: --mpp {given:g} is outside {MIN_MPP} to {MAX_MPP} um; {GIVE_ONE}.")
        with suppress(Exception):  # what a file with broken metadata states does not matter here
            _warn_of_another(path, given, stated())
        return given
    try:
        mpp = stated()
    # Metadata that anybody wrote: anything may be missing or of another type.
    except Exception as error:
        raise SlideError(f"{path.name}: its pixel size cannot be read ({cause(error)}); {GIVE_ONE}.") from error
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


def _warn_of_another(path: Path, given: float, stated: Mpp | None) -> None:
    """Warn where a file states a size that can be true, and is clearly another one than that given."""
    if stated is None or not all(map(is_plausible_mpp, stated)):
        return
    if any(abs(size - given) > SAME_TOLERANCE * min(size, given) for size in stated):
        x, y = (f"{size:.4g}" for size in stated)
        logging.getLogger(__name__).warning(
            "%s states a pixel size of %s um, but %g um is taken, as --mpp says; "
            "if the file is right, run it without --mpp.",
            printable(path.name),
            x if x == y else f"{x} x {y}",
            given,
        )


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
