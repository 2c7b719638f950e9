"""A user's own segmentor, from outlines drawn in QuPath on a slide to nuclei found by it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from nucpipe.backends.model_file import read_header
from nucpipe.datasets import open_dataset
from pipeline.cli.main import main
from pipeline.store.reader import open_store
from tests.support.paths import EXAMPLES
from tests.support.slides import write_tiled_tiff
from tests.support.synthetic import draw_slide

pytestmark = pytest.mark.slow

EXAMPLE = EXAMPLES / "outlines_from_qupath.py"
MPP = 0.3


def nucpipe(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def outline(folder: Path, name: str, seed: int) -> tuple[Path, Path]:
    """A slide with two regions, and the GeoJSON that QuPath would write of it: regions and nuclei."""
    drawn = draw_slide(640, 512, seed=seed)
    write_tiled_tiff(folder / f"{name}.tif", drawn.image, MPP)
    dark = (drawn.image[..., 1] < 110).astype(np.uint8)
    rings = [contour[:, 0] + 0.5 for contour in cv2.findContours(dark, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]]
    objects = [(ring.tolist(), "Tumor") for ring in rings]
    for x, y in ((20, 30), (330, 200)):
        objects.append(([[x, y], [x + 280, y], [x + 280, y + 280], [x, y + 280]], "Region*"))
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            "properties": {"objectType": "annotation", "classification": {"name": label, "color": [200, 0, 0]}},
        }
        for ring, label in objects
    ]
    path = folder / f"{name}.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return folder / f"{name}.tif", path


def test_from_outlines_in_qupath_to_a_segmentor_of_ones_own(tmp_path: Path) -> None:
    slides = [outline(tmp_path, f"slide {k}", k) for k in range(3)]
    lab, model, out = tmp_path / "lab", tmp_path / "mine.safetensors", tmp_path / "out"
    files = [file for pair in slides for file in pair]
    subprocess.run([sys.executable, EXAMPLE, lab, *files], check=True)
    images = open_dataset(lab)
    assert [(image.group, image.mpp) for image in images] == [(f"slide {k}", 0.25) for k in (0, 0, 1, 1, 2, 2)]
    for image in images:
        annotation, pixels = image.annotation(), image.pixels()
        assert set(annotation.labels) == {"Tumor"}
        assert pixels.shape == (336, 336, 3)
        assert annotation.instances is not None
        # What is outlined is what is dark: the outlines were moved and scaled as the pixels were.
        assert ((annotation.instances > 0) == (pixels[..., 1] < 140)).mean() > 0.97
    train = ["train", "segmentor", "--data", lab, "--out", model, "--hold-out", "slide 2", "--device", "cpu"]
    train += ["--start-from", "hovernet-compact", "--steps", 1, "--batch-size", 1]
    said = nucpipe(*train, "--check")
    assert "training: 4 images in 2 groups" in said
    assert "held out: 2 images in 1 groups" in said
    nucpipe(*train)
    assert read_header(model).data == [
        {"name": "lab", "images": 4, "held_out": ["slide 2"], "held_out_images": 2, "licence": "not stated"}
    ]
    # The classes teach a classifier.
    (lab / "library.toml").write_text('name = "Lab"\nlabels = ["tumor", "other"]\nmpp = 0.25\nlicence = "not stated"\n')
    said = nucpipe("train", "classifier", "--library", f"lab={lab}", "--out", model, "--hold-out", "slide 2", "--check")
    assert "Tumor                    teaches Lab tumor" in said
    assert "no problems" in said
    said = nucpipe("evaluate", "segmentor", model, "--data", lab, "--device", "cpu")
    assert "lab: 2 images" in said
    assert "means over groups (tissues, patients, else images), as defined for PanNuke: BPQ 0." in said
    nucpipe(
        "run",
        slides[2][0],
        "--out",
        out,
        "--segmentor",
        model,
        "--classifier",
        "fast",
        "--tissue",
        "none",
        "--device",
        "cpu",
    )
    store = open_store(out / "slide 2" / "nuclei.zarr")
    assert len(store) > 5
    assert store.info.models["segmentor"]["name"] == "mine"
