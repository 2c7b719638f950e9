"""The main job: from a slide file to five labels for every nucleus."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import nucpipe
from nucpipe.backends.processors import available_processors
from nucpipe.files import cannot_write, written_whole
from pipeline.config import RunConfig
from pipeline.store.journal import check_unchanged

if TYPE_CHECKING:
    from pipeline.batch.remote import RemotePath
    from pipeline.inference.engine import LabelledRegion
    from pipeline.inference.models import Models
    from pipeline.inference.profiling import StageTimer
    from pipeline.regions.external_nuclei import ExternalNuclei
    from pipeline.regions.region import Region
    from pipeline.regions.tissue import TissueMask
    from pipeline.slide.base import Slide
    from pipeline.slide.grid import WorkingGrid
    from pipeline.slide.resample import Image
    from pipeline.store.journal import Journal
    from pipeline.store.reader import Store, StoreInfo

OVERVIEW_PX = 2400
RESULTS = ("run.json", "overview.png", "report.html", "profile.png", "nuclei.geojson", "nuclei.zarr")
MIN_HALO_W = 64
"""A crop needs half of its 64 working pixels beyond the core; the rest is for the outline and rounding."""


@dataclass(frozen=True)
class SlideResult:
    """What became of one slide.

    Attributes:
        slide: the file, or its address.
        folder: where its results lie; an address where ``--out`` is one.
        status: ``done``, ``finished before`` (its results stood there already) or ``failed``.
        nuclei: how many were found.
        tissue_mm2: area that was looked at, square millimetres.
        seconds: wall time of this run.
        cause: of the failure; "" otherwise.
        counts: how many nuclei have each label, by library and label; empty where it failed.
    """

    slide: Path | RemotePath
    folder: Path | RemotePath
    status: str
    nuclei: int = 0
    tissue_mm2: float = 0.0
    seconds: float = 0.0
    cause: str = ""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


class Reporter(Protocol):
    """Is told how the run goes on."""

    def begin(self, name: str, mm2: float, regions: int) -> None:
        """A slide of ``mm2`` square millimetres in ``regions`` regions is begun."""

    def advance(self, nuclei: int, mm2: float) -> None:
        """A region is finished."""

    def end(self, result: SlideResult) -> None:
        """A slide is finished, or has failed."""


class Silent:
    """A reporter that says nothing."""

    def begin(self, name: str, mm2: float, regions: int) -> None:  # noqa: D102
        pass

    def advance(self, nuclei: int, mm2: float) -> None:  # noqa: D102
        pass

    def end(self, result: SlideResult) -> None:  # noqa: D102
        pass


def run(
    slides: str | Path | Sequence[str | Path],
    out: str | Path,
    config: RunConfig | None = None,
    reporter: Reporter | None = None,
    *,
    max_failures: int | None = None,
    cluster: str | None = None,
    **settings: Any,
) -> list[SlideResult]:
    """Find, outline and name every nucleus of slides; what ``nucpipe run`` does.

    Args:
        slides: a slide, a folder of slides, a pattern, a manifest, an address, or several of them.
        out: results of a slide lie in ``out/<slide's name>/``; ``out/summary.csv`` lists all slides.
        config: the settings; or give them by name, as in ``run("a.svs", "results", mpp=0.25)``.
        reporter: is told of the progress; nobody by default.
        max_failures: stop after so many slides have failed.
        cluster: the address of a Dask scheduler, or ``local:N`` for N processes on this machine.
        **settings: fields of :class:`~pipeline.config.RunConfig`.

    Returns:
        One result a slide. A slide that fails does not stop the others: its ``status`` is ``failed``.

    Raises:
        UsageError: a setting, a model's or a device's name is wrong, or no slide is found.
        OutputError: ``out`` cannot be written.
    """
    from pipeline.batch.run import run_batch

    inputs = [slides] if isinstance(slides, str | Path) else list(slides)
    chosen = replace(config or RunConfig(), **settings)
    return run_batch(inputs, out, chosen, reporter or Silent(), max_failures, cluster)


def run_slide(
    path: Path,
    folder: Path,
    models: Models,
    config: RunConfig,
    reporter: Reporter,
    assert_lock_held: Callable[[], None] = lambda: None,
    origin: Path | RemotePath | None = None,
) -> SlideResult:
    """One slide: slide -> tissue -> regions -> [read -> segment -> crop -> classify -> store] -> finish -> exports.

    Args:
        path: the slide.
        folder: its results go there.
        models: loaded.
        config: the settings.
        reporter: is told of the progress.
        still_ours: is called before anything is written to ``folder``, and raises where another process has it now.
        origin: where a person finds the slide, if not at ``path``.

    Raises:
        NucpipeError: the slide cannot be processed; what was done stays in the journal.
    """
    from pipeline.slide.open import open_slide

    clock = Clock(config.profile)
    with open_slide(path, config.mpp) as slide:
        info = store_info(slide, models, config)
        if not config.overwrite and (before := finished_before(path, folder, info, config)):
            return before
        prepared = prepare(slide, folder, info, models, config)
        journal = None
        if config.overwrite or not prepared.store_path.exists():
            journal = open_journal(prepared, config)
            todo = [region for region in prepared.regions if region.index not in journal.done]
            reporter.begin(slide.name, sum(map(prepared.mm2, todo)), len(todo))
            clock.lap("prepare")
            for done in process_inline(slide, prepared.grid, prepared.tissue, todo, models, config, clock.timer):
                assert_lock_held()
                with clock.timer.measure("write"):
                    journal.write(done.region.index, done.nuclei_l0, done.labels)
                clock.timer.count(len(done.nuclei_l0), prepared.mm2(done.region))
                reporter.advance(len(done.nuclei_l0), prepared.mm2(done.region))
            slide.forget()
            clock.lap("nuclei")
            workers = config.workers or available_processors()
            clock.performance = clock.timer.performance(
                clock.stages["nuclei"], workers, models.classifier.max_concurrency
            )
        return finalize(prepared, journal, config, clock, origin or path, assert_lock_held)


@dataclass(frozen=True)
class PreparedSlide:
    """A slide that is open and cut into regions, and what its results will say of themselves."""

    slide: Slide
    folder: Path
    info: StoreInfo
    tissue: TissueMask
    grid: WorkingGrid
    regions: list[Region]

    @property
    def store_path(self) -> Path:
        """Of the store, finished or not yet there."""
        return self.folder / "nuclei.zarr"

    @property
    def journal_path(self) -> Path:
        """Of the journal, while the slide is unfinished."""
        return self.folder / "journal"

    def mm2(self, region: Region) -> float:
        """Area of tissue in a region's core, square millimetres."""
        return region_mm2(region, self.grid, self.tissue)


def prepare(slide: Slide, folder: Path, info: StoreInfo, models: Models, config: RunConfig) -> PreparedSlide:
    """Find the tissue and cut it into regions; nothing is written."""
    from pipeline.regions.region import cut_regions
    from pipeline.regions.tissue import tissue_from
    from pipeline.slide.grid import WorkingGrid

    external = external_nuclei_of(slide, config)
    # Given nuclei are there whether tissue is found round them or not.
    tissue = tissue_from("none" if external is not None and config.tissue == "auto" else config.tissue, slide)
    grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
    regions = cut_regions(grid, tissue, config.region_size, halo_w(models), *window_grid_w(models))
    if external is not None:
        centroids_w = grid.to_w(external.nuclei_l0.centroids)
        regions = [region for region in regions if region.owns(centroids_w).any()]
    return PreparedSlide(slide, folder, info, tissue, grid, regions)


def open_journal(prepared: PreparedSlide, config: RunConfig) -> Journal:
    """The journal of the slide's regions, new or of a run that was stopped."""
    from pipeline.store.journal import Journal

    if config.overwrite:
        Journal(prepared.journal_path).remove()
    return Journal.open(prepared.journal_path, fingerprint(prepared, config))


def fingerprint(prepared: PreparedSlide, config: RunConfig) -> dict[str, Any]:
    """What the regions in the journal depend on."""
    return {**prepared.info.to_dict(), "region_size": config.region_size}


def finalize(
    prepared: PreparedSlide,
    journal: Journal | None,
    config: RunConfig,
    clock: Clock,
    origin: Path | RemotePath,
    assert_lock_held: Callable[[], None] = lambda: None,
) -> SlideResult:
    """The store, and all that is made from it; ``run.json`` last, and then the journal has served.

    Args:
        work: the slide.
        journal: holds every region; None: the store is finished already.
        config: the settings.
        clock: of the run.
        origin: where a person finds the slide.
        still_ours: see :func:`run_slide`.
    """
    from pipeline.inference.timeline import draw_timeline
    from pipeline.store.journal import Journal
    from pipeline.store.reader import finish, open_store

    area = prepared.tissue.area_mm2
    with ThreadPoolExecutor(2, "nucpipe-export") as helpers:
        thumbnail = helpers.submit(prepared.slide.thumbnail, OVERVIEW_PX)
        if journal is not None:
            assert_lock_held()
            if config.overwrite:  # the old results stand until the new ones are ready
                remove(*(prepared.folder / name for name in RESULTS))
            finish(journal, [region.index for region in prepared.regions], prepared.store_path, prepared.info)
            clock.lap("store")
        assert_lock_held()
        store = open_store(prepared.store_path)
        export(store, prepared, config, helpers, thumbnail)
    clock.lap("exports")
    if config.profile:
        draw_timeline(clock.timer.spans, prepared.folder / "profile.png")
    counts = write_run_json(origin, prepared.folder, prepared.info, config, clock, store, area)
    Journal(prepared.journal_path).remove()
    return SlideResult(prepared.slide.path, prepared.folder, "done", len(store), area, clock.total(), counts=counts)


def process_inline(
    slide: Slide,
    grid: WorkingGrid,
    tissue: TissueMask,
    regions: list[Region],
    models: Models,
    config: RunConfig,
    timer: StageTimer | None = None,
) -> Iterator[LabelledRegion]:
    """The engine with this run's settings."""
    from pipeline.inference.engine import process_regions

    workers = config.workers or available_processors()
    external = external_nuclei_of(slide, config)
    nuclei_l0 = None if external is None else external.nuclei_l0
    return process_regions(slide, grid, tissue, regions, models, config.batch_size, workers, nuclei_l0, timer)


def external_nuclei_of(slide: Slide, config: RunConfig) -> ExternalNuclei | None:
    """The nuclei of ``--nuclei``, if it was given."""
    if config.nuclei is None:
        return None
    from pipeline.regions.external_nuclei import nuclei_file, read_external_nuclei

    return read_external_nuclei(nuclei_file(config.nuclei, slide.path), slide)


def export(
    store: Store, prepared: PreparedSlide, config: RunConfig, helpers: Executor, thumbnail: Future[Image]
) -> None:
    """What people open: the GeoJSON, the overview and the report."""
    from pipeline.export.figures.overview import draw_overview
    from pipeline.export.geojson import write_geojson
    from pipeline.export.report.page import write_report

    def overview() -> None:
        draw_overview(store, thumbnail.result(), prepared.folder / "overview.png", config.primary)

    def report() -> None:
        facts = {"tissue_mm2": prepared.tissue.area_mm2}
        write_report(store, prepared.slide, prepared.folder / "report.html", config.primary, facts, thumbnail.result())

    made = [helpers.submit(draw) for draw in (overview, report)]
    # What may take long is left to this thread, which alone Ctrl-C interrupts.
    if config.geojson:
        write_geojson(store, prepared.folder / "nuclei.geojson", config.primary)
    for future in made:
        future.result()


def halo_w(models: Models) -> int:
    """How far a region's window reaches beyond its core, in working pixels."""
    from pipeline.inference.engine import working_px

    return max(working_px(models.detector) * models.detector.context_px, MIN_HALO_W)


def window_grid_w(models: Models) -> tuple[int, int]:
    """What the corners of windows are multiples of, and the windows' margin, in working pixels."""
    from pipeline.inference.engine import working_px

    scale = working_px(models.detector)
    return scale * models.detector.align_px, scale * models.detector.margin_px


def region_mm2(region: Region, grid: WorkingGrid, tissue: TissueMask) -> float:
    """Area of tissue in a region's core, square millimetres."""
    x0, y0, x1, y1 = (grid.to_l0(float(edge)) for edge in region.core_w)
    return tissue.area_in_mm2((x0, y0, x1, y1))


def store_info(slide: Slide, models: Models, config: RunConfig) -> StoreInfo:
    """What the store says of itself, and what a result depends on."""
    from pipeline.slide.identity import slide_fingerprint
    from pipeline.store.reader import StoreInfo

    described = models.described
    if (external := external_nuclei_of(slide, config)) is not None:
        described = {**described, "segmentor": external.described}
    return StoreInfo(
        slide_name=slide.name,
        size_l0=slide.size_l0,
        mpp=slide.mpp,
        origin_l0=slide.origin_l0,
        outputs=models.outputs,
        models=described,
        settings={
            "tissue": file_settings(config.tissue),
            "precision": models.precision,
            "decide": config.rule.to_dict(),
        }
        | ({"tta": True} if config.tta else {}),
        nucpipe_version=nucpipe.__version__,
        slide_fingerprint=slide_fingerprint(slide.path),
    )


def finished_before(path: Path, folder: Path, info: StoreInfo, config: RunConfig) -> SlideResult | None:
    """The result that an earlier run left in ``folder``, if it is whole and has all that this run wants.

    Raises:
        OutputError: results of other settings, models or another slide stand there.
    """
    from pipeline.store.reader import open_store

    store = folder / "nuclei.zarr"
    if not store.exists():
        return None
    old, new = (json.loads(json.dumps({**i.to_dict(), "nucpipe_version": ""})) for i in (open_store(store).info, info))
    check_unchanged(folder, "a finished result", old, new)
    try:
        facts = json.loads((folder / "run.json").read_text("utf-8"))
        same = facts["settings"]["primary"] == config.primary
        wanted = ["overview.png", *(["nuclei.geojson"] if config.geojson else [])]
        if same and all((folder / name).is_file() for name in wanted):
            return SlideResult(
                path, folder, "finished before", facts["nuclei"], facts["tissue_mm2"], counts=facts["counts"]
            )
    except (OSError, ValueError, KeyError, TypeError):
        pass  # run.json is written last: without a good one, what is made from the store is made again
    return None


def remove(*paths: Path) -> None:
    """Remove files and folders that are there.

    Raises:
        OutputError: one of them cannot be removed.
    """
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error


def file_settings(option: str) -> str | dict[str, str]:
    """``--tissue`` as results remember it: a file by its name and content."""
    path = Path(option)
    if not path.is_file():
        return option
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


class Clock:
    """Seconds of the stages of one slide."""

    def __init__(self, keep_spans: bool = False) -> None:
        from pipeline.inference.profiling import StageTimer

        self.began = self.last = time.monotonic()
        self.stages: dict[str, float] = {}
        self.timer = StageTimer(keep_spans)
        self.performance: dict[str, Any] = {}

    def lap(self, stage: str) -> None:
        """The stage that ends now."""
        now = time.monotonic()
        self.stages[stage] = round(now - self.last, 3)
        self.last = now

    def total(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self.began, 3)


def write_run_json(
    origin: Path | RemotePath,
    folder: Path,
    info: StoreInfo,
    config: RunConfig,
    clock: Clock,
    store: Store,
    tissue_mm2: float,
) -> dict[str, dict[str, int]]:
    """``run.json``: the slide's place, versions, models, settings, times, counts; the counts are given back."""
    counts = {library.name: label_counts(store, library.name, library.labels) for library in info.outputs.libraries}
    facts = info.to_dict()
    del facts["outputs"]
    facts |= {
        "slide": str(origin.absolute() if isinstance(origin, Path) else origin),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": {**facts["settings"], "primary": config.primary, "region_size": config.region_size},
        "seconds": {**clock.stages, "total": clock.total()},
        "performance": clock.performance,
        "tissue_mm2": round(tissue_mm2, 4),
        "nuclei": len(store),
        "counts": counts,
        "untrained_labels": [
            f"{library}:{label}"
            for (library, label), trained in zip(info.outputs.columns, info.outputs.trained, strict=True)
            if not trained
        ],
    }
    with written_whole(folder / "run.json") as partial:
        partial.write_text(json.dumps(facts, indent=1, ensure_ascii=False), "utf-8")
    return counts


def label_counts(store: Store, library: str, labels: Sequence[str]) -> dict[str, int]:
    """How many nuclei have each label of a library."""
    numbers = store.label_numbers(library)
    return {label: int((numbers == k).sum()) for k, label in enumerate(labels)}
