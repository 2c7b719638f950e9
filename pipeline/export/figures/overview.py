"""The overview: the stained slide in small and, beside it, its nuclei in the colours of one library."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from classifier.labels.libraries import Colour, Library, no_label_colour
from nucpipe.counts import counted
from nucpipe.files import written_whole
from pipeline.export.figures.scale_bar import scale_bar
from pipeline.export.quality import MARKS, hatched
from pipeline.regions.quality import CAUSES, QualityMap
from pipeline.store.reader import Store

Picture = npt.NDArray[np.uint8]

MIN_SIDE_PX = 800  # a smaller slide is enlarged, so that its nuclei and the text beside it can be read
DOT_PX = 3  # where nuclei are smaller in diameter, they are drawn as dots of this size
ROW_PX = 40  # of the legend
PAGE_ASPECT = 1.5  # width / height of what the overview is looked at on
OUTLINE_PX = 6  # where they are larger, they are drawn with an outline
SUBPIXEL_BITS = 4  # of the coordinates that OpenCV draws
BLACK, GREY, FAINT, LINE = (20, 20, 20), (110, 110, 110), (160, 160, 160), (200, 200, 200)


def draw_overview(
    store: Store, thumbnail: Picture, path: Path, primary: str, quality: QualityMap | None = None
) -> None:
    """Draw the stained slide and the slide with its nuclei, a legend, their counts and a scale bar, and write a PNG.

    On the stained slide places of poor quality are hatched.

    The two lie side by side or one below the other, and the legend right of them or below, so that the
    pictures are as large as can be on a page of 3 : 2.

    Args:
        store: the nuclei.
        thumbnail: (h, w, 3) uint8 RGB, the whole slide.
        path: of the PNG.
        primary: name of the library whose labels give the colours, in any case of letters.
        quality: of the slide; None: nothing is said of it.

    Raises:
        UsageError: the store has no library ``primary``.
        OutputError: the file cannot be written.
    """
    library = store.info.outputs.library(primary)
    stained = _at_least(thumbnail, MIN_SIDE_PX)
    labelled = paint(stained, store, library)
    if quality is not None:
        stained = hatched(stained, quality, store.info.size_l0)
    page = _page(stained, labelled, store, library, _cautions(quality))
    with written_whole(path) as partial:
        page.save(partial, format="PNG", compress_level=1)  # a third to a half of the usual time, 7 to 20 % larger


def paint(thumbnail: Picture, store: Store, library: Library) -> Picture:
    """Return the slide, pale, with its nuclei in the colours of a library; at least 800 pixels on the longer side."""
    return _nuclei_on(_pale(_at_least(thumbnail, MIN_SIDE_PX)), store, library)


def _at_least(image: Picture, side_px: int) -> Picture:
    """Enlarge, if need be, so that the longer side has ``side_px``."""
    factor = side_px / max(image.shape[:2])
    if factor <= 1:
        return image
    h, w = image.shape[:2]
    size = (max(1, round(w * factor)), max(1, round(h * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def _pale(image: Picture) -> Picture:
    """Make a picture nearly grey and light, so that colours on it stand out."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    # Three quarters of the colour gone, and half way to white.
    return np.asarray(cv2.addWeighted(image, 0.125, grey, 0.375, 127.5), np.uint8)


def _nuclei_on(picture: Picture, store: Store, library: Library) -> Picture:
    h, w = picture.shape[:2]
    scale = np.array([w / store.info.size_l0[0], h / store.info.size_l0[1]])
    colours = np.array([*library.colours, no_label_colour()], np.uint8)  # the last one is number -1
    diameter_px = _typical_diameter_um(store) / store.info.mpp * float(scale.mean())
    drawn = picture.copy()
    for part in store.batches():
        colour = colours[part.label_numbers(library.name)]
        if diameter_px < DOT_PX:
            _draw_dots(drawn, part.centroids_l0 * scale, colour)
        else:
            offsets, points = part.contours()
            _draw_outlines(drawn, offsets, points * scale, colour, diameter_px > OUTLINE_PX)
    return drawn


def _typical_diameter_um(store: Store) -> float:
    """Return the radius of a disc of the median area; 0 where there are no nuclei."""
    area = float(np.median(store.area_um2)) if len(store) else 0.0
    return 2 * math.sqrt(area / math.pi)


def _draw_dots(picture: Picture, centres: npt.NDArray[np.float64], colours: Picture) -> None:
    """Squares. Where many fall on one pixel a random one is seen, so that the mixture of colours is true."""
    order = np.random.default_rng(0).permutation(len(centres))
    h, w = picture.shape[:2]
    x, y = np.floor(centres[order]).astype(int).T
    reach = range(-(DOT_PX // 2), DOT_PX // 2 + 1)
    for dx, dy in itertools.product(reach, reach):
        picture[np.clip(y + dy, 0, h - 1), np.clip(x + dx, 0, w - 1)] = colours[order]


def _draw_outlines(
    picture: Picture,
    offsets: npt.NDArray[np.int64],
    points: npt.NDArray[np.float64],
    colours: Picture,
    with_line: bool,
) -> None:
    # OpenCV's whole numbers are pixel centres, ours pixel corners.
    fixed = np.rint((points - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
    for start, end, colour in zip(offsets[:-1], offsets[1:], colours.tolist(), strict=True):
        ring = [fixed[start:end]]
        cv2.fillPoly(picture, ring, colour, cv2.LINE_AA, SUBPIXEL_BITS)
        if with_line:
            cv2.polylines(picture, ring, True, _darker(colour), 1, cv2.LINE_AA, SUBPIXEL_BITS)


def _cautions(quality: QualityMap | None) -> list[tuple[Colour, str]]:
    """Return what is hatched, with its colour."""
    if quality is None:
        return []
    shares = {cause: quality.share(cause) for cause in CAUSES if quality.causes[cause].any()}
    return [(MARKS[cause][0], f"{100 * share:.1f} % {CAUSES[cause]}") for cause, share in shares.items()]


def _page(
    stained: Picture, labelled: Picture, store: Store, library: Library, cautions: Sequence[tuple[Colour, str]]
) -> Image.Image:
    """Return the pictures with a title above them, a scale bar below, and a legend, so that all fit a page best."""
    h, w = stained.shape[:2]
    unit = max(h, w) / MIN_SIDE_PX  # text and margins grow with the picture
    margin, head, foot = round(40 * unit), round(90 * unit), round(50 * unit)
    left, top = margin, margin + head
    layouts = []
    for second in ((w + margin // 2, 0), (0, h + margin // 2)):
        right, bottom = left + second[0] + w, top + second[1] + h
        beside, below = _legend(store, library, unit), _legend(store, library, unit, right - left)
        size = (right + 2 * margin + beside.width, max(bottom + foot, top + beside.height) + margin // 2)
        layouts.append((size, second, bottom, beside, (right + margin, top)))
        size = (max(right, left + below.width) + margin, bottom + foot + margin // 2 + below.height + margin // 2)
        layouts.append((size, second, bottom, below, (left, bottom + foot + margin // 2)))
    # The one in which the pictures are largest on a screen, or on a page of a paper.
    layouts.sort(key=lambda layout: max(layout[0][0] / PAGE_ASPECT, layout[0][1]))
    size, (dx, dy), bottom, legend, place = layouts[0]
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for picture, x, y in ((stained, left, top), (labelled, left + dx, top + dy)):
        page.paste(Image.fromarray(picture), (x, y))
        draw.rectangle((x - 1, y - 1, x + w, y + h), outline=LINE)
    page.paste(legend, place)
    _title(draw, store, (margin, margin), page.width - 2 * margin, unit, cautions)
    _scale_bar(draw, (margin, bottom + foot // 2), w, store.info.size_l0[0] * store.info.mpp, unit)
    return page


def _darker(colour: Sequence[int]) -> Colour:
    red, green, blue = (round(0.6 * value) for value in colour)
    return red, green, blue


def _font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans of matplotlib: it has the letters of most languages, Pillow's own font only English's."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    # Found, not imported: that takes a third of a second.
    package = find_spec("matplotlib")
    assert package is not None
    assert package.origin is not None
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / name, max(6, round(size)))


def _title(
    draw: ImageDraw.ImageDraw,
    store: Store,
    at: tuple[int, int],
    width: int,
    unit: float,
    cautions: Sequence[tuple[Colour, str]],
) -> None:
    x, y = at
    font = _font(30 * unit, bold=True)
    name = store.info.slide_name
    while len(name) > 1 and draw.textlength(name, font) > width:
        name = name[:-2] + "…"
    draw.text((x, y), name, BLACK, font)
    (w, h), mpp = store.info.size_l0, store.info.mpp
    size = f"{w * mpp / 1000:.3g} × {h * mpp / 1000:.3g} mm"
    nuclei = counted(len(store), "nucleus", "nuclei")
    parts = [(GREY, f"{nuclei}  ·  {size}"), *((colour, f"  ·  {said} (hatched)") for colour, said in cautions)]
    small = _font(22 * unit)
    small = _font(22 * unit * min(1, width / sum(draw.textlength(said, small) for _, said in parts)))
    for colour, said in parts:
        draw.text((x, y + 42 * unit), said, colour, small)
        x += round(draw.textlength(said, small))


def _legend_rows(store: Store, library: Library) -> list[tuple[Colour, str, int]]:
    """Return (colour, name, nuclei) of each label that the classifier knows."""
    counts = np.zeros(len(library.labels) + 1, np.int64)  # the last one is number -1
    for part in store.batches():
        np.add.at(counts, part.label_numbers(library.name), 1)
    trained = store.info.outputs.trained_in(library.name)
    rows = [
        (colour, label.replace("_", " "), int(count))
        for colour, label, count, known in zip(library.colours, library.labels, counts, trained, strict=False)
        if known
    ]
    return rows + ([(no_label_colour(), "no label", int(counts[-1]))] if counts[-1] else [])


def _legend(store: Store, library: Library, unit: float, width: int = 0) -> Image.Image:
    """Return the library's name, and for each label its colour, name, nuclei and share, in as many columns as fit a
    width.
    """
    rows = _legend_rows(store, library)
    total = max(1, sum(count for _, _, count in rows))
    font, gap = _font(20 * unit), 24 * unit
    names_end = 32 * unit + max((font.getlength(label) for _, label, _ in rows), default=0)
    counts_end = names_end + gap + font.getlength(f"{total:,}")
    shares_end = counts_end + gap + font.getlength("100.0 %")
    across = shares_end + 2 * gap
    columns = max(1, min(len(rows), int((width + 2 * gap) // across)))
    lines = math.ceil(len(rows) / columns)
    heading = _font(24 * unit, bold=True)
    wide = max(columns * across - 2 * gap, heading.getlength(library.name))
    legend = Image.new("RGB", (math.ceil(wide), round((lines + 1) * ROW_PX * unit)), "white")
    draw = ImageDraw.Draw(legend)
    draw.text((0, 0), library.name, BLACK, heading)
    for i, (colour, label, count) in enumerate(rows):
        x, middle, radius = i // lines * across, (i % lines + 1.45) * ROW_PX * unit, 9 * unit
        disc = (x, middle - radius, x + 2 * radius, middle + radius)
        draw.ellipse(disc, colour, _darker(colour), max(1, round(unit)))
        ink = BLACK if count else FAINT
        draw.text((x + 32 * unit, middle), label, ink, font, anchor="lm")
        draw.text((x + counts_end, middle), f"{count:,}", ink, font, anchor="rm")
        if count:
            draw.text((x + shares_end, middle), f"{100 * count / total:.1f} %", GREY, font, anchor="rm")
    return legend


def _scale_bar(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, width_um: float, unit: float) -> None:
    """From ``at`` to the right, for a picture whose ``width`` pixels are ``width_um`` micrometres."""
    x, y = at
    length_um, text = scale_bar(width_um)
    end = x + length_um * width / width_um
    draw.rectangle((x, y - 3 * unit, end, y + 3 * unit), BLACK)
    draw.text((end + 14 * unit, y), text, BLACK, _font(20 * unit), anchor="lm")
