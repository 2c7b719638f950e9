"""Choosing a filter: PQ from the table is that of the maps, images' edges do not count, and the choice is the best."""

import numpy as np
import pytest

from segmentation.contours import trace_instances
from segmentation.evaluation.metrics import panoptic_quality
from segmentation.evaluation.scores import draw_instances
from segmentation.evaluation.specks import JudgedImage, choose_filter, mean_quality
from segmentation.hovernet.postprocess import outline_instances
from segmentation.nuclei import KEEP_ALL, Nuclei, NucleusFilter


def squares(*boxes: tuple[int, int, int]) -> np.ndarray:
    """An instance map (60, 60) of squares: x, y, side."""
    instances = np.zeros((60, 60), np.int32)
    for number, (x, y, side) in enumerate(boxes, 1):
        instances[y : y + side, x : x + side] = number
    return instances


def outlined(instances: np.ndarray, p: list[float]) -> Nuclei:
    """Nuclei of a map; number k has the detection probability ``p[k - 1]``."""
    assert len(trace_instances(instances, np.ones(instances.shape, np.float32)).ids) == len(p)
    return outline_instances(instances, np.float32([0, *p])[instances], 0.5, 0)


def test_quality_of_what_is_kept_is_that_of_the_maps() -> None:
    true = squares((5, 5, 10), (30, 5, 8), (5, 30, 6))
    found = outlined(squares((5, 5, 9), (30, 5, 8), (40, 40, 4), (50, 30, 9)), [0.9, 0.8, 0.95, 0.6])
    judged = JudgedImage.of(true, found)
    assert judged.annotated == 3
    np.testing.assert_allclose(judged.iou, [0.81, 1, 0, 0])
    for kept in (KEEP_ALL, NucleusFilter(5), NucleusFilter(0, 0.7), NucleusFilter(5, 0.85), NucleusFilter(100, 1)):
        of_maps = panoptic_quality(true, draw_instances(kept.apply(found), true.shape))[2]
        assert judged.panoptic_quality(kept) == pytest.approx(of_maps)
    assert judged.panoptic_quality(NucleusFilter(5, 0.7)) == pytest.approx(1.81 / 2.5)


def test_what_an_edge_cuts_does_not_count() -> None:
    true = squares((0, 5, 4), (20, 20, 10), (50, 50, 9))
    # A match of a cut nucleus; one of a whole nucleus; one at the edge for nothing; one at the edge of a whole nucleus.
    found = outlined(squares((0, 5, 4), (20, 20, 10), (30, 0, 3), (50, 50, 10)), [0.9, 0.9, 0.9, 0.9])
    judged = JudgedImage.of(true, found)
    assert judged.annotated == 2
    np.testing.assert_allclose(judged.iou, [1, 0.81])
    empty = JudgedImage.of(squares(), Nuclei.empty())
    assert empty.panoptic_quality(KEEP_ALL) == 1


def judged(*rows: tuple[float, float, float], annotated: int) -> JudgedImage:
    area, p, iou = np.array(rows).T
    return JudgedImage(annotated, area.astype(np.float32), p.astype(np.float32), iou)


def test_the_unsure_go_for_the_best_quality_and_the_small_where_no_set_loses() -> None:
    sure = [(30.0, 0.92, 0.8)] * 10
    blur = [(20.0, 0.62, 0.0)] * 6
    first = judged(*sure, *blur, (3.0, 0.9, 0.0), (9.0, 0.9, 0.0), annotated=10)
    # Small nuclei of 7 µm² are true in the second set: the first one's speck of 9 µm² has to stay.
    second = judged(*sure, *blur, *[(7.0, 0.9, 0.9)] * 10, annotated=20)
    chosen = choose_filter({"first": [first], "second": [second]})
    assert chosen == NucleusFilter(7, 0.65)  # of equals the lowest probability
    assert choose_filter({"first": [first]}).min_area_um2 == 20  # all that it has above that is true
    for images in ([first], [second]):
        assert mean_quality(images, chosen) > mean_quality(images, KEEP_ALL)


def test_nothing_is_filtered_where_all_is_true() -> None:
    image = judged((0.5, 0.51, 0.9), (30.0, 0.9, 0.9), annotated=2)
    assert choose_filter({"one": [image]}) == KEEP_ALL
