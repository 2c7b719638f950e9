"""The classifier as the pipeline drives it: the mean over the turns of a nucleus."""

import numpy as np
import torch

from classifier.labels.libraries import LabelSpace, published_libraries
from classifier.network import TwoViewClassifier, of_patches
from classifier.predictor import Predictor


def test_tta_averages_the_logits_over_quarter_turns_and_leaves_the_features() -> None:
    torch.manual_seed(3)
    outputs = LabelSpace(published_libraries(), (True,) * 35)
    network = TwoViewClassifier(len(outputs), "test_efficientnet", "test_efficientnet")
    network.projection = torch.nn.Linear(network.last_layer().in_features, 4)
    network.last_layer().weight.data *= 100  # random weights hardly tell one patch from another
    patches = of_patches(network.eval(), "logits and features")
    once, averaged = (Predictor(lambda: patches, outputs, context=True, features=4, tta=tta) for tta in (False, True))
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 255, (3, 64, 64, 3), np.uint8)
    contexts = rng.integers(0, 255, (3, 64, 64, 4), np.uint8)
    turned = [[np.ascontiguousarray(np.rot90(view, k, (1, 2))) for view in (crops, contexts)] for k in range(4)]

    mean = np.exp(np.mean([np.log(once(*views).probabilities) for views in turned], 0))
    for columns in outputs.slices.values():  # the softmax of a mean is the normalised mean of logarithms
        mean[:, columns] /= mean[:, columns].sum(1, keepdims=True)
    said = averaged(crops, contexts)
    np.testing.assert_allclose(said.probabilities, mean, atol=2e-5)
    assert np.abs(said.probabilities - once(crops, contexts).probabilities).max() > 1e-3
    np.testing.assert_array_equal(said.features, once(crops, contexts).features)
    for views in turned:  # so a nucleus has the same labels whichever way the slide lies
        np.testing.assert_allclose(averaged(*views).probabilities, said.probabilities, atol=2e-5)
