"""Configuration of a run, from the command line or a Python caller."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from classifier.decision_rule import DecisionRule
from nucpipe.errors import UsageError
from nucpipe.pixel_size import MAX_MPP, MIN_MPP, is_plausible_mpp
from segmentation.nuclei import KEEP_ALL, NucleusFilter

REGION_ALIGN_W = 32
"""Cores and read boxes of regions start and end on multiples of this many working pixels: the network's largest stride
at 0.5 um, so that a place on the slide meets the network's grid in the same way in every region."""


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run; see ``nucpipe run --help``.

    Attributes:
        mpp: pixel size of level 0 in micrometres, where the slide's own statement is missing or wrong.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32, bf16 or fp16.
        segmentor, classifier: a bundled model's name, or the path of a model file.
        primary: the library whose labels colour the nuclei.
        decide, threshold: which labels a nucleus gets, see ``DecisionRule`` in ``classifier.decision_rule``; None:
            argmax, or best where a threshold is given.
        tissue: auto, none, or the path of a mask image or of a GeoJSON with regions of interest.
        region_size: side of a region's core in working pixels (0.25 um), a multiple of 32.
        batch_size: nuclei that the classifier sees at a time; None: what suits the device.
        workers: processors to use; None: those allotted to this process.
        overwrite: replace finished results, and start unfinished ones again.
        geojson: write ``nuclei.geojson``.
        tta: average the segmentor's maps over flips of the pixels, and the classifier's logits over quarter turns; four
            times the work.
        nuclei: a file of nuclei that another tool found, or a folder of them, in detection's place.
        min_area, min_detection: least area (square micrometres) and least detection probability of a nucleus that is
            kept; None: the segmentor's own default, or no least one for ``nuclei``.
        features: store the classifier's features of each nucleus, where its model file carries a projection for them.
        profile: draw ``profile.png``, a timeline of the run.
    """

    mpp: float | None = None
    device: str = "auto"
    precision: str = "auto"
    segmentor: str = "hovernet-compact"
    classifier: str = "joint-context"
    primary: str = "PanNuke"
    decide: str | None = None
    threshold: float | None = None
    tissue: str = "auto"
    region_size: int = 1280
    batch_size: int | None = None
    workers: int | None = None
    overwrite: bool = False
    geojson: bool = True
    nuclei: str | None = None
    min_area: float | None = None
    min_detection: float | None = None
    tta: bool = False
    features: bool = True
    profile: bool = False

    @property
    def rule(self) -> DecisionRule:
        """Decision rule of the labels."""
        return DecisionRule.chosen(self.decide, self.threshold)

    def command(self, slide: str, out: str) -> str:
        """Return the ``nucpipe run`` that has these settings, given in any folder: an option for each field that is not
        at its default.
        """
        words, absolute = ["nucpipe", "run", slide, "--out", out], self.with_absolute_paths()
        for option in fields(self):
            value, name = getattr(absolute, option.name), option.name.replace("_", "-")
            if value != option.default:
                words += [f"--no-{name}"] if value is False else [f"--{name}"]
                words += [] if isinstance(value, bool) else [str(value)]
        return shlex.join(words)

    def with_absolute_paths(self) -> RunConfig:
        """Return settings that mean the same in whatever folder a process works."""
        given = {name: getattr(self, name) for name in ("tissue", "segmentor", "classifier", "nuclei")}
        paths: dict[str, Any] = {
            name: str(Path(value).absolute())
            for name, value in given.items()
            if value and (Path(value).is_file() or (name == "nuclei" and Path(value).exists()))
        }
        return replace(self, **paths)

    def nucleus_filter(self, default: NucleusFilter) -> NucleusFilter:
        """Return which nuclei are kept.

        Args:
            default: of the segmentor; it does not hold for nuclei of another tool.
        """
        given = {"min_area_um2": self.min_area, "min_detection_p": self.min_detection}
        start = default if self.nuclei is None else KEEP_ALL
        return replace(start, **{name: value for name, value in given.items() if value is not None})

    def __post_init__(self) -> None:
        DecisionRule.chosen(self.decide, self.threshold)
        self.nucleus_filter(KEEP_ALL)
        if self.nuclei is not None and self.segmentor != type(self).segmentor:
            raise UsageError(
                f"--segmentor {self.segmentor} cannot be used with --nuclei, which leaves detection out; give one."
            )
        if self.mpp is not None and not is_plausible_mpp(self.mpp):
            low, high = MIN_MPP, MAX_MPP
            raise UsageError(f"--mpp {self.mpp:g}: expected micrometres per pixel, {low} to {high}; 40x is about 0.25.")
        if self.region_size < REGION_ALIGN_W or self.region_size % REGION_ALIGN_W:
            raise UsageError(
                f"--region-size {self.region_size}: expected a multiple of {REGION_ALIGN_W}, such as 1280."
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: expected at least 1.")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers {self.workers}: expected at least 1.")
