"""One file per model: a ``.safetensors`` whose header holds what is needed to rebuild the model and to judge it."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucpipe.errors import ModelError
from nucpipe.files import written_whole

if TYPE_CHECKING:
    import torch

FORMAT = "nucpipe-model-1"
NOTHING_UNSEEN = "no image is known to be held out of all trainings that made this model; measured on all images."


@dataclass(frozen=True)
class ModelHeader:
    """Header of a model file.

    Attributes:
        kind: ``segmentor`` or ``classifier``.
        name: a short name for people.
        architecture: what the package that owns ``kind`` needs to build the network.
        mpp: pixel size of the network's input, micrometres.
        mean, std: normalisation of RGB in 0-1.
        outputs: for a classifier, its libraries and their labels (see ``classifier.labels.libraries``); else empty.
        data: the data sets it learnt from: name, counts, licence, what was held out.
        made_from: the models that it started from or was taught by, and those that they were made from: each one's
            ``name``, ``licence`` and ``data`` (a list of data sets as above), and of a classifier ``agreement`` (see
            ``classifier.training.agreement``).
        figures: what was measured on the held-out part.
        min_area_um2, min_detection_p: for a segmentor, the least area (square micrometres) and the least detection
            probability of a nucleus that is kept unless a run says otherwise; 0 keeps all.
        licence, date, nucpipe_version: of the file.
    """

    kind: str
    name: str
    architecture: dict[str, Any]
    mpp: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    outputs: dict[str, Any] = field(default_factory=dict)
    data: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    min_area_um2: float = 0.0
    min_detection_p: float = 0.0
    licence: str = ""
    date: str = ""
    nucpipe_version: str = ""
    made_from: list[dict[str, Any]] = field(default_factory=list)

    @property
    def all_data(self) -> list[dict[str, Any]]:
        """The data sets that taught it, and those of other names that taught the models that it was made from."""
        sets = {one["name"]: one for model in reversed(self.made_from) for one in model["data"]}
        own = {one["name"]: one if one.get("images") != 0 else sets.get(one["name"], one) for one in self.data}
        return [*own.values(), *(one for name, one in sets.items() if name not in own)]

    @property
    def made_from_in_words(self) -> list[str]:
        """A line for people that names the models that it was made from; none without them."""
        names = ", ".join(str(model["name"]) for model in self.made_from)
        return [f"{self.name} was made from {names}; held out is what none of them learnt from."] if names else []

    def held_out_of(self, name: str) -> list[str]:
        """Return the groups of a data set that its training held out, and those of the models that it was made from.

        Empty where none of them is known to have held out any, or what one held out taught another.
        """
        of_models = [one for model in self.made_from for one in model["data"] if one["name"] == name]
        own = [one for one in self.data if one["name"] == name and (one.get("images") != 0 or not of_models)]
        groups = [set(one.get("held_out", ())) for one in (*own, *of_models)]
        return sorted(set.intersection(*groups)) if groups else []


def save_model(path: Path, header: ModelHeader, tensors: dict[str, torch.Tensor]) -> None:
    """Write a model file in half precision, whole or not at all.

    Integer tensors keep their type. The folder must exist.

    Raises:
        OutputError: it cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    half = {
        k: (v.detach().cpu().to(torch.float16) if v.is_floating_point() else v.detach().cpu()).contiguous()
        for k, v in tensors.items()
    }
    with written_whole(path) as partial:
        save_file(half, str(partial), metadata=_metadata(header))
        partial.chmod(0o644)  # safetensors writes files that only their owner may read


def _metadata(header: ModelHeader) -> dict[str, str]:
    return {"format": FORMAT, "nucpipe": json.dumps(asdict(header))}


def rewrite_header(path: Path, header: ModelHeader) -> None:
    """Give a model file another header; its tensors stay as they are, to the bit.

    Raises:
        ModelError: no such file, or no model file of nucpipe.
        OutputError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    read_header(path)
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: its weights cannot be read ({error}).") from error
    with written_whole(path) as partial:
        save_file(tensors, str(partial), metadata=_metadata(header))
        partial.chmod(0o644)


def read_header(path: Path) -> ModelHeader:
    """Return the header alone.

    Raises:
        ModelError: no such file, or no model file of nucpipe.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"{path}: no such model file.")
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ModelError(f"{path}: a safetensors file, but not a nucpipe model (its header lacks '{FORMAT}').")
        fields = json.loads(metadata["nucpipe"])
        header = ModelHeader(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        _check(header)
        return header
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        raise ModelError(f"{path}: expected a nucpipe model (.safetensors); it cannot be read ({error}).") from error


def _check(header: ModelHeader) -> None:
    """See that what anybody may have written has the types that are asked for.

    Raises:
        ValueError: it has not.
    """
    tables = all(isinstance(part, dict) for part in (header.architecture, header.outputs, header.figures))
    models = header.made_from if isinstance(header.made_from, list) else [header.made_from]
    if not all(isinstance(one, dict) and isinstance(one.get("data"), list) and "name" in one for one in models):
        raise ValueError("what it says of the models that it was made from is not what it should be")
    texts = (header.kind, header.name, header.licence, header.date, header.nucpipe_version)
    if not tables or not isinstance(header.data, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a field of its header is not what it should be")
    numbers = [float(number) for number in (header.mpp, *header.mean, *header.std)]
    if len(numbers) != 7 or not all(map(math.isfinite, numbers)) or not header.mpp > 0 or min(header.std) <= 0:
        raise ValueError("its pixel size, mean or std is not a number above 0")
    least = (header.min_area_um2, header.min_detection_p)
    if not all(isinstance(number, int | float) and 0 <= number < math.inf for number in least) or least[1] > 1:
        raise ValueError("its least area is not 0 or more, or its least detection probability is not 0 to 1")


def load_model(path: Path) -> tuple[ModelHeader, dict[str, torch.Tensor]]:
    """Return the header and the tensors in float32 (integers as they are), on the CPU.

    Raises:
        ModelError: as :func:`read_header`; a weight is NaN or infinite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path)
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: its weights cannot be read ({error}).") from error
    if bad := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise ModelError(
            f"{path}: {len(bad)} of its weights, as {bad[0]}, are NaN or infinite; train or fetch it again."
        )
    return header, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def why_not_unpickled(error: Exception) -> str:
    """Return why PyTorch did not read a file with ``weights_only``, without its advice to read it unsafely."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return "it is broken, or holds Python objects beside its tensors, which could run any code"
    return (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of the file, as ``sha256:<64 hex digits>``."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
