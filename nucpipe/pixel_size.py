"""The range of pixel sizes at which a microscope shows nuclei."""

MIN_MPP, MAX_MPP = 0.05, 1.2
"""Micrometres per pixel: about 200x and 8x."""


def is_plausible_mpp(mpp: float) -> bool:
    """Tell whether a slide of nuclei can have pixels of this size, micrometres."""
    return MIN_MPP <= mpp <= MAX_MPP
