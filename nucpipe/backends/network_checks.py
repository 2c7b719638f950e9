"""Networks from headers that anybody may have written: of a known kind, and no larger than the weights beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nucpipe.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


def check_name(name: str) -> None:
    """Refuse a name that timm does not have itself; "hf-hub:..." and the like would be fetched from elsewhere.

    Raises:
        ValueError: so it is.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no network '{name[:80]}'")


def check_size(build: Callable[[], nn.Module], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a network that is larger than the weights for it, before any memory is taken for it.

    Args:
        build: makes the network.
        tensors: its weights.

    Raises:
        ValueError: so it is. Whatever else ``build`` raises.
    """
    import torch

    with torch.device("meta"):
        wanted = sum(tensor.numel() for tensor in build().state_dict().values())
    held = sum(tensor.numel() for tensor in tensors.values())
    if wanted > held:
        raise ValueError(f"the header describes a network of {wanted:,} numbers, the file holds {held:,}")


def check_encoder(option: str, name: str, build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> None:
    """Refuse a network of timm that a training cannot use, before anything is learnt.

    Args:
        option: by which it was asked for.
        name: timm's.
        build: makes the network round it.
        shapes: of the inputs that it must take.

    Raises:
        UsageError: timm has no such network, or it does not fit.
    """
    import torch

    try:
        check_name(name)
        with torch.random.fork_rng([]), torch.inference_mode():
            build().eval()(*map(torch.zeros, shapes))
    except Exception as error:  # each of timm's hundreds of networks has its own way to say that it does not fit
        why = str(error).partition("\n")[0]
        raise UsageError(
            f"{option} {name}: cannot be used here ({why}). Expected an EfficientNet or another convolutional network "
            "of timm, such as tf_efficientnet_lite0."
        ) from error
