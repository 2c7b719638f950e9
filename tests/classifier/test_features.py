"""Features: a projection that the model file carries, of what the last layer sees."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from classifier.network import JointClassifier, TwoViewClassifier, load_classifier, of_patches
from classifier.predictor import Predictor, load_predictor
from classifier.spec import stored_features
from classifier.training.projection import add_projection, principal_components
from nucpipe.backends.model_file import read_header, rewrite_header
from nucpipe.errors import DataError, ModelError
from pipeline.inference.models import bundled_models
from tests.classifier.test_network import contexts, crops, drawn_samples
from tests.support.stores import published_outputs


def test_principal_components_are_those_of_the_singular_values() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(200, 12)) * np.arange(1, 13) + 5).astype(np.float32)
    weight, bias, share = principal_components(values, 4)
    scores = values @ weight.T + bias
    left, sizes, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    expected = left[:, :4] * sizes[:4]
    expected /= np.sqrt((expected**2).mean())
    signs = np.sign((scores * expected).sum(0))
    np.testing.assert_allclose(scores * signs, expected, atol=1e-4)
    assert share == pytest.approx((sizes[:4] ** 2).sum() / (sizes**2).sum(), rel=1e-4)
    assert (weight[np.arange(4), np.abs(weight).argmax(1)] > 0).all()


def test_there_are_no_more_components_than_nuclei_tell_apart() -> None:
    values = np.eye(3, 10, dtype=np.float32)
    weight, _, share = principal_components(values, 64)
    assert weight.shape == (2, 10)
    assert share == pytest.approx(1)


def test_features_that_hardly_vary_give_numbers_that_a_file_holds() -> None:
    values = 5 + 1e-7 * np.random.default_rng(0).normal(size=(50, 12))
    weight, bias, _ = principal_components(values.astype(np.float32), 4)
    assert np.isfinite(weight.astype(np.float16)).all()
    assert np.isfinite(bias.astype(np.float16)).all()
    weight, bias, share = principal_components(np.ones((5, 12), np.float32), 4)
    assert np.isfinite(weight.astype(np.float16)).all()
    assert share == 0


def test_a_projection_changes_no_bit_of_the_model(tmp_path: Path) -> None:
    path = bundled_models("classifier")["fast"]
    samples = drawn_samples(np.array([0] * 40 + [4] * 40), np.arange(80) % 3)
    samples = dataclasses.replace(
        samples,
        pixels=(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8),),
        points=np.random.default_rng(1).uniform(0, 300, (80, 2)),
        image=np.zeros(80, np.int64),
    )
    few = samples.select(np.arange(30))
    made = add_projection(path, tmp_path / "f.safetensors", samples, few, 0, "cpu", "fp32")
    assert (made.features, made.nuclei, made.held_out) == (64, 80, 0)
    assert made.in_words.endswith("no out-of-distribution score, which takes 200 nuclei held out of the training")
    before, after = load_file(path), load_file(tmp_path / "f.safetensors")
    assert {name for name in after if name not in before} == {"projection.weight", "projection.bias"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = read_header(path), read_header(tmp_path / "f.safetensors")
    assert dataclasses.replace(new, architecture=old.architecture) == old
    assert stored_features(new) == 64
    plain, full = load_predictor(path), load_predictor(tmp_path / "f.safetensors")
    some = crops(20)
    np.testing.assert_array_equal(plain(some).probabilities, full(some).probabilities)
    assert plain(some).features is None
    together = full(some).features
    assert together.dtype == np.float16
    assert together.shape == (20, 64)
    alone = np.concatenate([full(some[i : i + 1]).features for i in range(20)])
    np.testing.assert_array_equal(together, alone)
    assert full(some[:0]).features.shape == (0, 64)
    assert full(some).ood_scores is None
    # With enough nuclei held out there is a score, too, and nothing else changes.
    enough = samples.select(np.arange(240) % 80)
    scored = add_projection(path, tmp_path / "s.safetensors", samples, enough, 0, "cpu", "fp32")
    assert scored.held_out == 240
    assert scored.logits.shape == (240, 35)
    third = load_file(tmp_path / "s.safetensors")
    assert {name for name in third if name not in after} == {
        "ood.means", "ood.whitening", "ood.penalties", "ood.quantiles"
    }  # fmt: skip
    assert all(torch.equal(third[name], after[name]) for name in after)
    told = load_predictor(tmp_path / "s.safetensors")
    np.testing.assert_array_equal(told(some).features, together)
    np.testing.assert_array_equal(told(some).probabilities, plain(some).probabilities)
    scores = told(some).ood_scores
    assert (scores.dtype, scores.shape) == (np.float32, (20,))
    np.testing.assert_array_equal(scores, told.ood.score(together))
    assert told(some[:0]).ood_scores.shape == (0,)
    model, header, _ = load_classifier(tmp_path / "s.safetensors")
    assert "ood" in header.architecture
    assert not any(name.startswith("ood") for name in model.state_dict())
    # A projection that is made anew without nuclei held out leaves no score of the old one behind.
    add_projection(tmp_path / "s.safetensors", tmp_path / "n.safetensors", samples, few, 0, "cpu", "fp32")
    assert load_predictor(tmp_path / "n.safetensors").ood is None
    assert load_file(tmp_path / "n.safetensors").keys() == after.keys()


def test_features_are_the_projection_of_what_the_last_layer_sees() -> None:
    torch.manual_seed(0)
    model = TwoViewClassifier(35, "test_efficientnet", "test_efficientnet").eval()
    model.projection = torch.nn.Linear(model.last_layer().in_features, 8)
    views = torch.from_numpy(crops(3)).permute(0, 3, 1, 2), torch.from_numpy(contexts(3)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        both = of_patches(model, "logits and features")(*views)
        assert both.shape == (3, 43)
        torch.testing.assert_close(both[:, :35], model(*views))
        torch.testing.assert_close(both[:, 35:], model.projection(of_patches(model, "pooled")(*views)))
    predictor = Predictor(
        lambda: of_patches(model, "logits and features"), published_outputs(), context=True, features=8
    )
    said = predictor(crops(3), contexts(3))
    assert said.features is not None
    np.testing.assert_allclose(said.features, both[:, 35:].numpy(), atol=2e-2)


def test_a_network_without_a_projection_gives_logits_alone() -> None:
    model = JointClassifier(35, "test_efficientnet", 64).eval()
    assert of_patches(model, "logits and features")(torch.zeros(2, 3, 64, 64)).shape == (2, 35)


def test_a_header_with_an_impossible_number_of_features_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(bundled_models("classifier")["fast"].read_bytes())
    header = read_header(path)
    for wrong in (-1, 1_000_000, "many"):
        rewrite_header(path, dataclasses.replace(header, architecture={**header.architecture, "features": wrong}))
        with pytest.raises(ModelError, match="features"):
            load_predictor(path)
        with pytest.raises(ModelError, match="features"):
            load_classifier(path)


def test_one_nucleus_has_no_components(tmp_path: Path) -> None:
    samples = drawn_samples(np.array([0]), np.array([1]))
    with pytest.raises(DataError, match="at least two"):
        add_projection(
            bundled_models("classifier")["fast"], tmp_path / "f.safetensors", samples, samples, 0, "cpu", "fp32"
        )
