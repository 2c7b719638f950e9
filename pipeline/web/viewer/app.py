"""The page of one slide and what it asks for: tiles of the slide and of what lies on it, counts, single nuclei."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from classifier.patches import patch_box_w
from nucpipe.errors import DataError, NucpipeError, SlideError, UsageError
from pipeline.export.quality import MARKS, fine_enough
from pipeline.regions.quality import CAUSES, QualityMap
from pipeline.result import Result
from pipeline.slide.base import Slide
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.resample import Image
from pipeline.store.schema import NOT_A_NUCLEUS
from pipeline.web.server import with_safe_headers
from pipeline.web.viewer.correct import Corrector
from pipeline.web.viewer.describe import describe_nucleus, describe_regions, describe_result
from pipeline.web.viewer.drawing.heat import HeatMap, Kind, draw_heat, measure_heat
from pipeline.web.viewer.drawing.nuclei import draw_nuclei
from pipeline.web.viewer.drawing.quality import draw_quality
from pipeline.web.viewer.nuclei import Choice, NucleiMap
from pipeline.web.viewer.requests import box_of, list_of, number_of, read_json
from pipeline.web.viewer.tiles import Pyramid, Tile
from segmentation.nuclei import KEEP_ALL, NucleusFilter

STATIC = Path(str(resources.files("pipeline.web") / "viewer" / "static"))
SHARED_STATIC = Path(str(resources.files("pipeline.web") / "static"))
SLIDE_TILES_KEPT = 512  # about 40 MB; the tiles of a slide without a pyramid take long to make
HEAT_MAPS_KEPT = 8
MAX_UNCERTAIN = 200  # nuclei a request
MAX_CORNERS = 10_000  # of a line drawn round nuclei
LONGEST_PATH = 4000  # characters of an address; ours are shorter, and Python reads no number of more digits
CROP_PX = 224  # side of a crop as it is sent, which is what the classifier sees


@dataclass(frozen=True)
class Viewed:
    """A result that is viewed.

    Attributes:
        result: the result.
        nuclei: its nuclei.
        corrector: takes corrections of their labels.
        slide: the slide; None where it is not at hand.
        primary: name of the library that is shown first.
        note: why the slide is not at hand; "" where it is.
        kept: the nuclei that are shown at first.
        mark: of the store when it was opened, see :meth:`pipeline.store.reader.Store.mark`.
    """

    result: Result
    nuclei: NucleiMap
    corrector: Corrector
    slide: Slide | None
    primary: str
    note: str = ""
    kept: NucleusFilter = KEEP_ALL
    mark: str = ""


@dataclass(frozen=True)
class Place:
    """Where a slide stands among others that are viewed.

    Attributes:
        number, count: which one it is, from 1, and of how many.
        previous, next: addresses of the slides beside it; "" where there is none.
        all: address of their list.
    """

    number: int
    count: int
    previous: str
    next: str
    all: str


def viewer_app(viewed: Viewed, place: Place | None = None) -> Starlette:
    """Return the web application of one result.

    Args:
        viewed: the result.
        place: among others; None where it is viewed alone.
    """
    pages = _Pages(viewed, place)
    routes = [
        Route("/", pages.index),
        Route("/api/result", pages.describe),
        Route("/api/counts", pages.counts),
        Route("/api/regions", pages.regions),
        Route("/api/heat", pages.heat),
        Route("/api/quality", pages.quality),
        Route("/api/nuclei/at", pages.nucleus_at),
        Route("/api/nuclei/uncertain", pages.uncertain),
        Route("/api/nuclei/suggested", pages.suggested),
        Route("/api/nuclei/inside", pages.inside, methods=["POST"]),
        Route("/api/corrections", pages.corrections, methods=["GET"]),
        Route("/api/corrections", pages.correct, methods=["POST"]),
        Route("/api/corrections/undo", pages.undo, methods=["POST"]),
        Route("/api/nuclei/{number:int}", pages.nucleus),
        Route("/api/nuclei/{number:int}/crop.png", pages.crop),
        Route("/tiles/slide/{level:int}/{column:int}_{line:int}.jpg", pages.slide_tile),
        Route("/tiles/nuclei/{level:int}/{column:int}_{line:int}.png", pages.nuclei_tile),
        Route("/tiles/heat/{level:int}/{column:int}_{line:int}.png", pages.heat_tile),
        Route("/tiles/quality/{level:int}/{column:int}_{line:int}.png", pages.quality_tile),
    ]
    return with_answers([*routes, *static_files()], [Middleware(_SameResult, viewed=viewed)])


class _SameResult:
    """Refuses what is asked of a result in whose place another one has come: numbers of nuclei are of the first."""

    def __init__(self, app: ASGIApp, viewed: Viewed) -> None:
        self.app, self.viewed = app, viewed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        store, asked = self.viewed.result.store, scope.get("path", "")
        answer: ASGIApp = self.app
        if len(asked) > LONGEST_PATH:
            answer = _missing("place")
        elif ("/api/" in asked or "/tiles/" in asked) and store.mark() != self.viewed.mark:
            answer = JSONResponse(
                {
                    "error": f"{store.path}: was replaced or taken away while it was viewed; end nucpipe view and "
                    "start it again."
                },
                409,
            )
        await answer(scope, receive, send)


def static_files() -> list[Mount]:
    """Return where the files of the pages lie."""
    return [
        Mount("/shared", StaticFiles(directory=SHARED_STATIC)),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]


def with_answers(routes: list[Route | Mount], middleware: Sequence[Middleware] = ()) -> Starlette:
    """Return an application for this machine alone that answers our errors in JSON."""
    handlers: Mapping[Any, Callable[[Request, Exception], Response | Awaitable[Response]]] = {NucpipeError: _refusal}
    return with_safe_headers(
        Starlette(routes=routes, middleware=middleware, exception_handlers=handlers), local_only=True
    )


async def _refusal(_: Request, error: Exception) -> Response:
    status = 400 if isinstance(error, UsageError | DataError | SlideError) else 500
    # The text may quote what came, and that may hold half a character.
    return JSONResponse({"error": str(error).encode("utf-8", "replace").decode("utf-8")}, status)


def _missing(what: str) -> Response:
    return JSONResponse({"error": f"no such {what}"}, 404)


class _Pages:
    """The answers. What computes is no coroutine, so that it runs in threads."""

    def __init__(self, viewed: Viewed, place: Place | None) -> None:
        self.viewed, self.place = viewed, place
        self.store = viewed.result.store
        self.pyramid = Pyramid(self.store.info.size_l0)
        self.grid = WorkingGrid.for_slide(self.store.info.size_l0, self.store.info.mpp)
        # Browsers keep tiles; those of another result, or of another run of the viewer, have other addresses.
        self.version = secrets.token_hex(4)
        self.jpeg = lru_cache(SLIDE_TILES_KEPT)(self._jpeg)
        self.heat_map = lru_cache(HEAT_MAPS_KEPT)(self._heat_map)
        self.quality_map: QualityMap | None = None
        self.quality_lock = threading.Lock()

    def index(self, _: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    def describe(self, _: Request) -> Response:
        viewed = self.viewed
        facts = describe_result(viewed.result, viewed.nuclei, viewed.primary, viewed.note, viewed.kept)
        place = None if self.place is None else asdict(self.place)
        return JSONResponse({**facts, "version": self.version, "corrections": self._corrections(), "place": place})

    def counts(self, request: Request) -> Response:
        return JSONResponse(self.viewed.nuclei.counts(self._choice(request), box_of(request)).tolist())

    def regions(self, _: Request) -> Response:
        return JSONResponse(describe_regions(self.viewed.nuclei))

    def heat(self, request: Request) -> Response:
        """Return the ends of a heat map's colours."""
        return JSONResponse({"scale": self._heat(request).scale})

    def quality(self, _: Request) -> Response:
        """Measure where the slide is of poor quality, and why, which takes long the first time."""
        quality = self._measured_quality()
        causes = self.viewed.nuclei.causes or {}
        return JSONResponse(
            {
                "causes": [
                    {
                        "words": words,
                        "colour": MARKS[cause][0],
                        "hatching": MARKS[cause][1],
                        "share": quality.share(cause),
                        "nuclei": int(np.count_nonzero(causes[cause])),
                    }
                    for cause, words in CAUSES.items()
                ],
                "nuclei": int(np.count_nonzero(np.logical_or.reduce(list(causes.values())))),
            }
        )

    def nucleus(self, request: Request) -> Response:
        number = request.path_params["number"]
        if not 0 <= number < len(self.store):
            return _missing("nucleus")
        return JSONResponse(self._described(number))

    def nucleus_at(self, request: Request) -> Response:
        x, y, tolerance = (number_of(request, name) for name in ("x", "y", "tolerance"))
        number = self.viewed.nuclei.at(x, y, min(max(tolerance, 0.0), 1000.0), self._choice(request))
        return JSONResponse(None if number is None else self._described(number))

    def uncertain(self, request: Request) -> Response:
        choice = self._choice(request)
        start, count = (int(number_of(request, name)) for name in ("start", "count"))
        rows = self.viewed.nuclei.least_certain(choice, max(start, 0), min(max(count, 0), MAX_UNCERTAIN))
        numbers, p = self.viewed.nuclei.labels(choice.library, choice.adapted)
        labels = self.store.info.outputs.library(choice.library).labels
        return JSONResponse(
            [
                {"number": row, "label": labels[number], "p": round(value, 4)}
                for row, number, value in zip(rows.tolist(), numbers[rows].tolist(), p[rows].tolist(), strict=True)
            ]
        )

    def suggested(self, request: Request) -> Response:
        """Return the numbers of nuclei that are worth a correction next."""
        choice = self._choice(request)
        candidates = np.flatnonzero(self.viewed.nuclei.shown(slice(None), choice))
        count = min(max(int(number_of(request, "count")), 0), MAX_UNCERTAIN)
        return JSONResponse(self.viewed.corrector.suggested(choice.library, candidates, count).tolist())

    async def inside(self, request: Request) -> Response:
        """Return the numbers of the nuclei inside a line that was drawn."""
        corners = list_of(await read_json(request), "polygon")
        try:
            polygon = np.array(corners, np.float32)
        except (ValueError, TypeError, OverflowError):
            polygon = np.zeros(0, np.float32)
        if polygon.ndim != 2 or polygon.shape[1:] != (2,) or not 3 <= len(polygon) <= MAX_CORNERS:
            raise UsageError("polygon: expected three or more pairs of x and y.")
        if not np.isfinite(polygon).all():
            raise UsageError("polygon: expected numbers.")
        choice = self._choice(request)
        return JSONResponse((await run_in_threadpool(self.viewed.nuclei.inside, polygon, choice)).tolist())

    def corrections(self, _: Request) -> Response:
        return JSONResponse(self._corrections())

    async def correct(self, request: Request) -> Response:
        """Take a correction of some nuclei: ``numbers`` with ``library`` and ``label``, or with that they are none."""
        body = await read_json(request)
        numbers = list_of(body, "numbers")
        if not numbers or not all(type(n) is int and 0 <= n < len(self.store) for n in numbers):
            raise UsageError("numbers: expected those of nuclei.")
        library, label = str(body.get("library", "")), str(body.get("label", ""))
        if not label or bool(library) == (label == NOT_A_NUCLEUS):
            raise UsageError(f"expected a library and one of its labels, or {NOT_A_NUCLEUS} without a library.")
        rows = np.unique(np.array(numbers, np.int64))
        await run_in_threadpool(self.viewed.corrector.correct, rows, library, label)
        return JSONResponse(self._corrections())

    async def undo(self, request: Request) -> Response:
        await read_json(request)
        await run_in_threadpool(self.viewed.corrector.undo)
        return JSONResponse(self._corrections())

    def _corrections(self) -> dict[str, Any]:
        corrector, nuclei = self.viewed.corrector, self.viewed.nuclei
        return {
            "count": corrector.count,
            "canUndo": corrector.can_undo,
            "contradictions": corrector.contradictions,
            "generation": nuclei.generation if nuclei.adapted is not None else 0,
            "adapted": [] if nuclei.adapted is None else list(nuclei.adapted.libraries),
        }

    def _described(self, number: int) -> dict[str, Any]:
        facts = describe_nucleus(self.store, number, self.viewed.nuclei.adapted)
        causes = self.viewed.nuclei.causes
        quality = None if causes is None else [words for cause, words in CAUSES.items() if causes[cause][number]]
        return {**facts, "corrected": self.viewed.corrector.of(number), "quality": quality}

    def crop(self, request: Request) -> Response:
        """Return what the classifier saw of a nucleus."""
        number, slide = request.path_params["number"], self.viewed.slide
        if not 0 <= number < len(self.store) or slide is None:
            return _missing("crop")
        centre_w = self.grid.to_w(self.viewed.nuclei.centroids_l0[number].astype(np.float64))
        pixels = slide.read(self.grid, patch_box_w(centre_w, self.grid.stride))
        enlarged = cv2.resize(pixels, (CROP_PX, CROP_PX), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
        return self._kept(_encoded(".png", enlarged[..., ::-1]), "image/png")

    def slide_tile(self, request: Request) -> Response:
        tile = self.pyramid.slide_tile(*self._place(request))
        if tile is None or self.viewed.slide is None:
            return _missing("tile")
        return self._kept(self.jpeg(self.viewed.slide, tile), "image/jpeg")

    @staticmethod
    def _jpeg(slide: Slide, tile: Tile) -> bytes:
        sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)  # stains differ in colour
        return _encoded(
            ".jpg", slide.shrunk(tile.l0_per_px, tile.box)[..., ::-1], cv2.IMWRITE_JPEG_QUALITY, 88, *sampling
        )

    def nuclei_tile(self, request: Request) -> Response:
        tile = self.pyramid.nuclei_tile(*self._place(request))
        if tile is None:
            return _missing("tile")
        filled = number_of(request, "fill", 1.0) != 0
        return self._png(draw_nuclei(self.viewed.nuclei, tile, self._choice(request), filled))

    def heat_tile(self, request: Request) -> Response:
        tile = self.pyramid.nuclei_tile(*self._place(request))
        return _missing("tile") if tile is None else self._png(draw_heat(self._heat(request), tile))

    def quality_tile(self, request: Request) -> Response:
        tile = self.pyramid.nuclei_tile(*self._place(request))
        return _missing("tile") if tile is None else self._png(draw_quality(self._measured_quality(), tile))

    def _png(self, drawn: Image) -> Response:
        return self._kept(_encoded(".png", drawn, cv2.IMWRITE_PNG_COMPRESSION, 1), "image/png")

    def _heat(self, request: Request) -> HeatMap:
        choice, kind = self._choice(request), request.query_params.get("kind")
        if kind not in ("density", "certainty"):
            raise UsageError(f"kind={kind}: expected density or certainty.")
        return self.heat_map(choice, kind, self.viewed.nuclei.generation)

    def _heat_map(self, choice: Choice, kind: Kind, _: int) -> HeatMap:
        return measure_heat(self.viewed.nuclei, choice, kind)

    def _measured_quality(self) -> QualityMap:
        slide, nuclei = self.viewed.slide, self.viewed.nuclei
        with self.quality_lock:
            if self.quality_map is None:
                if slide is None:
                    raise UsageError("the slide is needed to tell where its quality is poor; give its path (--slide).")
                quality = fine_enough(slide).map
                nuclei.causes = quality.causes_at(nuclei.centroids_l0.astype(np.float64))
                self.quality_map = quality
            return self.quality_map

    @staticmethod
    def _place(request: Request) -> tuple[int, int, int]:
        place = request.path_params
        return place["level"], place["column"], place["line"]

    def _choice(self, request: Request) -> Choice:
        library = self.store.info.outputs.library(request.query_params.get("library", self.viewed.primary)).name
        off = request.query_params.get("off", "")
        try:
            numbers = frozenset(int(number) for number in off.split(",") if number)
            if min(numbers, default=0) < 0:
                raise ValueError
        except ValueError:
            raise UsageError(f"off={off}: expected numbers of labels with commas between them.") from None
        kept = NucleusFilter(number_of(request, "area", 0.0), number_of(request, "detection", 0.0))
        adapted = request.query_params.get("labels", "base") != "base"
        only_good = request.query_params.get("quality") == "good" and self.viewed.nuclei.causes is not None
        region = request.query_params.get("region", "")
        return Choice(library, numbers, number_of(request, "p", 0.0), kept, adapted, region, only_good)

    @staticmethod
    def _kept(content: bytes, kind: str) -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})


def _encoded(kind: str, bgr: Image, *options: int) -> bytes:
    return cv2.imencode(kind, bgr, options)[1].tobytes()
