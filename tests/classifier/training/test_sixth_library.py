"""A user's own library, from points marked in QuPath to six labels a nucleus in every form."""

from __future__ import annotations

import csv
import html
import json
import re
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from click.testing import CliRunner

from nucpipe.backends.model_file import read_header
from pipeline.cli.main import main
from pipeline.inference.models import find_model
from pipeline.store.reader import open_store
from tests.support.paths import EXAMPLES
from tests.support.synthetic import draw_slide

pytestmark = pytest.mark.slow

LIBRARIES = ["NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke", "Lab"]
EXAMPLE = EXAMPLES / "points_from_qupath.py"


def nucpipe(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def mark(folder: Path, name: str, seed: int) -> Path:
    """A tile with QuPath's points: one annotation a class, of several points or of one."""
    drawn = draw_slide(400, 400, seed=seed)
    big = drawn.areas_px > np.median(drawn.areas_px)
    features = []
    for label, chosen in (("Large one", big), ("small", ~big)):
        geometry = {"type": "MultiPoint", "coordinates": drawn.centres[chosen].tolist()}
        features.append({"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": label}}})
    features.append(
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [3, 3]},
            "properties": {"objectType": "annotation"},
        }
    )
    (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return drawn.save(folder / f"{name}.png")


def test_from_marked_points_to_six_labels_a_nucleus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = [mark(tmp_path, f"tile {k}", k) for k in range(3)]
    lab, model, out = tmp_path / "lab", tmp_path / "lab.safetensors", tmp_path / "out"
    subprocess.run([sys.executable, EXAMPLE, "Lab", "0.25", lab, *tiles], check=True)

    train = ["train", "classifier", "--library", f"lab={lab}", "--out", model, "--hold-out", "tile 2"]
    settings = tmp_path / "training.toml"
    settings.write_text('backbone = "test_efficientnet"\nsizes = [[1, 32]]\n')
    train += ["--config", settings, "--steps", 3, "--device", "cpu"]
    train += ["--distil", "fast"]  # it knows the five, of which nothing else is at hand
    said = nucpipe(*train, "--check")
    assert "training: 2 images in 2 groups" in said
    assert "Large one" in said
    assert "no problems" in said
    assert "32 of 37 labels are taught" in said  # the teacher's among them, as in the training
    said = nucpipe(*train)
    assert "32 of 37 labels taught" in said
    assert "Lab: accuracy" in said
    measured = nucpipe("evaluate", "classifier", model, "--library", f"lab={lab}", "--device", "cpu")
    assert "(no interval), balanced" in measured
    assert "intervals: none; they need nuclei of at least two images" in measured
    assert "Intervals: none; they need nuclei of at least two images." in model.with_suffix(".md").read_text("utf-8")
    assert re.search(
        r"of \d+ held-out nuclei, share with the label that fast gives \(no accuracy\): NuCLS [01]\.", said
    )
    # Lab's labels say nothing of how sure the five are to be; the teacher did.
    assert read_header(model).outputs["temperatures"][:5] == [1.0] * 5
    assert read_header(model).outputs["temperatures"][5] != 1.0
    header, taught_by = read_header(model), read_header(find_model("classifier", "fast"))
    assert {"CC-BY-4.0", "CC-BY-NC-SA-4.0", "not stated"} <= {*header.licence.split("; ")}
    assert {one["name"] for one in header.all_data if one["images"]} == {
        "Lab",
        *(one["name"] for one in taught_by.data if one["images"]),
    }
    assert "Lab_1        small" in nucpipe("libraries", "--library", f"lab={lab}")

    slide = draw_slide(320, 240, seed=9).save(tmp_path / "slide.png")
    run = ["run", slide, "--mpp", 0.25, "--out", out, "--classifier", model, "--primary", "Lab", "--tissue", "none"]
    nucpipe(*run, "--device", "cpu")
    result = out / "slide"
    record = json.loads((result / "run.json").read_text())["models"]["classifier"]
    assert record["made_from"] == ["fast"]
    assert "CC-BY-NC-SA-4.0" in record["licence"]
    report = html.unescape((result / "report.html").read_text("utf-8"))
    assert "made from fast, trained on " in report
    store = open_store(result / "nuclei.zarr")
    count = len(store)
    assert count > 5
    table = anndata.read_zarr(result / "nuclei.zarr" / "table")
    assert table.shape == (count, 37)
    assert [c for c in table.obs.columns if c in LIBRARIES] == LIBRARIES
    assert list(table.obs["Lab"].cat.categories) == ["Large one", "small"]
    assert table.var["trained"].sum() == 32
    assert table.obs[LIBRARIES].notna().all(axis=None)
    best = np.asarray(table.X[:, 35:]).argmax(1)
    assert (table.obs["Lab"].cat.codes == best).all()

    features = json.loads((result / "nuclei.geojson").read_text())["features"]
    assert [f["properties"]["classification"]["name"] for f in features] == table.obs["Lab"].tolist()
    nucpipe("export", result, "--to", "csv", "--out", tmp_path / "nuclei.csv")
    rows = list(csv.DictReader((tmp_path / "nuclei.csv").read_text().splitlines()))
    assert [row["Lab"] for row in rows] == table.obs["Lab"].tolist()
    said = nucpipe("classify", tiles[0], "--classifier", model, "--device", "cpu")
    assert said.splitlines()[0].split() == ["image", *LIBRARIES]
