"""Accuracy of the whole way, from the finished stores of a run, on annotated images that the models did not learn from.

python benchmarks/accuracy.py --out /tmp/accuracy \
    --set CoNSeP=DATA/consep --set PanNuke=DATA/pannuke --set Kumar=DATA/kumar \
    --hold-out train_6 --hold-out Testis ...

Images are written as PNG, `nucpipe.run` processes the folder, and the stores are compared with the annotations:
Dice and PQ (means over images), F1 of detection (centroids within 3 um, one to one), and, where the set has labels,
how many of the matched nuclei bear the right label of that library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import cv2
import numpy as np

import nucpipe
from nucpipe.common.datasets import AnnotatedImage, open_dataset, split_groups
from pipeline.store import open_store
from segmentation.evaluate import RADIUS_UM, draw_instances
from segmentation.metrics import dice, f1_score, match_by_distance, panoptic_quality
from segmentation.nuclei import Nuclei


@dataclass
class Score:
    """What adds up over the images of a set."""

    dice: list[float] = field(default_factory=list)
    pq: list[float] = field(default_factory=list)
    matched: int = 0
    true: int = 0
    found: int = 0
    labels: list[tuple[str, str]] = field(default_factory=list)  # of matched nuclei: true, predicted


def score_image(score: Score, image: AnnotatedImage, result: Path, library: str) -> None:
    annotation = image.annotation()
    store = open_store(result / "nuclei.zarr")
    offsets, points = store.contours()
    n = len(store)
    nuclei = Nuclei(store.centroids_l0, offsets, points.astype(float), store.detection_p, store.area_um2)
    assert annotation.instances is not None
    drawn = draw_instances(nuclei, annotation.instances.shape)
    score.dice.append(dice(annotation.instances, drawn))
    score.pq.append(panoptic_quality(annotation.instances, drawn)[2])
    true, found = match_by_distance(annotation.centroids, nuclei.centroids, RADIUS_UM / image.mpp)
    score.matched, score.true, score.found = (
        score.matched + len(true),
        score.true + len(annotation.labels),
        score.found + n,
    )
    if any(annotation.labels):
        names = store.info.outputs.library(library).labels
        numbers = store.label_numbers(library)
        score.labels += [(annotation.labels[i], names[numbers[j]]) for i, j in zip(true, found, strict=True)]


def report(name: str, score: Score) -> None:
    print(
        f"\n{name}: {len(score.pq)} images, {score.true} nuclei annotated, {score.found} found\n"
        f"  Dice {np.mean(score.dice):.3f}  PQ {np.mean(score.pq):.3f} (least {min(score.pq):.3f})  "
        f"detection F1 {f1_score(score.matched, score.true, score.found):.3f} "
        f"(precision {score.matched / max(1, score.found):.3f}, recall {score.matched / max(1, score.true):.3f})"
    )
    if not score.labels:
        return
    right = [a == b for a, b in score.labels]
    print(f"  label accuracy on {len(right)} matched nuclei {np.mean(right):.3f}")
    for label in sorted({a for a, _ in score.labels}):
        hits = sum(a == b == label for a, b in score.labels)
        n_true, n_said = (sum(pair[k] == label for pair in score.labels) for k in (0, 1))
        print(
            f"    {label:<22} {n_true:>5} nuclei  precision {hits / max(1, n_said):.3f}  recall {hits / n_true:.3f}  "
            f"F1 {f1_score(hits, n_true, n_said):.3f}"
        )


@click.command()
@click.option("--set", "sets", multiple=True, required=True, metavar="LIBRARY=PATH")
@click.option("--hold-out", multiple=True, required=True, help="Image or group; only these are scored.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--segmentor", default=None)
@click.option("--classifier", default=None)
def main(sets: Sequence[str], hold_out: Sequence[str], out: Path, **models: str | None) -> None:
    """Score the finished stores of held-out images."""
    chosen = {key: value for key, value in models.items() if value}
    for text in sets:
        name, path = text.split("=", 1)
        held = split_groups(open_dataset(Path(path)), hold_out)[1]
        images = out / name / "images"
        images.mkdir(parents=True, exist_ok=True)
        for image in held:
            cv2.imwrite(str(images / f"{image.name}.png"), image.pixels()[..., ::-1])
        results = nucpipe.run(images, out / name / "results", mpp=held[0].mpp, overwrite=True, geojson=False, **chosen)
        failed = [result.cause for result in results if result.status != "done"]
        assert not failed, failed
        score = Score()
        for image in held:
            score_image(score, image, out / name / "results" / image.name, name)
        report(name, score)
        print(f"  {sum(r.seconds for r in results):.1f} s for {len(results)} images")


if __name__ == "__main__":
    main()
