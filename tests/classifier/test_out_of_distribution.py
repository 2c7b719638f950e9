"""The out-of-distribution score: exact, the same in any batch, and what it says it is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from classifier.out_of_distribution import OodModel, in_words, read_ood
from classifier.predictor import load_predictor
from classifier.training.out_of_distribution import fit_ood, shrunk_covariance
from nucpipe.backends.model_file import FORMAT, read_header
from nucpipe.errors import ModelError
from pipeline.inference.models import bundled_models


def drawn(count: int, seed: int, size: int = 8) -> np.ndarray:
    """Features of two clusters of unlike spread."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.2, 2, size)
    which = rng.random((count, 1)) < 0.3
    return (rng.normal(size=(count, size)) * np.where(which, spread, spread[::-1]) + 3 * which).astype(np.float16)


def alike(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


@pytest.fixture(scope="module")
def model() -> OodModel:
    return fit_ood(drawn(4000, 0), drawn(3000, 1), alike(3000), 0)


def test_the_distance_is_that_of_the_nearest_gaussian() -> None:
    whitening = np.stack([np.diag([2.0, 0.5]), np.eye(2)])
    model = OodModel(np.array([[0.0, 0], [10, 10]]), whitening, np.array([1.0, 3]), np.linspace(0, 9.99, 1000))
    features = np.array([[1, 0], [0, 2], [10, 11], [5, 5]], np.float16)
    expected = [0.5 * 4 + 1, 0.5 * 1 + 1, 0.5 * 1 + 3, 0.5 * (100 + 6.25) + 1]
    expected[3] = min(expected[3], 0.5 * 50 + 3)
    np.testing.assert_array_equal(model.distance(features), expected)
    # Quantiles 0, 0.01, ... 2.99 lie below 3; 1.5 and 3.5 likewise; 28 lies beyond all.
    np.testing.assert_allclose(model.score(features), [0.3, 0.15, 0.35, 1])


def test_scores_of_nuclei_like_the_held_out_ones_are_even(model: OodModel) -> None:
    scores = model.score(drawn(5000, 2))
    assert scores.dtype == np.float32
    assert scores.mean() == pytest.approx(0.5, abs=0.02)
    assert (scores >= 0.95).mean() == pytest.approx(0.05, abs=0.01)
    assert (model.score(drawn(100, 3) + np.float16(20)) == 1).all()


@pytest.mark.parametrize("rows", [1, 3, 8, 511, 600])
def test_the_batch_changes_no_bit(model: OodModel, rows: int) -> None:
    features = drawn(1400, 4)
    together = model.distance(features)
    parts = [model.distance(features[start : start + rows]) for start in range(0, len(features), rows)]
    np.testing.assert_array_equal(np.concatenate(parts), together)
    shuffled = np.random.default_rng(0).permutation(len(features))
    np.testing.assert_array_equal(model.distance(features[shuffled]), together[shuffled])


def test_what_is_no_number_is_as_unlike_as_can_be(model: OodModel) -> None:
    features = drawn(3, 0)
    features[0, 0], features[1] = np.nan, np.inf
    assert model.score(features)[:2].tolist() == [1, 1]
    assert model.score(features[:0]).shape == (0,)


def test_a_file_holds_it_to_the_bit(model: OodModel) -> None:
    again = OodModel.from_tensors(model.to_tensors())
    features = drawn(200, 5)
    np.testing.assert_array_equal(again.distance(features), model.distance(features))
    np.testing.assert_allclose(again.score(features), model.score(features), atol=0.003)


def test_held_out_nuclei_count_as_they_are_weighted() -> None:
    near, far = drawn(500, 1), drawn(500, 2) + np.float16(8)
    held, chances = np.concatenate([near, far]), np.repeat([0.9, 0.1], 500) / 500
    model = fit_ood(drawn(2000, 0), held, chances, 0)
    assert model.score(far).min() >= 0.89
    assert model.score(near).max() <= 0.901


def test_few_nuclei_and_features_that_do_not_vary_give_numbers() -> None:
    for features in (drawn(2, 0, 20), np.ones((400, 5), np.float16), np.zeros((3, 1), np.float16)):
        model = fit_ood(features, features, alike(len(features)), 0)
        assert np.isfinite(model.distance(features)).all()
        OodModel.from_tensors(model.to_tensors())


def test_the_covariance_is_shrunk_less_the_more_values_there_are() -> None:
    rng = np.random.default_rng(0)
    truth = np.diag([1.0, 4, 9])
    values = rng.normal(size=(20_000, 3)) @ np.sqrt(truth)
    np.testing.assert_allclose(shrunk_covariance(values), truth, atol=0.15)
    few = shrunk_covariance(values[:4])
    plain = np.cov(values[:4], rowvar=False, bias=True)
    assert np.linalg.cond(few) < np.linalg.cond(plain) / 10
    assert np.trace(few) == pytest.approx(np.trace(plain), rel=0.01)


def test_a_file_without_what_it_says_it_has_is_refused(tmp_path: Path, model: OodModel) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(bundled_models("classifier")["fast"].read_bytes())
    header = read_header(path)
    plain = {key: value for key, value in header.architecture.items() if key != "ood"} | {"features": 64}
    assert read_ood(path, dataclasses.replace(header, architecture=plain)) is None
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("ood.")}
    whole = model.to_tensors()
    for wrong in (
        {},
        {**whole, "ood.means": np.zeros(3, np.float16)},
        {**whole, "ood.quantiles": np.zeros(7, np.float16)},
        {**whole, "ood.penalties": np.full(len(model.means), np.inf, np.float16)},
        whole,  # of 8 features, and the network has 64
    ):
        fields = dataclasses.replace(header, architecture={**plain, "ood": {"components": 2}})
        metadata = {"format": FORMAT, "nucpipe": json.dumps(dataclasses.asdict(fields))}
        save_file({**tensors, **wrong}, path, metadata=metadata)
        with pytest.raises(ModelError, match="out-of-distribution score"):
            load_predictor(path)


def test_the_words() -> None:
    assert in_words(0.384) == "38 % of these nuclei are unlike anything that the model was trained on"
