"""Constants of the classifier's input, and checks of its model file."""

from __future__ import annotations

from pathlib import Path

from classifier.labels.libraries import LabelSpace
from nucpipe.backends.model_file import ModelHeader
from nucpipe.errors import ModelError

MPP = 0.25
"""Micrometres per pixel of a patch before it is enlarged."""

PATCH_PX = 64
"""Side of the patch round a nucleus: 16 micrometres."""

CONTEXT_PX = 64
"""Side of the context round a nucleus: 64 micrometres, in pixels of 1."""

TWO_VIEWS = "two-view"
"""Type of an architecture that looks at the context, too."""


BATCH_SIZE, GPU_BATCH_SIZE = 64, 1024
"""Nuclei at a time: on an H100 1024 are classified more than twice as fast as 256 at a time (docs/speed.md)."""

FEATURES = 64
"""Numbers that a run stores of each nucleus: a projection of what the classifier's last layer sees."""


def stored_features(header: ModelHeader) -> int:
    """Return how many features a classifier's file can give of a nucleus; 0 where it carries no projection.

    Raises:
        ValueError: it says another thing than a number that can be.
    """
    count = header.architecture.get("features", 0)
    if not isinstance(count, int) or not 0 <= count <= FEATURES:
        raise ValueError(f"{count!r} features")
    return count


def has_ood(header: ModelHeader) -> bool:
    """Tell whether a classifier's file tells an out-of-distribution score of a nucleus."""
    return "ood" in header.architecture and stored_features(header) > 0


def check_kind(header: ModelHeader) -> None:
    """See that a model is a classifier.

    Raises:
        ModelError: it is another kind of model.
    """
    if header.kind != "classifier":
        raise ModelError(f"model '{header.name}' is a {header.kind}, expected a classifier.")


def unmeasured(header: ModelHeader) -> list[str]:
    """Return the libraries that only other libraries' data taught, so that their own images measure nothing."""
    return [str(entry["name"]) for entry in header.all_data if not entry["images"]]


def read_outputs(path: Path, header: ModelHeader) -> LabelSpace:
    """Return the columns of a classifier.

    Args:
        path: of its file, for messages.
        header: of that file.

    Raises:
        ModelError: not a classifier, or its labels cannot be read.
    """
    check_kind(header)
    try:
        return LabelSpace.from_dict(header.outputs)
    except Exception as error:  # whatever a header that anybody wrote leads to
        raise ModelError(f"{path}: its labels cannot be read ({error}).") from error


def read_features(path: Path, header: ModelHeader) -> int:
    """Return how many features a classifier gives of a nucleus.

    Args:
        path: of its file, for messages.
        header: of that file.

    Raises:
        ModelError: the header says no number that can be.
    """
    try:
        return stored_features(header)
    except ValueError as error:
        raise ModelError(f"{path}: its features cannot be read ({error}).") from error
