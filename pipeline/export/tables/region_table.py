"""What lies in each region of interest: a table of counts, densities, shares and measurements by label."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.regions.quality import CAUSES, QualityMap
from pipeline.regions.regions_of_interest import RegionsOfInterest
from pipeline.store.reader import Store
from segmentation.nuclei import MEASURES

Floats = npt.NDArray[np.float64]
MEANS = ("probability", "detection_p", "area_um2", *MEASURES)
"""Of which the table gives means; ``probability`` is that of the label."""
CONFIDENCE_Z = 1.959964
"""95 % of a normal distribution lie within so many standard deviations."""


def wilson_interval(count: npt.ArrayLike, total: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return the 95 % confidence interval of a share by Wilson's score method (1927); 0 and 1 where ``total`` is 0.

    It takes nuclei for independent draws: neighbours are not, and of labels that a model gave it knows nothing of the
    model's errors. So it is the least that the share is uncertain by.
    """
    k, n = np.asarray(count, np.float64), np.asarray(total, np.float64)
    z2 = CONFIDENCE_Z**2
    # 0 of 0: the whole range, without a division by 0.
    middle = (k + z2 / 2) / (n + z2)
    half = CONFIDENCE_Z / (n + z2) * np.sqrt(k * (n - k) / np.maximum(n, 1) + z2 / 4)
    # Exactly 0 and 1 at the ends, where rounding would leave a little.
    low, high = np.where(k == 0, 0.0, middle - half), np.where(k == n, 1.0, middle + half)
    return low, high


def region_table(store: Store, regions: RegionsOfInterest, quality: QualityMap | None = None) -> pd.DataFrame:
    """Return a row for each region, library and label.

    A nucleus counts in every region that its centroid lies in. Memory does not grow with the number of nuclei.

    Args:
        store: the nuclei, with the labels that the run decided on.
        regions: of the same slide.
        quality: of the slide; None: nothing is said of it.

    Returns:
        Columns ``region``, ``class`` (of the region), ``area_mm2``, ``nuclei`` (all in the region), with
        ``quality`` also ``out_of_focus`` and ``pen_marked`` (the share of them that lie in such a place), ``library``,
        ``label``, ``count``, ``per_mm2`` (missing where the region has no area), ``share`` of the region's nuclei
        with the ends of its 95 % interval ``share_low`` and ``share_high`` (:func:`wilson_interval`), all five missing
        of a label that nothing taught the classifier, and means over
        the nuclei with the label, missing where there are none: ``mean_probability`` (of the label),
        ``mean_detection_p``, ``mean_area_um2`` and ``mean_<measure>`` of ``segmentation.nuclei.MEASURES``.
    """
    libraries = store.info.outputs.libraries
    nuclei = np.zeros(len(regions), np.int64)
    poor = {cause: np.zeros(len(regions), np.int64) for cause in (CAUSES if quality is not None else ())}
    counts = {lib.name: np.zeros((len(regions), len(lib.labels)), np.int64) for lib in libraries}
    sums = {lib.name: np.zeros((len(regions), len(lib.labels), len(MEANS))) for lib in libraries}
    known = {name: values.astype(np.int64) for name, values in sums.items()}
    for part in store.batches():
        points = part.centroids_l0
        causes = {} if quality is None else quality.causes_at(points)
        numbers = {lib.name: part.label_numbers(lib.name) for lib in libraries}
        of_nuclei = np.stack([part.detection_p, part.area_um2, *(part.measure(name) for name in MEASURES)], 1)
        values = {
            lib.name: np.column_stack([part.label_probabilities(lib.name), of_nuclei]).astype(np.float64)
            for lib in libraries
        }
        for region in range(len(regions)):
            inside = regions.contain(region, points)
            nuclei[region] += np.count_nonzero(inside)
            for cause, found in causes.items():
                poor[cause][region] += np.count_nonzero(inside & found)
            for name, number in numbers.items():
                which = np.flatnonzero(inside & (number >= 0))
                label = number[which].astype(np.int64)
                counts[name][region] += np.bincount(label, minlength=counts[name].shape[1])
                missing = np.isnan(values[name][which])
                np.add.at(sums[name][region], label, np.where(missing, 0, values[name][which]))
                np.add.at(known[name][region], label, ~missing)
    rows = [
        pd.DataFrame(
            {
                "region": regions.names[region],
                "class": regions.labels[region],
                "area_mm2": regions.areas_mm2[region],
                "nuclei": nuclei[region],
                **{cause: found[region] / max(1, nuclei[region]) for cause, found in poor.items()},
                "library": library.name,
                "label": list(library.labels),
                "count": counts[library.name][region],
            }
            | _means(sums[library.name][region], known[library.name][region])
        )
        for region in range(len(regions))
        for library in libraries
    ]
    table = pd.concat(rows, ignore_index=True)
    count, total, area = (table[name].to_numpy(np.float64) for name in ("count", "nuclei", "area_mm2"))
    # A label that is never given was not looked for: 0 would be an answer.
    trained = np.tile(np.array(store.info.outputs.trained, bool), len(regions))
    table["count"] = table["count"].astype("Int64").where(trained)
    count = np.where(trained, count, np.nan)
    low, high = wilson_interval(count, total)
    shown = {
        "per_mm2": _quotient(count, area),
        "share": _quotient(count, total),
        "share_low": low,
        "share_high": high,
    }
    for place, (name, column) in enumerate(shown.items(), start=list(table.columns).index("count") + 1):
        table.insert(place, name, column)
    return table


def _means(sums: Floats, known: npt.NDArray[np.int64]) -> dict[str, Floats]:
    return {f"mean_{name}": _quotient(sums[:, k], known[:, k].astype(np.float64)) for k, name in enumerate(MEANS)}


def _quotient(part: Floats, whole: Floats) -> Floats:
    quotient = np.full(len(part), np.nan)
    np.divide(part, whole, out=quotient, where=whole > 0)
    return quotient
