"""A folder for QuPath: nuclei of one slide or of many, the classes' colours, and scripts that import and recolour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from classifier.labels.libraries import Library
from nucpipe._version import __version__
from nucpipe.errors import UsageError
from nucpipe.files import EXPORTED, folder_written_whole
from pipeline.export.geojson.write import write_geojson
from pipeline.store.reader import Store

SCRIPTS = resources.files("pipeline.export.geojson").joinpath("qupath_scripts")
CLASSES = "classes.json"


def write_qupath(store: Store, path: Path, primary: str, centroids: bool = False, exact_outlines: bool = False) -> None:
    """Write the folder of one slide, see :func:`write_slides`."""
    write_slides([store], path, primary, centroids, exact_outlines)


def write_slides(
    stores: Sequence[Store], path: Path, primary: str, centroids: bool = False, exact_outlines: bool = False
) -> None:
    """Write the folder.

    Args:
        stores: the nuclei of each slide, all with the same libraries.
        path: of the folder.
        primary: name of the library whose labels are the classes at first.
        centroids: points instead of outlines.
        exact_outlines: outlines along the edges of pixels, as they are stored.

    Raises:
        UsageError: no such library; two slides have one name, by which QuPath's images are known.
        OutputError: the folder cannot be written.
    """
    libraries = stores[0].info.outputs.libraries
    known = stores[0].info.outputs.library(primary)
    names = [store.info.slide_name for store in stores]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two slides are named {name}, and QuPath's images are known by name; export one by one.")
    slides = {}
    with folder_written_whole(path, CLASSES) as partial:
        (partial / "nuclei").mkdir()
        for store, name in zip(stores, names, strict=True):
            file = f"nuclei/{name}.geojson.gz"
            write_geojson(store, partial / file, known.name, centroids=centroids, exact_outlines=exact_outlines)
            width, height = store.info.size_l0
            slides[name] = {"file": file, "width": width, "height": height, "nuclei": len(store)}
        about = {
            EXPORTED: __version__,
            "primary": known.name,
            "libraries": {lib.name: _colours(lib) for lib in libraries},
            "slides": slides,
        }
        (partial / CLASSES).write_text(json.dumps(about, indent=1), "utf-8")
        _write_scripts(partial, path.resolve(), libraries)


def _colours(library: Library) -> dict[str, Any]:
    return {label: list(colour) for label, colour in zip(library.labels, library.colours, strict=True)}


def _write_scripts(folder: Path, place: Path, libraries: Sequence[Library]) -> None:
    """Write the scripts, which know where the folder will lie."""
    names = "[" + ", ".join(_groovy(library.name) for library in libraries) + "]"
    text = SCRIPTS.joinpath("import-nuclei.groovy").read_text("utf-8")
    (folder / "import-nuclei.groovy").write_text(text.replace("@FOLDER@", _groovy(str(place))), "utf-8")
    text = SCRIPTS.joinpath("colour-by-library.groovy").read_text("utf-8").replace("@FOLDER@", _groovy(str(place)))
    for library in libraries:
        script = text.replace("'@LIBRARY@'", _groovy(library.name)).replace("@LIBRARY@", library.name)
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in library.name)
        (folder / f"colour-by-{name}.groovy").write_text(script.replace("@LIBRARIES@", names), "utf-8")


def _groovy(text: str) -> str:
    """Return a string of Groovy's."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
