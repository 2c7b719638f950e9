"""The way of every region: read, find nuclei, cut crops, classify. Stages of different regions overlap."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from classifier.patches import cut_crops
from classifier.predictions import Labels
from pipeline.inference.executor import Crew, Stage
from pipeline.inference.models import Models
from pipeline.inference.profiling import Watch
from pipeline.regions.region import Region
from pipeline.regions.tissue import TissueMask
from pipeline.slide.base import Slide
from pipeline.slide.grid import FINE_MPP, WorkingGrid
from segmentation.detector import Detector
from segmentation.morphology import measured
from segmentation.nuclei import Nuclei

READERS_LEAST = 2
"""Threads that read: a network file system keeps one waiting."""
REGIONS_AHEAD = 2
"""Regions under way, beyond one a worker: one that is read and one that is read already."""
BATCHES_AHEAD = 4
"""Batches of crops that wait for each worker or are classified by it."""

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
    watch: Watch | None = None,
) -> Iterator[Named]:
    """Nuclei and labels of each region, in the order of ``regions``.

    Everything runs in threads, on several regions at once, while the caller does what it likes with those that are
    finished. A network whose device is the processor itself runs in the ``workers`` threads that post-process, so that
    no processor is asked for twice; another has threads of its own. At most a few regions are under way.

    Args:
        slide: open.
        grid, tissue: the slide's.
        regions: any of the slide's regions.
        models: ready to run.
        batch_size: nuclei that the classifier is given at a time, of one region or of several.
        workers: processors to use.
        given_l0: nuclei, in level-0 pixels, that take the place of the detector's.
        watch: takes the time of the stages.

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

    def read_given(region: Region) -> Window:
        pixels = slide.read(grid, region.window_w)
        return Window(region, pixels, pixels)

    def take_given(window: Window) -> Found:
        assert given_w is not None
        return own_w(window, given_w, grid, tissue)

    given_w = None if given_l0 is None else given_l0.moved(1 / grid.l0_per_w, (0, 0))
    with Crew(watch or Watch()) as crew:
        readers = crew.pool(max(READERS_LEAST, workers // 4), "reader")
        processors = crew.pool(workers, "worker")
        detector, classifier = (
            processors if calls >= workers else crew.pool(calls, name)
            for calls, name in ((models.detector.calls, "detector"), (models.classifier.calls, "classifier"))
        )
        stages: tuple[Stage, ...] = (
            Stage("read", readers, read),
            Stage("detect", detector, predict),
            Stage("outline", processors, find),
        )
        if given_w is not None:
            stages = (Stage("read", readers, read_given), Stage("outline", processors, take_given))
        found = crew.through(stages, regions, depth=workers + REGIONS_AHEAD)
        classify = Stage("classify", classifier, models.classifier)
        yield from classify_found(crew, classify, len(models.outputs), found, batch_size, BATCHES_AHEAD * workers)


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


def classify_found(
    crew: Crew, classify: Stage, columns: int, found: Iterable[Found], batch_size: int, batches_ahead: int
) -> Iterator[Named]:
    """Label the nuclei in batches that fill across regions; a region is given out once all its nuclei have labels.

    Args:
        crew: does it.
        classify: from crops to labels.
        columns: of the labels.
        found: in the order that they are wanted in.
        batch_size: crops in a batch.
        batches_ahead: how many batches may be under way; while there are more, no further region is asked for.
    """
    waiting: deque[tuple[Region, Nuclei]] = deque()
    crops: deque[Pixels] = deque()  # in no batch yet, in the order of ``waiting``
    batches: deque[Future[Labels]] = deque()
    done: deque[Labels] = deque()  # of the regions in ``waiting``, from the first on

    def send(size: int) -> None:
        parts, missing = [], size
        while missing:
            part = crops.popleft()
            if len(part) > missing:
                crops.appendleft(part[missing:])
            parts.append(part[:missing])
            missing -= len(parts[-1])
        batches.append(crew.send(classify, np.concatenate(parts) if len(parts) > 1 else parts[0]))

    def gather(most: int) -> Iterator[Named]:
        """What is finished, once no more than ``most`` batches are under way."""
        while batches and (len(batches) > most or batches[0].done()):
            done.append(crew.result(batches.popleft()))
        while waiting and len(waiting[0][1]) <= sum(map(len, done)):
            region, nuclei_l0 = waiting.popleft()
            yield Named(region, nuclei_l0, take(done, len(nuclei_l0), columns))

    for item in found:
        waiting.append((item.region, item.nuclei_l0))
        if len(item.crops):
            crops.append(item.crops)
        while sum(map(len, crops)) >= batch_size:
            send(batch_size)
            yield from gather(batches_ahead)
        yield from gather(batches_ahead)
    if rest := sum(map(len, crops)):
        send(rest)
    yield from gather(0)


def take(done: deque[Labels], count: int, columns: int) -> Labels:
    """Take the first ``count`` rows out of ``done``, which holds as many, of so many columns."""
    parts = [Labels(np.zeros((0, columns), np.float32))]
    while count:
        first = done.popleft()
        if len(first) > count:
            done.appendleft(Labels(first.probabilities[count:]))
            first = Labels(first.probabilities[:count])
        parts.append(first)
        count -= len(first)
    return Labels.concatenate(parts)
