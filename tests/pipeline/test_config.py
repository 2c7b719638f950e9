"""The settings of a run, and the command line that gives them."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest

from nucpipe.errors import UsageError
from pipeline.cli.commands.run import config_of, run
from pipeline.config import RunConfig

CHANGED = RunConfig(
    mpp=0.499,
    device="cpu",
    precision="fp32",
    segmentor="a model.safetensors",
    classifier="fast",
    primary="CoNSeP",
    decide="best",
    threshold=0.6,
    tissue="none",
    min_area=5.0,
    min_detection=0.5,
    region_size=640,
    batch_size=32,
    workers=3,
    overwrite=True,
    geojson=False,
    tta=True,
    features=False,
    profile=True,
)


OF_ANOTHER_TOOL = replace(CHANGED, segmentor=RunConfig.segmentor, nuclei="nuclei.geojson")


@pytest.mark.parametrize("config", [RunConfig(), CHANGED, OF_ANOTHER_TOOL])
def test_the_command_gives_the_settings_again(config: RunConfig) -> None:
    words = shlex.split(config.command("a slide.svs", "results"))
    assert words[:2] == ["nucpipe", "run"]
    options = run.make_context("run", words[2:]).params
    assert (options.pop("slides"), options.pop("out")) == (("a slide.svs",), "results")
    for name in ("max_failures", "dry_run", "cluster"):  # of the batch, not of a slide
        del options[name]
    assert config_of(**options) == config


def test_paths_in_the_command_hold_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rois.geojson").touch()
    for folder in ("nuclei", "fast", "none"):
        (tmp_path / folder).mkdir()
    words = shlex.split(RunConfig(tissue="rois.geojson", nuclei="nuclei", classifier="fast").command("s.svs", "out"))
    assert words[5:] == [
        *("--classifier", "fast", "--tissue", str(tmp_path / "rois.geojson"), "--nuclei", str(tmp_path / "nuclei"))
    ]
    assert RunConfig(tissue="none").with_absolute_paths().tissue == "none"


def test_every_setting_is_in_the_command() -> None:
    for field in fields(RunConfig):
        assert any(getattr(config, field.name) != field.default for config in (CHANGED, OF_ANOTHER_TOOL))


def test_a_segmentor_beside_nuclei_of_another_tool_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--segmentor a model\.safetensors cannot be used with --nuclei"):
        replace(CHANGED, nuclei="nuclei.geojson")
