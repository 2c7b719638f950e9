"""The detector in a model file, whatever kind it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nucpipe.backends.model_file import read_header
from segmentation.hovernet.zoo import SUFFIXES

if TYPE_CHECKING:
    from segmentation.detector import Detector


def load_detector(path: Path, device: str = "cpu", precision: str = "fp32", threads: int = 1) -> Detector:
    """The detector in a model file of nucpipe, or in one that HoVer-Net's authors published (``.tar``, ``.pth``).

    Args:
        path: of the file.
        device, precision: where and how it runs.
        threads: processors that it may use.

    Raises:
        ModelError: no such file, or no segmentor of a kind that this version knows.
    """
    if path.suffix.lower() in SUFFIXES:
        from segmentation.hovernet.published import load_published

        return load_published(path, device, precision, threads)
    header = read_header(path)
    if header.kind == "segmentor" and header.architecture.get("type") != "hovernet":
        from segmentation.rcnn.detector import ARCHITECTURES, load_rcnn

        if header.architecture.get("type") in ARCHITECTURES:
            return load_rcnn(path, device)
    from segmentation.hovernet.detector import load_hovernet

    return load_hovernet(path, device, precision, threads)
