"""The published HoVer-Nets that can be named, and the way to their weights, which tiatoolbox fetches."""

from __future__ import annotations

import sys
from pathlib import Path

from nucpipe.cache import cache_folder
from nucpipe.errors import ModelError
from nucpipe.optional.tiatoolbox import import_tiatoolbox, quiet

PUBLISHED = {
    "hovernet_fast-pannuke": "PanNuke",
    "hovernet_fast-monusac": "MoNuSAC",
    "hovernet_original-consep": "CoNSeP",
    "hovernet_original-kumar": "Kumar",
}
"""The models of tiatoolbox's zoo that can be named, and what taught them."""

PUBLISHED_MB = {
    "hovernet_fast-pannuke": 151,
    "hovernet_fast-monusac": 151,
    "hovernet_original-consep": 219,
    "hovernet_original-kumar": 180,
}
"""Sizes of their weights as float32 numbers."""

CONSEP_GROUPS = {
    "other": "miscellaneous",
    "inflammatory": "inflammatory",
    "healthy_epithelial": "epithelial",
    "malignant_epithelial": "epithelial",
    "fibroblast": "spindle_shaped",
    "muscle": "spindle_shaped",
    "endothelial": "spindle_shaped",
}
"""CoNSeP's labels as the types of the model that learnt from it (section 4.3 of the paper)."""

SUFFIXES = (".tar", ".pth", ".pt")
"""Endings of PyTorch's files, as HoVer-Net's authors and tiatoolbox publish them."""


def zoo_path(name: str) -> Path:
    """Return where the weights of that model lie: in tiatoolbox's own folder, or else in nucpipe's cache, fetched or
    not.
    """
    of_toolbox = Path(import_tiatoolbox("").rcParam["TIATOOLBOX_HOME"]) / "models" / f"{name}.pth"
    return of_toolbox if of_toolbox.is_file() else cache_folder() / "models" / f"{name}.pth"


def zoo_weights(name: str) -> Path:
    """Return the file of a model of tiatoolbox's zoo, fetched if it is not there yet, which is said before.

    Raises:
        ModelError: it is not there and cannot be fetched.
    """
    path = zoo_path(name)
    if path.is_file():
        return path
    source = import_tiatoolbox("").rcParam["pretrained_model_info"].get(name, {}).get("hf_repo_id", "")
    url = f"https://huggingface.co/{source}/resolve/main/{name}.pth"
    size = f"about {PUBLISHED_MB[name]} MB"
    print(f"Fetching the weights of {name} once, {size}: {url} -> {path}", file=sys.stderr, flush=True)
    try:
        with quiet():
            import_tiatoolbox("models.architecture").fetch_pretrained_weights(name, path.parent)
    # The hub's client hands on whatever its transport raises.
    except Exception as error:
        raise ModelError(
            f"--segmentor {name}: its weights cannot be fetched from huggingface.co ({cause(error)}). "
            f"Where there is internet, download {url}, then place it at {path} or give its path."
        ) from error
    return path


def cause(error: Exception) -> str:
    """Return what an exception of a library says, on one line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
