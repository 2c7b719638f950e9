"""Settings of a training from a TOML file, and from the model that it starts from."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from classifier.training.config import ClassifierTraining
from classifier.training.config_file import read_config
from classifier.training.start import architecture_of
from nucpipe.errors import UsageError
from pipeline.cli.main import main
from pipeline.inference.models import find_model

EXAMPLES = Path(__file__).parents[3] / "examples/training"
FIELDS = {field.name: field.default for field in dataclasses.fields(ClassifierTraining)}


def written(folder: Path, text: str) -> Path:
    path = folder / "training.toml"
    path.write_text(text)
    return path


def test_the_example_documents_every_setting_with_its_default() -> None:
    path = EXAMPLES / "every-setting.toml"
    text = path.read_text()
    settings, _, tables = text.partition("[libraries]")
    names = re.findall(r"^(?:# )?(\w+) = ", settings, re.M) + re.findall(r"^\[(\w+)\]$", "[libraries]" + tables, re.M)
    assert sorted(names) == sorted(FIELDS)
    fields = read_config(path)
    places = {"libraries", "library_weights", "out"}
    assert {name: value for name, value in fields.items() if name not in places} == {
        name: value for name, value in FIELDS.items() if name in fields and name not in places
    }
    assert fields["libraries"][3:5] == (
        ("monusac", EXAMPLES / "data/monusac/train"),
        ("monusac", EXAMPLES / "data/monusac/test"),
    )
    ClassifierTraining(**fields)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_a_training(path: Path) -> None:
    config = ClassifierTraining(**read_config(path))
    assert config.libraries
    assert config.out.suffix == ".safetensors"


def test_paths_start_at_the_file_and_names_of_models_stay(tmp_path: Path) -> None:
    fields = read_config(
        written(
            tmp_path,
            'start_from = ["fast", "mine.safetensors"]\ndistil = "fast"\nmatch_table = "t.toml"\n'
            'sizes = [[1, 64]]\n[libraries]\nlab = "lab"\n[library_weights]\nlab = 2\n',
        )
    )
    assert list(map(str, fields["start_from"])) == ["fast", str(tmp_path / "mine.safetensors")]
    assert [str(model) for model in fields["distil"]] == ["fast"]
    assert fields["match_table"] == tmp_path / "t.toml"
    assert fields["libraries"] == (("lab", tmp_path / "lab"),)
    assert fields["library_weights"] == (("lab", 2.0),)
    assert fields["sizes"] == ((1.0, 64),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", "unknown field 'step', did you mean steps"),
        ("odd = 3", r"unknown field 'odd'\."),
        ('steps = "3"', "steps = '3': input should be a valid integer"),
        ("sizes = [64]", "sizes.0 = 64: "),
        ("steps = ", "cannot be read"),
        ("[libraries]\nconsep = 3", "libraries.consep = 3: input should be a valid string"),
    ],
)
def test_what_is_no_setting_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_config(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(tmp_path / "none.toml")


def test_sizes_are_shares_of_a_whole() -> None:
    def with_sizes(*sizes: tuple[float, int]) -> Any:
        return ClassifierTraining((), Path("m.safetensors"), sizes=sizes)

    with_sizes((0.5, 64), (0.5, 224))
    for wrong in ((), ((0.5, 64),), ((1.0, 16),)):
        with pytest.raises(UsageError, match="sizes = "):
            with_sizes(*wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", -1),
        ("batch_size", 0),
        ("learning_rate", math.nan),
        ("learning_rate", -1.0),
        ("seed", -1),
        ("precision", "fp8"),
        ("mixup", math.nan),
        ("tolerance", math.nan),
        ("patience", 0),
        ("check_every", 0),
        ("distil_weight", math.nan),
        ("library_weights", (("consep", math.nan),)),
        ("sizes", ((math.nan, 64),)),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_a_training(field: str, value: Any) -> None:
    settings: dict[str, Any] = {field: value}
    with pytest.raises(UsageError, match=f"^(--)?{field.replace('_', '[_-]')}"):
        ClassifierTraining((), Path("m.safetensors"), **settings)


def test_a_training_keeps_the_architecture_that_it_starts_from() -> None:
    fast = find_model("classifier", "fast")
    assert architecture_of(fast) == {
        "backbone": "tf_efficientnet_lite0",
        "sizes": ((1.0, 64),),
        "context": False,
        "strides": (1, 2, 2, 2, 1, 2, 2, 1),
    }
    assert architecture_of(fast, context=True) == {"backbone": "tf_efficientnet_lite0"}
    with pytest.raises(Exception, match="expected a classifier"):
        architecture_of(find_model("segmentor", "hovernet-compact"))


@pytest.mark.parametrize("option", ["--start-from", "--distil"])
def test_a_model_that_is_not_there_is_named_by_its_option(tmp_path: Path, option: str) -> None:
    command = ["train", "classifier", "--library", f"consep={tmp_path}", "--out", str(tmp_path / "m.safetensors")]
    refused = CliRunner().invoke(main, [*command, option, "nosuch"])
    assert refused.exit_code == 2
    assert f"{option} nosuch: no such model. Expected fast or joint-context" in refused.output


def test_options_come_before_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'out = "file.safetensors"\n[libraries]\nconsep = "nowhere"\n')
    refused = CliRunner().invoke(main, ["train", "classifier", "--config", str(file), "--check"])
    assert refused.exit_code == 1
    assert str(tmp_path / "nowhere") in refused.output
    refused = CliRunner().invoke(
        main, ["train", "classifier", "--config", str(file), "--check", "--library", f"consep={tmp_path / 'other'}"]
    )
    assert str(tmp_path / "other") in refused.output
    assert "nowhere" not in refused.output


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--out", "m.safetensors"], "--library is missing"), (["--library", "consep=c"], "--out is missing")],
)
def test_what_a_training_needs_is_asked_for(options: list[str], message: str) -> None:
    refused = CliRunner().invoke(main, ["train", "classifier", *options])
    assert refused.exit_code == 2
    assert message in refused.output
    assert "Traceback" not in refused.output
