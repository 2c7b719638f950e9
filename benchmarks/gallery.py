"""Pictures of the most and the least certain nuclei of each label, for the eye.

python benchmarks/gallery.py results/slide --out /tmp/gallery --library PanNuke --library NuCLS

A picture a library. A label has two bands, of the nuclei with the highest and with the lowest probability of it, each
with the tissue round it: a picture is 32 µm wide, the outlined nucleus is the one meant, and the frame inside it is the
patch of 16 µm. Over each stands the probability, and behind a bar the out-of-distribution score where the result has
one. Nuclei of one band lie at least 50 µm apart, so that one gland does not fill it. They show patients' tissue: keep
them under the licence of the slide.
"""

from __future__ import annotations

from pathlib import Path

import click
import cv2
import numpy as np
from pictures import in_a_row, text_bar

from pipeline.result import Result, open_result
from pipeline.slide.base import Slide

PATCH_UM, WIDE_UM = 16.0, 32.0
TILE_PX, CAPTION_PX, HEAD_PX = 128, 20, 26
APART_UM = 50.0


def spread(points_um: np.ndarray, order: np.ndarray, wanted: int) -> list[int]:
    """Return the first of ``order`` that lie apart."""
    chosen: list[int] = []
    for i in order.tolist():
        if len(chosen) == wanted:
            break
        if all(np.hypot(*(points_um[i] - points_um[j])) >= APART_UM for j in chosen):
            chosen.append(i)
    return chosen


def tile(slide: Slide, result: Result, centroid: np.ndarray, ring: np.ndarray, caption: str) -> np.ndarray:
    side = max(2, round(WIDE_UM / result.mpp))
    x, y = (int(v) for v in np.floor(centroid) - side // 2)
    zoom = TILE_PX / side
    pixels = cv2.resize(
        slide.read_level(0, (x, y, x + side, y + side)), (TILE_PX, TILE_PX), interpolation=cv2.INTER_CUBIC
    )
    outline = [np.round((ring - (x, y)) * zoom * 16).astype(np.int32)]
    cv2.polylines(pixels, outline, True, (255, 220, 0), 1, cv2.LINE_AA, 4)
    edge = round(TILE_PX * (1 - PATCH_UM / WIDE_UM) / 2)
    cv2.rectangle(pixels, (edge, edge), (TILE_PX - edge, TILE_PX - edge), (255, 255, 255), 1)
    captioned = np.concatenate([text_bar(caption, TILE_PX, CAPTION_PX), pixels])
    return np.pad(captioned, ((0, 2), (0, 2), (0, 0)), constant_values=255)


def band(title: str, tiles: list[np.ndarray], across: int) -> np.ndarray:
    width = across * (TILE_PX + 2)
    head = text_bar(title, width, HEAD_PX, 225, 0.5)
    return np.concatenate([head, in_a_row(tiles, width)]) if tiles else head


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--slide", type=click.Path(path_type=Path), help="[default: where the run found it]")
@click.option("--library", "wanted", multiple=True, help="[default: all]")
@click.option("--across", default=10, show_default=True, help="Nuclei of each band.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the pictures.")
def main(folder: Path, slide: Path | None, wanted: tuple[str, ...], across: int, out: Path) -> None:
    """Draw the galleries of a result."""
    result = open_result(folder)
    store, outputs = result.store, result.store.info.outputs
    points = store.centroids_l0
    offsets, rings = store.contours()
    scores = store.ood_scores
    out.mkdir(parents=True, exist_ok=True)
    with result.open_slide(slide) as opened:
        for library in [outputs.library(name) for name in wanted or result.libraries]:
            numbers, p = store.label_numbers(library.name), store.label_probabilities(library.name)
            bands = []
            for number, label in enumerate(library.labels):
                mine = np.flatnonzero(numbers == number)
                for word, order in (("most", np.argsort(-p[mine])), ("least", np.argsort(p[mine]))):
                    tiles = []
                    for i in (mine[k] for k in spread(points[mine] * result.mpp, order, across)):
                        caption = f"{p[i]:.2f}" + ("" if scores is None else f" | {scores[i]:.2f}")
                        ring = rings[offsets[i] : offsets[i + 1]]
                        tiles.append(tile(opened, result, points[i], ring, caption))
                    bands.append(band(f"{label}, {word} certain of {len(mine):,}", tiles, across))
            path = out / f"{result.name}-{library.name}.png"
            cv2.imwrite(str(path), np.concatenate(bands)[..., ::-1])
            print(path, flush=True)


if __name__ == "__main__":
    main()
