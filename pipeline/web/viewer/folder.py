"""A folder of results in the browser: a list of its slides, and each slide's page when it is asked for."""

from __future__ import annotations

import csv
import gc
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from classifier.labels.libraries import no_label_colour
from classifier.out_of_distribution import HIGH, in_words
from nucpipe.errors import NucpipeError
from pipeline.adaptation.corrections import CORRECTIONS, read_corrections
from pipeline.batch.summary import GOOD, SUMMARY
from pipeline.regions.quality import CAUSES
from pipeline.result import Result, is_result, open_result
from pipeline.store.journal import JOURNAL
from pipeline.store.run_record import OVERVIEW, STORE, label_counts
from pipeline.web.viewer.app import STATIC, Place, Viewed, static_files, viewer_app, with_answers

OPEN_AT_ONCE = 4
"""Slides whose nuclei stay in memory; of the one that was left longest ago a later undo is lost, no correction."""
THUMBNAIL_PX = 160
THUMBNAILS_KEPT = 256
MUCH_POOR = 0.05
"""Share of the tissue from which the list warns."""
Open = Callable[[Path], Viewed]


@dataclass(frozen=True)
class SlideFolder:
    """Slides of a folder of results.

    Attributes:
        root: the folder.
        results: each slide's folder of results.
        unfinished: folders in which a run was stopped.
    """

    root: Path
    results: tuple[Path, ...]
    unfinished: tuple[Path, ...]


def slides_in(path: Path) -> SlideFolder:
    """Return what lies in a folder and its sub-folders; of what is a result, or holds none, only that itself."""
    results, unfinished = [], []
    if path.is_dir() and not is_result(path) and not (path / "zarr.json").exists():
        for here, names, _ in os.walk(path):
            if STORE in names:
                results.append(Path(here))
                names.clear()  # a result holds no other
            elif JOURNAL in names:
                unfinished.append(Path(here))
                names.clear()
    return SlideFolder(path, tuple(sorted(results)) or (path,), tuple(sorted(unfinished)))


def folder_app(folder: SlideFolder, open_slide: Open) -> Starlette:
    """Return the web application of many results.

    Args:
        folder: of the results.
        open_slide: opens one of them.
    """
    slides = _OpenSlides(folder, open_slide)
    pages = _Pages(folder, slides.keys)
    routes: list[Route | Mount] = [
        Route("/", pages.index),
        Route("/api/slides", pages.slides),
        Route("/api/slides/{key}/overview.jpg", pages.overview),
        Route("/slides/{key}", pages.with_slash),
        Mount("/slides/{key}", app=slides),
        *static_files(),
    ]
    return with_answers(routes)


class _OpenSlides:
    """As an ASGI application, the page of the slide that the address names; slides are opened when first asked for."""

    def __init__(self, folder: SlideFolder, open_slide: Open) -> None:
        self.keys = _keys(folder)
        self._open_slide = open_slide
        self._apps: OrderedDict[str, Starlette] = OrderedDict()
        self._marks: dict[str, str] = {}
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = scope["path_params"]["key"]
        app: Starlette | Response
        if key not in self.keys:
            app = PlainTextResponse("No such slide here.", 404)
        else:
            try:
                app = await run_in_threadpool(self._app, key)
            except NucpipeError as error:
                app = PlainTextResponse(str(error), 500)
        await app(scope, receive, send)

    def _app(self, key: str) -> Starlette:
        with self._lock:
            if key not in self._apps:
                viewed = self._open_slide(self.keys[key])
                # A page may still be open from before, whose numbers are of the nuclei that it was told.
                self._apps[key] = viewer_app(
                    replace(viewed, mark=self._marks.setdefault(key, viewed.mark)), self._place(key)
                )
            self._apps.move_to_end(key)
            while len(self._apps) > OPEN_AT_ONCE:
                self._apps.popitem(last=False)
                gc.collect()  # caches of methods are cycles, which would keep the slide's nuclei for long
            return self._apps[key]

    def _place(self, key: str) -> Place:
        keys = list(self.keys)
        number = keys.index(key)
        beside = ["", *(f"../{quote(one)}/" for one in keys), ""]
        return Place(number + 1, len(keys), beside[number], beside[number + 2], "../../")


class _Pages:
    """The list. What reads files is no coroutine, so that it runs in threads."""

    def __init__(self, folder: SlideFolder, keys: dict[str, Path]) -> None:
        self.folder, self.keys = folder, keys
        self.thumbnail = lru_cache(THUMBNAILS_KEPT)(_thumbnail)

    def index(self, _: Request) -> Response:
        return FileResponse(STATIC / "slides.html")

    def slides(self, _: Request) -> Response:
        opened: dict[str, Result] = {}
        others = _others(self.folder)
        for key, path in self.keys.items():
            try:
                opened[key] = open_result(path)
            except NucpipeError as error:
                others.append({"name": path.name, "cause": str(error)})
        known = {lib.name: lib for one in opened.values() for lib in one.store.info.outputs.libraries}
        return JSONResponse(
            {
                "folder": self.folder.root.resolve().name,
                "primary": next((one.primary for one in opened.values()), ""),
                "slides": [
                    describe_slide(key, self.keys[key].relative_to(self.folder.root).as_posix(), result)
                    for key, result in opened.items()
                ],
                "others": others,
                "noLabel": no_label_colour(),
                "libraries": [
                    {"name": name, "labels": list(zip(lib.labels, lib.colours, strict=True))}
                    for name, lib in known.items()
                ],
            }
        )

    def overview(self, request: Request) -> Response:
        path = self.keys.get(request.path_params["key"])
        try:
            content = None if path is None else self.thumbnail(path / OVERVIEW, (path / OVERVIEW).stat().st_mtime_ns)
        except OSError:  # there is none
            content = None
        if content is None:
            return JSONResponse({"error": "no such overview"}, 404)
        return Response(content, media_type="image/jpeg")

    def with_slash(self, request: Request) -> Response:
        """Go to the address with a slash: what a slide's page asks for lies below it."""
        return RedirectResponse(f"{quote(request.path_params['key'])}/")


def describe_slide(key: str, folder: str, result: Result) -> dict[str, Any]:
    """Return a slide's line: its counts, and what to be careful of.

    Args:
        key: names it in addresses.
        folder: of its results, as seen from that of all.
        result: of the slide.
    """
    facts, store = result.run_facts, result.store
    counts = facts.get("counts") or {
        library.name: label_counts(store, library.name, library.labels) for library in store.info.outputs.libraries
    }
    return {
        "key": key,
        "name": result.name,
        "folder": folder,
        "nuclei": len(result),
        "mm2": facts.get("tissue_mm2"),
        "counts": counts,
        "finished": facts.get("finished", ""),
        "overview": (result.folder / OVERVIEW).is_file(),
        "corrections": _corrected(result),
        "adapted": bool(store.adapted_libraries),
        "cautions": cautions(result),
    }


def cautions(result: Result) -> list[str]:
    """Return what to be careful of, a line each."""
    found = []
    if not len(result):
        found.append("no nuclei were found")
    for cause, words in CAUSES.items():
        if (share := result.run_facts.get(cause) or 0.0) >= MUCH_POOR:
            found.append(f"{100 * share:.0f} % of the tissue is {words}")
    if (share := result.run_facts.get("out_of_distribution") or 0.0) >= HIGH:
        found.append(in_words(share))
    try:
        result.slide_path()
    except NucpipeError:
        found.append("the slide is not where the run found it: nuclei alone")
    return found


def _corrected(result: Result) -> int | None:
    """Return how many nuclei are corrected; None where the file cannot be read."""
    try:
        return len({one.place for one in read_corrections(result.folder / CORRECTIONS)})
    except NucpipeError:
        return None


def _others(folder: SlideFolder) -> list[dict[str, str]]:
    """Return the slides that have no result: those whose run was stopped, and those that failed, with the cause."""
    found = dict.fromkeys(folder.unfinished, "the run is not finished; give the same command again")
    finished = set(folder.results)
    try:
        with (folder.root / SUMMARY).open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                path = folder.root / line["folder"]
                if path in finished:
                    continue
                if line["status"] in GOOD:
                    found.pop(path, None)
                else:
                    found[path] = line["cause"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no summary, or another's: the results themselves are listed
    return [{"name": str(path.relative_to(folder.root)), "cause": cause} for path, cause in sorted(found.items())]


def _keys(folder: SlideFolder) -> dict[str, Path]:
    """Name each result for its address: by its place in the folder, so that a link holds when others are added."""
    keys: dict[str, Path] = {}
    for path in folder.results:
        key = "~".join(path.relative_to(folder.root).parts)
        while key in keys:
            key += "~"
        keys[key] = path
    return keys


def _thumbnail(path: Path, _: int) -> bytes | None:
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        return None
    share = THUMBNAIL_PX / max(picture.shape[:2])
    size = [max(1, round(side * share)) for side in picture.shape[1::-1]]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, 85))[1].tobytes()
