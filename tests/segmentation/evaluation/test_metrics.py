"""Metrics against cases worked out by hand, and against tiatoolbox's where it has them."""

import numpy as np
import pytest

from nucpipe.datasets import Annotation
from nucpipe.optional.tiatoolbox import import_tiatoolbox
from segmentation.evaluation.metrics import (
    DetectionCounts,
    SegmentationCounts,
    TypePairs,
    dice,
    f1_score,
    match_by_distance,
    panoptic_quality,
)
from segmentation.evaluation.scores import ImageScore, figures_of, type_figures
from segmentation.nuclei import Nuclei


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


def test_aggregated_jaccard_by_hand() -> None:
    true, found = np.zeros((2, 10, 30), np.int32)
    true[0:4, 0:10] = 1  # 40 pixels
    true[0:4, 10:14] = 2  # 16 pixels, beside it
    true[8:10, 20:25] = 5  # 10 pixels, missed
    found[0:4, 0:14] = 3  # both in one: 56 pixels
    found[6:8, 0:3] = 9  # 6 pixels, invented
    counts = SegmentationCounts.of(true, found)
    # Kumar's: found nucleus 3 is the best of both annotated ones and counts twice.
    assert counts.aji == pytest.approx((40 + 16) / (56 + 56 + 10 + 6))
    # AJI+: it is paired with the one of the larger IoU only.
    assert counts.aji_plus == pytest.approx(40 / (56 + 16 + 10 + 6))
    assert (counts.dq, counts.sq) == (pytest.approx(2 * 1 / (3 + 2)), pytest.approx(40 / 56))


def test_pairing_for_aji_plus_is_the_best_overall() -> None:
    true, found = np.zeros((2, 1, 30), np.int32)
    true[0, 0:10], true[0, 10:16] = 1, 2
    found[0, 4:12], found[0, 12:20] = 1, 2
    # 1-1: 6 of 12; 2-1: 2 of 12; 2-2: 4 of 10. The best sum is 1-1 and 2-2.
    assert SegmentationCounts.of(true, found).aji_plus == pytest.approx((6 + 4) / (12 + 10))


def test_a_set_is_its_images_taken_as_one() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.integers(0, 4, (2, 12, 12)).astype(np.int32) for _ in range(3)]
    whole = np.concatenate([np.where(part > 0, part + 10 * k, 0) for k, part in enumerate(parts)], 2)
    total = SegmentationCounts.total(SegmentationCounts.of(*part) for part in parts)
    one = SegmentationCounts.of(*whole)
    for name in ("dice", "aji", "aji_plus", "dq", "sq", "pq"):
        assert getattr(total, name) == pytest.approx(getattr(one, name)), name


def test_precision_and_recall_of_nothing() -> None:
    assert (DetectionCounts(0, 0, 0).precision, DetectionCounts(0, 0, 0).recall, DetectionCounts().f1) == (1, 1, 1)
    assert (DetectionCounts(0, 3, 0).precision, DetectionCounts(0, 3, 0).recall) == (0, 0)
    assert (DetectionCounts(2, 4, 3).precision, DetectionCounts(2, 4, 3).recall) == (2 / 3, 1 / 2)


def test_types_by_hand() -> None:
    pairs = np.array([0, 1, 2, 3]), np.array([1, 0, 2, 4])
    types = TypePairs.of(list("aabbc"), list("aacba"), pairs)
    # Pairs: a-a, a-a, b-c, b-a; c is missed, b invented.
    assert types.accuracy == pytest.approx(2 / 4)
    assert types.f1("a") == pytest.approx(2 * 2 / (2 * 2 + 2 * 1))
    assert types.f1("b") == pytest.approx(0)
    assert types.f1("c") == pytest.approx(0)
    assert types.renamed({"c": "b"}).f1("b") == pytest.approx(2 * 1 / (2 * 1 + 2 * 1 + 1 + 1))


@pytest.mark.parametrize("seed", range(8))
def test_the_same_as_tiatoolbox(seed: int) -> None:
    metrics = import_tiatoolbox("utils.metrics")
    rng = np.random.default_rng(seed)
    true, found = (rng.random((n, 2)) * 60 for n in rng.integers(1, 60, 2))
    a, b = match_by_distance(true, found, 4)
    pairs, *_ = metrics.pair_coordinates(true, found, 4)
    assert sorted(map(tuple, pairs.tolist())) == sorted(zip(a.tolist(), b.tolist(), strict=True))
    assert DetectionCounts(len(a), len(true), len(found)).f1 == pytest.approx(metrics.f1_detection(true, found, 4))
    maps = rng.integers(0, 3, (2, 20, 20)).astype(np.int32)
    assert dice(*maps) == pytest.approx(metrics.dice(maps[0] > 0, maps[1] > 0))


def square(x: float, y: float) -> np.ndarray:
    return np.array([[x, y], [x + 6, y], [x + 6, y + 6], [x, y + 6]], float)


def test_figures_of_two_images() -> None:
    instances = np.zeros((40, 40), np.int32)
    instances[2:8, 2:8], instances[20:26, 20:26] = 1, 2
    truth = Annotation(np.array([[5.0, 5.0], [23.0, 23.0]]), ("fibroblast", "muscle"), instances)
    rings = [square(2, 2), square(30, 4), square(20, 20)]
    found = Nuclei(
        np.array([ring.mean(0) for ring in rings]),
        np.array([0, 4, 8, 12]),
        np.concatenate(rings),
        np.ones(3, np.float32),
        np.ones(3, np.float32),
    )
    whole = ImageScore.of("a", "liver", truth, found, 0.25, ["muscle", "fibroblast", "muscle"])
    empty = ImageScore.of("b", "lung", truth, Nuclei.empty(), 0.25, [])
    figures = figures_of([whole, empty])
    assert (figures["images"], figures["sq"], figures["dq"]) == (2, 0.5, pytest.approx((2 * 2 / 5) / 2, abs=1e-4))
    assert figures["set"]["dq"] == pytest.approx(2 * 2 / (4 + 3), abs=1e-4)
    assert figures["detection_precision"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["detection_recall"] == pytest.approx(2 / 4)
    # The right muscle has IoU 1, the fibroblast was found as muscle; of "b" nothing was found.
    assert figures["bpq"] == pytest.approx((2 * 2 / 5 + 0) / 2, abs=1e-4)
    assert figures["mpq"] == pytest.approx(((0 + 2 * 1 / 3) / 2 + 0) / 2, abs=1e-4)
    types = type_figures([whole, empty], ["fibroblast", "muscle", "other"])
    assert types == {"accuracy": 0.5, "f1": {"fibroblast": 0.0, "muscle": pytest.approx(2 / (2 + 2 + 1), abs=1e-4)}}
    merged = type_figures([whole, empty], ["spindle"], {"fibroblast": "spindle", "muscle": "spindle"})
    assert merged == {"accuracy": 1.0, "f1": {"spindle": pytest.approx(2 * 2 / (2 * 2 + 2 + 1), abs=1e-4)}}


def plain_pq(true: np.ndarray, found: np.ndarray) -> float:
    """PQ as Kirillov et al. 2019 write it, nucleus by nucleus."""
    sets = [{k: set(np.flatnonzero(one == k)) for k in np.unique(one[one > 0])} for one in (true, found)]
    iou = [len(a & b) / len(a | b) for a in sets[0].values() for b in sets[1].values()]
    pairs = [value for value in iou if value > 0.5]
    wrong = len(sets[0]) + len(sets[1]) - 2 * len(pairs)
    return sum(pairs) / (len(pairs) + wrong / 2)


def plain_aji(true: np.ndarray, found: np.ndarray) -> float:
    """AJI as Kumar et al. 2017 write it (algorithm 1)."""
    sets = [{k: set(np.flatnonzero(one == k)) for k in np.unique(one[one > 0])} for one in (true, found)]
    shared = union = 0
    used = set()
    for a in sets[0].values():
        best = max(sets[1], key=lambda k: len(a & sets[1][k]) / len(a | sets[1][k]), default=None)
        if best is None or not a & sets[1][best]:
            union += len(a)
            continue
        used.add(best)
        shared, union = shared + len(a & sets[1][best]), union + len(a | sets[1][best])
    return shared / (union + sum(len(b) for k, b in sets[1].items() if k not in used))


def drawn_squares(rng: np.random.Generator) -> tuple[Annotation, Nuclei, np.ndarray, list[str]]:
    """Nuclei of two types on 40x40 pixels, those found, their map, and the types of those."""
    places = [(x, y) for x in range(0, 40, 10) for y in range(0, 40, 10) if rng.random() < 0.6]
    true, found = np.zeros((2, 40, 40), np.int32)
    rings, types = [], []
    for k, (x, y) in enumerate(places, 1):
        true[y : y + 6, x : x + 6] = k
        if rng.random() < 0.8:
            left, top = x + rng.integers(0, 4), y + rng.integers(0, 3)
            rings.append(square(left, top))
            types.append(str(rng.choice(["a", "b"])))
            found[top : top + 6, left : left + 6] = len(rings)
    labels = tuple(rng.choice(["a", "b"], len(places)).tolist())
    annotation = Annotation(np.array(places, float).reshape(-1, 2) + 3, labels, true)
    centroids = np.array([ring.mean(0) for ring in rings]).reshape(-1, 2)
    n, points = len(rings), np.concatenate([np.zeros((0, 2)), *rings])
    one = np.ones(n, np.float32)
    return annotation, Nuclei(centroids, np.arange(n + 1) * 4, points, one, one), found, types


@pytest.mark.parametrize("seed", range(4))
def test_pannukes_figures_are_those_of_a_plain_reckoning(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, binary, multiclass = [], {}, {}
    for tissue in ("skin", "skin", "lung", "lung", "lung", "liver"):
        annotation, nuclei, found, types = drawn_squares(rng)
        assert annotation.instances is not None
        true = annotation.instances
        score = ImageScore.of("image", tissue, annotation, nuclei, 0.25, types)
        scores.append(score)
        assert score.segmentation.pq == pytest.approx(plain_pq(true, found))
        assert score.segmentation.aji == pytest.approx(plain_aji(true, found))
        binary.setdefault(tissue, []).append(plain_pq(true, found))
        of_type = []
        for name in "ab":
            of_true = np.where(
                np.isin(true, [k + 1 for k, label in enumerate(annotation.labels) if label == name]), true, 0
            )
            of_found = np.where(np.isin(found, [k + 1 for k, label in enumerate(types) if label == name]), found, 0)
            if of_true.any():
                of_type.append(plain_pq(of_true, of_found))
        multiclass.setdefault(tissue, []).append(np.mean(of_type))
    none = Annotation(np.zeros((0, 2)), (), np.zeros((40, 40), np.int32))
    scores.append(ImageScore.of("nothing annotated", "lung", none, nuclei, 0.25, types))
    figures = figures_of(scores)
    assert figures["bpq"] == pytest.approx(np.mean([np.mean(values) for values in binary.values()]), abs=1e-4)
    assert figures["mpq"] == pytest.approx(np.mean([np.mean(values) for values in multiclass.values()]), abs=1e-4)
