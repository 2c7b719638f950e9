"""The label table, the masked loss and the probabilities, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from classifier.libraries import Library, Outputs, published_libraries
from classifier.loss import masked_cross_entropy
from classifier.matching import Matching, published_matching
from classifier.model import probabilities
from nucpipe.common.errors import DataError

LIBRARIES = published_libraries()
MATCHING = published_matching(LIBRARIES)

# The table of the label systems' own definitions: "library label" -> "library label" of others.
TABLE = {
    "MoNuSAC lymphocyte": {"NuCLS lymphocyte", "PanNuke inflammatory"},
    "MoNuSAC macrophage": {"NuCLS macrophage", "PanNuke inflammatory"},
    "MoNuSAC neutrophil": {"NuCLS neutrophil", "PanNuke inflammatory"},
    "BreCaHAD tumor": {"NuCLS tumor", "PanNuke neoplastic"},
    "BreCaHAD mitosis": {"NuCLS mitotic_figure", "PanNuke neoplastic"},
    "BreCaHAD apoptosis": {"NuCLS apoptotic_body", "PanNuke dead"},
    "CoNSeP inflammatory": {"PanNuke inflammatory"},
    "CoNSeP malignant_epithelial": {"PanNuke neoplastic"},
    "CoNSeP healthy_epithelial": {"PanNuke epithelial"},
    "CoNSeP fibroblast": {"NuCLS fibroblast", "PanNuke connective"},
    "CoNSeP endothelial": {"NuCLS vascular_endothelium", "PanNuke connective"},
    "CoNSeP muscle": {"PanNuke connective"},
    "NuCLS tumor": {"PanNuke neoplastic"},
    **{
        f"NuCLS {label}": {"PanNuke inflammatory"}
        for label in ("lymphocyte", "plasma_cell", "macrophage", "neutrophil", "eosinophil")
    },
    **{f"NuCLS {label}": {"PanNuke connective"} for label in ("fibroblast", "vascular_endothelium")},
    "NuCLS apoptotic_body": {"PanNuke dead"},
}


def test_each_label_teaches_its_own_library_and_what_the_table_says() -> None:
    for library in LIBRARIES:
        for label in library.labels:
            targets = MATCHING.targets(library.name, label)
            assert targets.dtype == np.int64
            taught = {f"{lib.name} {lib.labels[t]}" for lib, t in zip(LIBRARIES, targets, strict=True) if t >= 0}
            assert taught == {f"{library.name} {label}"} | TABLE.get(f"{library.name} {label}", set())


def test_taught_columns_are_counted_from_the_samples() -> None:
    samples = [("CoNSeP", "fibroblast"), ("CoNSeP", "fibroblast"), ("PanNuke", "connective"), ("MoNuSAC", "epithelial")]
    counts = MATCHING.taught(np.stack([MATCHING.targets(*s) for s in samples]))
    columns = [f"{library} {label}" for library, label in Outputs(LIBRARIES, ()).columns]
    assert {columns[c]: int(counts[c]) for c in np.flatnonzero(counts)} == {
        "NuCLS fibroblast": 2,
        "CoNSeP fibroblast": 2,
        "MoNuSAC epithelial": 1,
        "PanNuke connective": 3,
    }
    assert len(counts) == 35


def test_unknown_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"'stroma' is not one of CoNSeP's \(other, "):
        MATCHING.targets("CoNSeP", "stroma")
    with pytest.raises(DataError, match="names 'stroma' of PanNuke"):
        Matching(LIBRARIES, {"CoNSeP": {"fibroblast": {"PanNuke": "stroma"}}})


def two_libraries(trained: tuple[bool, ...]) -> Outputs:
    grey = (0, 0, 0)
    make = [Library(name, labels, (grey,) * len(labels), 0.25, "", "") for name, labels in (("A", "xyz"), ("B", "uv"))]
    return Outputs(tuple(make), trained)


def test_masked_loss_equals_a_hand_computed_one() -> None:
    outputs = two_libraries((True, False, True, True, True))
    logits = torch.tensor([[1.0, 50.0, 3.0, 0.0, 2.0], [0.5, -9.0, 0.0, 1.0, 1.0], [2.0, 2.0, 2.0, 0.0, 1.0]])
    targets = torch.tensor([[2, -1], [0, 1], [-1, 0]])
    a = [math.log(math.exp(1) + math.exp(3)) - 3, math.log(math.exp(0.5) + 1) - 0.5]  # column 1 is untrained
    b = [math.log(2), math.log(1 + math.e)]
    loss = masked_cross_entropy(logits.requires_grad_(), targets, outputs)
    assert loss.total.item() == pytest.approx((sum(a) + sum(b)) / 3, abs=1e-6)
    assert loss.per_library.tolist() == pytest.approx([sum(a) / 2, sum(b) / 2], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.total, logits)
    assert (gradient[:, 1] == 0).all()
    assert (gradient[0, 3:] == 0).all()
    assert (gradient[2, :3] == 0).all()


def test_a_library_that_nothing_teaches_costs_nothing() -> None:
    outputs = two_libraries((False, False, False, True, True))
    loss = masked_cross_entropy(torch.zeros(2, 5), torch.tensor([[-1, 0], [-1, 1]]), outputs, smoothing=0.1)
    assert loss.total.item() == pytest.approx(math.log(2))
    assert math.isnan(loss.per_library[0])


def test_probabilities_sum_to_one_per_library_and_untrained_labels_stay_at_zero() -> None:
    trained = [True] * 35
    for column in (3, 9, 20):
        trained[column] = False
    trained[26:30] = [False] * 4  # MoNuSAC, wholly
    outputs = Outputs(LIBRARIES, tuple(trained))
    logits = 20 * torch.randn(50, 35, generator=torch.Generator().manual_seed(0))
    logits[:, [3, 9, 20, 27]] = 1000.0
    result = probabilities(logits.bfloat16(), outputs).numpy()
    assert result.dtype == np.float32
    assert (result[:, ~np.array(trained)] == 0).all()
    for name, columns in outputs.slices.items():
        np.testing.assert_allclose(result[:, columns].sum(1), 0 if name == "MoNuSAC" else 1, atol=1e-6)
    best = outputs.best(result)
    assert not np.isin(best["NuCLS"], (3, 9)).any()
    assert not (best["CoNSeP"] == 1).any()
    assert (best["MoNuSAC"] == -1).all()
