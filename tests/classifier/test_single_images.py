"""Naming images of single nuclei: patches, preprocessing, tables and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from classifier.decision_rule import DecisionRule
from classifier.labels.libraries import LabelSpace, published_libraries
from classifier.predictor import load_predictor
from classifier.single_images.classify import NamedImages, as_table, patch_of, preparation
from classifier.single_images.preprocess import denoise, sharpen, stain_normaliser
from nucpipe.errors import DataError, UsageError
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.inference.models import find_model

NOISE = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)


def nucleus(stain: tuple[int, int, int] = (90, 40, 130)) -> np.ndarray:
    """A dark ellipse on pink ground with some grain, RGB."""
    image = np.full((128, 128, 3), (230, 180, 210), np.uint8)
    cv2.ellipse(image, (64, 64), (20, 14), 30, 0, 360, stain, -1)
    grain = np.random.default_rng(1).normal(0, 6, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def test_the_patch_is_16_micrometres_round_the_point() -> None:
    assert np.array_equal(patch_of(NOISE[:64, :64], None, None), NOISE[:64, :64])
    assert np.array_equal(patch_of(NOISE, 0.25, None), NOISE[68:132, 118:182])
    assert np.array_equal(patch_of(NOISE, 0.25, (100.4, 90)), NOISE[58:122, 68:132])
    corner = patch_of(NOISE, 0.25, (0, 0))
    assert np.array_equal(corner[32:, 32:], NOISE[:32, :32])
    halved = cv2.resize(NOISE[::2, ::2], (300, 200), interpolation=cv2.INTER_LINEAR)
    assert np.abs(patch_of(NOISE[::2, ::2], 0.5, None).astype(int) - halved[68:132, 118:182]).max() <= 1
    for shape in ((5, 3), (1, 1), (40, 64), (333, 100)):
        for mpp in (None, 0.25, 0.1, 2.0):
            assert patch_of(NOISE.repeat(2, 0)[: shape[0], : shape[1]], mpp, None).shape == (64, 64, 3)
    # A square image as a whole, an oblong one with its longer sides' reflections.
    whole = patch_of(NOISE[:128, :128], None, None)
    assert np.array_equal(whole, cv2.resize(NOISE[:128, :128], (64, 64), interpolation=cv2.INTER_AREA))
    oblong = patch_of(NOISE[:32, :64], None, None)
    assert np.array_equal(oblong[16:48], NOISE[:32, :64])
    assert np.array_equal(oblong[15], NOISE[0, :64])
    with pytest.raises(UsageError, match="outside an image of 300 x 200"):
        patch_of(NOISE, 0.25, (301, 0))
    with pytest.raises(UsageError, match="--at needs --mpp"):
        patch_of(NOISE, None, (3, 3))


def test_denoising_takes_grain_away_and_sharpening_adds_edges() -> None:
    image = nucleus()
    flat = (slice(5, 25), slice(5, 25))
    assert denoise(image)[flat].std((0, 1)).max() < 0.6 * image[flat].std((0, 1)).min()
    assert image[flat].mean() == pytest.approx(denoise(image)[flat].mean(), abs=2)
    assert sharpen(image).std() > image.std()
    constant = np.full((20, 20, 3), 77, np.uint8)
    assert np.array_equal(sharpen(constant), constant)


def test_stains_become_those_of_the_target() -> None:
    target, other = nucleus(), nucleus((150, 60, 90))
    step = stain_normaliser(target, "macenko")
    inside = (slice(58, 70), slice(58, 70))
    before, after = (np.abs(x[inside].mean((0, 1)) - target[inside].mean((0, 1))).max() for x in (other, step(other)))
    assert after < before / 2
    for method in ("reinhard", "ruifrok"):
        assert stain_normaliser(target, method)(other).shape == other.shape
    with pytest.raises(DataError, match="no stain found"):
        step(np.full((64, 64, 3), 255, np.uint8))
    with pytest.raises(UsageError, match="given together"):
        preparation(("normalise",), None, "macenko")
    with pytest.raises(UsageError, match="given together"):
        preparation(("denoise",), Path("x.png"), "macenko")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    cv2.imwrite(str(folder / "a.png"), nucleus()[..., ::-1])
    cv2.imwrite(str(folder / "b.tif"), nucleus((60, 30, 90))[32:96, 32:96, ::-1])
    (folder / "broken.png").write_bytes(b"PNG")
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["classify", *map(str, arguments), "--device", "cpu", "--precision", "fp32"])


def test_json_has_what_the_network_says(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    result = invoke(images / "a.png", images / "b.tif", "--mpp", 0.25, "--format", "json", "--out", out)
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    predictor = load_predictor(find_model("classifier", RunConfig().classifier), precision="fp32")
    pixels = np.stack([nucleus()[32:96, 32:96], nucleus((60, 30, 90))[32:96, 32:96]])
    p = predictor(pixels).probabilities
    best = predictor.outputs.best(p)
    assert [Path(entry["image"]).name for entry in content["images"]] == ["a.png", "b.tif"]
    for i, entry in enumerate(content["images"]):
        assert list(entry["labels"]) == ["NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke"]
        flat = [value for name in entry["labels"] for value in entry["probabilities"][name].values()]
        np.testing.assert_allclose(flat, p[i], atol=1e-5)
        for library in predictor.outputs.libraries:
            (label,) = entry["labels"][library.name]
            assert label["label"] == library.labels[best[library.name][i]]
            assert label["short"] == f"{library.name}_{best[library.name][i]}"
    assert "note" not in content
    written = out.read_bytes()
    again = invoke(images / "a.png", "--mpp", 0.25, "--format", "json", "--out", out, "--classifier", "fast")
    assert (again.exit_code, out.read_bytes()) == (1, written)
    assert again.stderr == f"nucpipe: {out}: already exists; give another --out, or --overwrite to replace it.\n"
    invoke(images / "a.png", "--mpp", 0.25, "--format", "json", "--out", out, "--classifier", "fast", "--overwrite")
    assert "NuCLS: taught by other libraries' labels only" in json.loads(out.read_text())["note"]


def test_a_bad_image_is_named_and_the_others_are_done(images: Path) -> None:
    result = invoke(images / "a.png", images / "broken.png", images / "b.tif")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split()[0].rsplit("/")[-1] for line in lines[:3]] == ["image", "a.png", "b.tif"]
    assert f"{images / 'broken.png'}: expected an image (PNG, JPEG, TIFF); the file is something else" in result.stderr


def test_no_image_is_no_table_but_an_error(images: Path, tmp_path: Path) -> None:
    missing, out = images / "nofile.png", tmp_path / "table.txt"
    for options in ((), ("--out", out)):
        result = invoke(missing, *options)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr == f"nucpipe: {missing}: expected an image; there is no such file.\n"
    assert not out.exists()
    assert "expected an image; it is a folder" in invoke(images).stderr


def test_an_output_that_cannot_be_written_is_told_in_a_line(images: Path) -> None:
    result = invoke(images / "a.png", "--out", images / "no" / "such" / "folder.txt")
    assert result.exit_code == 1
    assert "folder.txt: cannot be written (No such file or directory); make room or give a folder" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_rule_can_give_none_or_several(images: Path) -> None:
    outputs = LabelSpace(published_libraries(), (True,) * 35)
    p = np.zeros((1, 35), np.float32)
    p[0, [0, 1, 12, 19, 26, 30]] = 0.6, 0.4, 0.9, 0.2, 1, 0.5
    named = NamedImages((Path("x.png"),), p, outputs, (), ())
    row = as_table(named, DecisionRule("threshold", 0.4)).splitlines()[1]
    assert re.split("  +", row) == [
        "x.png",
        "tumor 0.60; fibroblast 0.40",
        "mitosis 0.90",
        "-",
        "epithelial 1.00",
        "neoplastic 0.50",
    ]
    result = invoke(images / "a.png", "--threshold", "1")
    assert result.exit_code == 0
    assert "-" in result.stdout.splitlines()[1].split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--at", "3;4"), "expected X,Y"),
        (("--at", "3,4"), "--at needs --mpp"),
        (("--mpp", "25"), "--mpp 25: expected micrometres"),
        (("--classifier", "none"), "no such model"),
        (("--decide", "argmax", "--threshold", "0.5"), "argmax has none"),
        (("--preprocess", "normalise"), "--stain-target"),
    ],
)
def test_wrong_usage_is_told_in_a_line(images: Path, options: tuple[str, ...], message: str) -> None:
    result = invoke(images / "a.png", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
