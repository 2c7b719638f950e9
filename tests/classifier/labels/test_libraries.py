"""The libraries' colours: told apart by everybody, on tissue, and stated in one place."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from skimage.color import rgb2lab

from classifier.labels.libraries import Colour, LabelSpace, Library, no_label_colour, published_libraries

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [(0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)]
    ),
    "deuteranopia": np.array(
        [(0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)]
    ),
}
WHITE, PINK = (255, 255, 255), (235, 190, 215)
MIN_DISTANCE = 20.0  # 2 is just seen with the colours side by side


def cielab(colours: list[Colour], vision: str) -> npt.NDArray[np.float64]:
    """(N, 3), as people with that vision see them."""
    srgb = np.array(colours) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISIONS[vision].T, 0, 1)
    return np.asarray(rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("library", published_libraries(), ids=lambda library: library.name)
def test_labels_of_a_library_are_told_apart(library: Library, vision: str) -> None:
    names, colours = [*library.labels, "no label"], [*library.colours, no_label_colour()]
    for (a, lab_a), (b, lab_b) in itertools.combinations(zip(names, cielab(colours, vision), strict=True), 2):
        assert np.linalg.norm(lab_a - lab_b) > MIN_DISTANCE, (a, b)
    for ground in cielab([WHITE, PINK], vision):
        for name, lab in zip(names, cielab(colours, vision), strict=True):
            assert np.linalg.norm(lab - ground) > MIN_DISTANCE, name


def test_what_is_alike_has_one_colour_and_qupaths_customs_hold() -> None:
    colours = {
        f"{library.name} {label}": colour
        for library in published_libraries()
        for label, colour in zip(library.labels, library.colours, strict=True)
    }
    for alike, colour in (
        (("NuCLS tumor", "BreCaHAD tumor", "CoNSeP malignant_epithelial", "PanNuke neoplastic"), (200, 0, 0)),
        (("NuCLS fibroblast", "CoNSeP fibroblast", "PanNuke connective"), (150, 200, 150)),
        (("NuCLS apoptotic_body", "BreCaHAD apoptosis", "PanNuke dead"), (50, 50, 50)),
        (("CoNSeP other",), (255, 200, 0)),
    ):
        assert {colours[label] for label in alike} == {colour}
    assert colours["NuCLS lymphocyte"] == colours["MoNuSAC lymphocyte"] == colours["PanNuke inflammatory"]


def test_a_models_own_copy_of_the_colours_is_not_used() -> None:
    published = published_libraries()
    old = [replace(library, colours=((1, 2, 3),) * len(library.labels)) for library in published]
    own = Library("Own", ("a", "b"), ((9, 8, 7), (6, 5, 4)), 0.25, "", "")
    space = LabelSpace((*old, own), (True,) * 37)
    assert LabelSpace.from_dict(space.to_dict()).libraries == (*published, own)
