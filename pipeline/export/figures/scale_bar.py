"""The scale bar that every picture has: its length and its text."""

from __future__ import annotations

LENGTHS_UM = tuple(step * 10.0**ten for ten in range(-2, 7) for step in (1, 2, 5))
"""The lengths that a scale bar may have, ascending."""


def scale_bar(width_um: float, most: float = 0.25) -> tuple[float, str]:
    """Return the longest round scale bar for a picture.

    Args:
        width_um: width of the picture, micrometres.
        most: share of the width that the bar may take.

    Returns:
        Its length in micrometres, and its text such as ``200 µm``.
    """
    length_um = max((length for length in LENGTHS_UM if length <= width_um * most), default=LENGTHS_UM[0])
    return length_um, length_text(length_um)


def length_text(length_um: float) -> str:
    """Return a length as people write it: ``200 µm``, ``5 mm``."""
    return f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
