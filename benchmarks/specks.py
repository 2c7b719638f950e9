"""Choose a segmentor's default filter, the least area and detection probability of a nucleus, and measure it.

python benchmarks/specks.py hovernet-compact --data DATA/consep --data DATA/kumar ... \
    --final 'train_6' --final 'Testis' ... [--choose 'train_1' ...] [--images 60] [--write]

Images or groups that --final names are for the last figures only. Of the others, or of those that --choose names,
--images of each set at most, spread over it, serve to choose (segmentation/evaluation/specks.py says how); choose on
images that the model's training held out where there are enough. The final ones are then measured with all nuclei
and with those that the filter keeps. --write puts the filter into the header of the model file, whose weights stay, and
into the model card beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from nucpipe.backends.model_file import read_header, rewrite_header
from nucpipe.datasets import AnnotatedImage, is_named, open_dataset
from pipeline.inference.models import find_model
from segmentation.detector import Detector
from segmentation.evaluation.evaluate import detect_image
from segmentation.evaluation.scores import ImageScore, figures_of
from segmentation.evaluation.specks import JudgedImage, choose_filter, judge, mean_quality
from segmentation.nuclei import NucleusFilter
from segmentation.registry import load_detector
from segmentation.training.model_card import model_card

SHOWN = [NucleusFilter(a, p) for p in (0, 0.6, 0.7, 0.75, 0.8) for a in (0, 4, 6, 8, 10)]


def spread(images: Sequence[AnnotatedImage], most: int) -> list[AnnotatedImage]:
    """Return at most ``most`` images, spread evenly over the set."""
    return [images[k] for k in np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)]


def show(sets: dict[str, list[JudgedImage]], filters: Sequence[NucleusFilter]) -> None:
    """Print what filters remove, and the change of PQ in each set."""
    before = {name: mean_quality(images, NucleusFilter()) for name, images in sets.items()}
    print(f"{'':42}{'matched':>14}{'unmatched':>14}   PQ " + "  ".join(f"{n} {v:.3f}" for n, v in before.items()))
    iou = np.concatenate([image.iou for images in sets.values() for image in images])
    for kept in filters:
        gone = np.concatenate(
            [~kept.keeps(image.area_um2, image.detection_p) for images in sets.values() for image in images]
        )
        cells = [f"{(gone & which).sum()} ({100 * gone[which].mean():.1f} %)" for which in (iou > 0, iou == 0)]
        change = "  ".join(f"{n} {mean_quality(images, kept) - before[n]:+.4f}" for n, images in sets.items())
        print(f"{kept!s:42}{cells[0]:>14}{cells[1]:>14}      {change}")


def final_figures(detector: Detector, images: Sequence[AnnotatedImage], kept: NucleusFilter) -> None:
    """Print the figures of whole images, with all nuclei and with the kept ones."""
    scores: tuple[list[ImageScore], list[ImageScore]] = ([], [])
    for image in images:
        annotation = image.annotation()
        if annotation.instances is not None:
            found = detect_image(detector, image.pixels(), image.mpp)
            for nuclei, some in zip((found, kept.apply(found)), scores, strict=True):
                some.append(ImageScore.of(image.name, image.group, annotation, nuclei, image.mpp))
    for name, some in zip(("all", "kept"), scores, strict=True):
        figures = figures_of(some)
        counts = [sum(getattr(score.segmentation, key) for score in some) for key in ("true", "found", "matched")]
        print(
            f"  {name:5} {len(some)} images  PQ {figures['pq']:.4f}  DQ {figures['dq']:.4f}  SQ {figures['sq']:.4f}  "
            f"AJI {figures['aji']:.4f}  Dice {figures['dice']:.4f}  F1 {figures['detection_f1']:.4f}  "
            f"precision {figures['detection_precision']:.4f}  recall {figures['detection_recall']:.4f}  "
            f"annotated {counts[0]}  found {counts[1]}  matched {counts[2]}",
            flush=True,
        )


@click.command()
@click.argument("model")
@click.option("--data", multiple=True, required=True, type=click.Path(path_type=Path))
@click.option("--final", multiple=True, required=True, help="Images or groups that are not chosen on; wildcards.")
@click.option("--choose", multiple=True, help="Images or groups to choose on.  [default: all that are not final]")
@click.option("--images", "most", default=60, show_default=True, help="To choose on, of each set.")
@click.option("--final-images", default=60, show_default=True, help="To measure on, of each set.")
@click.option("--write", is_flag=True)
def main(
    model: str,
    data: tuple[Path, ...],
    final: tuple[str, ...],
    choose: tuple[str, ...],
    most: int,
    final_images: int,
    write: bool,
) -> None:
    path = find_model("segmentor", model)
    detector = load_detector(path)
    choosing: dict[str, list[JudgedImage]] = {}
    measuring: dict[str, list[AnnotatedImage]] = {}
    for folder in data:
        images = open_dataset(folder)
        last = [image for image in images if is_named(image, final)]
        others = [image for image in images if image not in last and (not choose or is_named(image, choose))]
        judged = [found for image in spread(others, most) if (found := judge(detector, image)) is not None]
        if judged:
            choosing[folder.name] = judged
        measuring[folder.name] = spread(last, final_images)
        print(f"{folder.name}: {len(judged)} images to choose on, {len(last)} final", flush=True)
    kept = choose_filter(choosing)
    show(choosing, [*SHOWN, kept])
    print(f"\nchosen: {kept}  (--min-area {kept.min_area_um2:g} --min-detection {kept.min_detection_p:g})\n")
    for name, last in measuring.items():
        if last:
            print(name)
            final_figures(detector, last, kept)
    if write:
        header = dataclasses.replace(read_header(path), **dataclasses.asdict(kept))
        rewrite_header(path, header)
        path.with_suffix(".md").write_text(model_card(header), "utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
