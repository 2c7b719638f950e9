"""From HoVer-Net's maps to nuclei. Every pixel is judged by its own surroundings: nothing is normalised over a tile.

Graham et al. 2019 (section 3.2) find the border between touching nuclei where the horizontal and vertical maps jump.
Their code stretches the gradients to 0-1 over the tile; here they are kept in the maps' own unit, so that the same
nucleus is cut in the same way whatever lies beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from skimage.segmentation import watershed

from segmentation.nuclei import Nuclei
from segmentation.outlines import trace_outline

FloatMap = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PostProcessing:
    """Constants of the post-processing; sizes hold at 0.25 um. The defaults did best on images of the training part.

    Attributes:
        threshold: nuclear probability from which a pixel is nuclear.
        border: fall of the horizontal or vertical map per pixel, from which a pixel is a border between nuclei.
        min_marker_px: a nucleus starts from a marker of at least this many pixels.
        min_area_px: smaller nuclei are dropped.
    """

    threshold: float = 0.5
    border: float = 0.02
    min_marker_px: int = 20
    min_area_px: int = 40


def border_strength(hv: FloatMap) -> FloatMap:
    """How steeply the maps fall, per pixel: dH/dx and dV/dy are positive inside a nucleus and negative between two.

    Args:
        hv: (2, H, W) float32, horizontal and vertical maps.

    Returns:
        (H, W) float32, 0 where neither map falls.
    """
    # Normalised so that a ramp of slope 1 a pixel gives 1.
    unit = 1 / cv2.Sobel(np.tile(np.arange(16, dtype=np.float32), (16, 1)), cv2.CV_32F, 1, 0, ksize=5)[8, 8]
    falls = np.maximum(
        -cv2.Sobel(hv[0], cv2.CV_32F, 1, 0, ksize=5, scale=unit),
        -cv2.Sobel(hv[1], cv2.CV_32F, 0, 1, ksize=5, scale=unit),
    )
    return np.asarray(np.maximum(falls, 0), np.float32)


def label_instances(p: FloatMap, hv: FloatMap, settings: PostProcessing) -> npt.NDArray[np.int32]:
    """One id per nucleus.

    Args:
        p: (H, W) float32 nuclear probability.
        hv: (2, H, W) float32 horizontal and vertical maps.
        settings: constants.

    Returns:
        (H, W) int32, 0 = background, ids 1..N.
    """
    nuclear = (p >= settings.threshold).astype(np.uint8)
    n, components, stats, _ = cv2.connectedComponentsWithStats(nuclear, connectivity=4)
    fall = border_strength(hv)
    inner = ((fall < settings.border) & (nuclear > 0)).astype(np.uint8)
    # An opening parts markers that hang together by a thread.
    opened = cv2.morphologyEx(inner, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    _, markers, marker_stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    keep = marker_stats[:, cv2.CC_STAT_AREA] >= settings.min_marker_px
    keep[0] = False
    markers = np.where(keep[markers], markers, 0)
    first = np.zeros(n, np.int64)
    several = np.zeros(n, bool)
    rows, columns = np.nonzero(markers)
    of_component, of_marker = components[rows, columns], markers[rows, columns]
    first[of_component] = of_marker
    several[of_component[of_marker != first[of_component]]] = True
    large = stats[:, cv2.CC_STAT_AREA] >= settings.min_area_px
    large[0] = False
    single = np.where(large & ~several, np.arange(n), 0)
    instances: npt.NDArray[np.int32] = single[components].astype(np.int32)
    landscape = cv2.GaussianBlur(fall, (5, 5), 0)
    next_id = n
    for k in np.flatnonzero(large & several):
        x, y, w, h = stats[k, :4]
        box = np.s_[y : y + h, x : x + w]
        mask = components[box] == k
        parts = watershed(landscape[box], np.where(mask, markers[box], 0), mask=mask)  # type: ignore[no-untyped-call]
        ids, inverse = np.unique(parts[mask], return_inverse=True)
        instances[box][mask] = next_id + inverse
        next_id += len(ids)
    return instances


def find_nuclei(maps: FloatMap, mpp: float, settings: PostProcessing | None = None, frame_scale: float = 1.0) -> Nuclei:
    """The nuclei of one window.

    Args:
        maps: (3, H, W) float32: nuclear-pixel logit, horizontal and vertical map.
        mpp: pixel size of the maps in micrometres, for the areas.
        settings: constants of the post-processing.
        frame_scale: coordinates are multiplied by this, to give them in pixels of another size.

    Returns:
        Nuclei in pixels of the maps (times ``frame_scale``), in the order of their first pixel.
    """
    settings = settings or PostProcessing()
    p = 1 / (1 + np.exp(-maps[0].clip(-30, 30)))
    instances = label_instances(p, np.ascontiguousarray(maps[1:]), settings)
    return outline_instances(instances, p, mpp, settings.min_area_px).moved(frame_scale, (0, 0))


def outline_instances(instances: npt.NDArray[np.int32], p: FloatMap, mpp: float, min_area_px: int) -> Nuclei:
    """Outlines, centroids and areas of an instance map; holes are filled, detached bits of a nucleus dropped.

    Args:
        instances: (H, W) int32, 0 = background; ids need not be consecutive.
        p: (H, W) float32 nuclear probability.
        mpp: pixel size in micrometres.
        min_area_px: smaller nuclei are dropped.
    """
    from scipy.ndimage import find_objects

    outlines, centroids, areas, probabilities = [], [], [], []
    for k, box in enumerate(find_objects(instances)):
        if box is None:
            continue
        mask = instances[box] == k + 1
        outline = trace_outline(mask)
        area, centroid = polygon_moments(outline)
        if area < min_area_px:
            continue
        origin = (box[1].start, box[0].start)
        outlines.append(outline + origin)
        # On a grid of 1/256 px, so that a centroid on a seam falls on the same side of it in every window.
        centroids.append(np.round(centroid * 256) / 256 + origin)
        areas.append(area * mpp * mpp)
        probabilities.append(p[box][mask].mean())
    if not outlines:
        return Nuclei.empty()
    return Nuclei(
        np.asarray(centroids, np.float64),
        np.concatenate([np.zeros(1, np.int64), np.cumsum([len(o) for o in outlines])]),
        np.concatenate(outlines).astype(np.float64),
        np.asarray(probabilities, np.float32),
        np.asarray(areas, np.float32),
    )


def polygon_moments(points: npt.NDArray[np.integer]) -> tuple[float, npt.NDArray[np.float64]]:
    """Area and centre of mass of a simple polygon (shoelace formula).

    Args:
        points: (K, 2) x and y, not closed.
    """
    ring = np.concatenate([points, points[:1]]).astype(np.float64)
    here, there = ring[:-1], ring[1:]
    cross = here[:, 0] * there[:, 1] - there[:, 0] * here[:, 1]
    twice = float(cross.sum())
    if twice == 0:
        return 0.0, points.mean(0)
    return abs(twice) / 2, cross @ (here + there) / (3 * twice)
