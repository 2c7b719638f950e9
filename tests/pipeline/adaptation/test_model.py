"""What corrections teach: exact cases, and made-up slides of which the truth is known."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.adaptation.model import LEAST_P, MEASURED, confirmed, features_of, fit, standardisation
from pipeline.adaptation.surroundings import SIGMA_UM, mean_around
from pipeline.adaptation.validation import PLACES, Accuracy, accuracy, cross_validate, places_of
from tests.support.stores import published_outputs, random_store

OUTPUTS = published_outputs()
PANNUKE, NUCLS = OUTPUTS.slices["PanNuke"], OUTPUTS.slices["NuCLS"]


def slide(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base probabilities that are right in three of five nuclei, features that tell the truth, and PanNuke's truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    wrong = rng.random(count) < 0.4
    said = np.where(wrong, (truth + 1) % 3, truth)
    base = np.where(OUTPUTS.trained, rng.uniform(0.5, 1, (count, len(OUTPUTS))), 0)
    base[np.arange(count), PANNUKE.start + said] += 3
    for part in OUTPUTS.slices.values():
        base[:, part] /= base[:, part].sum(1, keepdims=True)
    features = rng.normal(size=(count, len(MEASURED) + 16))
    features[:, :3] += 2 * np.eye(3)[truth]
    return base.astype(np.float32), features.astype(np.float32), truth


def said(truth: np.ndarray) -> np.ndarray:
    allowed = np.zeros((len(truth), len(OUTPUTS)), bool)
    allowed[np.arange(len(truth)), PANNUKE.start + truth] = True
    return allowed


def test_corrections_make_the_other_nuclei_of_the_slide_right() -> None:
    base, features, truth = slide(2000)
    standard = standardisation(features)
    before = (base[:, PANNUKE].argmax(1) == truth)[200:].mean()
    shares = []
    for clicks in (50, 100, 200):
        model = fit(base[:clicks], features[:clicks], said(truth[:clicks]), OUTPUTS, standard)
        adapted = model.apply(base, features)
        shares.append((adapted[:, PANNUKE].argmax(1) == truth)[200:].mean())
        np.testing.assert_allclose(adapted[:, PANNUKE].sum(1), 1, atol=1e-5)
    assert before == pytest.approx(0.6, abs=0.03)
    assert before < shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.75


def test_libraries_that_no_correction_speaks_of_do_not_move() -> None:
    base, features, truth = slide(100)
    model = fit(base[:30], features[:30], said(truth[:30]), OUTPUTS, standardisation(features))
    assert list(model.libraries) == ["PanNuke"]
    adapted = model.apply(base, features)
    others = np.ones(len(OUTPUTS), bool)
    others[PANNUKE] = False
    np.testing.assert_array_equal(adapted[:, others], base[:, others])
    assert (adapted[:, ~np.asarray(OUTPUTS.trained)] == 0).all()


def test_what_the_base_labels_say_already_teaches_next_to_nothing() -> None:
    base, features, _ = slide(400)
    base[:, PANNUKE] = np.eye(5, dtype=np.float32)[base[:, PANNUKE].argmax(1)] * 0.98 + 0.004
    base[:, PANNUKE] /= base[:, PANNUKE].sum(1, keepdims=True)
    labels = base[:, PANNUKE].argmax(1)
    model = fit(base[:40], features[:40], said(labels[:40]), OUTPUTS, standardisation(features))
    adapted = model.apply(base, features)
    assert (adapted[:, PANNUKE].argmax(1) == labels).all()


def test_few_corrections_change_the_shares_of_the_labels_alone() -> None:
    base, features, _ = slide(50)
    allowed = said(np.full(50, 2))
    model = fit(base[:4], features[:4], allowed[:4], OUTPUTS, standardisation(features)).libraries["PanNuke"]
    assert not model.weights.any()
    assert model.shares.argmax() == 2
    assert model.shares[2] > 0 > model.shares[0]
    assert (
        fit(base[:5], features[:5], allowed[:5], OUTPUTS, standardisation(features)).libraries["PanNuke"].weights.any()
    )


def test_one_of_several_labels_teaches_their_sum() -> None:
    """All corrections say: label 0 or 1. Their odds to each other stay, their share grows."""
    base, features, _ = slide(60)
    allowed = said(np.zeros(60, int)) | said(np.ones(60, int))
    adapted = fit(base, features, allowed, OUTPUTS, standardisation(features), few=1000).apply(base, features)
    first, second = adapted[:, PANNUKE.start], adapted[:, PANNUKE.start + 1]
    assert (first + second).mean() > 0.9 > (base[:, PANNUKE.start] + base[:, PANNUKE.start + 1]).mean()
    before = np.log(base[:, PANNUKE.start] / base[:, PANNUKE.start + 1])
    after = np.log(first / second)
    assert np.corrcoef(before, after)[0, 1] > 0.999


def test_a_label_of_no_probability_can_be_learnt() -> None:
    base, features, _ = slide(40)
    base[:, PANNUKE] = np.array([1, 0, 0, 0, 0], np.float32)
    model = fit(base, features, said(np.full(40, 3)), OUTPUTS, standardisation(features))
    assert np.isfinite(model.libraries["PanNuke"].shares).all()
    assert (model.apply(base, features)[:, PANNUKE].argmax(1) == 3).all()


def test_measurements_come_first_then_the_surroundings_then_stored_features_or_base_log_odds(tmp_path: Path) -> None:
    store = random_store(tmp_path, 50)
    features = features_of(store)
    trained = np.asarray(store.info.outputs.trained)
    odds = np.log(np.maximum(store.probabilities[:, trained], LEAST_P))
    assert features.shape == (50, 2 * (len(MEASURED) + trained.sum()))
    np.testing.assert_allclose(features[:, 0], np.log(store.area_um2), rtol=1e-6)
    assert np.isnan(features[:, 1 : len(MEASURED)]).all()
    np.testing.assert_allclose(features[:, -trained.sum() :], odds, rtol=1e-6)
    own = np.concatenate([features[:, :1], np.zeros((50, len(MEASURED) - 1)), odds], axis=1, dtype=np.float32)
    around = mean_around(own, store.centroids_l0 * store.info.mpp)
    np.testing.assert_allclose(features[:, len(MEASURED) : -trained.sum()], around, atol=1e-6)


def test_surroundings_are_a_gaussian_mean() -> None:
    rng = np.random.default_rng(0)
    points, values = rng.uniform(0, 700, (2000, 2)), rng.normal(size=(2000, 11)).astype(np.float32)
    values[:, 3] = points[:, 0]
    distances = ((points[:, None] - points[None]) ** 2).sum(2)
    weights = np.exp(-distances / (2 * SIGMA_UM**2))
    exact = weights @ values / weights.sum(1, keepdims=True)
    found = mean_around(values, points)
    assert np.abs(found - exact)[:, 3].max() < 5  # of 700; the grid blurs a little more, and ends at three sigma
    for k in range(values.shape[1]):
        assert np.corrcoef(found[:, k], exact[:, k])[0, 1] > 0.99
    np.testing.assert_allclose(mean_around(np.full((2000, 1), 3, np.float32), points), 3, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_a_nucleus_alone_is_its_own_surroundings(count: int) -> None:
    values = np.full((count, 9), 7, np.float32)
    np.testing.assert_allclose(mean_around(values, np.full((count, 2), 5000.0)), values, rtol=1e-5)


def test_what_was_not_measured_counts_as_the_mean() -> None:
    base, features, truth = slide(300)
    features[:, 4] = np.nan
    features[250:, 2] = np.nan
    standard = standardisation(features)
    assert (standard[0][4], standard[1][4]) == (0, 1)
    assert standard[0][2] == pytest.approx(features[:250, 2].mean(dtype=np.float64), rel=1e-6)
    model = fit(base[:60], features[:60], said(truth[:60]), OUTPUTS, standard)
    filled = features.copy()
    filled[:, 4], filled[250:, 2] = 0, standard[0][2]
    np.testing.assert_array_equal(model.apply(base, features), model.apply(base, filled))
    assert np.isnan(features[:, 4]).all()


def test_many_corrections_of_one_kind_do_not_outvote_the_others() -> None:
    """Ninety of label 0, ten of label 1, nothing else to tell them by: their shares are nearer than nine to one."""
    base = np.where(OUTPUTS.trained, 0.2, 0).repeat(100).reshape(-1, 100).T.astype(np.float32)
    truth = np.repeat([0, 1], (90, 10))
    features = np.zeros((100, len(MEASURED)), np.float32)
    model = fit(base, features, said(truth), OUTPUTS, standardisation(features)).libraries["PanNuke"]
    counted = np.exp(model.shares[0] - model.shares[1])
    assert 1 < counted < 2.5


def test_a_constant_feature_does_no_harm() -> None:
    base, features, truth = slide(100)
    features[:, 5] = 3
    mean, deviation = standardisation(features)
    assert (mean[5], deviation[5]) == (3, 1)
    model = fit(base[:50], features[:50], said(truth[:50]), OUTPUTS, (mean, deviation))
    assert np.isfinite(model.apply(base, features)).all()


def test_a_person_has_the_last_word_on_a_nucleus() -> None:
    base, _, _ = slide(3)
    allowed = np.zeros((3, len(OUTPUTS)), bool)
    allowed[0, PANNUKE.start + 4] = True
    allowed[1, [NUCLS.start, NUCLS.start + 1]] = True
    result = confirmed(base, allowed, OUTPUTS)
    assert result[0, PANNUKE].tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(result[1, NUCLS].sum(), 1, atol=1e-6)
    assert result[1, NUCLS][2:].sum() == 0
    np.testing.assert_allclose(
        result[1, NUCLS.start] / result[1, NUCLS.start + 1], base[1, NUCLS.start] / base[1, NUCLS.start + 1], rtol=1e-5
    )
    np.testing.assert_array_equal(result[2], base[2])


def test_places_hold_neighbours_and_as_many_each() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (53, 2)) * (4000, 300)
    places = places_of(points)
    assert sorted(np.bincount(places, minlength=PLACES)) == [10, 10, 11, 11, 11]
    spans = [np.ptp(points[places == k, 0]) for k in range(PLACES)]
    assert sum(spans) < 4000
    assert len(set(places_of(points[:3]).tolist())) == 3


def test_accuracy_is_that_of_known_labels_plain_and_over_labels() -> None:
    truth = np.array([0] * 8 + [1] * 2)
    before = np.eye(5, dtype=np.float32)[np.zeros(10, int)]
    after = np.eye(5, dtype=np.float32)[np.array([0] * 6 + [1] * 4)]
    measured = accuracy(before, after, said(truth)[:, PANNUKE])
    assert measured == Accuracy(10, (0.8, 0.8), (0.5, 0.875))
    assert not measured.worse
    assert Accuracy(10, (0.8, 0.7), (0.5, 0.5)).worse
    assert Accuracy(10, (0.8, 0.9), (0.5, 0.4)).worse
    assert not Accuracy(10, (0.8, 0.8), (0.5, 0.5)).worse
    assert accuracy(before[:9], after[:9], said(truth[:9])[:, PANNUKE]) is None
    both = said(truth) | said(1 - truth)
    assert accuracy(before, after, both[:, PANNUKE]) is None


def test_cross_validation_measures_nuclei_that_were_left_out() -> None:
    base, features, truth = slide(150)
    points = np.random.default_rng(1).uniform(0, 1000, (150, 2))
    measured = cross_validate(base, features, said(truth), points, OUTPUTS, standardisation(features))
    assert list(measured) == ["PanNuke"]
    one = measured["PanNuke"]
    assert one is not None
    assert one.plain[0] == pytest.approx((base[:, PANNUKE].argmax(1) == truth).mean())
    assert one.plain[1] > one.plain[0]
    noise = np.random.default_rng(2).permutation(truth)
    spoilt = cross_validate(base, features, said(noise), points, OUTPUTS, standardisation(features))["PanNuke"]
    assert spoilt is not None
    assert spoilt.plain[1] < 0.6
