"""Result and nuclei as JSON for the viewer's page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from classifier.decision_rule import decide
from classifier.labels.libraries import no_label_colour
from pipeline.export.figures.scale_bar import LENGTHS_UM, length_text
from pipeline.result import Result
from pipeline.store.reader import Store
from pipeline.web.viewer.nuclei import Adapted, Choice, NucleiMap
from pipeline.web.viewer.tiles import ENLARGED_LEVELS, OVERLAP_PX, TILE_PX, Pyramid
from segmentation.nuclei import NucleusFilter

OUTLINE_TOLERANCE_L0 = 2.0
"""By so many pixels a region's outline may be drawn beside its place; its nuclei are those of the exact one."""


def describe_result(result: Result, nuclei: NucleiMap, primary: str, note: str, kept: NucleusFilter) -> dict[str, Any]:
    """Return the slide, its libraries with their labels' colours and counts, and how tiles are asked for.

    Args:
        result: the result.
        nuclei: its nuclei.
        primary: name of the library that is shown first.
        note: why the slide itself cannot be shown; "" where it can.
        kept: the nuclei that are shown at first; no less than the run kept.
    """
    info = result.store.info
    return {
        "name": info.slide_name,
        "size": info.size_l0,
        "mpp": info.mpp,
        "nuclei": len(nuclei),
        "primary": primary,
        "note": note,
        "area": kept.min_area_um2,
        "detection": kept.min_detection_p,
        "tile": TILE_PX,
        "overlap": OVERLAP_PX,
        "fullLevel": Pyramid(info.size_l0).full_level,
        "enlargedLevels": ENLARGED_LEVELS,
        "scaleBars": [(length_um, length_text(length_um)) for length_um in LENGTHS_UM],
        "regions": nuclei.store.regions is not None,
        "libraries": [_describe_library(nuclei, library.name) for library in info.outputs.libraries],
    }


def _describe_library(nuclei: NucleiMap, name: str) -> dict[str, Any]:
    """Its labels, "no label" last; the place of a label in the list is its number."""
    outputs = nuclei.store.info.outputs
    library = outputs.library(name)
    counts = nuclei.counts(Choice(name))
    names, colours = [*library.labels, "no label"], [*library.colours, no_label_colour()]
    trained = [*outputs.trained_in(name), bool(counts[-1])]
    return {
        "name": name,
        "labels": [
            {"name": label, "colour": colour, "count": int(n), "given": known}
            for label, colour, n, known in zip(names, colours, counts, trained, strict=True)
        ],
    }


def describe_regions(nuclei: NucleiMap) -> list[dict[str, Any]]:
    """Return each region of interest: name, class, area, number of nuclei, box and rings of its outline at level 0."""
    if (regions := nuclei.store.regions) is None:
        return []
    return [
        {
            "name": name,
            "class": label,
            "mm2": mm2,
            "nuclei": int(np.count_nonzero(nuclei.in_region(name))),
            "box": shapely.bounds(shape).tolist(),
            "rings": [
                np.round(shapely.get_coordinates(ring), 1).tolist()
                for part in shapely.get_parts(shapely.simplify(shape, OUTLINE_TOLERANCE_L0))
                for ring in shapely.get_rings(part)
            ],
        }
        for name, label, mm2, shape in zip(
            regions.names, regions.labels, regions.areas_mm2.tolist(), regions.shapes, strict=True
        )
        if mm2
    ]


def describe_nucleus(store: Store, number: int, adapted: Adapted | None = None) -> dict[str, Any]:
    """Return one nucleus: its place, its outline, and the probability of every label, the likeliest first.

    Args:
        store: the whole store.
        number: of the nucleus.
        adapted: labels after corrections; they are told besides.
    """
    one = replace(store, rows=np.array([number]))
    probabilities = one.probabilities
    after = probabilities.copy()
    if adapted is not None:
        for name in adapted.libraries:
            after[0, store.info.outputs.slices[name]] = adapted.probabilities(name)[number]
    x, y = one.centroids_l0[0]
    return {
        "number": number,
        "id": str(one.ids[0]),
        "x": float(x),
        "y": float(y),
        "area_um2": float(one.area_um2[0]),
        "detection_p": float(one.detection_p[0]),
        "ood_score": None if one.ood_scores is None else float(one.ood_scores[0]),
        "outline": one.contours()[1].tolist(),
        "labels": _described_labels(store, probabilities),
        "adapted": None if adapted is None else _described_labels(store, after),
    }


def _described_labels(store: Store, probabilities: npt.NDArray[np.float32]) -> dict[str, list[dict[str, Any]]]:
    outputs = store.info.outputs
    chosen = decide(probabilities, outputs, store.info.rule)[0]
    return {
        library.name: sorted(
            (
                {"name": label, "colour": colour, "p": float(p), "chosen": bool(yes)}
                for label, colour, p, yes, known in zip(
                    library.labels,
                    library.colours,
                    probabilities[0, columns],
                    chosen[columns],
                    outputs.trained[columns],
                    strict=True,
                )
                if known
            ),
            key=lambda label: -label["p"],
        )
        for library, columns in zip(outputs.libraries, outputs.slices.values(), strict=True)
    }
