"""Accuracy of the whole way, from the finished stores of a run, on annotated images that the models did not learn from.

python benchmarks/accuracy.py --out /tmp/accuracy \
    --set CoNSeP=DATA/consep --set PanNuke=DATA/pannuke --set Kumar=DATA/kumar \
    --hold-out train_6 --hold-out Testis ...

Images are written as PNG, `nucpipe.run` processes the folder, and the stores are compared with the annotations:
Dice, AJI, DQ, SQ and PQ (means over images, and all images as one), bPQ and mPQ as PanNuke's owners define them,
detection (centroids within 3 um, one to one), and, where the set has labels, how many of the matched nuclei bear the
right label of that library, and F_c of each label.
Any --segmentor and --classifier of `nucpipe run` can be measured; the figures also go to OUT/figures.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import cv2

import nucpipe
from classifier.labels.libraries import Library
from nucpipe.datasets import AnnotatedImage, open_dataset, split_groups
from pipeline.store.reader import Store, open_store
from segmentation.evaluation.metrics import DetectionCounts
from segmentation.evaluation.scores import GROUPED, ImageScore, figures_of, type_figures
from segmentation.nuclei import Nuclei


def score_store(image: AnnotatedImage, store: Store, library: Library | None) -> ImageScore:
    """Return the nuclei of a finished store against the image's annotation, and their labels in that library."""
    annotation = image.annotation()
    offsets, points = store.contours()
    nuclei = Nuclei(store.centroids_l0, offsets, points.astype(float), store.detection_p, store.area_um2)
    types = None
    if library is not None:
        names = (*library.labels, "")  # the last one is number -1
        types = [names[number] for number in store.label_numbers(library.name).tolist()]
    return ImageScore.of(image.name, image.group, annotation, nuclei, image.mpp, types)


def report(name: str, scores: Sequence[ImageScore], library: Library | None) -> dict[str, Any]:
    """Print and return the figures of a set."""
    figures = figures_of(scores)
    found = DetectionCounts.total(score.detection for score in scores)
    worst = min(scores, key=lambda score: score.segmentation.pq)
    print(f"\n{name}: {len(scores)} images, {found.true} nuclei annotated, {found.found} found")
    print("  " + "  ".join(f"{key.upper()} {figures[key]:.3f}" for key in ("dice", "aji", "dq", "sq", "pq")))
    print("  all images as one: " + "  ".join(f"{key.upper()} {value:.3f}" for key, value in figures["set"].items()))
    print("  by PanNuke's definition: " + "  ".join(f"{k.upper()} {figures[k]:.3f}" for k in GROUPED if k in figures))
    print(f"  least PQ {worst.segmentation.pq:.3f} ({worst.name})")
    print(f"  detection F1 {found.f1:.3f} (precision {found.precision:.3f}, recall {found.recall:.3f})")
    if library is None:
        return figures
    groupings: dict[str, Any] = {"labels": {label: (label,) for label in library.labels}, **library.groups}
    for grouping, groups in groupings.items():
        merged = {label: group for group, labels in groups.items() for label in labels}
        figures[grouping] = type_figures(scores, groups, merged)
        print(f"  {grouping}: accuracy of matched nuclei {figures[grouping]['accuracy']:.3f}; F_c:")
        print("    " + "  ".join(f"{group} {value:.3f}" for group, value in figures[grouping]["f1"].items()))
    return figures


def run_images(images: Sequence[AnnotatedImage], out: Path, models: dict[str, Any]) -> tuple[list[Store], float]:
    """Return each image's finished store, and the seconds of the runs; images of one pixel size in one run."""
    seconds = 0.0
    for mpp in {image.mpp for image in images}:
        folder = out / f"images_{mpp:g}"
        folder.mkdir(parents=True, exist_ok=True)
        for image in images:
            if image.mpp == mpp:
                cv2.imwrite(str(folder / f"{image.name}.png"), image.pixels()[..., ::-1])
        settings = {"mpp": mpp, "overwrite": True, "geojson": False, **models}
        results = nucpipe.run(folder, out / f"results_{mpp:g}", **settings)
        failed = [result.cause for result in results if result.status == "failed"]
        assert not failed, failed
        seconds += sum(result.seconds for result in results)
    return [open_store(out / f"results_{i.mpp:g}" / i.name / "nuclei.zarr") for i in images], seconds


@click.command()
@click.option("--set", "sets", multiple=True, required=True, metavar="LIBRARY=PATH")
@click.option("--hold-out", multiple=True, required=True, help="Image or group; only these are scored.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--segmentor", default=None)
@click.option("--classifier", default=None)
@click.option("--tta", is_flag=True)
def main(sets: Sequence[str], hold_out: Sequence[str], out: Path, **models: Any) -> None:
    """Score the finished stores of held-out images."""
    chosen = {key: value for key, value in models.items() if value}
    figures = {}
    for text in sets:
        name, path = text.split("=", 1)
        held = split_groups(open_dataset(Path(path)), hold_out)[1]
        stores, seconds = run_images(held, out / name, chosen)
        libraries = stores[0].info.outputs.libraries
        library = next((lib for lib in libraries if lib.name.lower() == name.lower()), None)
        scores = [score_store(image, store, library) for image, store in zip(held, stores, strict=True)]
        figures[name] = report(name, scores, library)
        print(f"  {seconds:.1f} s for {len(held)} images")
    (out / "figures.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
