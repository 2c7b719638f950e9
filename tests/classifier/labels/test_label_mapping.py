"""The label table, the masked loss and the probabilities, against values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from classifier.labels.label_mapping import Matching, Pair, make_matching
from classifier.labels.libraries import LabelSpace, Library, libraries_of, load_library, published_libraries
from classifier.predictions import probabilities
from classifier.training.distillation import distillation_loss
from classifier.training.losses import masked_cross_entropy, masked_distance
from nucpipe.errors import DataError, UsageError

LIBRARIES = published_libraries()
MATCHING = make_matching(LIBRARIES)

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


COLUMNS = [f"{library} {label}" for library, label in LabelSpace(LIBRARIES, ()).columns]


def named(targets: np.ndarray) -> set[str]:
    return {COLUMNS[c] for c in np.flatnonzero(targets)}


def test_each_label_teaches_its_own_library_and_what_the_definitions_say() -> None:
    for library in LIBRARIES:
        for label in library.labels:
            taught = named(MATCHING.targets(library.name, label))
            assert {f"{library.name} {label}"} | TABLE.get(f"{library.name} {label}", set()) <= taught
            assert {x for x in taught if x.startswith(library.name)} == {f"{library.name} {label}"}
    assert named(MATCHING.targets("MoNuSAC", "epithelial")) == {
        "NuCLS tumor",
        "NuCLS mitotic_figure",
        "NuCLS myoepithelium",
        "NuCLS ductal_epithelium",
        "CoNSeP healthy_epithelial",
        "CoNSeP malignant_epithelial",
        "MoNuSAC epithelial",
        "PanNuke neoplastic",
        "PanNuke epithelial",
    }
    assert named(MATCHING.targets("CoNSeP", "other")) == {"CoNSeP other"}


def test_the_table_says_the_same_in_both_directions() -> None:
    """If x may be called y, then y, where the table says what it may be called, may be called x."""
    may = {(p.source, p.label, p.library): set(p.taught) for p in MATCHING.pairs}
    for (source, label, library), taught in may.items():
        for other in taught:
            back = may.get((library, other, source))
            assert back is None or label in back, (source, label, library, other)


def test_taught_columns_are_counted_from_the_samples() -> None:
    samples = [("CoNSeP", "fibroblast"), ("CoNSeP", "fibroblast"), ("PanNuke", "connective"), ("MoNuSAC", "epithelial")]
    samples.append(("NuCLS", "sTIL"))  # a group, all of it one of PanNuke's labels, but not of MoNuSAC's
    counts = MATCHING.taught(np.stack([MATCHING.targets(*s) for s in samples]))
    assert {COLUMNS[c]: int(counts[c]) for c in np.flatnonzero(counts)} == {
        "NuCLS fibroblast": 2,
        "BreCaHAD non_tumor": 4,
        "CoNSeP inflammatory": 1,
        "CoNSeP fibroblast": 2,
        "MoNuSAC epithelial": 1,
        "PanNuke connective": 3,
        "PanNuke inflammatory": 1,
    }
    assert len(counts) == 35


def test_unknown_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"'stroma' is not one of CoNSeP's \(other, "):
        MATCHING.targets("CoNSeP", "stroma")
    with pytest.raises(DataError, match="names 'stroma' of PanNuke"):
        Matching(LIBRARIES, (Pair("CoNSeP", "fibroblast", "PanNuke", ("connective", "stroma"), "table"),))


def test_a_group_teaches_all_its_labels_and_other_libraries_where_these_agree() -> None:
    lymphoid = {"NuCLS lymphocyte", "NuCLS plasma_cell", "BreCaHAD non_tumor", "CoNSeP inflammatory"}
    assert named(MATCHING.targets("NuCLS", "sTIL")) == lymphoid | {"PanNuke inflammatory"}
    # a macrophage is inflammatory, a fibroblast connective: PanNuke learns that it is one of the two
    assert named(MATCHING.targets("NuCLS", "nonTIL_stromal")) == {
        "NuCLS fibroblast",
        "NuCLS vascular_endothelium",
        "NuCLS macrophage",
        "BreCaHAD non_tumor",
        "CoNSeP fibroblast",
        "CoNSeP endothelial",
        "CoNSeP inflammatory",
        "PanNuke connective",
        "PanNuke inflammatory",
    }
    assert named(MATCHING.targets("CoNSeP", "spindle")) == {
        "CoNSeP fibroblast",
        "CoNSeP muscle",
        "CoNSeP endothelial",
        "BreCaHAD non_tumor",
        "PanNuke connective",
    }


@pytest.mark.parametrize("text", ["Healthy epithelial", "healthy-EPITHELIAL", " healthy__epithelial "])
def test_spelling_makes_no_difference(text: str) -> None:
    assert LIBRARIES[2].resolve(text) == (2,)
    assert LIBRARIES[1].resolve("Tubule") == LIBRARIES[1].resolve("lumen") == (5,)


def test_matching_by_text() -> None:
    def pairs(mode: str, similarity: float = 0.8) -> set[str]:
        found = make_matching(LIBRARIES, mode, similarity).pairs
        return {f"{p.source} {p.label} > {p.library} {' '.join(p.taught)}: {p.why}" for p in found}

    assert pairs("own") == set()
    exact = pairs("exact")
    assert "MoNuSAC epithelial > PanNuke epithelial: equal text" in exact  # why the table is the default
    assert all(line.endswith(": equal text") for line in exact)
    assert pairs("similar") == exact  # among the five none is as like as that
    # SequenceMatcher: "thelial" and "e" are common to words of 11 and 10 letters
    assert "CoNSeP endothelial > MoNuSAC epithelial: similar text, 0.76" in pairs("similar", 0.75)
    assert "NuCLS mitotic_figure" not in " ".join(pairs("similar", 0.75))
    with pytest.raises(UsageError, match=r"--similarity 1\.5"):
        make_matching(LIBRARIES, "similar", 1.5)
    with pytest.raises(UsageError, match="--match some"):
        make_matching(LIBRARIES, "some")


def test_a_users_table_replaces_the_published_one(tmp_path: Path) -> None:
    table = tmp_path / "table.toml"
    table.write_text('[MoNuSAC.epithelial]\nPanNuke = "epithelial"\n')
    matching = make_matching(LIBRARIES, "table", table=table)
    assert named(matching.targets("MoNuSAC", "epithelial")) == {"MoNuSAC epithelial", "PanNuke epithelial"}
    assert named(matching.targets("CoNSeP", "muscle")) == {"CoNSeP muscle"}
    table.write_text('[MoNuSAC.epithelial]\nPanNuke = ["epithelial", "neoplastic"]\n')
    some = make_matching(LIBRARIES, "table", table=table).targets("MoNuSAC", "epithelial")
    assert named(some) == {"MoNuSAC epithelial", "PanNuke epithelial", "PanNuke neoplastic"}
    assert not matching.taught(some[None])[30:].any()  # which of the two is not known
    table.write_text('[MoNuSAC.epithelial]\nPanNuke = "stroma"\n')
    with pytest.raises(DataError, match="'stroma' of PanNuke"):
        make_matching(LIBRARIES, "table", table=table)
    table.write_text("PanNuke = 1")
    with pytest.raises(DataError, match="sections"):
        make_matching(LIBRARIES, "table", table=table)
    with pytest.raises(UsageError, match="--match table only"):
        make_matching(LIBRARIES, "own", table=table)


def test_a_sixth_library_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "library.toml"
    file.write_text('name = "Lab"\nlabels = ["a", "b"]\nmpp = 0.5\nlicence = "own"\n[groups.all]\nab = ["a", "b"]\n')
    library = load_library(file)
    assert (library.name, library.labels, library.mpp) == ("Lab", ("a", "b"), 0.5)
    assert len(set(library.colours)) == 2
    assert Library.from_dict(library.to_dict()) == library
    libraries = libraries_of((("lab", tmp_path), ("consep", tmp_path / "nowhere")))
    assert [lib.name for lib in libraries] == ["NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke", "Lab"]
    matching = make_matching(libraries)
    assert matching.targets("Lab", "ab").tolist() == [False] * 35 + [True, True]
    with pytest.raises(DataError, match="defines 'Lab', but 'clinic'"):
        libraries_of((("clinic", tmp_path),))
    with pytest.raises(UsageError, match="write one for a library of your own"):
        libraries_of((("clinic", tmp_path / "nowhere"),))


PARTIAL = """
name = "Ocelots"
labels = ["tumor", "other"]
mpp = 0.25
licence = "CC0"
partial = true
[teaches.tumor]
CoNSeP = "malignant_epithelial"
PanNuke = ["neoplastic"]
[teaches.other]
CoNSeP = ["inflammatory", "fibroblast"]
"""


def test_labels_of_a_partial_library_only_teach(tmp_path: Path) -> None:
    (tmp_path / "library.toml").write_text(PARTIAL)
    libraries = libraries_of((("ocelots", tmp_path),))
    assert Library.from_dict(libraries[-1].to_dict()) == libraries[-1]
    for mode in ("table", "own", "exact"):
        matching = make_matching(libraries, mode)
        assert matching.libraries == LIBRARIES
        assert [library.name for library in matching.sources] == [*(lib.name for lib in LIBRARIES), "Ocelots"]
        tumor, other = (matching.targets("Ocelots", label) for label in ("tumor", "other"))
        assert named(tumor) == {"CoNSeP malignant_epithelial", "PanNuke neoplastic"}
        assert named(other) == {"CoNSeP inflammatory", "CoNSeP fibroblast"}
    # "One of these" counts as taught for none, and the loss is that of their summed probability.
    counts = matching.taught(np.stack([tumor, other]))
    assert {COLUMNS[c] for c in np.flatnonzero(counts)} == {"CoNSeP malignant_epithelial", "PanNuke neoplastic"}
    outputs = LabelSpace(matching.libraries, (True,) * 35)
    logits = torch.randn(1, 35, generator=torch.Generator().manual_seed(0))
    loss = masked_cross_entropy(logits, torch.from_numpy(other[None]), outputs)
    p = logits[0, outputs.slices["CoNSeP"]].softmax(0)
    assert float(loss.total) == pytest.approx(-math.log(float(p[1] + p[4])), rel=1e-5)
    assert [not math.isnan(x) for x in loss.per_library.tolist()] == [False, False, True, False, False]


def test_a_users_table_goes_before_what_a_library_says_of_itself(tmp_path: Path) -> None:
    (tmp_path / "library.toml").write_text(PARTIAL)
    (tmp_path / "table.toml").write_text('[Ocelots.tumor]\nCoNSeP = "other"\n')
    matching = make_matching(libraries_of((("ocelots", tmp_path),)), table=tmp_path / "table.toml")
    assert named(matching.targets("Ocelots", "tumor")) == {"CoNSeP other", "PanNuke neoplastic"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[teaches.tumor]", "[teaches.stroma]", "'teaches' names 'stroma', which is not one of its labels"),
        ("partial = true", 'partial = "yes"', "partial is true or false, not yes"),
        (PARTIAL[PARTIAL.index("[teaches.tumor]") :], "", "it is partial and says by no"),
        ("[teaches.tumor]\nCoNSeP", "[teaches]\nCoNSeP", "not what a library needs"),
    ],
)
def test_what_a_library_says_that_it_teaches_must_hold(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PARTIAL
    (tmp_path / "library.toml").write_text(PARTIAL.replace(old, new))
    with pytest.raises(DataError, match=message):
        libraries_of((("ocelots", tmp_path),))


def test_a_partial_library_teaches_labels_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "library.toml").write_text(PARTIAL.replace('"neoplastic"', '"stroma"'))
    with pytest.raises(DataError, match="names 'stroma' of PanNuke"):
        make_matching(libraries_of((("ocelots", tmp_path),)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "cannot be read"),
        ('name = "Lab"', "lacks labels, mpp, licence"),
        ('name = "Lab"\nlabels = ["a", "a"]\nmpp = 0.5\nlicence = ""', "twice"),
        ('name = "Lab"\nlabels = []\nmpp = 0.5\nlicence = ""', "at least one label"),
        ('name = "Lab"\nlabels = ["a"]\nmpp = 0\nlicence = ""', "expected mpp, .* found 0"),
        ('name = "Lab"\nlabels = ["a"]\nmpp = "0.25"\nlicence = ""', r"library\.toml: expected mpp, .* found '0\.25'"),
        ('name = "Lab"\nlabels = {a = [1, 2]}\nmpp = 1\nlicence = ""', "not what a library needs"),
        ('name = "Lab"\nlabels = ["a"]\nmpp = 1\nlicence = ""\n[synonyms]\nx = "b"', "name 'b'"),
    ],
)
def test_a_broken_library_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "library.toml"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        load_library(file)


def two_libraries(trained: tuple[bool, ...]) -> LabelSpace:
    grey = (0, 0, 0)
    labels = {"A": ("x", "y", "z"), "B": ("u", "v")}
    make = [Library(name, some, (grey,) * len(some), 0.25, "", "") for name, some in labels.items()]
    return LabelSpace(tuple(make), trained)


def test_masked_loss_equals_a_hand_computed_one() -> None:
    outputs = two_libraries((True, False, True, True, True))
    logits = torch.tensor([[1.0, 50.0, 3.0, 0.0, 2.0], [0.5, -9.0, 0.0, 1.0, 1.0], [2.0, 2.0, 2.0, 0.0, 1.0]])
    targets = torch.tensor([[0, 0, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 1, 0]]).bool()
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
    targets = torch.tensor([[0, 0, 0, 1, 0], [1, 0, 0, 0, 1]]).bool()
    loss = masked_cross_entropy(torch.zeros(2, 5), targets, outputs, smoothing=0.1)
    assert loss.total.item() == pytest.approx(math.log(2))
    assert math.isnan(loss.per_library[0])


def test_a_group_is_taught_by_its_summed_probability() -> None:
    outputs = two_libraries((True,) * 5)
    logits = torch.tensor([[0.0, math.log(2), math.log(5), 0.0, 0.0]])  # 1/8, 2/8, 5/8
    targets = torch.tensor([[1, 1, 0, 0, 0]]).bool()
    assert masked_cross_entropy(logits, targets, outputs).total.item() == pytest.approx(-math.log(3 / 8), abs=1e-6)
    smoothed = -0.9 * math.log(3 / 8) - 0.1 * (math.log(1 / 8) + math.log(2 / 8) + math.log(5 / 8)) / 3
    assert masked_cross_entropy(logits, targets, outputs, 0.1).total.item() == pytest.approx(smoothed, abs=1e-6)


@pytest.mark.parametrize("loss", [masked_cross_entropy, masked_distance])
def test_a_group_of_all_labels_says_nothing(loss: object) -> None:
    outputs = two_libraries((True, True, False, True, True))
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0]], dtype=torch.float64).requires_grad_()
    total = loss(logits, torch.tensor([[1, 1, 1, 1, 1]]).bool(), outputs, 0.1).total  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.item() == pytest.approx(0, abs=1e-12)
    assert gradient[0].tolist() == pytest.approx([0] * 5, abs=1e-12)


def test_distance_equals_a_hand_computed_one() -> None:
    outputs = two_libraries((True,) * 5)
    logits = torch.tensor([[0.0, math.log(2), math.log(5), 0.0, math.log(3)]])  # 1/8, 2/8, 5/8; 1/4, 3/4
    one = torch.tensor([[0, 0, 1, 0, 1]]).bool()
    expected = (3 / 8) ** 2 + (1 / 8) ** 2 + (2 / 8) ** 2 + 2 * (1 / 4) ** 2
    loss = masked_distance(logits, one, outputs)
    assert loss.total.item() == pytest.approx(expected, abs=1e-6)
    assert loss.per_library.tolist() == pytest.approx([expected - 1 / 8, 1 / 8], abs=1e-6)
    group = torch.tensor([[1, 1, 0, 0, 0]]).bool()
    assert masked_distance(logits, group, outputs).total.item() == pytest.approx(2 * (5 / 8) ** 2, abs=1e-6)
    even = torch.zeros(1, 5)
    assert masked_distance(even, one, outputs, 1.0).total.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", [masked_cross_entropy, masked_distance])
def test_gradients_of_the_losses(loss: object) -> None:
    outputs = two_libraries((True, False, True, True, True))
    targets = torch.tensor([[1, 1, 1, 0, 1], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0]]).bool()
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, outputs, 0.1).total, logits)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(loss(logits, targets, outputs).total, logits)  # type: ignore[operator]
    assert (gradient[1, 3:] == 0).all()  # teaches A alone
    assert (gradient[2, :3] == 0).all()  # A's untrained label: nothing
    assert (gradient[:, 1] == 0).all()


def test_distillation_equals_a_hand_computed_divergence_of_the_labels_that_both_know() -> None:
    outputs = two_libraries((True, True, True, True, True))
    known = torch.tensor([True, False, True, True, True])
    told = torch.tensor([[0, 77, 2 * math.log(3), 0, 0]])  # A: 1/4, 3/4 at temperature 2
    logits = torch.tensor([[0.0, 5.0, 0.0, 0.0, 2 * math.log(4)]])  # A: 1/2, 1/2; B: 1/5, 4/5 against 1/2, 1/2
    a = 1 / 4 * math.log((1 / 4) / (1 / 2)) + 3 / 4 * math.log((3 / 4) / (1 / 2))
    b = 1 / 2 * math.log((1 / 2) / (1 / 5)) + 1 / 2 * math.log((1 / 2) / (4 / 5))
    loss = distillation_loss(logits.requires_grad_(), told, known, outputs, 2.0)
    assert loss.item() == pytest.approx(4 * (a + b), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 1] == 0
    assert distillation_loss(told + 3, told, known, outputs, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_a_temperature_divides_its_librarys_logits() -> None:
    outputs = LabelSpace(two_libraries((True,) * 5).libraries, (True,) * 5, (2.0, 1.0))
    logits = np.array([[0.0, 2 * math.log(2), 2 * math.log(5), 0.0, math.log(3)]], np.float32)
    assert probabilities(logits, outputs)[0].tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8, 1 / 4, 3 / 4], abs=1e-6)
    assert LabelSpace.from_dict(outputs.to_dict()) == outputs


def test_probabilities_sum_to_one_per_library_and_untrained_labels_stay_at_zero() -> None:
    trained = [True] * 35
    for column in (3, 9, 20):
        trained[column] = False
    trained[26:30] = [False] * 4  # MoNuSAC, wholly
    outputs = LabelSpace(LIBRARIES, tuple(trained))
    logits = 20 * torch.randn(50, 35, generator=torch.Generator().manual_seed(0))
    logits[:, [3, 9, 20, 27]] = 1000.0
    result = probabilities(logits.numpy(), outputs)
    assert result.dtype == np.float32
    assert (result[:, ~np.array(trained)] == 0).all()
    for name, columns in outputs.slices.items():
        np.testing.assert_allclose(result[:, columns].sum(1), 0 if name == "MoNuSAC" else 1, atol=1e-6)
    best = outputs.best(result)
    assert not np.isin(best["NuCLS"], (3, 9)).any()
    assert not (best["CoNSeP"] == 1).any()
    assert (best["MoNuSAC"] == -1).all()
