"""Metrics against cases worked out by hand."""

import numpy as np
import pytest

from segmentation.metrics import dice, f1_score, match_by_distance, panoptic_quality


def test_panoptic_quality_by_hand() -> None:
    true, found = np.zeros((2, 10, 20), np.int32)
    true[0:4, 0:5] = 1  # 20 pixels
    found[0:4, 1:5] = 7  # 16 of them: IoU 0.8
    true[6:10, 0:4] = 2  # missed
    found[6:8, 12:16] = 3  # invented
    dq, sq, pq = panoptic_quality(true, found)
    assert dq == pytest.approx(1 / 2)
    assert sq == pytest.approx(0.8)
    assert pq == pytest.approx(0.4)
    assert dice(true, found) == pytest.approx(2 * 16 / (36 + 24))


def test_half_overlap_is_no_match_and_empty_is_perfect() -> None:
    true, found = np.zeros((2, 4, 8), np.int32)
    true[0, 0:3] = 1
    found[0, 1:4] = 1  # IoU 2/4
    assert panoptic_quality(true, found)[2] == 0
    empty = np.zeros((4, 4), np.int32)
    assert panoptic_quality(empty, empty) == (1, 1, 1)
    assert dice(empty, empty) == 1


def test_points_are_matched_one_to_one_within_the_radius() -> None:
    true = np.array([[0.0, 0.0], [10.0, 0.0], [50.0, 50.0]])
    found = np.array([[1.0, 0.0], [6.0, 0.0], [50.0, 63.0]])
    pairs = match_by_distance(true, found, 12)
    assert sorted(zip(*(p.tolist() for p in pairs), strict=True)) == [(0, 0), (1, 1)]
    assert f1_score(2, 3, 3) == pytest.approx(2 / 3)
    assert f1_score(0, 0, 0) == 1
    assert len(match_by_distance(true, np.zeros((0, 2)), 12)[0]) == 0
