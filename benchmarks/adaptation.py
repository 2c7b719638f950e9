"""What corrections do for the other nuclei of their slide, on tissue that taught the classifier nothing.

    python -m benchmarks.adaptation --out /tmp/adaptation --set OCELOT=DATA/ocelot --set PanNuke=DATA/pannuke \
        --hold-out 'stomach *' --hold-out Thyroid ...

The held-out images are run as nucpipe runs a slide; the second time their results are there. A nucleus has the label of
the annotation within 3 um. A set that is no library of the classifier says "tumor" or another label, and is corrected
in BreCaHAD's words, tumor or non_tumor; the others are corrected in their own.

The images of a group (a patient; of PanNuke a tissue) count as a slide. Corrections are drawn from the left halves of
its images and measured on the right halves (same slide), or drawn from all its images but one and measured on that one
(other images). Balanced accuracy and macro F1 are means over the labels of which at least five nuclei are tested; the
tables are means over slides and draws. Compared are what nucpipe adapt does with nuclei drawn at random (adapt) and
with those that the viewer offers (offered), the shares of the labels corrected alone (shares), and what a user could do
without nucpipe (forest): a random forest, from the same corrections, on measurements of shape and stain such as
QuPath's, of the nucleus, of a ring of 3 um round it, and of both the mean over the neighbours (Gaussian, 25 um). At
last, what a library without corrections gains or loses (carried): all corrections are in BreCaHAD's words, which the
label table carries over.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from scipy.spatial import cKDTree
from sklearn.ensemble import RandomForestClassifier

from benchmarks.accuracy import run_images
from classifier.labels.libraries import LabelSpace
from nucpipe.datasets import AnnotatedImage, open_dataset, split_groups
from nucpipe.stains import stain_matrix
from pipeline.adaptation.clicks import LabelTable, says_one_thing
from pipeline.adaptation.model import FEW, features_of, fit, standard_of
from pipeline.adaptation.suggest import suggest
from pipeline.store.reader import Store
from segmentation.evaluation.metrics import match_by_distance
from segmentation.nuclei import MEASURES

CLICKS = (0, 10, 20, 50, 100, 200)
NEVER = 10**6
MATCH_UM, CELL_UM, SMOOTH_UM = 3.0, 3.0, 25.0
LEAST = 5
OFFERED_AT_ONCE = 10
TREES = 50
TUMOUR = ("tumor", "mitosis")
MALIGNANT = ("tumor", "mitotic_figure", "mitosis", "malignant_epithelial", "neoplastic")
"""Labels of any library that say a tumour cell; the epithelial cells of MoNuSAC's images are some, too."""


@dataclass(frozen=True)
class Slide:
    """The nuclei of a group of images, one after the other.

    Attributes:
        name: of the group.
        base, features, measured, points: (N, ...) probabilities, what the adaptation looks at, what the forest looks
            at, centroids.
        size: (width, height) of an image.
        image: (N,) the number of the image that a nucleus is in.
        truth: (N,) the number of its true class; -1 where it is not annotated.
        outputs: the columns of ``base``.
    """

    name: str
    base: np.ndarray
    features: np.ndarray
    measured: np.ndarray
    points: np.ndarray
    size: tuple[int, int]
    image: np.ndarray
    truth: np.ndarray
    outputs: LabelSpace

    @cached_property
    def standard(self) -> tuple[np.ndarray, np.ndarray]:
        return standard_of(self.features, self.base, self.outputs)


@dataclass(frozen=True)
class Task:
    """What is corrected and measured in a set: its classes, by name their labels in the library that is corrected.

    Attributes:
        library: whose words corrections are in.
        classes: the label that is given to a nucleus of each class.
        labels: of each class, the labels of the library that are right for it.
    """

    library: str
    classes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, name: str, outputs: LabelSpace) -> Task:
        known = [library for library in outputs.libraries if library.name.lower() == name.lower()]
        if known:
            labels = tuple(known[0].labels)
            return cls(known[0].name, labels, tuple((label,) for label in labels))
        others = tuple(set(outputs.library("BreCaHAD").labels) - set(TUMOUR))
        return cls("BreCaHAD", ("tumor", "non_tumor"), (TUMOUR, others))

    def said(self, p: np.ndarray, outputs: LabelSpace) -> np.ndarray:
        """Return (N,) the class that probabilities (N, columns) say."""
        labels = outputs.library(self.library).labels
        class_of = {label: k for k, right in enumerate(self.labels) for label in right}
        numbers = np.array([class_of.get(label, -1) for label in labels])
        return numbers[p[:, outputs.slices[self.library]].argmax(1)]


def read_slide(name: str, images: Sequence[AnnotatedImage], stores: Sequence[Store], task: Task) -> Slide:
    parts: list[dict[str, Any]] = []
    for k, (image, store) in enumerate(zip(images, stores, strict=True)):
        annotation, points = image.annotation(), store.centroids_l0
        truth = np.full(len(store), -1)
        known = [task.classes.index(label) if label in task.classes else -1 for label in annotation.labels]
        if "other" in annotation.labels and "non_tumor" in task.classes:
            known = [int(label != "tumor") for label in annotation.labels]
        true, found = match_by_distance(annotation.centroids, points, MATCH_UM / image.mpp)
        truth[found] = np.array(known, int)[true]
        pixels = image.pixels()
        parts.append(
            {
                "base": store.probabilities,
                "features": features_of(store),
                "measured": measurements(pixels, store, image.mpp),
                "points": points,
                "image": np.full(len(store), k),
                "truth": truth,
            }
        )
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    size = pixels.shape[1], pixels.shape[0]
    return Slide(name=name, size=size, outputs=stores[0].info.outputs, **joined)


def measurements(pixels: np.ndarray, store: Store, mpp: float) -> np.ndarray:
    """Return (N, M) what QuPath measures of a nucleus and its cell, and the same smoothed over the neighbours."""
    density = -np.log10(np.maximum(pixels, 1) / 255)
    stains = (density @ np.linalg.inv(stain_matrix()))[..., :2].astype(np.float32)
    offsets, points = store.contours()
    wide = round(CELL_UM / mpp)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * wide + 1, 2 * wide + 1))
    rows = []
    for start, stop in pairwise(offsets.tolist()):
        ring = points[start:stop]
        left, top = np.maximum(np.floor(ring.min(0)).astype(int) - wide, 0)
        right, bottom = np.ceil(ring.max(0)).astype(int) + wide + 1
        part = stains[top:bottom, left:right]
        mask = np.zeros(part.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.round(ring - (left, top) - 0.5).astype(np.int32)], 1)
        around = cv2.dilate(mask, kernel) - mask
        row: list[float] = []
        for inside in (mask, around):
            values = part[inside > 0] if inside.any() else np.zeros((1, 2), np.float32)
            row += [*values.mean(0), *values.std(0), *values.min(0), *values.max(0)]
        rows.append(row)
    shape = np.stack([store.area_um2, *(store.measure(name) for name in MEASURES)], axis=1)
    own = np.nan_to_num(np.hstack([shape, np.array(rows, float).reshape(len(store), -1)]))
    return np.hstack([own, smoothed(own, store.centroids_l0 * mpp)]) if len(own) else np.hstack([own, own])


def smoothed(values: np.ndarray, points_um: np.ndarray) -> np.ndarray:
    """Return the mean of values (N, M) over the neighbours, by a Gaussian of 25 um full width."""
    tree, sigma = cKDTree(points_um), SMOOTH_UM / 2.355
    near = tree.sparse_distance_matrix(tree, 3 * sigma, output_type="coo_matrix").tocsr()
    near.data = np.exp(-((near.data / sigma) ** 2) / 2)
    near.setdiag(1)
    return (near @ values) / near.sum(1).A


@dataclass(frozen=True)
class Part:
    """Where corrections are drawn in a slide, and where they are measured."""

    slide: Slide
    drawn: np.ndarray
    tested: np.ndarray

    def is_enough(self) -> bool:
        """Tell whether at least two classes are tested and drawn."""
        tested = np.bincount(self.slide.truth[self.tested], minlength=1)
        drawn = np.bincount(self.slide.truth[self.drawn], minlength=len(tested))
        return bool(((tested >= LEAST) & (drawn[: len(tested)] >= LEAST)).sum() >= 2)


def halves(slide: Slide) -> list[Part]:
    left = np.zeros(len(slide.truth), bool)
    for k in np.unique(slide.image):
        here = (slide.image == k) & (slide.truth >= 0)
        left[here] = slide.points[here, 0] < np.median(slide.points[here, 0])
    known = slide.truth >= 0
    return [Part(slide, np.flatnonzero(left & known), np.flatnonzero(~left & known))]


def others(slide: Slide) -> list[Part]:
    known = slide.truth >= 0
    return [
        Part(slide, np.flatnonzero(known & (slide.image != k)), np.flatnonzero(known & (slide.image == k)))
        for k in np.unique(slide.image)
    ]


def scores(said: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return balanced accuracy and macro F1 over the classes of which enough nuclei are tested."""
    recalls, f1 = [], []
    for kind in np.flatnonzero(np.bincount(truth) >= LEAST):
        hits = ((said == kind) & (truth == kind)).sum()
        recalls.append(hits / (truth == kind).sum())
        f1.append(2 * hits / ((truth == kind).sum() + (said == kind).sum()))
    return float(np.mean(recalls)), float(np.mean(f1))


class Ways:
    """The ways from corrections to labels of all nuclei of a slide."""

    def __init__(self, outputs: LabelSpace, task: Task) -> None:
        self.outputs, self.task = outputs, task
        table, own = LabelTable(outputs), np.zeros(len(outputs), bool)
        own[outputs.slices[task.library]] = True
        self.allowed = np.array([table.row(task.library, label) & own for label in task.classes])
        malignant = (*MALIGNANT, "epithelial") if task.library == "MoNuSAC" else MALIGNANT
        words = ["tumor" if label in malignant else "non_tumor" for label in task.classes]
        self.allowed_by_others = np.array([table.row("BreCaHAD", word) & own for word in words])

    def adapted(self, slide: Slide, rows: np.ndarray, few: int = FEW, own: bool = True) -> np.ndarray:
        allowed = (self.allowed if own else self.allowed_by_others)[slide.truth[rows]]
        if not len(rows) or (not own and says_one_thing(allowed)):
            return slide.base
        model = fit(slide.base[rows], slide.features[rows], allowed, self.outputs, slide.standard, few)
        return model.apply(slide.base, slide.features)

    def adaptation(self, slide: Slide, rows: np.ndarray, _: int) -> np.ndarray:
        return self.task.said(self.adapted(slide, rows), self.outputs)

    def shares(self, slide: Slide, rows: np.ndarray, _: int) -> np.ndarray:
        return self.task.said(self.adapted(slide, rows, NEVER), self.outputs)

    def carried(self, slide: Slide, rows: np.ndarray, _: int) -> np.ndarray:
        return self.task.said(self.adapted(slide, rows, own=False), self.outputs)

    def forest(self, slide: Slide, rows: np.ndarray, draw: int) -> np.ndarray:
        forest = RandomForestClassifier(TREES, random_state=draw).fit(slide.measured[rows], slide.truth[rows])
        return np.asarray(forest.predict(slide.measured))

    def at_random(self, part: Part, most: int, draw: int) -> np.ndarray:
        """Return nuclei to correct, the first one first; fewer of them are fewer corrections."""
        return np.random.default_rng(draw).permutation(part.drawn)[:most]

    def offered(self, part: Part, most: int, draw: int) -> np.ndarray:
        slide, columns = part.slide, self.outputs.slices[self.task.library]
        rows = np.zeros(0, np.int64)
        while len(rows) < min(most, len(part.drawn)):
            now = self.adapted(slide, rows)[:, columns]
            at_once = min(OFFERED_AT_ONCE, most - len(rows))
            more = suggest(
                slide.base[:, columns],
                now,
                slide.points.astype(np.float32),
                slide.size,
                part.drawn,
                rows,
                at_once,
                draw,
            )
            rows = np.concatenate([rows, more])
        return rows


def table(parts: Sequence[Part], ways: Ways, draws: int, compared: Sequence[str]) -> dict[str, Any]:
    """Print and return the means over slides and draws, of each way and number of corrections.

    A number of corrections is measured on the slides that have as many; so what is gained over no correction is
    the mean over these.
    """
    chosen: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
        "adapt": (ways.at_random, ways.adaptation),
        "offered": (ways.offered, ways.adaptation),
        "shares": (ways.at_random, ways.shares),
        "forest": (ways.at_random, ways.forest),
        "carried": (ways.at_random, ways.carried),
    }
    found: dict[str, dict[int, list[tuple[float, ...]]]] = {name: defaultdict(list) for name in compared}
    for part in parts:
        truth = part.slide.truth[part.tested]
        before = scores(ways.task.said(part.slide.base, ways.outputs)[part.tested], truth)
        counts = [count for count in CLICKS[1:] if count <= len(part.drawn)]
        for name in compared:
            choose, label = chosen[name]
            found[name][0].append((*before, 0.0, 0.0))
            for draw in range(draws):
                rows = choose(part, max(counts, default=0), draw)
                for count in counts:
                    after = scores(label(part.slide, rows[:count], draw)[part.tested], truth)
                    found[name][count].append((*after, after[0] - before[0], after[1] - before[1]))
    print("  corrections" + "".join(f"{count:>22}" for count in CLICKS))
    slides = {count: len(found[compared[0]][count]) // (draws if count else 1) for count in CLICKS}
    print("  slides     " + "".join(f"{slides[count]:>22}" for count in CLICKS))
    figures: dict[str, Any] = {"slides": slides}
    for name in compared:
        figures[name] = {n: np.mean(found[name][n], 0).tolist() for n in CLICKS if found[name][n]}
        cells = ["{:.3f}/{:.3f} {:+.3f}/{:+.3f}".format(*figures[name][n]) for n in figures[name]]
        print(f"  {name:<11}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
    return figures


def gather(
    name: str, path: Path, hold_out: Sequence[str], out: Path, classifier: str
) -> tuple[list[Slide], LabelSpace]:
    held = split_groups(open_dataset(path), hold_out)[1]
    images = [image for image in held if len(image.annotation().labels)]
    models = {"classifier": classifier, "tissue": "none", "overwrite": False}
    stores, _ = run_images(images, out / name, models)
    outputs = stores[0].info.outputs
    by_group: dict[str, list[tuple[AnnotatedImage, Store]]] = defaultdict(list)
    for image, store in zip(images, stores, strict=True):
        by_group[image.group].append((image, store))
    task = Task.of(name, outputs)
    return [read_slide(group, *zip(*pairs, strict=True), task) for group, pairs in sorted(by_group.items())], outputs


@click.command()
@click.option("--set", "sets", multiple=True, required=True, metavar="LIBRARY=PATH")
@click.option("--hold-out", multiple=True, required=True, help="Image or group that taught the classifier nothing.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--classifier", default="joint-context", show_default=True)
@click.option("--draws", default=5, show_default=True)
def main(sets: Sequence[str], hold_out: Sequence[str], out: Path, classifier: str, draws: int) -> None:
    """Compare the ways on held-out images."""
    figures: dict[str, Any] = {}
    for text in sets:
        name, path = text.split("=", 1)
        slides, outputs = gather(name, Path(path), hold_out, out, classifier)
        ways = Ways(outputs, Task.of(name, outputs))
        for where, cut in (("same slide", halves), ("other images", others)):
            parts = [part for slide in slides for part in cut(slide) if part.is_enough()]
            print(f"\n{name}, {where}: balanced accuracy/macro F1, and their gain over no correction")
            if parts:
                compared = ["adapt", "offered", "shares", "forest"]
                compared += ["carried"] * (ways.task.library != "BreCaHAD")
                figures[f"{name}, {where}"] = table(parts, ways, draws, compared)
    (out / "figures.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
