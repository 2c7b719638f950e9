"""The way of every region: read, find nuclei, cut what the classifier sees of them, classify. Stages overlap."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from classifier.patches import CONTEXT_HALF_W, cut_contexts, cut_crops
from classifier.predictions import Predictions
from pipeline.inference.executor import Stage, StageExecutor
from pipeline.inference.models import Models
from pipeline.inference.profiling import StageTimer
from pipeline.regions.region import BoxW, Region
from pipeline.regions.tissue import TissueMask
from pipeline.slide.base import Slide
from pipeline.slide.grid import FINE_MPP, WorkingGrid
from segmentation.detector import Detector
from segmentation.morphology import with_morphology
from segmentation.nuclei import KEEP_ALL, Nuclei, NucleusFilter

MIN_READERS = 2
"""Threads that read: a network file system keeps one waiting."""
REGIONS_AHEAD = 2
"""Regions under way, beyond one a worker: one that is read and one that is read already."""
MIN_HALO_W = 64
"""A patch needs half of its 64 working pixels beyond the core; the rest is for the outline and rounding."""
BATCHES_AHEAD = 4
"""Batches of crops that wait for each worker or are classified by it."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RegionPixels:
    """A region's pixels: as read, and at the detector's pixel size."""

    region: Region
    pixels: Pixels
    resized: Pixels


@dataclass(frozen=True)
class DetectedRegion:
    """The nuclei that a region owns, in level-0 pixels, and what the classifier sees of them.

    Attributes:
        region: the region.
        nuclei_l0: its nuclei.
        views: arrays of as many rows: their crops, and their contexts if the classifier looks at these.
    """

    region: Region
    nuclei_l0: Nuclei
    views: tuple[Pixels, ...]


@dataclass(frozen=True)
class LabelledRegion:
    """A finished region: its nuclei in level-0 pixels, and their labels."""

    region: Region
    nuclei_l0: Nuclei
    labels: Predictions


def process_regions(
    slide: Slide,
    grid: WorkingGrid,
    tissue: TissueMask,
    regions: Iterable[Region],
    models: Models,
    batch_size: int,
    workers: int,
    external_l0: Nuclei | None = None,
    timer: StageTimer | None = None,
    keep: NucleusFilter | None = None,
) -> Iterator[LabelledRegion]:
    """Yield nuclei and labels of each region, in the order of ``regions``.

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
        keep: which nuclei are kept and classified; None: those that the detector's own filter keeps, and all of
            ``external_l0``.

    Raises:
        SlideError: the slide cannot be read at some place.
    """
    w_per_px = working_px(models.detector)
    if keep is None:
        keep = models.detector.default_filter if external_l0 is None else KEEP_ALL

    def read(region: Region) -> RegionPixels:
        pixels = slide.read(grid, region.read_box_w)
        return RegionPixels(region, pixels, resize(pixels, grid.stride, w_per_px))

    def predict(region_pixels: RegionPixels) -> tuple[RegionPixels, npt.NDArray[np.float32]]:
        return region_pixels, models.detector.predict(region_pixels.resized)

    def find(predicted: tuple[RegionPixels, npt.NDArray[np.float32]]) -> DetectedRegion:
        region_pixels, prediction = predicted
        nuclei = models.detector.nuclei(prediction, grid.mpp_w * w_per_px)
        return keep_owned(region_pixels, keep.apply(nuclei), grid, tissue, w_per_px, content(region_pixels.region))

    def content(region: Region) -> BoxW | None:
        return slide.content_w(grid, region.read_box_w) if models.classifier.context else None

    def read_only_pixels(region: Region) -> RegionPixels:
        pixels = slide.read(grid, region.read_box_w)
        return RegionPixels(region, pixels, pixels)

    def take_external(region_pixels: RegionPixels) -> DetectedRegion:
        assert external_w is not None
        return keep_owned_w(region_pixels, external_w, grid, tissue, content(region_pixels.region))

    external_w = None if external_l0 is None else keep.apply(external_l0).transformed(1 / grid.l0_per_w, (0, 0))
    with StageExecutor(timer or StageTimer()) as executor:
        readers = executor.pool(max(MIN_READERS, workers // 4), "reader")
        processors = executor.pool(workers, "worker")
        detector, classifier = (
            processors if max_concurrency >= workers else executor.pool(max_concurrency, name)
            for max_concurrency, name in (
                (models.detector.max_concurrency, "detector"),
                (models.classifier.max_concurrency, "classifier"),
            )
        )
        stages: tuple[Stage, ...] = (
            Stage("read", readers, read),
            Stage("detect", detector, predict),
            Stage("outline", processors, find),
        )
        if external_w is not None:
            stages = (Stage("read", readers, read_only_pixels), Stage("outline", processors, take_external))
        found = executor.map_ordered(stages, regions, depth=workers + REGIONS_AHEAD)
        classify = Stage("classify", classifier, lambda views: models.classifier(*views))
        empty = models.classifier.empty()
        yield from classify_found(executor, classify, empty, found, batch_size, BATCHES_AHEAD * workers)


def working_px(detector: Detector) -> int:
    """Return working pixels per pixel of the detector: 2 for one that takes 0.5 um, 1 for 0.25 um."""
    return round(detector.input_mpp / FINE_MPP)


def halo_w(detector: Detector, context: bool = False) -> int:
    """Return how far a region's read box reaches at least beyond its core, working pixels.

    Args:
        detector: of the run.
        context: whether the classifier looks at the tissue round a nucleus, too.
    """
    context_w = CONTEXT_HALF_W if context else 0
    return max(working_px(detector) * detector.context_px, context_w, MIN_HALO_W)


def read_grid_w(detector: Detector) -> tuple[int, int]:
    """Return what the corners of read boxes are multiples of, and the boxes' margin, in working pixels."""
    scale = working_px(detector)
    return scale * detector.align_px, scale * detector.margin_px


def resize(pixels: Pixels, stride: int, w_per_px: int) -> Pixels:
    """Return pixels of ``stride`` working pixels as pixels of ``w_per_px`` working pixels; the sides come out whole.

    Shrinking takes the mean, enlarging (a slide at 0.5 um for a detector that takes 0.25 um) is cubic.
    """
    if stride == w_per_px:
        return pixels
    height, width = (side * stride // w_per_px for side in pixels.shape[:2])
    how = cv2.INTER_AREA if w_per_px > stride else cv2.INTER_CUBIC
    return cv2.resize(pixels, (width, height), interpolation=how).astype(np.uint8, copy=False)


def keep_owned(
    region_pixels: RegionPixels,
    nuclei: Nuclei,
    grid: WorkingGrid,
    tissue: TissueMask,
    w_per_px: int = 2,
    content_w: BoxW | None = None,
) -> DetectedRegion:
    """Keep the nuclei that the region owns and that lie on tissue, measure them, and cut what the classifier sees.

    Args:
        read box: of the region.
        nuclei: in pixels of ``region_pixels.resized``.
        grid: the slide's.
        tissue: the slide's.
        w_per_px: working pixels per pixel of ``region_pixels.resized``.
        content_w: x0, y0, x1, y1; where the slide has pixels of its own. None: no contexts are cut.
    """
    nuclei_w = nuclei.transformed(float(w_per_px), region_pixels.region.read_box_w[:2])
    return keep_owned_w(region_pixels, nuclei_w, grid, tissue, content_w)


def keep_owned_w(
    region_pixels: RegionPixels,
    nuclei_w: Nuclei,
    grid: WorkingGrid,
    tissue: TissueMask,
    content_w: BoxW | None = None,
) -> DetectedRegion:
    """As :func:`keep_owned`, of nuclei in working pixels."""
    origin_w = region_pixels.region.read_box_w[:2]
    nuclei_w = nuclei_w.select(region_pixels.region.owns(nuclei_w.centroids))
    nuclei_w = nuclei_w.select(tissue.contains(grid.to_l0(nuclei_w.centroids)))
    nuclei_w = with_morphology(nuclei_w, region_pixels.pixels, origin_w, grid.stride, grid.mpp_w)
    points = (nuclei_w.centroids - origin_w) / grid.stride
    views: tuple[Pixels, ...] = (cut_crops(region_pixels.pixels, points, grid.stride),)
    if content_w is not None:
        inside = within(content_w, region_pixels.region.read_box_w, grid.stride)
        views = (*views, cut_contexts(region_pixels.pixels, points, inside, grid.stride))
    return DetectedRegion(region_pixels.region, nuclei_w.transformed(grid.l0_per_w, (0, 0)), views)


def within(content_w: BoxW, read_box_w: BoxW, stride: int) -> BoxW:
    """Return the part of a read box that shows the slide and not its reflection, in the read box's pixels."""
    x0, y0, x1, y1 = read_box_w
    left, top = max(content_w[0], x0), max(content_w[1], y0)
    right, bottom = max(left, min(content_w[2], x1)), max(top, min(content_w[3], y1))
    return (left - x0) // stride, (top - y0) // stride, (right - x0) // stride, (bottom - y0) // stride


def classify_found(
    executor: StageExecutor,
    classify: Stage,
    empty: Predictions,
    found: Iterable[DetectedRegion],
    batch_size: int,
    batches_ahead: int,
) -> Iterator[LabelledRegion]:
    """Label the nuclei in batches that fill across regions; a region is given out once all its nuclei have labels.

    Args:
        crew: does it.
        classify: from views to labels.
        empty: what it gives of no nucleus.
        found: in the order that they are wanted in.
        batch_size: nuclei in a batch.
        batches_ahead: how many batches may be under way; while there are more, no further region is asked for.
    """
    waiting: deque[tuple[Region, Nuclei]] = deque()
    views: deque[tuple[Pixels, ...]] = deque()  # in no batch yet, in the order of ``waiting``
    batches: deque[Future[Predictions]] = deque()
    done: deque[Predictions] = deque()  # of the regions in ``waiting``, from the first on

    def waiting_views() -> int:
        return sum(len(part[0]) for part in views)

    def submit_batch(size: int) -> None:
        parts, missing = [], size
        while missing:
            part = views.popleft()
            if len(part[0]) > missing:
                views.appendleft(tuple(view[missing:] for view in part))
            parts.append(tuple(view[:missing] for view in part))
            missing -= len(parts[-1][0])
        joined = tuple(map(np.concatenate, zip(*parts, strict=True))) if len(parts) > 1 else parts[0]
        batches.append(executor.submit(classify, joined))

    def collect(most: int) -> Iterator[LabelledRegion]:
        """Yield what is finished, once no more than ``most`` batches are under way."""
        while batches and (len(batches) > most or batches[0].done()):
            done.append(executor.result(batches.popleft()))
        while waiting and len(waiting[0][1]) <= sum(map(len, done)):
            region, nuclei_l0 = waiting.popleft()
            yield LabelledRegion(region, nuclei_l0, take(done, len(nuclei_l0), empty))

    for item in found:
        waiting.append((item.region, item.nuclei_l0))
        if len(item.nuclei_l0):
            views.append(item.views)
        while waiting_views() >= batch_size:
            submit_batch(batch_size)
            yield from collect(batches_ahead)
        yield from collect(batches_ahead)
    if rest := waiting_views():
        submit_batch(rest)
    yield from collect(0)


def take(done: deque[Predictions], count: int, empty: Predictions) -> Predictions:
    """Take the first ``count`` rows out of ``done``."""
    parts = [empty]
    while count:
        first = done.popleft()
        if len(first) > count:
            done.appendleft(first.select(slice(count, None)))
            first = first.select(slice(count))
        parts.append(first)
        count -= len(first)
    return Predictions.concatenate(parts)
