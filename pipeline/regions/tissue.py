"""Tissue of a slide: found on a thumbnail, or given as a mask or as outlines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.errors import SlideError, UsageError
from nucpipe.geojson import GEOJSON_ERRORS, Annotation, read_annotations
from pipeline.slide.base import Slide
from pipeline.slide.resample import Image
from pipeline.slide.time_limit import within_time

Mask = npt.NDArray[np.bool_]
Floats64 = npt.NDArray[np.float64]
BoxL0 = tuple[float, float, float, float]
"""x0, y0, x1, y1 at level 0."""

THUMBNAIL_UM, LARGEST_THUMBNAIL_PX = 8.0, 4096
SPECK_MM2, HOLE_MM2, INK_MM2 = 0.002, 0.02, 0.01
# An image no longer than this is a tile that somebody cut out of tissue; a thousandth of it says whether it is.
TILE_UM, TILE_UM_PER_PX, TILE_SPECK = 500.0, 1.0, 0.001

WHITE = 245.0  # glass, where a thumbnail shows none
GLASS_SHARE, GLASS_PINK = 0.002, 6
MIN_COLOUR, MAX_COLOUR = 0.035, 0.055

LARGEST_ROI_PX, MAX_DRAWN = 8192, 300
LARGEST_COORDINATE = 2.0**40  # far beyond any slide
ASPECT_TOLERANCE = 0.01
MASK_COLOURS = 256
"""That a mask may have, one a class and their mixtures where it was made smaller."""
LOOKED_AT_PX = 1_000_000


@dataclass(frozen=True)
class TissueMask:
    """The part of a slide that counts, as pixels that cover the whole slide.

    Attributes:
        mask: (h, w) bool.
        l0_per_px: (x, y) level-0 pixels per pixel of the mask.
        mpp: micrometres per level-0 pixel.
    """

    mask: Mask
    l0_per_px: tuple[float, float]
    mpp: float

    @classmethod
    def of(cls, mask: Mask, slide: Slide) -> TissueMask:
        """Return a mask of any resolution that covers ``slide``."""
        width, height = slide.size_l0
        return cls(mask, (width / mask.shape[1], height / mask.shape[0]), slide.mpp)

    @property
    def area_mm2(self) -> float:
        """Area of the tissue, square millimetres."""
        return float(np.count_nonzero(self.mask)) * self._px_mm2

    def area_in_mm2(self, box_l0: BoxL0) -> float:
        """Return area of the tissue inside x0, y0, x1, y1; parts of a pixel count as parts."""
        part, x, y = self._part(box_l0)
        return float(y @ self.mask[part] @ x) * self._px_mm2

    def areas_in_mm2(self, x_l0: Floats64, y_l0: Floats64) -> Floats64:
        """Return (rows, columns) areas of the tissue between (columns + 1,) and (rows + 1,) edges that rise."""
        weights = [
            np.stack([self._overlap(*pair, axis) for pair in pairwise(edges)]) for edges, axis in ((y_l0, 0), (x_l0, 1))
        ]
        met = [np.flatnonzero(each.any(axis=0)) for each in weights]
        if not (len(met[0]) and len(met[1])):
            return np.zeros((len(y_l0) - 1, len(x_l0) - 1))
        rows, columns = (slice(int(each[0]), int(each[-1]) + 1) for each in met)
        # Not by BLAS, whose threads would wake for so little.
        down = np.einsum("ri,ij->rj", weights[0][:, rows], self.mask[rows, columns].astype(np.float64))
        return np.asarray(np.einsum("rj,cj->rc", down, weights[1][:, columns])) * self._px_mm2

    def extent(self, box_l0: BoxL0) -> BoxL0 | None:
        """Return the smallest x0, y0, x1, y1 with all the tissue inside a box, which may reach beyond the slide."""
        part, _, _ = self._part(box_l0)
        rows, columns = (np.flatnonzero(self.mask[part].any(axis)) for axis in (1, 0))
        if not len(rows):
            return None
        x_l0, y_l0 = self.l0_per_px
        left, top = part[1].start, part[0].start
        return (
            max(box_l0[0], float(left + columns[0]) * x_l0),
            max(box_l0[1], float(top + rows[0]) * y_l0),
            min(box_l0[2], float(left + columns[-1] + 1) * x_l0),
            min(box_l0[3], float(top + rows[-1] + 1) * y_l0),
        )

    def contains(self, points_l0: npt.NDArray[np.float64]) -> Mask:
        """Return which of (N, 2) points, x and y at level 0, lie on tissue; none does beyond the slide."""
        index = np.floor(points_l0 / self.l0_per_px).astype(np.int64)
        height, width = self.mask.shape
        inside = np.all((index >= 0) & (index < (width, height)), axis=1)
        found = np.zeros(len(index), bool)
        found[inside] = self.mask[index[inside, 1], index[inside, 0]]
        return found

    @property
    def _px_mm2(self) -> float:
        return self.l0_per_px[0] * self.l0_per_px[1] * (self.mpp / 1000) ** 2

    def _part(self, box_l0: BoxL0) -> tuple[tuple[slice, slice], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the mask's rows and columns that a box meets, and which share of each column and row lies in it."""
        x, y = (self._overlap(box_l0[i], box_l0[i + 2], axis) for i, axis in ((0, 1), (1, 0)))
        rows, columns = (
            slice(int(met[0]), int(met[-1]) + 1) if len(met := np.flatnonzero(share)) else slice(0, 0)
            for share in (y, x)
        )
        return (rows, columns), x[columns], y[rows]

    def _overlap(self, start_l0: float, stop_l0: float, axis: int) -> npt.NDArray[np.float64]:
        """Return for each of the mask's columns (axis 1) or rows (axis 0) the share of it that lies in the interval."""
        size, step = self.mask.shape[axis], self.l0_per_px[1 - axis]
        edges = np.clip(np.arange(size + 1), start_l0 / step, max(start_l0, stop_l0) / step)
        return np.diff(edges)


def check_tissue_option(option: str) -> None:
    """See that ``--tissue`` is a word or a file that is there, before any slide is begun.

    Raises:
        UsageError: no such file.
    """
    if option not in ("auto", "none") and not Path(option).is_file():
        raise UsageError(f"--tissue {option}: no such file; expected auto, none, a mask image or a GeoJSON file.")


def tissue_from(option: str, slide: Slide) -> TissueMask:
    """Return what ``--tissue`` asks for.

    Args:
        option: ``auto`` finds the tissue; ``none`` takes the whole slide; else a mask image or a ``.geojson``.
        slide: the slide it is for.

    Raises:
        UsageError: no such file.
        SlideError: the file cannot be read or is not of this slide, or the tissue is not found in time (see
            :mod:`pipeline.slide.time_limit`).
    """
    if option == "auto":
        return within_time(slide.path, "finding its tissue", lambda: tissue_mask(slide))
    if option == "none":
        return TissueMask.of(np.ones((1, 1), bool), slide)
    check_tissue_option(option)
    path = Path(option)
    return _from_geojson(path, slide) if gives_regions(option) else _from_image(path, slide)


def gives_regions(option: str) -> bool:
    """Tell whether ``--tissue`` names a GeoJSON, whose annotations are regions of interest."""
    return option.lower().endswith((".geojson", ".geojson.gz", ".json"))


def tissue_mask(slide: Slide) -> TissueMask:
    """Find tissue stained with haematoxylin and eosin, without bare glass, dust and pen marks.

    Found on a thumbnail of 8 um per pixel by the strength of its colour (see :func:`find_tissue`). An image of at
    most half a millimetre is a tile from tissue as a rule: there all counts as soon as some of it is tissue.
    """
    longest_um = max(slide.size_l0) * slide.mpp
    is_tile = longest_um <= TILE_UM
    longest_px = min(LARGEST_THUMBNAIL_PX, math.ceil(longest_um / (TILE_UM_PER_PX if is_tile else THUMBNAIL_UM)))
    thumbnail = slide.thumbnail(longest_px)
    um_per_px = longest_um / max(thumbnail.shape[:2])
    if is_tile:
        found = find_tissue(thumbnail, um_per_px, TILE_SPECK * thumbnail[..., 0].size * (um_per_px / 1000) ** 2)
        return TissueMask.of(np.full((1, 1), found.any()), slide)
    return TissueMask.of(find_tissue(thumbnail, um_per_px), slide)


def find_tissue(thumbnail: Image, um_per_px: float, speck_mm2: float = SPECK_MM2) -> Mask:
    """Find tissue on a thumbnail.

    H&E takes up green light most, so its optical density differs between the channels, while glass, shadow and dust
    are grey. The threshold on that difference is Otsu's, kept within what pale stroma and noise leave open: an
    all-white image then has no tissue, and one without glass is all tissue. Pen marks have hues that H&E lacks.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        um_per_px: its pixel size.
        speck_mm2: smaller pieces are dropped.

    Returns:
        (h, w) bool; holes are filled, specks dropped, and one pixel added all round.
    """
    px_mm2 = (um_per_px / 1000) ** 2
    density = optical_density(thumbnail, glass_white(thumbnail))
    colour = smooth(density.max(axis=0) - density.min(axis=0))
    ink = find_ink(density, INK_MM2 / px_mm2)
    tissue = (colour > otsu(colour[~ink])) & ~ink
    tissue = fill_holes(keep_components(tissue, speck_mm2 / px_mm2), HOLE_MM2 / px_mm2)
    margin = cv2.dilate(tissue.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    return margin & ~ink


def glass_white(rgb: Image) -> npt.NDArray[np.float64]:
    """Return (3,) red, green and blue of the glass: the brightest of the nearly grey pixels of (h, w, 3) uint8 RGB."""
    planes = np.ascontiguousarray(np.moveaxis(rgb, 2, 0))
    low, high = planes.min(axis=0), planes.max(axis=0)
    # Pale stroma is bright and nearly grey too, but pink: green is less than the others.
    pink = np.minimum(planes[0], planes[2]).astype(np.int16) - planes[1]
    glass = planes[:, (low > 200) & (high - low < 30) & (pink < GLASS_PINK)]
    if glass.shape[1] < GLASS_SHARE * low.size:
        return np.full(3, WHITE)
    light = glass.sum(axis=0, dtype=np.int32)
    return np.asarray(np.median(glass[:, light >= np.quantile(light, 0.9)], axis=1))


def optical_density(rgb: Image, white: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return (3, h, w) float32, natural logarithm, relative to ``white``, of (h, w, 3) uint8 RGB."""
    planes = np.ascontiguousarray(np.moveaxis(rgb, 2, 0))
    table = -np.log(np.maximum(np.arange(256), 1) / white[:, None]).astype(np.float32)
    return np.stack([np.maximum(levels, 0)[plane] for levels, plane in zip(table, planes, strict=True)])


def smooth(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Smooth away the noise of single pixels."""
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), 1.0), np.float32)


def otsu(values: npt.NDArray[np.float32]) -> float:
    """Return Otsu's threshold (1979), limited to what noise on glass stays below and pale stroma above."""
    levels = np.clip(values * 200, 0, 255).astype(np.uint8).reshape(-1, 1)
    if not len(levels):
        return MIN_COLOUR
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(np.clip(threshold / 200, MIN_COLOUR, MAX_COLOUR))


def find_ink(density: npt.NDArray[np.float32], least_px: float) -> Mask:
    """Find pen marks: patches of at least ``least_px`` of strong ink, with their paler fringes.

    Haematoxylin takes up green at least as much as red; blue and green ink take up more red. Red ink takes up blue
    nearly as much as green, both more than blood does, and hardly any red. Black ink takes up all alike. (Of a hundred
    published H&E tiles and slides, only those with ink have patches beyond these limits. Purple ink is not told.)

    Args:
        density: (3, h, w) optical density of red, green and blue light.
        least_px: smaller patches are pigment, mucin or chance.
    """
    red, green, blue = density = np.stack([smooth(plane) for plane in density])
    mean, spread = density.mean(axis=0), density.max(axis=0) - density.min(axis=0)
    cold = red > 1.08 * green
    warm = (blue > 0.8 * green) & (red < 0.3 * green)
    grey = spread < 0.25 * mean
    strong = (cold & (red - green > 0.15)) | (warm & (blue > 1.0)) | (grey & (mean > 0.9))
    weak = (cold & (red - green > 0.02)) | (warm & (blue > 0.04)) | (grey & (mean > 0.3))
    return keep_components(weak | strong, least_px, strong)


def fill_holes(mask: Mask, most_px: float) -> Mask:
    """Fill what is false, smaller than ``most_px``, and does not reach the image's edge."""
    background = np.pad(~mask, 1, constant_values=True)
    rim = np.pad(np.zeros_like(mask), 1, constant_values=True)  # joins all that reaches the edge
    left = keep_components(background, most_px) | keep_components(background, 1, rim)
    return ~left[1:-1, 1:-1]


def keep_components(mask: Mask, least_px: float, seeds: Mask | None = None) -> Mask:
    """Keep connected components (8 neighbours) with at least ``least_px`` pixels, or as many of ``seeds``."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA] if seeds is None else np.bincount(labels[seeds], minlength=count)
    keep = area >= least_px
    keep[0] = False
    return np.asarray(keep[labels], bool)


def _from_image(path: Path, slide: Slide) -> TissueMask:
    """Return a mask image that covers the slide at any resolution: what is not black is tissue."""
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if len(content) else None
    except OSError as error:
        raise SlideError(f"{path.name}: the mask cannot be read ({error.strerror}).") from error
    except cv2.error as error:  # OpenCV's own limit of size
        raise SlideError(f"{path.name}: the mask is too large an image; a few thousand pixels are enough.") from error
    if image is None:
        raise SlideError(f"{path.name}: expected a mask image (PNG) or a .geojson; it cannot be read as an image.")
    (height, width), (slide_width, slide_height) = image.shape[:2], slide.size_l0
    if abs((width * slide_height) / (height * slide_width) - 1) > ASPECT_TOLERANCE:
        raise SlideError(
            f"{path.name}: the mask is {width} x {height} pixels and {slide.path.name} {slide_width} x {slide_height}; "
            "their shapes must agree within 1 %."
        )
    colours = image[..., None] if image.ndim == 2 else image[..., :3]
    if _is_picture(colours):
        raise SlideError(
            f"{path.name}: expected a mask, in which what is not black is tissue; found a picture in many colours. "
            "Give a mask of it, or --tissue auto to find the tissue."
        )
    tissue = np.asarray(colours.any(axis=2))
    if not tissue.any():
        raise SlideError(f"{path.name}: the mask is black all over; what is to be looked at must not be black.")
    return TissueMask.of(tissue, slide)


def _is_picture(colours: npt.NDArray[Any]) -> bool:
    """Tell a picture, such as the slide itself in small, from a mask (h, w, channels): grey, or of few colours."""
    step = math.ceil(math.sqrt(colours[..., 0].size / LOOKED_AT_PX))
    some = colours[::step, ::step]
    if some.shape[2] < 3 or not np.ptp(some, axis=2).any():
        return False
    return len(np.unique(some.astype(np.float64) @ [1.0, 2.0**16, 2.0**32])) > MASK_COLOURS


def annotations_of(path: Path, what: str) -> list[Annotation]:
    """Return the annotations of a GeoJSON.

    Args:
        path: of the file.
        what: is expected of it, for the message of an error.

    Raises:
        SlideError: it cannot be read, or holds no annotation with an area.
    """
    try:
        annotations = read_annotations(path)
    except OSError as error:
        raise SlideError(f"{path.name}: cannot be read ({error.strerror or error}).") from error
    except GEOJSON_ERRORS as error:
        raise SlideError(f"{path.name}: expected GeoJSON with {what}; it cannot be read ({error}).") from error
    if not any(not one.is_ignored for one in annotations):
        raise SlideError(
            f"{path.name}: expected GeoJSON with {what}; it holds none "
            "(points, detections, and what has the class Ignore* do not count)."
        )
    return annotations


def _from_geojson(path: Path, slide: Slide) -> TissueMask:
    """Draw annotations in level-0 pixels as QuPath exports them, that is, counted from ``slide.origin_l0``.

    They are drawn on a mask whose pixels are level-0 pixels, or larger on a slide of more than 8192 of them; a pixel
    is set where its centre lies inside. What has the class ``Ignore*`` is cut out of the others.
    """
    annotations = annotations_of(path, "polygons")
    l0_per_px = max(1.0, max(slide.size_l0) / LARGEST_ROI_PX)
    width, height = (math.ceil(length / l0_per_px) for length in slide.size_l0)
    mask = np.zeros((height, width), bool)
    scale = (width / slide.size_l0[0], height / slide.size_l0[1])
    drawn_px = 0
    for annotation in sorted(annotations, key=lambda one: one.is_ignored):
        for rings in annotation.polygons:
            scaled = [(ring + slide.origin_l0) * scale for ring in rings]
            drawn_px += _draw(mask, scaled, not annotation.is_ignored)
            if drawn_px > MAX_DRAWN * mask.size:
                raise SlideError(
                    f"{path.name}: its polygons cover the slide hundreds of times over; give fewer of them."
                )
    if not mask.any():
        extent = f"{slide.path.name} of {slide.size_l0[0]} x {slide.size_l0[1]} pixels"
        raise SlideError(
            f"{path.name}: its polygons lie outside {extent}, or within those of the class Ignore*; they must be in "
            "pixels of full resolution."
        )
    return TissueMask.of(mask, slide)


def _draw(mask: Mask, rings: list[npt.NDArray[np.float64]], value: bool) -> int:
    """Set what lies in the first ring and in no other to ``value``, in pixels of ``mask`` counted from their corners.

    Returns:
        The pixels that had to be looked at, once for each ring.
    """
    height, width = mask.shape
    (left, top), (right, bottom) = np.floor(rings[0].min(axis=0)), np.ceil(rings[0].max(axis=0))
    x, y = (int(np.clip(left, 0, width)), int(np.clip(top, 0, height)))
    part = mask[y : int(np.clip(bottom, 0, height)), x : int(np.clip(right, 0, width))]
    if part.size == 0:
        return 0
    inside, *holes = (inside_ring(ring - (x, y), part.shape) for ring in rings)
    for hole in holes:
        inside &= ~hole
    part[inside] = value
    return part.size * len(rings)


def inside_ring(ring: npt.NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """Return the pixels whose centre lies inside a ring by the even-odd rule.

    Edges are half open: a centre on a left or upper edge is inside, one on a right or lower edge is not. So of two
    polygons that share an edge exactly one has each pixel, and a box of 20 x 20 pixels has 20 x 20 pixels. (OpenCV's
    ``fillPoly`` draws the whole outline, which makes that 21 x 21.)

    Args:
        ring: (K, 2) x and y in pixels, counted from the corner of the first one; not closed.
        shape: (height, width).

    Returns:
        (height, width) bool.
    """
    height, width = shape
    start = np.clip(ring, -LARGEST_COORDINATE, LARGEST_COORDINATE)
    stop = np.roll(start, -1, 0)
    # From top to bottom: the neighbour on the other side of an edge computes the same crossings.
    down = (start[:, 1] <= stop[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(down, start, stop).T, np.where(down, stop, start).T
    first, last = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (y0, y1))
    edges = np.repeat(np.arange(len(start)), last - first)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(last - first) - last, last - first)
    slopes = (x1 - x0)[edges] / (y1 - y0)[edges]
    x = x0[edges] + (rows + 0.5 - y0[edges]) * slopes
    toggles = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(toggles, (rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)), 1)
    return np.bitwise_xor.accumulate(toggles, axis=1)[:, :width].astype(bool)
