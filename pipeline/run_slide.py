"""The method, one slide: slide -> tissue -> regions -> [read -> detect -> classify -> journal] -> store -> exports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nucpipe._version import __version__
from nucpipe.addresses import RemotePath
from nucpipe.backends.processors import available_processors
from nucpipe.errors import NucpipeError
from pipeline.config import RunConfig
from pipeline.export.figures.overview import draw_overview
from pipeline.export.geojson.write import write_geojson
from pipeline.export.quality import SlideQuality
from pipeline.export.report.page import write_report
from pipeline.inference.engine import halo_w, process_regions, read_grid_w
from pipeline.inference.models import ModelIdentity, Models, with_training_data
from pipeline.inference.profiling import RunClock
from pipeline.inference.timeline import draw_timeline
from pipeline.regions.external_nuclei import ExternalNuclei, nuclei_file, read_external_nuclei
from pipeline.regions.quality import CAUSES, measure_quality
from pipeline.regions.region import Region, cut_regions, region_mm2
from pipeline.regions.tissue import TissueMask, gives_regions, tissue_from
from pipeline.slide.base import Slide
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.identity import slide_fingerprint, slide_name
from pipeline.slide.open import open_slide
from pipeline.slide.resample import Image
from pipeline.store.adapted import remove_adapted_report
from pipeline.store.journal import JOURNAL, Journal, check_unchanged
from pipeline.store.reader import Store, open_store
from pipeline.store.run_record import (
    GEOJSON,
    OVERVIEW,
    REGIONS,
    REPORT,
    STORE,
    TIMELINE,
    Reporter,
    SlideResult,
    describe_run,
    described_models,
    measured_counts,
    remove_partial_files,
    remove_result,
    result_settings,
    slide_address,
    unlike_share,
    whole_result,
    write_run_json,
)
from pipeline.store.schema import StoreInfo
from pipeline.store.writer import finish

OVERVIEW_PX = 1800


def run_slide(
    path: Path,
    folder: Path,
    models: Models,
    config: RunConfig,
    reporter: Reporter,
    assert_lock_held: Callable[[], None] = lambda: None,
    origin: Path | RemotePath | None = None,
    out: Path | RemotePath | None = None,
) -> SlideResult:
    """Find, outline and label every nucleus of one slide.

    Args:
        path: the slide.
        folder: of its results.
        models: loaded.
        config: the settings.
        reporter: receives the progress.
        assert_lock_held: called before anything is written to ``folder``; raises where another process holds it now.
        origin: where a person finds the slide, if not at ``path``.
        out: where a person finds the folder of results, if not beside ``folder``.

    Raises:
        NucpipeError: the slide cannot be processed; what was done stays in the journal.
    """
    clock = RunClock(config.profile)
    with open_slide(path, config.mpp) as slide:
        info = store_info(slide, models.identity, config)
        if before := find_finished(path, folder, info, config):
            return before
        prepared = prepare(slide, folder, info, models, config)
        journal = open_journal(prepared, config, origin or path)
        if journal is not None:
            todo = [region for region in prepared.regions if region.index not in journal.done]
            finished = [region for region in prepared.regions if region.index in journal.done]
            area = prepared.tissue.area_mm2
            reporter.begin(slide.name, area, len(prepared.regions), sum(map(prepared.mm2, finished)), len(finished))
            # Tissue without external nuclei is in no region: nothing is to be done there.
            reporter.advance(0, area - sum(map(prepared.mm2, prepared.regions)))
            clock.lap("prepare")
            run_regions(prepared, todo, journal, models, config, clock, reporter.advance, assert_lock_held)
            slide.forget()
            clock.lap("nuclei")
        return finalize(prepared, journal, config, clock, origin or path, out or folder.parent, assert_lock_held)


@dataclass(frozen=True)
class PreparedSlide:
    """A slide that is open and cut into regions, and what its store will say of itself.

    Attributes:
        tissue: its area is the one that is reported.
        search: where nuclei are looked for: the tissue, or the whole slide for external nuclei.
        regions: of ``search``; with external nuclei those that own one.
    """

    slide: Slide
    folder: Path
    info: StoreInfo
    external_nuclei: ExternalNuclei | None
    tissue: TissueMask
    search: TissueMask
    grid: WorkingGrid
    regions: list[Region]

    @property
    def store_path(self) -> Path:
        """Path of the store, finished or not begun."""
        return self.folder / STORE

    @property
    def journal_path(self) -> Path:
        """Path of the journal, while the slide is unfinished."""
        return self.folder / JOURNAL

    def mm2(self, region: Region) -> float:
        """Return the area of tissue in a region's core, square millimetres."""
        return region_mm2(region, self.grid, self.tissue)


def store_info(slide: Slide, models: ModelIdentity, config: RunConfig) -> StoreInfo:
    """Describe a result, and with it all that the result depends on."""
    return StoreInfo(
        slide_name=slide.name,
        size_l0=slide.size_l0,
        mpp=slide.mpp,
        origin_l0=slide.origin_l0,
        outputs=models.outputs,
        models=described_models(models.described, config, slide.path),
        settings=result_settings(config, models.precision, models.default_filter, models.features, models.ood),
        nucpipe_version=__version__,
        slide_fingerprint=slide_fingerprint(slide.path),
    )


def find_finished(path: Path, folder: Path, info: StoreInfo, config: RunConfig) -> SlideResult | None:
    """Return the result that an earlier run left in ``folder``, if it is whole and has all that this run wants.

    Raises:
        OutputError: the folder holds results of other settings, models or another slide.
    """
    if config.overwrite or not (folder / STORE).exists():
        return None
    check_unchanged(folder, "a finished result", open_store(folder / STORE).info.fingerprint(), info.fingerprint())
    if (record := whole_result(folder, config)) is None:
        return None
    return _finished_before(path, folder, record)


def find_finished_unopened(path: Path, folder: Path, models: ModelIdentity, config: RunConfig) -> SlideResult | None:
    """Return what :func:`find_finished` does without opening the slide, which takes most of the time where thousands of
    slides are finished; None also where only the open slide can tell.

    What a slide says of its size follows from its content, and the pixel size from that and ``config.mpp``.
    """
    if config.overwrite or (record := whole_result(folder, config)) is None:
        return None
    try:
        info = open_store(folder / STORE).info
        now = replace(
            info,
            slide_name=slide_name(path),
            outputs=models.outputs,
            models=described_models(models.described, config, path),
            settings=result_settings(config, models.precision, models.default_filter, models.features, models.ood),
            slide_fingerprint=slide_fingerprint(path),
        )
    except (NucpipeError, OSError):
        return None
    same_mpp = record["settings"].get("mpp", "not recorded") == config.mpp
    if not same_mpp or info.fingerprint() != now.fingerprint():
        return None
    return _finished_before(path, folder, record)


def _finished_before(path: Path, folder: Path, record: dict[str, Any]) -> SlideResult:
    """Return the outcome of an earlier run, by its ``run.json``."""
    nuclei, area, unlike = record["nuclei"], record["tissue_mm2"], record.get("out_of_distribution")
    return SlideResult(
        path, folder, "finished before", nuclei, area, counts=measured_counts(record), out_of_distribution=unlike
    )


def prepare(slide: Slide, folder: Path, info: StoreInfo, models: Models, config: RunConfig) -> PreparedSlide:
    """Find the tissue and cut it into regions; nothing is written."""
    external = None
    if config.nuclei is not None:
        external = read_external_nuclei(nuclei_file(config.nuclei, slide.path), slide)
        if external.types:
            info = info.with_segmentor_types(external.types)
    tissue = tissue_from(config.tissue, slide)
    # External nuclei are taken whether tissue is found round them or not; the area is the tissue's all the same.
    search = tissue_from("none", slide) if external is not None and config.tissue == "auto" else tissue
    grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
    halo = halo_w(models.detector, models.classifier.context)
    regions = cut_regions(grid, search, config.region_size, halo, *read_grid_w(models.detector))
    if external is not None:
        centroids_w = grid.to_w(external.nuclei_l0.centroids)
        regions = [region for region in regions if region.owns(centroids_w).any()]
    return PreparedSlide(slide, folder, info, external, tissue, search, grid, regions)


def open_journal(prepared: PreparedSlide, config: RunConfig, origin: Path | RemotePath) -> Journal | None:
    """Open the journal of the slide's regions, new or of a run that was stopped; None where the store is finished."""
    if prepared.store_path.exists() and not config.overwrite:
        return None
    if config.overwrite:
        Journal(prepared.journal_path).remove()
    return Journal.open(prepared.journal_path, journal_fingerprint(prepared, config), slide_address(origin))


def journal_fingerprint(prepared: PreparedSlide, config: RunConfig) -> dict[str, object]:
    """Return what the regions in the journal depend on: what the result does, and how the slide is cut."""
    return {**prepared.info.fingerprint(), "region_size": config.region_size}


def run_regions(
    prepared: PreparedSlide,
    regions: Sequence[Region],
    journal: Journal,
    models: Models,
    config: RunConfig,
    clock: RunClock,
    advance: Callable[[int, float], None],
    assert_lock_held: Callable[[], None] = lambda: None,
) -> None:
    """Detect and label the nuclei of some regions, and write each region to the journal.

    Args:
        prepared: the slide.
        regions: to do.
        journal: open.
        models: loaded.
        config: the settings.
        clock: takes the time.
        advance: called with the nuclei and square millimetres of each region that is written.
        assert_lock_held: see :func:`run_slide`.
    """
    workers = config.workers or available_processors()
    external_l0 = None if prepared.external_nuclei is None else prepared.external_nuclei.nuclei_l0
    slide, grid, search, timer = prepared.slide, prepared.grid, prepared.search, clock.timer
    stored = bool(prepared.info.features)
    keep = config.nucleus_filter(models.detector.default_filter)
    size = config.batch_size or models.classifier.batch_size
    for done in process_regions(slide, grid, search, regions, models, size, workers, external_l0, timer, keep):
        assert_lock_held()
        with timer.measure("write"):
            journal.write(done.region.index, done.nuclei_l0, done.labels if stored else done.labels.without_features())
        timer.count(len(done.nuclei_l0), prepared.mm2(done.region))
        advance(len(done.nuclei_l0), prepared.mm2(done.region))
    clock.used(workers, models.classifier.max_concurrency)


def finalize(
    prepared: PreparedSlide,
    journal: Journal | None,
    config: RunConfig,
    clock: RunClock,
    origin: Path | RemotePath,
    out: Path | RemotePath,
    assert_lock_held: Callable[[], None] = lambda: None,
) -> SlideResult:
    """Write the store and all that is made from it; ``run.json`` comes last, then the journal is removed.

    Args:
        prepared: the slide.
        journal: holds every region; None: the store is finished already.
        config: the settings.
        clock: of the run.
        origin: where a person finds the slide.
        out: where a person finds the folder of its results.
        assert_lock_held: see :func:`run_slide`.
    """
    with ThreadPoolExecutor(2, "nucpipe-export") as helpers:
        thumbnail = helpers.submit(prepared.slide.thumbnail, OVERVIEW_PX)
        if journal is not None:
            assert_lock_held()
            if config.overwrite:  # the old results stay until the new ones are ready
                remove_result(prepared.folder)
                remove_adapted_report(prepared.folder)
            finish(journal, [region.index for region in prepared.regions], prepared.store_path, prepared.info)
            clock.lap("store")
        assert_lock_held()
        remove_partial_files(prepared.folder)
        store = open_store(prepared.store_path)
        record = describe_run(origin, out, prepared.info, config, prepared.tissue.area_mm2)
        record["models"] = with_training_data(record["models"], config.segmentor, config.classifier)
        export(store, prepared, config, record, helpers, thumbnail)
    clock.lap("exports")
    if config.profile:
        draw_timeline(clock.timer.spans, prepared.folder / TIMELINE)
    area = prepared.tissue.area_mm2
    unlike = unlike_share(store)
    record |= {} if unlike is None else {"out_of_distribution": unlike}
    counts = write_run_json(prepared.folder, record, store, clock.seconds(), clock.performance())
    Journal(prepared.journal_path).remove()
    path, seconds = prepared.slide.path, clock.total()
    return SlideResult(path, prepared.folder, "done", len(store), area, seconds, "", counts, unlike)


def export(
    store: Store,
    prepared: PreparedSlide,
    config: RunConfig,
    record: dict[str, Any],
    helpers: Executor,
    thumbnail: Future[Image],
) -> None:
    """Write what people open: the GeoJSON, the overview, the report, and the table of the regions that were given.

    ``record`` is told which share of the tissue is of poor quality.
    """
    table = None
    if gives_regions(config.tissue):
        regions = store.with_regions(Path(config.tissue)).regions
        assert regions is not None
        from pipeline.export.tables.csv import write_frames
        from pipeline.export.tables.region_table import region_table

        table = region_table(store, regions)
        write_frames([table], prepared.folder / REGIONS)

    picture = thumbnail.result()
    found = measure_quality(prepared.slide, prepared.tissue, picture)
    record |= {cause: None if found is None else round(found.share(cause), 4) for cause in CAUSES}

    def overview() -> None:
        draw_overview(store, picture, prepared.folder / OVERVIEW, config.primary, found)

    def report() -> None:
        quality = None if found is None else SlideQuality(found, picture)
        write_report(store, prepared.slide, prepared.folder / REPORT, config.primary, record, picture, table, quality)

    made: Iterable[Future[None]] = [helpers.submit(draw) for draw in (overview, report)]
    # What may take long stays in this thread, the only one that Ctrl-C interrupts.
    if config.geojson:
        write_geojson(store, prepared.folder / GEOJSON, config.primary)
    for future in made:
        future.result()
