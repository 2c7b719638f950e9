"""Selection of the nuclei of an export, and of their labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from classifier.decision_rule import DecisionRule, best_labels, decide, label_probabilities
from classifier.labels.libraries import Library
from nucpipe.errors import DataError, UsageError
from pipeline.store.reader import Store
from pipeline.store.schema import OOD_SCORE
from segmentation.nuclei import MEASURES

Column: TypeAlias = "npt.NDArray[Any] | pd.Categorical[Any]"


def select_nuclei(
    store: Store,
    bbox_l0: tuple[float, float, float, float] | None = None,
    library: str = "",
    labels: Sequence[str] = (),
    rule: DecisionRule | None = None,
    regions: Sequence[str] = (),
) -> Store:
    """Return the nuclei that were asked for; only their numbers are held in memory, and no numbers for a whole store.

    Args:
        store: of a run.
        bbox_l0: x0, y0, x1, y1; the nuclei whose centroid is in it.
        library: whose ``labels`` are meant.
        labels: nuclei that have one of them, in any spelling that the library knows; all nuclei if none is given.
        rule: how labels are decided on, from the stored probabilities; None: as in the run.
        regions: nuclei that lie in one of these of ``store.regions``; all nuclei if none is given.

    Returns:
        A store whose ``info.rule`` is the rule.

    Raises:
        UsageError: no such library, label or region; a bounding box without area.
    """
    if rule is not None:
        store = replace(store, info=replace(store.info, settings={**store.info.settings, "decide": rule.to_dict()}))
    if bbox_l0 is not None:
        x0, y0, x1, y1 = bbox_l0
        if not (x0 < x1 and y0 < y1):
            raise UsageError(f"--bbox {x0:g} {y0:g} {x1:g} {y1:g}: expected X0 Y0 X1 Y1 with X0 < X1 and Y0 < Y1.")
        inside = store.in_bbox(*bbox_l0)
        if len(store) and not len(inside):
            logging.getLogger(__name__).warning(
                "--bbox %g %g %g %g: no nucleus of %s (%d x %d pixels) lies in it.",
                *bbox_l0,
                store.info.slide_name,
                *store.info.size_l0,
            )
        store = inside
    if regions:
        store = _in_regions(store, regions)
    if not labels:
        return store
    known = store.info.outputs.library(library)
    columns = store.info.outputs.slices[known.name].start + np.array(sorted(_numbers(known, labels)))

    def is_chosen(part: Store) -> npt.NDArray[np.bool_]:
        given = decide(part.probabilities, part.info.outputs, part.info.rule)[:, columns]
        return np.asarray(given.any(1))

    return store.where(is_chosen)


def _in_regions(store: Store, names: Sequence[str]) -> Store:
    if store.regions is None:
        raise UsageError(f"--region {names[0]}: expected --regions FILE.geojson with it.")
    drawn = store.regions
    chosen = [drawn.number_of(name) for name in names]

    def inside(part: Store) -> npt.NDArray[np.bool_]:
        points = part.centroids_l0
        return np.asarray(np.any([drawn.contain(number, points) for number in chosen], axis=0))

    return store.where(inside)


def _numbers(library: Library, labels: Sequence[str]) -> set[int]:
    """Return the numbers of labels; a group's name stands for its labels."""
    try:
        return {number for label in labels for number in library.resolve(label)}
    except DataError as error:
        raise UsageError(str(error)) from error


def is_multilabel(store: Store) -> bool:
    """Tell whether a nucleus can have several labels of one library."""
    return store.info.rule.kind == "threshold"


def columns_of(part: Store) -> dict[str, Column]:
    """Return the columns of each nucleus by name: position, size, and its label in each library with its
    probability.

    The columns: ``id`` (UUID), ``x_l0`` and ``y_l0`` (centroid, level-0 pixels), ``area_um2``, ``detection_p``, the
    measures (``segmentation.nuclei.MEASURES``), ``ood_score`` (of classifiers that tell it, see
    ``classifier.out_of_distribution``), ``segmentor_type`` (of detectors that give one), and for each library
    ``<library>`` (the best label that the rule gives, categorical) and ``<library>_p``; where the rule gives several
    labels also ``<library>_labels``, all of them; with regions of interest also ``region``, the smallest that it is in.
    """
    outputs, rule = part.info.outputs, part.info.rule
    probabilities = part.probabilities
    x, y = part.centroids_l0.T
    columns: dict[str, Column] = {
        "id": part.ids,
        "x_l0": x,
        "y_l0": y,
        "area_um2": part.area_um2,
        "detection_p": part.detection_p,
        **{name: part.measure(name) for name in MEASURES},
    }
    if (scores := part.ood_scores) is not None:
        columns[OOD_SCORE] = scores
    if part.info.segmentor_types:
        columns["segmentor_type"] = pd.Categorical.from_codes(part.type_numbers, pd.Index(part.info.segmentor_types))
    numbers = best_labels(probabilities, outputs, rule)
    p = label_probabilities(probabilities, outputs, numbers)
    for library in outputs.libraries:
        columns[library.name] = pd.Categorical.from_codes(numbers[library.name], pd.Index(library.labels))
        columns[f"{library.name}_p"] = p[library.name]
    if is_multilabel(part):
        for name, texts in all_labels(part, decide(probabilities, outputs, rule)).items():
            columns[f"{name}_labels"] = texts
    if part.regions is not None:
        columns["region"] = pd.Categorical.from_codes(
            part.regions.smallest(part.centroids_l0), pd.Index(part.regions.names)
        )
    return columns


def all_labels(part: Store, given: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.object_]]:
    """Return by library (N,) the labels that each nucleus was given, as one text such as ``"tumor; lymphocyte"``.

    Args:
        part: the nuclei.
        given: (N, columns), see :func:`classifier.decision_rule.decide`.
    """
    texts = {}
    for library in part.info.outputs.libraries:
        rows, which = np.unique(given[:, part.info.outputs.slices[library.name]], axis=0, return_inverse=True)
        sets = ["; ".join(label for label, yes in zip(library.labels, row, strict=True) if yes) for row in rows]
        texts[library.name] = np.array(sets, object)[which.reshape(-1)]
    return texts
