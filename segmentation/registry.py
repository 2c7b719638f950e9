"""The detector in a model file, whatever kind it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nucpipe.backends.model_file import ModelHeader, read_header
from segmentation.detector import Detector
from segmentation.hovernet.detector import load_hovernet
from segmentation.hovernet.zoo import SUFFIXES
from segmentation.nuclei import KEEP_ALL, NucleusFilter
from segmentation.rcnn.spec import RCNN_TYPES


@dataclass(frozen=True)
class Architecture:
    """A kind of detector.

    Attributes:
        recognises: tells, of a file and its header (None of a file that is not nucpipe's), whether it holds this kind.
        load: of the file, the device, the precision and the threads.
    """

    recognises: Callable[[Path, ModelHeader | None], bool]
    load: Callable[[Path, str, str, int], Detector]


def _load_published(path: Path, device: str, precision: str, threads: int) -> Detector:
    from segmentation.hovernet.published import load_published  # late: torch takes seconds to import

    return load_published(path, device, precision, threads)


def _load_rcnn(path: Path, device: str, precision: str, threads: int) -> Detector:
    from segmentation.rcnn.detector import load_rcnn  # late: torchvision takes seconds to import

    return load_rcnn(path, device)


def _is_rcnn(path: Path, header: ModelHeader | None) -> bool:
    return header is not None and header.kind == "segmentor" and header.architecture.get("type") in RCNN_TYPES


ARCHITECTURES = (
    Architecture(lambda path, header: header is None, _load_published),
    Architecture(_is_rcnn, _load_rcnn),
    Architecture(lambda path, header: True, load_hovernet),
)
"""The kinds of detectors, asked in this order; a new one is a line here."""


def load_detector(path: Path, device: str = "cpu", precision: str = "fp32", threads: int = 1) -> Detector:
    """Return the detector in a model file of nucpipe, or in one that HoVer-Net's authors published (``.tar``,
    ``.pth``).

    Args:
        path: of the file.
        device, precision: where and how it runs.
        threads: processors that it may use.

    Raises:
        ModelError: no such file, or no segmentor of a kind that this version knows.
    """
    header = None if path.suffix.lower() in SUFFIXES else read_header(path)
    load = next(one.load for one in ARCHITECTURES if one.recognises(path, header))
    detector = load(path, device, precision, threads)
    detector.default_filter = default_filter(path)
    return detector


def default_filter(path: Path) -> NucleusFilter:
    """Return which nuclei the segmentor in a model file keeps unless a run says otherwise; published ones keep all.

    Raises:
        ModelError: no such file, or no model file of nucpipe.
    """
    if path.suffix.lower() in SUFFIXES:
        return KEEP_ALL
    header = read_header(path)
    return NucleusFilter(header.min_area_um2, header.min_detection_p)
