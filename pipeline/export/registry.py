"""The formats in which a finished result can be written, and which options each of them takes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from classifier.decision_rule import DecisionRule
from nucpipe.errors import OutputError, UsageError

if TYPE_CHECKING:
    from pipeline.result import Result
    from pipeline.slide.base import Slide
    from pipeline.store.reader import Store

IMAGE_MPP = 2.0


@dataclass(frozen=True)
class ExportOptions:
    """Content of an export.

    Attributes:
        primary: the library that gives the classes; None: the one of the run.
        all_libraries: one file for each library, or all of them in one where the form holds several.
        bbox_l0: x0, y0, x1, y1, level-0 pixels; None: the whole slide.
        labels: only nuclei with one of these labels of the primary library.
        rule: how labels are decided on; None: as in the run.
        centroids: points instead of outlines.
        exact_outlines: outlines along the edges of pixels, as they are stored, see :mod:`pipeline.export.polygons`.
        gz: compressed.
        slide: where the slide lies, if it has moved since the run.
        image_mpp: pixel size of the slide's pixels in the export, micrometres; 0 for none.
        regions: a GeoJSON of regions of interest; each nucleus's is told where the form takes it.
        region_names: only nuclei in one of these regions.
    """

    primary: str | None = None
    all_libraries: bool = False
    bbox_l0: tuple[float, float, float, float] | None = None
    labels: Sequence[str] = ()
    rule: DecisionRule | None = None
    centroids: bool = False
    exact_outlines: bool = False
    gz: bool = False
    slide: Path | None = None
    image_mpp: float | None = None
    regions: Path | None = None
    region_names: Sequence[str] = ()


@dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
        name: of the file or folder beside the store, with the ending that is expected.
        endings: that a user's name may have.
        writer: ``module:function`` that writes it, imported when it is needed, for some bring libraries that are slow
            to import. It takes the nuclei, the path and, by keyword, what ``takes`` says.
        takes: the options, other than those that choose nuclei, that it takes.
        one_file: whether all libraries go into one file, as ``libraries``; else each into its own, as ``primary``.
    """

    name: str
    endings: tuple[str, ...]
    writer: str
    takes: frozenset[str] = field(default=frozenset())
    one_file: bool = False

    def write(
        self, store: Store, path: Path, libraries: Sequence[str], options: ExportOptions, slide: Slide | None
    ) -> None:
        """Write the nuclei.

        Args:
            store: the nuclei.
            path: of the file or folder.
            libraries: whose labels it holds.
            options: what it shall hold.
            slide: with the pixels that it shall hold, or None.
        """
        arguments: dict[str, Any] = {}
        if "primary" in self.takes:
            arguments |= {"libraries": libraries} if self.one_file else {"primary": libraries[0]}
        if "image" in self.takes:
            arguments |= {"slide": slide, "image_mpp": options.image_mpp or IMAGE_MPP}
        arguments |= {name: getattr(options, name) for name in OUTLINE_OPTIONS if name in self.takes}
        resolve_name(self.writer)(store, path, **arguments)


OUTLINE_OPTIONS = ("centroids", "exact_outlines")

FORMATS = {
    "geojson": ExportFormat(
        "nuclei.geojson",
        (".geojson", ".geojson.gz"),
        "pipeline.export.geojson.write:write_geojson",
        frozenset({"primary", "all_libraries", "centroids", "exact_outlines", "gz", "regions"}),
    ),
    "qupath": ExportFormat(
        "qupath",
        ("",),
        "pipeline.export.geojson.qupath:write_qupath",
        frozenset({"primary", "centroids", "exact_outlines", "regions"}),
    ),
    "csv": ExportFormat(
        "nuclei.csv",
        (".csv", ".csv.gz"),
        "pipeline.export.tables.csv:write_csv",
        frozenset({"gz", "regions"}),
    ),
    "parquet": ExportFormat(
        "nuclei.parquet",
        (".parquet", ".geoparquet"),
        "pipeline.export.tables.parquet:write_parquet",
        frozenset({"centroids", "exact_outlines", "regions"}),
    ),
    "anndata": ExportFormat(
        "nuclei.h5ad",
        (".h5ad",),
        "pipeline.export.tables.anndata:write_h5ad",
    ),
    "spatialdata": ExportFormat(
        "nuclei.spatialdata.zarr",
        (".zarr",),
        "pipeline.export.tables.spatialdata:write_spatialdata",
        frozenset({"image", "exact_outlines"}),
    ),
    "annotationstore": ExportFormat(
        "nuclei.db",
        (".db",),
        "pipeline.export.tables.annotationstore:write_annotation_store",
        frozenset({"primary", "all_libraries", "centroids", "exact_outlines", "regions"}),
    ),
    "labels": ExportFormat(
        "nuclei.ome.zarr",
        (".ome.zarr", ".zarr"),
        "pipeline.export.images.ome_zarr:write_labels",
        frozenset({"primary", "all_libraries", "image"}),
        one_file=True,
    ),
}
"""Every format of ``nucpipe export --to``; another is a module with a writer, and an entry here."""


def export_result(
    result: Result,
    form: str,
    wanted: ExportOptions | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> list[tuple[Path, int]]:
    """Write a finished result in another form.

    Args:
        result: what is written.
        form: a name of ``FORMATS``.
        wanted: what it shall hold; None: all nuclei, with the labels of the run.
        out: the file or folder to write; None: beside the store.
        overwrite: replace what an earlier export (or the run) has written there.

    Returns:
        What was written, and how many nuclei it holds.

    Raises:
        UsageError: the form has no such option, or something that is named does not exist.
        OutputError: it cannot be written, or already exists.
        SlideError: the slide's pixels are wanted and cannot be read.
    """
    from pipeline.export.select import select_nuclei

    wanted, kind = wanted or ExportOptions(), FORMATS[form]
    _check(form, kind, wanted, out)
    outputs = result.store.info.outputs
    primary = outputs.library(wanted.primary or result.primary).name
    store = result.store if wanted.regions is None else result.store.with_regions(wanted.regions)
    store = select_nuclei(store, wanted.bbox_l0, primary, wanted.labels, wanted.rule, wanted.region_names)
    path = out or result.folder / (kind.name + (".gz" if wanted.gz else ""))
    libraries = list(result.libraries) if wanted.all_libraries else [primary]
    held = [libraries] if kind.one_file else [[name] for name in libraries]
    files = [path] if len(held) == 1 else [_named(path, kind, name) for name in libraries]
    _check_free(files, overwrite)
    with ExitStack() as stack:
        slide = stack.enter_context(result.open_slide(wanted.slide)) if _pixels(result, kind, wanted) else None
        for file, some in zip(files, held, strict=True):
            kind.write(store, file, some, wanted, slide)
    return [(file, len(store)) for file in files]


def export_for_qupath(results: Sequence[Result], wanted: ExportOptions, path: Path, overwrite: bool = False) -> int:
    """Write one folder for QuPath with the nuclei of several slides; returns their number.

    Raises:
        UsageError: as for :func:`export_result`; two slides have one name.
        OutputError: it cannot be written, or already exists.
    """
    from pipeline.export.geojson.qupath import write_slides
    from pipeline.export.select import select_nuclei

    _check("qupath", FORMATS["qupath"], wanted, path)
    if wanted.regions is not None:
        raise UsageError("--regions are those of one slide; export the slides one by one.")
    _check_free([path], overwrite)
    primary = wanted.primary or results[0].primary
    stores = [select_nuclei(r.store, wanted.bbox_l0, primary, wanted.labels, wanted.rule) for r in results]
    write_slides(stores, path, primary, wanted.centroids, wanted.exact_outlines)
    return sum(map(len, stores))


def _check(form: str, kind: ExportFormat, wanted: ExportOptions, out: Path | None) -> None:
    """Refuse what the form does not have, rather than leave it out."""
    asked = {
        "all_libraries": ("--all-libraries", wanted.all_libraries, "it holds all libraries side by side"),
        "centroids": ("--centroids", wanted.centroids, "it always holds the centroids"),
        "exact_outlines": (
            "--exact-outlines",
            wanted.exact_outlines,
            "it is made from them" if kind.one_file else "it holds no outlines",
        ),
        "gz": ("--gz", wanted.gz, "it is compressed already"),
        "image": ("--image-mpp", wanted.image_mpp is not None, "it holds no pixels"),
        "regions": (
            "--regions without --region",
            wanted.regions is not None and not wanted.region_names,
            "it does not say in which region a nucleus lies",
        ),
    }
    for option, (name, given, why) in asked.items():
        if given and option not in kind.takes:
            raise UsageError(f"{name} cannot be used with --to {form}: {why}.")
    if wanted.centroids and wanted.exact_outlines:
        raise UsageError(
            "--exact-outlines cannot be used with --centroids, which leaves outlines out; give one of them."
        )
    if wanted.image_mpp is not None and wanted.image_mpp < 0:
        raise UsageError(f"--image-mpp {wanted.image_mpp:g}: expected micrometres per pixel, or 0 for no pixels.")
    if out is not None and not out.name.endswith(kind.endings):
        raise UsageError(f"--out {out}: expected a name that ends in {' or '.join(kind.endings)}.")
    if out is not None and wanted.gz and not out.name.endswith(".gz"):
        raise UsageError(f"--out {out}: expected a name that ends in .gz with --gz.")


def _check_free(paths: Sequence[Path], overwrite: bool) -> None:
    """Refuse to replace what exists unless that is asked for."""
    if not overwrite and (taken := next((path for path in paths if path.exists()), None)) is not None:
        raise OutputError(f"{taken}: already exists; give another --out, or --overwrite to replace an earlier export.")


def _pixels(result: Result, kind: ExportFormat, wanted: ExportOptions) -> bool:
    """Tell whether an export holds pixels: where it can, unless they are not wanted or the slide is gone."""
    if "image" not in kind.takes or wanted.image_mpp == 0:
        return False
    if wanted.slide is not None or wanted.image_mpp is not None:
        return True
    try:
        result.slide_path()
    except UsageError:
        return False
    return True


def _named(path: Path, kind: ExportFormat, library: str) -> Path:
    """Return ``nuclei-PanNuke.geojson`` for ``nuclei.geojson``."""
    ending = max((end for end in kind.endings if path.name.endswith(end)), key=len)
    return path.with_name(f"{path.name.removesuffix(ending)}-{library}{ending}")
