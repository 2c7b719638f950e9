"""Pictures of what each label means on a slide: the most certain nuclei of each, one picture a label system.

python examples/label_gallery.py results/slide --out gallery/ [--slide slide.svs]
"""

from __future__ import annotations

from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

import nucpipe
from pipeline.slide.base import Slide

SIDE_UM = 20.0
COLUMNS = 10


def crop(slide: Slide, x: float, y: float) -> np.ndarray:
    """Read 20 x 20 µm round a place at level 0; white beyond the slide."""
    side = max(8, round(SIDE_UM / slide.mpp))
    left, top = round(x - side / 2), round(y - side / 2)
    width, height = slide.size_l0
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    picture = np.full((side, side, 3), 255, np.uint8)
    if x1 > x0 and y1 > y0:
        picture[y0 - top : y1 - top, x0 - left : x1 - left] = slide.read_level(0, (x0, y0, x1, y1))
    return picture


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--slide", "where", type=click.Path(path_type=Path), help="Where the slide is now.")
def main(folder: Path, out: Path, where: Path | None) -> None:
    mpl.use("Agg")
    result = nucpipe.open(folder)
    out.mkdir(parents=True, exist_ok=True)
    centroids = result.centroids()
    with result.open_slide(where) as slide:
        for library in result.libraries:
            labels, p = result.labels(library), result.probabilities(library).max(axis=1).to_numpy()
            rows = [label for label in labels.cat.categories if (labels == label).any()]
            figure, axes = plt.subplots(len(rows), COLUMNS, figsize=(COLUMNS, len(rows) * 1.15 + 0.4), squeeze=False)
            figure.suptitle(f"{library} on {result.name}: the most certain nuclei of each label", fontsize=10)
            for line, label in zip(axes, rows, strict=True):
                which = np.flatnonzero((labels == label).to_numpy())
                best = which[np.argsort(-p[which])][:COLUMNS]
                line[0].set_title(f"{label} ({len(which):,})", fontsize=8, loc="left")
                for axis in line:
                    axis.axis("off")
                for axis, nucleus in zip(line, best, strict=False):
                    axis.imshow(crop(slide, *centroids[nucleus]))
            figure.savefig(out / f"{library}.png", dpi=110, bbox_inches="tight")
            plt.close(figure)
            print(out / f"{library}.png")


if __name__ == "__main__":
    main()
