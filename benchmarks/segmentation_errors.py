"""Why a detector's nuclei do not match: misses and false nuclei of annotated images sorted by cause, with pictures.

python benchmarks/segmentation_errors.py hovernet-compact --data DATA/consep --data DATA/kumar --choose 'train_1' \
    --choose 'test_2' --out /tmp/pictures

An annotated nucleus is missed where no found one overlaps it with an IoU above 0.5. Causes, the first that fits:

    merged     one found nucleus covers at least half of it and half of another
    split      two found nuclei lie at least half inside it
    filtered   the default filter left out the one that matches
    outline    a found one overlaps it by at least a tenth of either
    small      nothing is there; it is smaller than 16 um2
    pale       nothing is there; its haematoxylin is in the image's lowest quarter
    missed     nothing is there, for another reason

and a false nucleus is the part of a split one, one that covers several, one of a wrong outline, or one where none is
annotated ("none"). A picture a cause shows nuclei enlarged, annotated ones with green outlines, found ones with red.
They show patients' tissue: keep them under the licence of the data.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np
import numpy.typing as npt
from specks import spread

from nucpipe.datasets import AnnotatedImage, is_named, open_dataset
from pipeline.inference.models import find_model
from segmentation.detector import Detector
from segmentation.evaluation.evaluate import detect_image
from segmentation.evaluation.metrics import Overlaps, match_by_iou
from segmentation.evaluation.scores import draw_instances
from segmentation.morphology import haematoxylin_table
from segmentation.registry import load_detector

MISSES = ("merged", "split", "filtered", "outline", "small", "pale", "missed")
FALSE = ("part", "several", "outline", "none")
SMALL_UM2 = 16.0
SIDE_PX, ENLARGED, ACROSS, ROWS = 64, 3, 10, 5
ANNOTATED, FOUND = (0, 200, 0), (230, 0, 0)

Instances = npt.NDArray[np.int32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sorted:
    """The nuclei of one image that do not match, by cause, and how many there are in all."""

    misses: dict[int, str]
    false: dict[int, str]
    annotated: int
    found: int


def sort_errors(true: Instances, found: Instances, unfiltered: Instances, pixels: Pixels, mpp: float) -> Sorted:
    """Return the cause of each nucleus that matches none.

    Args:
        true, found, unfiltered: instance maps (H, W), 0 = background: annotated, found, found without a filter.
        pixels: (H, W, 3) uint8 RGB.
        mpp: pixel size.
    """
    overlaps = Overlaps.of(true, found)
    matched_true, matched_found, _ = match_by_iou(true, found)
    would_match, _, _ = match_by_iou(true, unfiltered)
    of_true = overlaps.shared / overlaps.area_true[overlaps.true]
    of_found = overlaps.shared / overlaps.area_predicted[overlaps.predicted]
    halves = Counter(overlaps.predicted[of_true >= 0.5].tolist())
    parts = Counter(overlaps.true[of_found >= 0.5].tolist())
    density = np.sum([table[pixels[..., k]] for k, table in enumerate(haematoxylin_table())], 0)
    ids = np.unique(true[true > 0])
    stained = dict(zip(ids.tolist(), mean_of(density, true, ids), strict=True))
    pale = np.quantile(list(stained.values()), 0.25) if stained else 0.0

    def miss(nucleus: int) -> str:
        rows = overlaps.true == nucleus
        if any(halves[found] > 1 for found in overlaps.predicted[rows & (of_true >= 0.5)].tolist()):
            return "merged"
        if parts[nucleus] > 1:
            return "split"
        if nucleus in would_match:
            return "filtered"
        if (rows & (np.maximum(of_true, of_found) >= 0.1)).any():
            return "outline"
        if overlaps.area_true[nucleus] * mpp**2 < SMALL_UM2:
            return "small"
        return "pale" if stained[nucleus] <= pale else "missed"

    def wrong(nucleus: int) -> str:
        rows = overlaps.predicted == nucleus
        if halves[nucleus] > 1:
            return "several"
        if any(parts[true] > 1 for true in overlaps.true[rows & (of_found >= 0.5)].tolist()):
            return "part"
        return "outline" if (rows & (np.maximum(of_true, of_found) >= 0.1)).any() else "none"

    all_found = np.unique(found[found > 0])
    return Sorted(
        {nucleus: miss(nucleus) for nucleus in np.setdiff1d(ids, matched_true).tolist()},
        {nucleus: wrong(nucleus) for nucleus in np.setdiff1d(all_found, matched_found).tolist()},
        len(ids),
        len(all_found),
    )


def mean_of(plane: npt.NDArray[np.float32], instances: Instances, ids: npt.NDArray[np.int32]) -> list[float]:
    """Return the mean of a plane (H, W) inside each instance."""
    flat = instances.ravel()
    sums, counts = np.bincount(flat, plane.ravel()), np.bincount(flat)
    return [float(value) for value in sums[ids] / counts[ids]]


def errors_of(detector: Detector, image: AnnotatedImage) -> Iterator[tuple[str, Pixels]]:
    """Yield the cause of each error of an image and a tile of it; first "annotated" and "found", once a nucleus."""
    annotation, pixels = image.annotation(), image.pixels()
    if annotation.instances is None:
        return
    everything = detect_image(detector, pixels, image.mpp)
    kept = detector.default_filter.apply(everything)
    true, found = annotation.instances, draw_instances(kept, annotation.instances.shape)
    result = sort_errors(true, found, draw_instances(everything, true.shape), pixels, image.mpp)
    for text, count in (("annotated", result.annotated), ("found", result.found)):
        yield from [(text, pixels[:0])] * count
    for kind, instances, causes in (("miss", true, result.misses), ("false", found, result.false)):
        for nucleus, cause in causes.items():
            yield f"{kind} {cause}", tile(pixels, true, found, instances == nucleus)


def tile(pixels: Pixels, true: Instances, found: Instances, nucleus: npt.NDArray[np.bool_]) -> Pixels:
    """Return the surroundings of a nucleus, enlarged, with the outlines of both maps."""
    y, x = (int(np.mean(where)) + SIDE_PX // 2 for where in np.nonzero(nucleus))
    rim, part = SIDE_PX // 2, np.s_[y - SIDE_PX // 2 : y + SIDE_PX // 2, x - SIDE_PX // 2 : x + SIDE_PX // 2]
    view = np.pad(pixels, ((rim, rim), (rim, rim), (0, 0)), constant_values=255)[part]
    side = SIDE_PX * ENLARGED
    drawn = cv2.resize(view, (side, side), interpolation=cv2.INTER_CUBIC)
    for instances, colour in ((true, ANNOTATED), (found, FOUND)):
        near = np.pad(instances, rim)[part]
        for one in np.unique(near[near > 0]):
            mask = cv2.resize((near == one).astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
            rings, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(drawn, rings, -1, colour, 1)
    return np.pad(drawn, ((1, 1), (1, 1), (0, 0)), constant_values=255).astype(np.uint8)


def sheet(tiles: list[Pixels]) -> Pixels:
    """Return tiles spread over all of a cause, side by side."""
    chosen = [tiles[k] for k in np.linspace(0, len(tiles) - 1, min(len(tiles), ACROSS * ROWS)).round().astype(int)]
    chosen += [np.full_like(tiles[0], 255)] * (-len(chosen) % ACROSS)
    rows = [np.concatenate(chosen[start : start + ACROSS], 1) for start in range(0, len(chosen), ACROSS)]
    return np.concatenate(rows)


@click.command()
@click.argument("model")
@click.option("--data", multiple=True, required=True, type=click.Path(path_type=Path))
@click.option("--choose", multiple=True, required=True, help="Images or groups; wildcards.")
@click.option("--images", "most", default=20, show_default=True, help="Of each set.")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(model: str, data: tuple[Path, ...], choose: tuple[str, ...], most: int, out: Path) -> None:
    detector = load_detector(find_model("segmentor", model))
    columns, tiles = {}, defaultdict(list)
    for folder in data:
        counts: Counter[str] = Counter()
        for image in spread([image for image in open_dataset(folder) if is_named(image, choose)], most):
            for cause, pixels in errors_of(detector, image):
                counts[cause] += 1
                if pixels.size:
                    tiles[cause].append(pixels)
        columns[folder.name] = counts
        print(f"{folder.name}: {counts['annotated']} annotated, {counts['found']} found", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    for cause, some in tiles.items():
        cv2.imwrite(str(out / f"{cause.replace(' ', '-')}.jpg"), sheet(some)[..., ::-1])
    print(f"\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for kind, causes, of in (("miss", MISSES, "annotated"), ("false", FALSE, "found")):
        for cause in causes:
            shares = (f"{100 * counts[f'{kind} {cause}'] / max(1, counts[of]):.1f} %" for counts in columns.values())
            print(f"| {kind}: {cause} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
