"""Post-processing against tiatoolbox's HoVer-Net: seconds and panoptic quality on the same maps.

python benchmarks/postprocess.py --data DATA/consep --hold-out train_6 --hold-out train_12 ... [--repeat 5]

The maps are the bundled segmentor's on annotated images. Both sides go from maps to outlined nuclei on one thread:
`find_nuclei` here; `HoVerNet._proc_np_hv` and `HoVerNet.get_instance_info` there. tiatoolbox is given the probability
of a nuclear pixel, as its own network gives it. Seconds are the processor's, not the clock's, so that other work on the
machine does not count; the best of the repeats, after a warming-up run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from nucpipe.datasets import AnnotatedImage, open_dataset, split_groups
from nucpipe.optional.tiatoolbox import import_tiatoolbox, quiet
from pipeline.config import RunConfig
from pipeline.inference.models import find_model
from segmentation.detector import predict_image
from segmentation.evaluation.metrics import SegmentationCounts
from segmentation.evaluation.scores import draw_instances
from segmentation.hovernet.postprocess import find_nuclei
from segmentation.morphology import with_morphology
from segmentation.registry import load_detector


def maps_of(image: AnnotatedImage, model: Path) -> np.ndarray:
    """Return (3, H, W) float32 at 0.25 um."""
    pixels = image.pixels()
    height, width = pixels.shape[:2]
    small = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    maps = predict_image(load_detector(model), np.asarray(small, np.uint8))
    return np.ascontiguousarray(maps[:, :height, :width])


def best_of(repeat: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds of the fastest of several runs, and the result."""
    result = work()
    seconds = []
    for _ in range(repeat):
        began = time.process_time()
        result = work()
        seconds.append(time.process_time() - began)
    return min(seconds), result


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--hold-out", multiple=True, required=True, help="Images to measure on.")
@click.option("--segmentor", default=RunConfig().segmentor)
@click.option("--repeat", default=5)
def main(data: Path, hold_out: Sequence[str], segmentor: str, repeat: int) -> None:
    """Compare both on the same maps."""
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    theirs: Any = import_tiatoolbox("models.architecture.hovernet").HoVerNet
    model = find_model("segmentor", segmentor)
    rows = []
    for image in split_groups(open_dataset(data), hold_out)[1]:
        truth = image.annotation().instances
        assert truth is not None
        maps, pixels = maps_of(image, model), image.pixels()
        p = (1 / (1 + np.exp(-maps[0])))[..., None]
        hv = np.ascontiguousarray(np.moveaxis(maps[1:], 0, -1))

        def tiatoolbox(p: np.ndarray = p, hv: np.ndarray = hv) -> np.ndarray:
            instances = theirs._proc_np_hv(p, hv)
            theirs.get_instance_info(instances, verbose=False)
            return np.asarray(instances)

        ours_s, nuclei = best_of(repeat, lambda m=maps: find_nuclei(m, 0.25))  # type: ignore[misc]
        shape_s, _ = best_of(repeat, lambda n=nuclei, x=pixels: with_morphology(n, x, (0, 0), 1, 0.25))  # type: ignore[misc]
        with quiet():
            theirs_s, instances = best_of(max(1, repeat // 2), tiatoolbox)
        pq = [SegmentationCounts.of(truth, drawn).pq for drawn in (draw_instances(nuclei, truth.shape), instances)]
        rows.append((ours_s, shape_s, theirs_s, *pq))
        print(
            f"{image.name}: {len(nuclei)} nuclei in {1e3 * ours_s:.1f} ms (measures {1e3 * shape_s:.1f} ms more), "
            f"tiatoolbox {len(np.unique(instances)) - 1} in {1e3 * theirs_s:.1f} ms, {theirs_s / ours_s:.1f} times as "
            f"long; PQ {pq[0]:.4f} and {pq[1]:.4f}"
        )
    ours_s, shape_s, theirs_s, ours_pq, theirs_pq = np.mean(rows, 0)
    print(
        f"mean: {1e3 * ours_s:.1f} ms (measures {1e3 * shape_s:.1f} ms more), tiatoolbox {1e3 * theirs_s:.1f} ms, "
        f"{theirs_s / ours_s:.1f} times as long; PQ {ours_pq:.4f} and {theirs_pq:.4f}"
    )


if __name__ == "__main__":
    main()
