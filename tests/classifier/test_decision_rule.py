"""Which labels a nucleus gets from its probabilities, in the store and in exports."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from click.testing import CliRunner

from classifier.decision_rule import DecisionRule, best_labels, decide, label_probabilities
from classifier.labels.libraries import LabelSpace, Library, published_libraries
from nucpipe.errors import OutputError, UsageError
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.run_slide import run_slide
from pipeline.store.reader import open_store
from pipeline.store.run_record import SilentReporter
from tests.support.synthetic import MPP, draw_slide, models

GREY = ((0, 0, 0),) * 3
LIBRARIES = (
    Library("A", ("x", "y", "z"), GREY, 0.25, "", ""),
    Library("B", ("u", "v"), GREY[:2], 0.25, "", ""),
)
OUTPUTS = LabelSpace(LIBRARIES, (True, True, False, True, True))
P = np.array([[0.5, 0.5, 0, 0.1, 0.9], [0.7, 0.3, 0, 0.45, 0.55], [0.2, 0.8, 0, 0.6, 0.4]], np.float32)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (DecisionRule(), ["x v", "x v", "y u"]),
        (DecisionRule("best", 0.6), ["v", "x", "y u"]),
        (DecisionRule("best", 0.5), ["x v", "x v", "y u"]),
        (DecisionRule("threshold", 0.5), ["x y v", "x v", "y u"]),
        (DecisionRule("threshold", 0.4), ["x y v", "x u v", "y u v"]),
        (DecisionRule("threshold", 0.95), ["", "", ""]),
    ],
)
def test_each_rule_gives_its_labels(rule: DecisionRule, expected: list[str]) -> None:
    chosen = decide(P, OUTPUTS, rule)
    names = np.array([label for _, label in OUTPUTS.columns])
    assert [" ".join(names[row]) for row in chosen] == expected
    for name, numbers in best_labels(P, OUTPUTS, rule).items():
        part = chosen[:, OUTPUTS.slices[name]]
        assert ((numbers < 0) == ~part.any(1)).all()
        assert all(part[i, k] for i, k in enumerate(numbers) if k >= 0)
    assert DecisionRule.from_dict(rule.to_dict()) == rule


def test_an_untrained_label_is_never_decided_on() -> None:
    p = np.array([[0.0, 0.0, 1.0, 0.5, 0.5]], np.float32)
    for rule in (DecisionRule(), DecisionRule("best", 0.1), DecisionRule("threshold", 0.1)):
        assert not decide(p, OUTPUTS, rule)[0, 2]


@pytest.mark.parametrize(
    ("kind", "threshold", "message"),
    [
        ("argmax", 0.5, "argmax has none"),
        ("best", None, "needs --threshold"),
        ("threshold", 1.5, "--threshold 1.5: expected a probability"),
        ("threshold", 0.0, "expected a probability"),
        ("most", None, "--decide most"),
    ],
)
def test_rules_that_make_no_sense_are_refused(kind: str, threshold: float | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DecisionRule(kind, threshold)


def test_a_threshold_alone_asks_for_the_best_label_that_reaches_it() -> None:
    assert DecisionRule.chosen(None, 0.7) == DecisionRule("best", 0.7)
    assert DecisionRule.chosen(None, None) == DecisionRule("argmax")
    assert RunConfig(threshold=0.7).rule == DecisionRule("best", 0.7)
    with pytest.raises(UsageError, match="argmax has none; use --decide best, or leave --decide out"):
        RunConfig(decide="argmax", threshold=0.7)


def test_a_run_decides_by_its_rule_and_an_export_anew(tmp_path: Path) -> None:
    slide = draw_slide(400, 300).save(tmp_path / "tile.png")
    out = tmp_path / "out"
    run_slide(slide, tmp_path / "argmax", models(), RunConfig(mpp=MPP, tissue="none"), SilentReporter())
    half = float(np.median(open_store(tmp_path / "argmax/nuclei.zarr").label_probabilities("PanNuke")))
    config = RunConfig(mpp=MPP, tissue="none", decide="best", threshold=half)
    count = run_slide(slide, out, models(), config, SilentReporter()).nuclei
    table = anndata.read_zarr(out / "nuclei.zarr" / "table")
    p = table.X[:, 30:35]
    sure = p.max(1) >= np.float32(half)
    assert 0 < sure.sum() < count
    assert (table.obs["PanNuke"].isna() == ~sure).all()
    assert (table.obs["PanNuke"].cat.codes[sure] == p.argmax(1)[sure]).all()
    assert table.var["short"].iloc[[0, 12, 34]].tolist() == ["NuCLS_0", "BreCaHAD_0", "PanNuke_4"]
    assert sum(json.loads((out / "run.json").read_text())["counts"]["PanNuke"].values()) == sure.sum()

    def exported(*options: str) -> list[dict[str, object]]:
        path = tmp_path / "a.geojson"
        result = CliRunner().invoke(
            main, ["export", str(out), "--to", "geojson", "--out", str(path), "--overwrite", *options]
        )
        assert result.exit_code == 0, result.output
        return [f["properties"] for f in json.loads(path.read_text())["features"]]

    as_run = exported()
    assert ["PanNuke" in f["metadata"] for f in as_run] == sure.tolist()
    assert ["classification" in f for f in as_run] == sure.tolist()
    assert all("PanNuke" in f["metadata"] for f in exported("--decide", "argmax"))
    several = exported("--decide", "threshold", "--threshold", "0.2")
    labels = [f["metadata"].get("PanNuke", "").split("; ") for f in several]
    assert [sum(map(bool, some)) for some in labels] == (p >= np.float32(0.2)).sum(1).tolist()
    sure_alone = exported("--threshold", str(half))
    assert ["PanNuke" in f["metadata"] for f in sure_alone] == sure.tolist()
    with pytest.raises(OutputError, match=r"--decide was best --threshold .*, is argmax"):
        run_slide(slide, out, models(), RunConfig(mpp=MPP, tissue="none"), SilentReporter())
    assert len(open_store(out / "nuclei.zarr")) == count


def test_the_probability_is_that_of_the_label() -> None:
    outputs = LabelSpace(published_libraries(), (True,) * 35)
    probabilities = np.random.default_rng(0).random((40, 35), np.float32)
    numbers = best_labels(probabilities, outputs, DecisionRule("best", 0.9))
    found = label_probabilities(probabilities, outputs, numbers)
    for name, columns in outputs.slices.items():
        best = probabilities[:, columns].max(1)
        assert 0 < (best < 0.9).sum() < 40
        np.testing.assert_array_equal(found[name], np.where(best >= np.float32(0.9), best, np.nan))
        assert found[name].dtype == np.float32


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (DecisionRule(), "the label of the largest probability."),
        (DecisionRule("best", 0.6), "if that is at least 0.6, else no label."),
        (DecisionRule("threshold", 0.25), "every label whose probability is at least 0.25: none, one or several"),
    ],
)
def test_a_rule_in_words(rule: DecisionRule, words: str) -> None:
    assert words in rule.in_words
