"""The way of every region: read, find nuclei, cut crops, classify. Stages of different regions overlap."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from classifier.labels import Labels
from pipeline.crops import cut_crops
from pipeline.grid import FINE_MPP, WorkingGrid
from pipeline.models import Models
from pipeline.regions import Region
from pipeline.slide import Slide
from pipeline.tissue import TissueMask
from segmentation.detector import Detector
from segmentation.nuclei import Nuclei
from segmentation.shape import measured

A = TypeVar("A")
B = TypeVar("B")
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Window:
    """A region's pixels: as read, and at the detector's pixel size."""

    region: Region
    pixels: Pixels
    resized: Pixels


@dataclass(frozen=True)
class Found:
    """The nuclei that a region owns, in level-0 pixels, and the classifier's crops of them."""

    region: Region
    nuclei_l0: Nuclei
    crops: Pixels


@dataclass(frozen=True)
class Named:
    """A finished region: its nuclei in level-0 pixels, and their labels."""

    region: Region
    nuclei_l0: Nuclei
    labels: Labels


def process_regions(
    slide: Slide,
    grid: WorkingGrid,
    tissue: TissueMask,
    regions: Iterable[Region],
    models: Models,
    batch_size: int,
    workers: int,
    given_l0: Nuclei | None = None,
) -> Iterator[Named]:
    """Nuclei and labels of each region, in the order of ``regions``.

    Reading and post-processing run in ``workers`` threads, at most a few regions ahead; the networks run in the
    caller's thread. Nuclei that are given (in level-0 pixels) take the place of the detector's.

    Raises:
        SlideError: the slide cannot be read at some place.
    """

    w_per_px = working_px(models.detector)

    def read(region: Region) -> Window:
        pixels = slide.read(grid, region.window_w)
        return Window(region, pixels, resize(pixels, grid.stride, w_per_px))

    def predict(window: Window) -> tuple[Window, npt.NDArray[np.float32]]:
        return window, models.detector.predict(window.resized)

    def find(predicted: tuple[Window, npt.NDArray[np.float32]]) -> Found:
        window, prediction = predicted
        nuclei = models.detector.nuclei(prediction, grid.mpp_w * w_per_px)
        return own(window, nuclei, grid, tissue, w_per_px)

    def take(region: Region) -> Found:
        assert given_w is not None
        pixels = slide.read(grid, region.window_w)
        return own_w(Window(region, pixels, pixels), given_w, grid, tissue)

    given_w = None if given_l0 is None else given_l0.moved(1 / grid.l0_per_w, (0, 0))
    with ThreadPoolExecutor(workers, "nucpipe") as pool:
        if given_w is not None:
            yield from classify_found(ahead(pool, take, regions, depth=workers), models, batch_size)
            return
        windows = ahead(pool, read, regions, depth=2)
        found = ahead(pool, find, map(predict, windows), depth=workers)
        yield from classify_found(found, models, batch_size)


def working_px(detector: Detector) -> int:
    """Working pixels per pixel of the detector: 2 for one that takes 0.5 um, 1 for 0.25 um."""
    return round(detector.input_mpp / FINE_MPP)


def resize(pixels: Pixels, stride: int, w_per_px: int) -> Pixels:
    """Pixels of ``stride`` working pixels as pixels of ``w_per_px`` working pixels; the sides come out whole.

    Shrinking takes the mean, enlarging (a slide at 0.5 um for a detector that takes 0.25 um) is cubic.
    """
    if stride == w_per_px:
        return pixels
    height, width = (side * stride // w_per_px for side in pixels.shape[:2])
    how = cv2.INTER_AREA if w_per_px > stride else cv2.INTER_CUBIC
    return cv2.resize(pixels, (width, height), interpolation=how).astype(np.uint8, copy=False)


def own(window: Window, nuclei: Nuclei, grid: WorkingGrid, tissue: TissueMask, w_per_px: int = 2) -> Found:
    """Keep the nuclei that the region owns and that lie on tissue, measure them, and cut their crops.

    Args:
        window: of the region.
        nuclei: in pixels of ``window.resized``.
        grid: the slide's.
        tissue: the slide's.
        w_per_px: working pixels per pixel of ``window.resized``.
    """
    return own_w(window, nuclei.moved(float(w_per_px), window.region.window_w[:2]), grid, tissue)


def own_w(window: Window, nuclei_w: Nuclei, grid: WorkingGrid, tissue: TissueMask) -> Found:
    """As :func:`own`, of nuclei in working pixels."""
    origin_w = window.region.window_w[:2]
    nuclei_w = nuclei_w.select(window.region.owns(nuclei_w.centroids))
    nuclei_w = nuclei_w.select(tissue.contains(grid.to_l0(nuclei_w.centroids)))
    nuclei_w = measured(nuclei_w, window.pixels, origin_w, grid.stride, grid.mpp_w)
    crops = cut_crops(window.pixels, (nuclei_w.centroids - origin_w) / grid.stride, grid.stride)
    return Found(window.region, nuclei_w.moved(grid.l0_per_w, (0, 0)), crops)


def classify_found(found: Iterable[Found], models: Models, batch_size: int) -> Iterator[Named]:
    """Label the nuclei in batches that fill across regions; a region is given out once all its nuclei have labels."""
    from classifier.model import classify

    waiting: deque[Found] = deque()
    crops: deque[Pixels] = deque()  # not yet classified, in the order of ``waiting``
    done: list[npt.NDArray[np.float32]] = []  # rows of the regions in ``waiting``, from the first on

    def run(size: int) -> None:
        batch = np.concatenate(crops) if len(crops) > 1 else crops[0]
        crops.clear()
        if len(batch) > size:
            crops.append(batch[size:])
        done.append(
            classify(models.classifier, models.outputs, batch[:size], models.device, models.precision).probabilities
        )

    def give() -> Iterator[Named]:
        rows = np.concatenate([*done, np.zeros((0, len(models.outputs)), np.float32)])
        while waiting and len(waiting[0].nuclei_l0) <= len(rows):
            item = waiting.popleft()
            n = len(item.nuclei_l0)
            yield Named(item.region, item.nuclei_l0, Labels(rows[:n]))
            rows = rows[n:]
        done[:] = [rows]

    for item in found:
        waiting.append(item)
        if len(item.crops):
            crops.append(item.crops)
        while sum(map(len, crops)) >= batch_size:
            run(batch_size)
        yield from give()
    while crops:
        run(batch_size)
    yield from give()


def ahead(pool: Executor, work: Callable[[A], B], items: Iterable[A], depth: int) -> Iterator[B]:
    """Like ``map(work, items)`` in order, with up to ``depth`` items under way in ``pool`` while the caller goes on."""
    under_way: deque[Future[B]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > depth:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()
