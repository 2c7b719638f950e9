"""From HoVer-Net's maps to nuclei. Every pixel is judged by its own surroundings: nothing is normalised over a tile.

Graham et al. 2019 (section 3.2) find the border between touching nuclei where the horizontal and vertical maps jump.
Their code stretches the gradients to 0-1 over the tile; here they are kept in the maps' own unit, so that the same
nucleus is cut in the same way whatever lies beside it. And parts are joined again where the maps hardly fall all along
the border between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.optional.jit import jit
from segmentation.contours import trace_instances
from segmentation.hovernet.merging import merge_across_weak_borders
from segmentation.hovernet.watershed import flood
from segmentation.nuclei import Nuclei

IntMap = npt.NDArray[np.int32]
FloatMap = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PostProcessing:
    """Constants of the post-processing; sizes hold at 0.25 um. The defaults did best on images of the training part.

    Attributes:
        threshold: nuclear probability from which a pixel is nuclear.
        border: fall of the horizontal or vertical map per pixel, from which a pixel is a border between nuclei.
        min_marker_px: a nucleus starts from a marker of at least this many pixels.
        min_area_px: smaller nuclei are dropped.
        weak_border: parts between which the maps fall by less a pixel, in the mean, are one nucleus.
    """

    threshold: float = 0.5
    border: float = 0.02
    min_marker_px: int = 20
    min_area_px: int = 40
    weak_border: float = 0.045


def falls(hv: FloatMap) -> tuple[FloatMap, FloatMap]:
    """Return how steeply the maps fall, per pixel: dH/dx and dV/dy are positive inside a nucleus and negative between
    two.

    Args:
        hv: (2, H, W) float32, horizontal and vertical maps.

    Returns:
        The fall of the horizontal map to the right, and of the vertical map downwards: (H, W) float32 each, 0 where a
        map does not fall.
    """
    # Normalised so that a ramp of slope 1 a pixel gives 1.
    unit = 1 / cv2.Sobel(np.tile(np.arange(16, dtype=np.float32), (16, 1)), cv2.CV_32F, 1, 0, ksize=5)[8, 8]
    right = -cv2.Sobel(hv[0], cv2.CV_32F, 1, 0, ksize=5, scale=unit)
    down = -cv2.Sobel(hv[1], cv2.CV_32F, 0, 1, ksize=5, scale=unit)
    return np.asarray(np.maximum(right, 0), np.float32), np.asarray(np.maximum(down, 0), np.float32)


def label_instances(p: FloatMap, hv: FloatMap, settings: PostProcessing) -> npt.NDArray[np.int32]:
    """Return one id per nucleus.

    Args:
        p: (H, W) float32 nuclear probability.
        hv: (2, H, W) float32 horizontal and vertical maps.
        settings: constants.

    Returns:
        (H, W) int32, 0 = background, ids 1..N.
    """
    nuclear = (p >= settings.threshold).astype(np.uint8)
    components, component_px = _components(nuclear)
    right, down = falls(hv)
    fall = np.maximum(right, down)
    inner = ((fall < settings.border) & (nuclear > 0)).astype(np.uint8)
    # An opening parts markers that hang together by a thread.
    opened = cv2.morphologyEx(inner, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    markers, marker_px = _components(opened)
    instances = np.empty(components.shape, np.int32)
    small_component, small_marker = component_px < settings.min_area_px, marker_px < settings.min_marker_px
    several = assign(components, markers, small_component, small_marker, instances)
    if several.any():
        landscape = np.asarray(cv2.GaussianBlur(fall, (5, 5), 0), np.float32)
        flood(landscape, components, several, instances)
        merge_across_weak_borders(instances, right, down, settings.weak_border)
    return instances


def _components(mask: npt.NDArray[np.integer] | cv2.typing.MatLike) -> tuple[IntMap, IntMap]:
    """Return the connected components (four neighbours) of a mask (H, W) uint8, 0 = background, and their areas by
    number.
    """
    # OpenCV's statistics take four times as long as the components themselves, and only the areas are wanted.
    count, numbers = cv2.connectedComponents(mask, connectivity=4)
    components = np.asarray(numbers, np.int32)
    return components, areas_by_number(components, count)


@jit
def areas_by_number(components: IntMap, count: int) -> IntMap:
    """Return how many pixels have each number below ``count``: (H, W) int32 to (count,) int32."""
    areas = np.zeros(count, np.int32)
    for row in range(components.shape[0]):
        for column in range(components.shape[1]):
            areas[components[row, column]] += 1
    return areas


@jit
def assign(
    components: IntMap,
    markers: IntMap,
    small_component: npt.NDArray[np.bool_],
    small_marker: npt.NDArray[np.bool_],
    instances: IntMap,
) -> npt.NDArray[np.bool_]:
    """Return which components have several markers; ``instances`` gets those markers, and the other components whole.

    Args:
        components, markers: (H, W) int32; number 0 is the background.
        small_component, small_marker: by number, what counts for nothing.
        instances: (H, W) int32, written: the component's number, or the marker's beyond the last component's.
    """
    first = np.zeros(len(small_component), np.int32)
    several = np.zeros(len(small_component), np.bool_)
    height, width = components.shape
    for row in range(height):
        for column in range(width):
            marker, component = markers[row, column], components[row, column]
            if marker == 0 or small_marker[marker] or small_component[component]:
                continue
            if first[component] == 0:
                first[component] = marker
            elif first[component] != marker:
                several[component] = True
    for row in range(height):
        for column in range(width):
            marker, component = markers[row, column], components[row, column]
            if component == 0 or small_component[component]:
                instances[row, column] = 0
            elif not several[component]:
                instances[row, column] = component
            elif marker == 0 or small_marker[marker]:
                instances[row, column] = 0
            else:
                instances[row, column] = len(first) + marker
    return several


def find_nuclei(
    maps: FloatMap,
    mpp: float,
    settings: PostProcessing | None = None,
    frame_scale: float = 1.0,
    types: npt.NDArray[np.uint8] | None = None,
) -> Nuclei:
    """Return the nuclei of one read box.

    Args:
        maps: (3, H, W) float32: nuclear-pixel logit, horizontal and vertical map.
        mpp: pixel size of the maps in micrometres, for the areas.
        settings: constants of the post-processing.
        frame_scale: coordinates are multiplied by this, to give them in pixels of another size.
        types: (H, W) the type of each pixel, 0 = background, from a network that gives types.

    Returns:
        Nuclei in pixels of the maps (times ``frame_scale``), in the order of their first pixel.
    """
    settings = settings or PostProcessing()
    p = 1 / (1 + np.exp(-maps[0].clip(-30, 30)))
    instances = label_instances(p, np.ascontiguousarray(maps[1:]), settings)
    return outline_instances(instances, p, mpp, settings.min_area_px, types).transformed(frame_scale, (0, 0))


def outline_instances(
    instances: npt.NDArray[np.int32],
    p: FloatMap,
    mpp: float,
    min_area_px: int,
    types: npt.NDArray[np.uint8] | None = None,
) -> Nuclei:
    """Outline the nuclei of an instance map; holes are filled, detached bits of a nucleus dropped.

    Args:
        instances: (H, W) int32, 0 = background; ids need not be consecutive.
        p: (H, W) float32 nuclear probability.
        mpp: pixel size in micrometres.
        min_area_px: smaller nuclei are dropped.
        types: (H, W) the type of each pixel, 0 = background, from a detector that gives types.

    Returns:
        Nuclei in the order of their first pixel, row by row.
    """
    found = trace_instances(instances, p)
    nuclei = Nuclei(
        # On a grid of 1/256 px, so that a centroid on a seam falls on the same side of it in every read box.
        np.round(found.centroids * 256) / 256,
        found.offsets,
        found.points.astype(np.float64),
        (found.sums / np.maximum(found.pixels, 1)).astype(np.float32),
        (found.areas * mpp * mpp).astype(np.float32),
        None if types is None else majority_types(instances, types)[found.ids],
    )
    return nuclei.select(found.areas >= min_area_px)


def majority_types(instances: npt.NDArray[np.int32], types: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Return the commonest type of each instance's pixels, background aside, as HoVer-Net's authors choose it.

    Args:
        instances: (H, W), 0 = background.
        types: (H, W), 0 = background, then 1, 2, ...

    Returns:
        (largest id + 1,) int8 by id, the type less 1; -1 where all pixels are background.
    """
    inside = instances > 0
    shape = int(instances.max(initial=0)) + 1, int(types.max(initial=0)) + 1
    places = instances[inside].astype(np.int64) * shape[1] + types[inside]
    counts = np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape)
    counts[:, 0] = 0
    return np.where(counts.any(1), counts.argmax(1) - 1, -1).astype(np.int8)
