"""Time and memory as the slide grows: a disc of a slide, tiled 1, 4, 16 and 64 times, and 1 and 2 workers.

python benchmarks/scaling.py SLIDE --out /tmp/scaling [--mpp 0.25] [--corner X Y] [--times 1 --times 8]
    [--classifier fast | --cheap]

Each run is a process of its own, whose peak memory is what the system says of it. With --cheap the networks are
replaced by a threshold on darkness and a small classifier, so that x64 takes minutes and the rest of the engine shows.
The smallest is run once before, so that no run that is shown converts the networks, which takes half a gigabyte.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import cv2
import numpy as np
import tifffile

SIDE_PX, TILE_PX, SHRINKS = 4096, 256, (1, 4, 16)
TIMES = (1, 2, 4, 8)
"""Copies along each side."""


def piece(square: np.ndarray) -> np.ndarray:
    """Return the square with white round a disc, so that read boxes have as many sizes as on a slide."""
    middle = len(square) // 2
    inside = cv2.circle(np.zeros(square.shape[:2], np.uint8), (middle, middle), middle - 100, 1, -1) > 0
    return np.where(inside[..., None], square, np.uint8(255))


def tiled(square: np.ndarray, times: int, mpp: float, path: Path) -> None:
    """Write a pyramidal TIFF of ``times`` x ``times`` copies; each tile is compressed once."""
    sides = [len(square) // shrink for shrink in SHRINKS]
    levels = [cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA) for side in sides]
    once = io.BytesIO()
    write_tiff(once, sides, mpp, [list(tiles_of(level)) for level in levels])
    once.seek(0)
    with tifffile.TiffFile(once) as file:
        tiles: list[list[bytes]] = []
        for page in file.pages:
            parts = zip(page.dataoffsets, page.databytecounts, strict=True)
            tiles.append([once.getvalue()[start : start + count] for start, count in parts])
    repeated = []
    for side, some in zip(sides, tiles, strict=True):
        n = side // TILE_PX
        repeated.append([some[y % n * n + x % n] for y in range(n * times) for x in range(n * times)])
    write_tiff(path, [side * times for side in sides], mpp, repeated)


def tiles_of(level: np.ndarray) -> Iterator[np.ndarray]:
    starts = range(0, len(level), TILE_PX)
    yield from (level[y : y + TILE_PX, x : x + TILE_PX] for y in starts for x in starts)


def write_tiff(to: Path | io.BytesIO, sides: list[int], mpp: float, levels: list[list]) -> None:
    """Write a pyramid from tiles, arrays or compressed ones."""
    with tifffile.TiffWriter(to, bigtiff=True) as file:
        for k, (side, shrink, tiles) in enumerate(zip(sides, SHRINKS, levels, strict=True)):
            file.write(
                iter(tiles),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                compression="jpeg",
                photometric="rgb",  # of what is given; the file has YCbCr
                subfiletype=1 if k else 0,
                resolution=(1e4 / mpp / shrink, 1e4 / mpp / shrink),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def cheap_models(workers: int):
    """Return stand-ins for the networks."""

    from classifier.labels.libraries import LabelSpace, published_libraries
    from classifier.network import Enlarged, JointClassifier
    from classifier.predictor import Predictor
    from pipeline.inference.models import Models
    from segmentation.detector import Detector
    from segmentation.hovernet.postprocess import find_nuclei
    from segmentation.nuclei import Nuclei

    class Dark(Detector):
        input_mpp, align_px, context_px, max_concurrency = 0.5, 16, 64, workers

        def predict(self, pixels: np.ndarray) -> np.ndarray:
            darkness = 120 - cv2.GaussianBlur(pixels[..., 0], (9, 9), 0).astype(np.float32)
            logit = cv2.resize(darkness, None, fx=2, fy=2)
            return np.stack([logit, np.zeros_like(logit), np.zeros_like(logit)])

        def nuclei(self, prediction: np.ndarray, mpp: float) -> Nuclei:
            return find_nuclei(prediction, mpp / 2, frame_scale=0.5)

    outputs = LabelSpace(published_libraries(), (True,) * 35)
    network = JointClassifier(35, "test_efficientnet", 64).eval()
    described = {"segmentor": {"name": "dark"}, "classifier": {"name": "random"}}
    return Models(Dark(), Predictor(lambda: Enlarged(network, network.size_px), outputs, threads=workers), described)


def run(slide: Path, out: Path, cheap: bool, classifier: str, workers: int) -> None:
    """In a process of its own."""
    from pipeline.config import RunConfig
    from pipeline.inference.models import load_models
    from pipeline.run_slide import run_slide
    from pipeline.store.run_record import SilentReporter

    config = RunConfig(overwrite=True, workers=workers, classifier=classifier)
    if cheap:
        models = cheap_models(workers)
    else:
        models = load_models(config.segmentor, config.classifier, config.device, config.precision, workers=workers)
    result = run_slide(slide, out, models, config, SilentReporter())
    print(f"{result.nuclei} {result.tissue_mm2} {result.seconds}")


@click.command()
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--mpp", type=float)
@click.option("--corner", type=(int, int), default=(0, 0), help="Of the square, in level-0 pixels.")
@click.option("--cheap", is_flag=True)
@click.option("--classifier", default="joint-context", show_default=True)
@click.option("--times", multiple=True, type=int, default=TIMES, help="Copies along each side.")
@click.option("--one", type=int, hidden=True, help="Run one slide with this many workers.")
def main(
    slide: Path,
    out: Path,
    mpp: float | None,
    corner: tuple[int, int],
    cheap: bool,
    classifier: str,
    times: tuple[int, ...],
    one: int | None,
) -> None:
    """Print a table of seconds and memory."""
    if one:
        run(slide, out, cheap, classifier, one)
        return
    from pipeline.slide.open import open_slide

    out.mkdir(parents=True, exist_ok=True)
    with open_slide(slide, mpp) as opened:
        x, y = corner
        square, mpp = piece(opened.read_level(0, (x, y, x + SIDE_PX, y + SIDE_PX))), opened.mpp
    for k in times:
        if not slide_of(out, k).exists():
            tiled(square, k, mpp, slide_of(out, k))
    networks = ["--cheap"] if cheap else ["--classifier", classifier]
    smallest = min(times)
    timed(out, smallest, 2, networks)
    print("area workers |  nuclei     mm2   seconds  mm2/s  peak GiB  of the first")
    first = 0.0
    for k, workers in [(k, 2) for k in times] + [(smallest, 1)]:
        nuclei, mm2, seconds, peak = timed(out, k, workers, networks)
        first = first or peak
        print(
            f"x{k * k:<3} {workers:>7} | {nuclei:>7.0f} {mm2:>7.2f} {seconds:>9.1f} {mm2 / seconds:>6.3f} "
            f"{peak:>9.2f} {peak / first:>12.3f}",
            flush=True,
        )


def slide_of(out: Path, k: int) -> Path:
    return out / f"x{k * k}.tif"


def timed(out: Path, k: int, workers: int, networks: list[str]) -> tuple[float, ...]:
    """Run a slide in a process of its own; return nuclei, square millimetres, seconds and its peak memory in GiB."""
    results = out / f"x{k * k}-{workers}"
    command = [sys.executable, __file__, str(slide_of(out, k)), "--out", str(results), "--one", str(workers)]
    process = subprocess.Popen([*command, *networks], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return *(float(word) for word in text.split()), usage.ru_maxrss / 2**20


if __name__ == "__main__":
    main()
