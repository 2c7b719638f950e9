"""The models of a run, by name or by path."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from nucpipe.common.errors import UsageError
from nucpipe.common.modelfile import ModelHeader, fingerprint, read_header

if TYPE_CHECKING:
    import torch

    from classifier.libraries import Outputs
    from classifier.model import JointClassifier
    from segmentation.detector import Detector

KINDS = {"segmentor": "segmentation", "classifier": "classifier"}
"""Kinds of models, and the package whose folder ``weights`` holds the bundled ones."""


@dataclass(frozen=True)
class Models:
    """The two networks of a run, loaded once, and where they run.

    Attributes:
        detector: finds and outlines nuclei.
        classifier: names them.
        outputs: the classifier's columns.
        described: name and fingerprint of both, for the store.
        device, precision: where and how they run.
    """

    detector: Detector
    classifier: JointClassifier
    outputs: Outputs
    described: dict[str, dict[str, str]]
    device: torch.device
    precision: torch.dtype | None


def bundled_models(kind: str) -> dict[str, Path]:
    """The files of the bundled models of that kind, by name."""
    folder = Path(str(resources.files(KINDS[kind]).joinpath("weights")))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def find_model(kind: str, name: str) -> Path:
    """The file of a model given by the name of a bundled one or by its path.

    Raises:
        UsageError: neither.
    """
    bundled = bundled_models(kind)
    if name in bundled:
        return bundled[name]
    if Path(name).suffix == ".safetensors" and Path(name).is_file():
        return Path(name)
    raise UsageError(
        f"--{kind} {name}: no such model. Expected {' or '.join(bundled) or 'a bundled name'}, "
        "or the path of a .safetensors file that nucpipe trained."
    )


def describe_models() -> list[tuple[Path, ModelHeader]]:
    """Path and header of every bundled model."""
    return [(path, read_header(path)) for kind in KINDS for path in bundled_models(kind).values()]


def load_models(segmentor: str, classifier: str, device_name: str, precision_name: str) -> Models:
    """Load both models onto the device.

    Raises:
        UsageError: an unknown model, device or precision.
        ModelError: a model file is broken or of the wrong kind.
    """
    paths = {"segmentor": find_model("segmentor", segmentor), "classifier": find_model("classifier", classifier)}
    from classifier.model import load_classifier
    from nucpipe.common.device import pick_device, pick_precision
    from segmentation.detector import load_detector

    device = pick_device(device_name)
    precision = pick_precision(precision_name, device)
    detector = load_detector(paths["segmentor"], device, precision)
    network, _, outputs = load_classifier(paths["classifier"])
    described = {kind: {"name": path.stem, "fingerprint": fingerprint(path)} for kind, path in paths.items()}
    return Models(detector, network.to(device).eval(), outputs, described, device, precision)
