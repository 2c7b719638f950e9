"""What corrections do for the other nuclei of their slide, on tissue that taught the classifier nothing.

    python benchmarks/adaptation.py CLASSIFIER OCELOT [--images N] [--draws N]

CLASSIFIER is a model file with a projection (nucpipe train projection); OCELOT the folder of its points, "tumour or
not". In each image that has at least 15 cells of both kinds, cells of its left half are corrected (in BreCaHAD's words,
tumor or non_tumor) and the labels of the right half are measured: balanced accuracy and macro F1 of "tumour or not" by
BreCaHAD's labels, and by PanNuke's, to which the label table carries the corrections. Compared are: all that nucpipe
adapt does (features), the base log odds in the features' place, the shares of the labels alone (shares), and features
with the nuclei that the viewer offers in place of nuclei drawn at random (offered).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from classifier.libraries import LabelSpace
from classifier.patches import at_working_mpp, cut_crops
from classifier.predictor import load_predictor
from classifier.spec import PATCH_PX
from nucpipe.datasets import open_dataset
from pipeline.adaptation.clicks import LabelTable
from pipeline.adaptation.model import features_of, fit, standardisation
from pipeline.adaptation.suggest import suggest

CLICKS = (0, 5, 10, 20, 50, 100)
TUMOUR = {"BreCaHAD": ("tumor", "mitosis"), "PanNuke": ("neoplastic",)}
LEAST, MOST = 15, 300
OFFERED_AT_ONCE = 5
NEVER = 10**6


class Image:
    """The cells of one image: what the classifier says of them, and whether they are tumour cells."""

    def __init__(self, base: np.ndarray, stored: np.ndarray, points: np.ndarray, tumour: np.ndarray) -> None:
        self.base, self.stored, self.points, self.tumour = base, stored, points, tumour
        left = points[:, 0] < np.median(points[:, 0])
        self.left, self.right = np.flatnonzero(left), np.flatnonzero(~left)


def gather(classifier: Path, data: Path, most: int) -> tuple[list[Image], LabelSpace]:
    predictor = load_predictor(classifier)
    rng, images = np.random.default_rng(0), []
    for image in open_dataset(data):
        if len(images) == most:
            break
        annotation = image.annotation()
        tumour = np.array([label == "tumor" for label in annotation.labels], bool)
        if min(tumour.sum(), (~tumour).sum()) < LEAST:
            continue
        pixels, points = at_working_mpp(image.pixels(), annotation.centroids, image.mpp)
        edge = PATCH_PX // 2 + 2
        inside = np.all((points > edge) & (points < np.array(pixels.shape[1::-1]) - edge), axis=1)
        rows = rng.permutation(np.flatnonzero(inside))[:MOST]
        said = predictor(cut_crops(pixels, points[rows], 1))
        if said.features is None:
            raise SystemExit(f"{classifier} carries no projection; see nucpipe train projection")
        images.append(Image(said.probabilities, said.features, points[rows], tumour[rows]))
    return images, predictor.outputs


def scores(p: np.ndarray, image: Image, outputs: LabelSpace, library: str) -> tuple[float, float]:
    """Return balanced accuracy and macro F1 on the right half."""
    labels = np.array(outputs.library(library).labels)
    said = np.isin(labels[p[image.right, outputs.slices[library]].argmax(1)], TUMOUR[library])
    truth = image.tumour[image.right]
    recalls, f1 = [], []
    for kind in (True, False):
        hits = (said == kind) & (truth == kind)
        recalls.append(hits.sum() / max((truth == kind).sum(), 1))
        f1.append(2 * hits.sum() / max((truth == kind).sum() + (said == kind).sum(), 1))
    return float(np.mean(recalls)), float(np.mean(f1))


def adapted(image: Image, rows: np.ndarray, outputs: LabelSpace, stored: bool = True, few: int = 5) -> np.ndarray:
    if not len(rows):
        return image.base
    features = features_of(image.base, image.stored if stored else None, outputs)
    tumour, other = (LabelTable(outputs).row("BreCaHAD", label) for label in ("tumor", "non_tumor"))
    allowed = np.where(image.tumour[rows, None], tumour, other)
    model = fit(image.base[rows], features[rows], allowed, outputs, standardisation(features), few)
    return model.apply(image.base, features)


def at_random(image: Image, count: int, draw: int, _: LabelSpace) -> np.ndarray:
    return np.random.default_rng(draw).permutation(image.left)[:count]


def offered(image: Image, count: int, draw: int, outputs: LabelSpace) -> np.ndarray:
    rows, part = np.zeros(0, np.int64), outputs.slices["BreCaHAD"]
    width, height = image.points.max(0) + 1
    while len(rows) < min(count, len(image.left)):
        now = adapted(image, rows, outputs)[:, part]
        some = min(OFFERED_AT_ONCE, count - len(rows))
        size = (int(width), int(height))
        more = suggest(image.base[:, part], now, image.points.astype(np.float32), size, image.left, rows, some, draw)
        rows = np.concatenate([rows, more])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("ocelot", type=Path)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--draws", type=int, default=5)
    given = parser.parse_args()
    images, outputs = gather(given.classifier, given.ocelot, given.images)
    measure(images, outputs, given.draws)


def measure(images: list[Image], outputs: LabelSpace, draws: int) -> None:
    enough = [
        one
        for one in images
        if min(one.tumour[one.right].sum(), (~one.tumour[one.right]).sum()) >= LEAST // 2
        and min(one.tumour[one.left].sum(), (~one.tumour[one.left]).sum()) >= 3
    ]
    print(f"{len(enough)} images, {draws} draws; balanced accuracy / macro F1, mean over images and draws")
    ways: dict[str, tuple[Callable[..., np.ndarray], dict[str, object]]] = {
        "features": (at_random, {}),
        "log odds": (at_random, {"stored": False}),
        "shares": (at_random, {"few": NEVER}),
        "offered": (offered, {}),
    }
    for library in TUMOUR:
        print(f"\nby {library}'s labels\nclicks    " + "".join(f"{n:>15}" for n in CLICKS))
        for name, (choose, how) in ways.items():
            cells = []
            for count in CLICKS:
                found = [
                    scores(adapted(one, choose(one, count, draw, outputs), outputs, **how), one, outputs, library)
                    for one in enough
                    for draw in range(draws if count else 1)
                ]
                cells.append("{:.3f} / {:.3f}".format(*np.mean(found, 0)))
            print(f"{name:<10}" + "".join(f"{cell:>15}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
