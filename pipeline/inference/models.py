"""The models of a run, by name or by path."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifier.spec import has_ood, read_features, read_outputs
from nucpipe.backends.device import pick_device, pick_precision
from nucpipe.backends.model_file import ModelHeader, fingerprint, read_header
from nucpipe.backends.processors import available_processors, limit_heaps
from nucpipe.errors import UsageError
from segmentation.hovernet.zoo import PUBLISHED, SUFFIXES, zoo_path, zoo_weights
from segmentation.nuclei import KEEP_ALL, NucleusFilter
from segmentation.registry import default_filter, load_detector

if TYPE_CHECKING:
    from classifier.labels.libraries import LabelSpace
    from classifier.predictor import Predictor
    from segmentation.detector import Detector

REPLACED = {"joint-lite0": "replaced by joint-context, the default; leave the option out."}
"""Bundled classifiers of earlier versions, and what took their place."""
KINDS = {"segmentor": "segmentation", "classifier": "classifier"}
"""Kinds of models, and the package whose folder ``weights`` holds the bundled ones."""


@dataclass(frozen=True)
class ModelIdentity:
    """Identity of the models, on which a result depends, known without loading them.

    Attributes:
        described: name and fingerprint of segmentor and classifier, and the segmentor's own types if it has any.
        outputs: the classifier's columns.
        precision: that they compute in, ``fp32``, ``bf16`` or ``fp16``.
        default_filter: the nuclei that the segmentor keeps unless a run says otherwise.
        features: how many numbers the classifier can give of a nucleus, beside its labels.
        ood: whether it can tell how unlike its training data a nucleus is.
    """

    described: dict[str, dict[str, Any]]
    outputs: LabelSpace
    precision: str
    default_filter: NucleusFilter = KEEP_ALL
    features: int = 0
    ood: bool = False


@dataclass(frozen=True)
class Models:
    """The two networks of a run, loaded once and ready to run.

    Attributes:
        detector: finds and outlines nuclei.
        classifier: names them.
        described: name and fingerprint of both, and the segmentor's own types if it gives any, for the store.
        precision: that they compute in, ``fp32``, ``bf16`` or ``fp16``.
    """

    detector: Detector
    classifier: Predictor
    described: dict[str, dict[str, Any]]
    precision: str = "fp32"

    @property
    def outputs(self) -> LabelSpace:
        """The classifier's columns."""
        return self.classifier.outputs

    @property
    def identity(self) -> ModelIdentity:
        """Identity of the models, on which a result depends."""
        features, ood = self.classifier.features, self.classifier.ood is not None
        return ModelIdentity(self.described, self.outputs, self.precision, self.detector.default_filter, features, ood)


def bundled_models(kind: str) -> dict[str, Path]:
    """Return the files of the bundled models of that kind, by name."""
    folder = Path(str(resources.files(KINDS[kind]).joinpath("weights")))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def find_model(kind: str, name: str, option: str = "") -> Path:
    """Return the file of a model given by its name (a bundled one, or a published HoVer-Net, fetched once) or by its
    path.

    Args:
        kind: ``segmentor`` or ``classifier``.
        name: or path.
        option: by which it was asked for; empty: ``--segmentor`` or ``--classifier``.

    Raises:
        UsageError: neither.
        ModelError: a published model's weights cannot be fetched.
    """
    bundled, option = bundled_models(kind), option or f"--{kind}"
    if name in bundled:
        return bundled[name]
    if kind == "segmentor" and name in PUBLISHED:
        return zoo_weights(name)
    suffixes = (".safetensors", *(SUFFIXES if kind == "segmentor" else ()))
    if Path(name).suffix.lower() in suffixes and Path(name).is_file():
        return Path(name)
    if kind == "classifier" and name in REPLACED:
        raise UsageError(f"{option} {name}: {REPLACED[name]}")
    names = [*bundled, *(PUBLISHED if kind == "segmentor" else ())]
    of_authors = ", or of a HoVer-Net of its authors (.tar, .pth)" if kind == "segmentor" else ""
    raise UsageError(
        f"{option} {name}: no such model. Expected {' or '.join(names) or 'a bundled name'}, "
        f"or the path of a .safetensors file that nucpipe trained{of_authors}; {_near(name)}."
    )


def _near(name: str) -> str:
    """Say what to do about the name of a model that is neither bundled nor a file."""
    path = Path(name)
    file = path if path.suffix.lower() == ".safetensors" else path.with_name(f"{path.name}.safetensors")
    if file.is_file():
        return f"there is {file}, give its whole name"
    return f"there is no file {file} in this place, give the path where the training wrote it (--out)"


def describe_models() -> list[tuple[Path, ModelHeader]]:
    """Return path and header of every bundled model."""
    return [(path, read_header(path)) for kind in KINDS for path in bundled_models(kind).values()]


def with_training_data(described: dict[str, dict[str, Any]], *names: str) -> dict[str, dict[str, Any]]:
    """Return what a result says of its models, with the licence and the training data that their files state.

    Args:
        described: by kind, the model's name, its fingerprint, and more.
        names: of model files, or their paths; the bundled ones need not be named.

    Returns:
        The same; a model whose file is found, by its fingerprint, has also ``licence`` and ``data``, a list of
        ``name``, ``images`` and ``licence``, and, if it was made from others, their names as ``made_from``. A published
        HoVer-Net has the name of its data alone.
    """
    result = {}
    for kind, model in described.items():
        known = {fingerprint(path): path for path in map(Path, names) if path.is_file()} | _bundled(kind)
        path = known.get(model.get("fingerprint", ""))
        facts: dict[str, Any] = {}
        if path is not None and path.suffix == ".safetensors":
            header = read_header(path)
            data = [{key: one[key] for key in ("name", "images", "licence") if key in one} for one in header.all_data]
            facts = {"licence": header.licence, "data": data}
            if header.made_from:
                facts["made_from"] = [model["name"] for model in header.made_from]
        elif kind == "segmentor" and model.get("name") in PUBLISHED:
            facts = {"data": [{"name": PUBLISHED[model["name"]]}]}
        result[kind] = {**model, **facts}
    return result


@cache
def _bundled(kind: str) -> dict[str, Path]:
    """Return the bundled models of that kind, by fingerprint."""
    return {fingerprint(path): path for path in bundled_models(kind).values()} if kind in KINDS else {}


def published_models() -> list[tuple[str, str, str]]:
    """Return of each published HoVer-Net its name, what taught it, and where its weights lie or will be put."""
    paths = {name: zoo_path(name) for name in PUBLISHED}
    return [
        (name, data, f"{'fetched' if paths[name].is_file() else 'not fetched yet'}: {paths[name]}")
        for name, data in PUBLISHED.items()
    ]


def identify_models(segmentor: str, classifier: str, device_name: str, precision_name: str) -> ModelIdentity:
    """Identify models by their files, without loading them.

    Raises:
        UsageError: an unknown model, device or precision.
        ModelError: a model file is broken or of the wrong kind.
    """
    paths = {"segmentor": find_model("segmentor", segmentor), "classifier": find_model("classifier", classifier)}
    header = read_header(paths["classifier"])
    outputs, features = read_outputs(paths["classifier"], header), read_features(paths["classifier"], header)
    precision = pick_precision(precision_name, pick_device(device_name))
    return ModelIdentity(
        _described(paths), outputs, precision, default_filter(paths["segmentor"]), features, has_ood(header)
    )


def _described(paths: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return {kind: {"name": path.stem, "fingerprint": fingerprint(path)} for kind, path in paths.items()}


def load_models(
    segmentor: str,
    classifier: str,
    device_name: str,
    precision_name: str,
    tta: bool = False,
    workers: int | None = None,
) -> Models:
    """Load both models onto the device.

    Args:
        segmentor, classifier: names of models, or paths.
        device_name, precision_name: as on the command line.
        tta: average the segmentor's maps over flips, and the classifier's logits over quarter turns.
        workers: processors that they may use; None: as many as there are for this process.

    Raises:
        UsageError: an unknown model, device or precision; ``tta`` with a segmentor that cannot.
        ModelError: a model file is broken or of the wrong kind.
    """
    paths = {"segmentor": find_model("segmentor", segmentor), "classifier": find_model("classifier", classifier)}
    from classifier.predictor import load_predictor

    device = pick_device(device_name)
    precision = pick_precision(precision_name, device)
    threads = workers or available_processors()
    limit_heaps(threads)
    detector = load_detector(paths["segmentor"], device, precision, threads)
    if tta:
        from segmentation.test_time_augmentation import FlipTTA

        detector = FlipTTA(detector)
    predictor = load_predictor(paths["classifier"], device, precision, threads, tta)
    described = _described(paths)
    if detector.types:
        described["segmentor"]["types"] = list(detector.types)
    return Models(detector, predictor, described, precision)
