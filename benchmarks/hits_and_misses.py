"""Pictures of what a classifier gets right and wrong, label by label: to look at rare ones before believing a figure.

python benchmarks/hits_and_misses.py joint-context --library consep=DATA/consep --library monusac=DATA/monusac \
    --label CoNSeP:endothelial --label MoNuSAC:macrophage --out /tmp/pictures

A picture a label, of patches of the images that the model's training held out (--all: of every image), enlarged three
times: three bands of nuclei that bear the label and got it, that bear it and got another, and that got it wrongly. Over
each patch stands the other label of the two and the probability that was given to the predicted one. They show
patients' tissue: keep them under the licence of the data.
"""

from __future__ import annotations

from pathlib import Path

import click
import cv2
import numpy as np
from pictures import in_a_row, text_bar

from classifier.dataset import PatchDataset, extract_patches
from classifier.evaluation.metrics import predict_logits
from classifier.labels.label_mapping import Matching
from classifier.network import load_classifier
from classifier.predictions import probabilities
from classifier.spec import PATCH_PX
from nucpipe.backends.device import pick_device, pick_precision
from nucpipe.datasets import open_dataset, split_groups
from pipeline.cli.options import library_option
from pipeline.inference.models import find_model

ACROSS = 12
ENLARGED = 3
CAPTION_PX, HEAD_PX = 26, 34


def tile(patch: np.ndarray, caption: str) -> np.ndarray:
    side = PATCH_PX * ENLARGED
    enlarged = cv2.resize(patch, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.concatenate([text_bar(caption, side, CAPTION_PX), enlarged])


def band(title: str, tiles: list[np.ndarray], rows: int) -> np.ndarray:
    width = ACROSS * PATCH_PX * ENLARGED
    starts = range(0, min(len(tiles), rows * ACROSS), ACROSS)
    head = text_bar(title, width, HEAD_PX, 225, 0.7)
    return np.concatenate([head, *(in_a_row(tiles[start : start + ACROSS], width) for start in starts)])


def picture(samples: PatchDataset, p: np.ndarray, labels: tuple[str, ...], number: int, rows: int) -> np.ndarray:
    """Return the three bands of one label; in each the surest come first."""
    said, sure = p.argmax(1), p.max(1)
    true = samples.label == number
    order = np.argsort(-sure)
    bands = []
    for title, mask, other in (
        (f"{labels[number]}: right", true & (said == number), said),
        (f"{labels[number]}, called something else", true & (said != number), said),
        (f"wrongly called {labels[number]}", ~true & (said == number) & (samples.label >= 0), samples.label),
    ):
        chosen = [i for i in order if mask[i]]
        shown = np.array(chosen[: rows * ACROSS], np.int64)
        patches = samples.patches(shown, PATCH_PX)
        tiles = [tile(w, f"{labels[other[i]]} {sure[i]:.2f}") for w, i in zip(patches, shown, strict=True)]
        bands.append(band(f"{title}: {len(chosen)}", tiles, rows))
    return np.concatenate(bands)


@click.command()
@click.argument("model", metavar="NAME|PATH")
@library_option()
@click.option("--label", "wanted", multiple=True, metavar="LIBRARY:LABEL", help="[default: labels of under 200 nuclei]")
@click.option("--all", "everything", is_flag=True, help="Of every image, also those that taught the model.")
@click.option("--rows", default=3, show_default=True, help="Rows of each band.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the pictures.")
def main(
    model: str, data: tuple[tuple[str, Path], ...], wanted: tuple[str, ...], everything: bool, rows: int, out: Path
) -> None:
    """Draw hits and misses."""
    device = pick_device("auto")
    network, header, outputs = load_classifier(find_model("classifier", model))
    network.to(device)
    out.mkdir(parents=True, exist_ok=True)
    for name, path in data:
        library = outputs.library(name)
        images = open_dataset(path)
        if not everything:
            names = header.held_out_of(library.name)
            images = split_groups(images, names)[1]
        samples = extract_patches(library, images, Matching(outputs.libraries))
        logits = predict_logits(network, samples, device, pick_precision("auto", device))
        p = probabilities(logits, outputs)[:, outputs.slices[library.name]]
        for number, label in enumerate(library.labels):
            count = int((samples.label == number).sum())
            if count and (f"{library.name}:{label}" in wanted or (not wanted and count < 200)):
                file = out / f"{library.name}-{label}.png"
                cv2.imwrite(str(file), picture(samples, p, library.labels, number, rows)[..., ::-1])
                print(f"{library.name} {label}: {count} nuclei -> {file}", flush=True)


if __name__ == "__main__":
    main()
