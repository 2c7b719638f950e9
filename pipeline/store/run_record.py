"""The record of a slide's run: its outcome, the files that make up a result, and ``run.json``."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from classifier.out_of_distribution import UNLIKE
from nucpipe.addresses import RemotePath
from nucpipe.backends.model_file import fingerprint
from nucpipe.files import PARTIAL, cannot_write, written_whole
from pipeline.config import RunConfig
from pipeline.regions.external_nuclei import nuclei_file
from pipeline.regions.tissue import gives_regions
from pipeline.slide.identity import valid_utf8
from pipeline.store.reader import Store
from pipeline.store.schema import StoreInfo
from segmentation.nuclei import NucleusFilter

STORE, GEOJSON, OVERVIEW, REGIONS, REPORT, FIGURES, RUN_JSON, TIMELINE = (
    "nuclei.zarr",
    "nuclei.geojson",
    "overview.png",
    "regions.csv",
    "report.html",
    "report.json",
    "run.json",
    "profile.png",
)
ADAPTED_REPORT = "report-adapted.html"
"""Report of the labels that ``nucpipe adapt`` wrote; it stands beside the run's own."""
REPORT_MARK = "Made by nucpipe"
"""Stands in every report."""
RESULT_FILES = (STORE, GEOJSON, OVERVIEW, REGIONS, REPORT, FIGURES, TIMELINE, RUN_JSON)
"""All that a run may leave in a slide's folder, in the order in which it is written; ``run.json`` comes last."""


def expected_files(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the files that make a result whole.

    ``profile.png`` tells of a run, not of a slide; ``report.json`` only saves the report of a batch time.
    """
    wanted = {TIMELINE: False, FIGURES: False, GEOJSON: config.geojson, REGIONS: gives_regions(config.tissue)}
    return tuple(name for name in RESULT_FILES if wanted.get(name, True))


@dataclass(frozen=True)
class SlideResult:
    """Outcome of one slide.

    Attributes:
        slide: the file, or its address.
        folder: where its results lie; an address where ``--out`` is one.
        status: ``done``, ``finished before`` (its results stood there already) or ``failed``.
        nuclei: how many were found.
        tissue_mm2: area of the tissue, found or given by ``--tissue``, square millimetres.
        seconds: wall time of this run.
        cause: of the failure; "" otherwise.
        counts: how many nuclei have each label, by library and label, None of a label that nothing taught the
            classifier; empty where it failed.
        out_of_distribution: share of the nuclei that are unlike the training data, 0-1; None where the model cannot
            tell.
    """

    slide: Path | RemotePath
    folder: Path | RemotePath
    status: str
    nuclei: int = 0
    tissue_mm2: float = 0.0
    seconds: float = 0.0
    cause: str = ""
    counts: dict[str, dict[str, int | None]] = field(default_factory=dict)
    out_of_distribution: float | None = None


class Reporter(Protocol):
    """Receives the progress of a run."""

    def begin(self, name: str, mm2: float, regions: int, mm2_before: float = 0.0, regions_before: int = 0) -> None:
        """Report that a slide is begun.

        Args:
            name: of the slide.
            mm2, regions: tissue of the whole slide, square millimetres, and its regions.
            mm2_before, regions_before: of these, what an earlier run has done.
        """

    def advance(self, nuclei: int, mm2: float) -> None:
        """Report a finished region."""

    def end(self, result: SlideResult) -> None:
        """Report a slide that is finished or has failed."""


class SilentReporter:
    """Report nothing."""

    def begin(  # noqa: D102
        self, name: str, mm2: float, regions: int, mm2_before: float = 0.0, regions_before: int = 0
    ) -> None:
        pass

    def advance(self, nuclei: int, mm2: float) -> None:  # noqa: D102
        pass

    def end(self, result: SlideResult) -> None:  # noqa: D102
        pass


def described_models(models: dict[str, dict[str, Any]], config: RunConfig, slide: Path) -> dict[str, dict[str, Any]]:
    """Describe what found and labelled the nuclei of a slide.

    Args:
        models: name and fingerprint of segmentor and classifier.
        config: the settings.
        slide: names the file of its external nuclei where ``config.nuclei`` is a folder.

    Returns:
        ``models``, with the file of ``--nuclei``, by name and content, in the segmentor's place where there is one.

    Raises:
        SlideError: there is no such file for the slide.
    """
    if config.nuclei is None:
        return models
    path = nuclei_file(config.nuclei, slide)
    return {**models, "segmentor": {"name": f"nuclei of {path.name}", "fingerprint": fingerprint(path)}}


def result_settings(
    config: RunConfig, precision: str, default_filter: NucleusFilter, features: int = 0, ood: bool = False
) -> dict[str, Any]:
    """Return the settings that change what is stored, as JSON can hold them; files count by name and content.

    Args:
        config: the settings.
        precision: that the models compute in.
        default_filter: of the segmentor.
        features: how many the classifier gives of a nucleus.
        ood: whether it tells how unlike its training data a nucleus is.
    """
    settings: dict[str, Any] = {
        "tissue": file_settings(config.tissue),
        "precision": precision,
        "decide": config.rule.to_dict(),
        **config.nucleus_filter(default_filter).to_dict(),
    }
    if features and config.features:
        settings["features"] = features
    if ood:
        settings["ood_score"] = True
    return settings | ({"tta": True} if config.tta else {})


def file_settings(option: str) -> str | dict[str, str]:
    """Return ``--tissue`` as results remember it: a file by its name and content."""
    path = Path(option)
    return {"file": path.name, "fingerprint": fingerprint(path)} if path.is_file() else option


def whole_result(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """Return ``run.json`` of a result that is whole and has all that ``config`` asks for; None of any other."""
    try:
        record: dict[str, Any] = json.loads((folder / RUN_JSON).read_text("utf-8"))
        same = record["settings"]["primary"] == config.primary
        return record if same and all((folder / name).exists() for name in expected_files(config)) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # run.json is written last: without a good one, what is made from the store is made again


def remove_result(folder: Path) -> None:
    """Remove the files of a result, and nothing else.

    Raises:
        OutputError: one of them cannot be removed.
    """
    for path in (folder / name for name in RESULT_FILES):
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error


def describe_run(
    origin: Path | RemotePath, out: Path | RemotePath, info: StoreInfo, config: RunConfig, tissue_mm2: float
) -> dict[str, Any]:
    """Return what ``run.json`` and the report say of a run: date, slide, command, versions, models, settings, area.

    Args:
        origin: where a person finds the slide.
        out: where the slide by itself has the folder of its results.
        info: of the store.
        config: the settings.
        tissue_mm2: area of the tissue, square millimetres.
    """
    record = info.to_dict()
    del record["outputs"]
    slide = slide_address(origin)
    return record | {
        "slide": slide,
        "command": valid_utf8(config.command(slide, slide_address(out))),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": {
            **record["settings"],
            "primary": config.primary,
            "region_size": config.region_size,
            "mpp": config.mpp,
        },
        "tissue_mm2": round(tissue_mm2, 6),
    }


def slide_address(origin: Path | RemotePath) -> str:
    """Return where a slide, or a folder of results, lies, as files can hold it: an absolute path or an address."""
    return valid_utf8(origin.absolute() if isinstance(origin, Path) else origin)


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process left of a result's files when it was writing them."""
    for name in RESULT_FILES:
        partial = folder / f"{name}{PARTIAL}"
        if not partial.is_dir():  # the store's is replaced when the store is written
            partial.unlink(missing_ok=True)


def write_run_json(
    folder: Path, record: dict[str, Any], store: Store, seconds: dict[str, float], performance: dict[str, Any]
) -> dict[str, dict[str, int | None]]:
    """Write ``run.json``: what :func:`describe_run` gives, times and counts.

    Args:
        folder: of the result.
        record: of the run.
        store: finished.
        seconds: by stage, and ``total``.
        performance: from :meth:`pipeline.inference.profiling.StageTimer.performance`.

    Returns:
        What :func:`measured_counts` returns of it.

    Raises:
        OutputError: it cannot be written.
    """
    info = store.info
    counts = {library.name: label_counts(store, library.name, library.labels) for library in info.outputs.libraries}
    record = record | {
        "seconds": seconds,
        "performance": performance,
        "nuclei": len(store),
        "counts": counts,
        "untrained_labels": [
            f"{library}:{label}"
            for (library, label), trained in zip(info.outputs.columns, info.outputs.trained, strict=True)
            if not trained
        ],
    }
    with written_whole(folder / RUN_JSON) as partial:
        partial.write_text(json.dumps(record, indent=1, ensure_ascii=False), "utf-8")
    return measured_counts(record)


def measured_counts(record: dict[str, Any]) -> dict[str, dict[str, int | None]]:
    """Return the counts in ``run.json`` by library and label; None of a label that nothing taught the classifier, of
    which 0 says nothing.
    """
    untrained = set(record.get("untrained_labels", ()))
    return {
        library: {label: None if f"{library}:{label}" in untrained else count for label, count in labels.items()}
        for library, labels in record["counts"].items()
    }


def unlike_share(store: Store) -> float | None:
    """Return the share of nuclei that are unlike the training data; None where the store does not tell."""
    scores = store.ood_scores
    if scores is None or not len(scores):
        return None
    return round(float((scores >= UNLIKE).mean()), 4)


def label_counts(store: Store, library: str, labels: Sequence[str]) -> dict[str, int]:
    """Count the nuclei that have each label of a library."""
    numbers = store.label_numbers(library)
    return {label: int((numbers == k).sum()) for k, label in enumerate(labels)}
