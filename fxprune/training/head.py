"""The layer that tells classes apart, replaced where the data have another number of them."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.errors import TrainingError
from fxprune.program import Inputs
from fxprune.training.loop import logits_of


def classes_of(network: nn.Module, inputs: Inputs) -> int:
    """Columns of the output. The network is left as it was. Raises TrainingError."""
    real, training = inputs.with_storage(), [one for one in network.modules() if one.training]
    with torch.no_grad():
        found = logits_of(network.eval()(*real.args, **real.kwargs)).shape[1]
    for one in training:
        one.training = True
    return found


def replace_head(network: nn.Module, inputs: Inputs, classes: int) -> str:
    """Give the network a fresh last layer with so many outputs, in place, drawn from torch's global generator; all
    other weights stay. Returns a note.

    The last layer is a Linear, or a Conv2d, that has as many outputs as the network. Raises TrainingError when none has
    them, or the output does not follow.
    """
    before = classes_of(network, inputs)
    for name, module in reversed(list(network.named_modules())):
        wider = _like(module, before, classes)
        if wider is None or not name:
            continue
        network.set_submodule(name, wider)
        try:
            after = classes_of(network, inputs)
        except (RuntimeError, TypeError, ValueError):  # what follows it wants the old width
            after = before
        if after == classes:
            return f"{name}, which tells {before} classes apart, was replaced by one for {classes}"
        network.set_submodule(name, module)
    raise TrainingError(
        f"the layer that makes the {before} outputs was not found, so it cannot be replaced by one for {classes} "
        "classes: give a network with that many"
    )


def _like(module: nn.Module, before: int, classes: int) -> nn.Module | None:
    if isinstance(module, nn.Linear) and module.out_features == before:
        return nn.Linear(module.in_features, classes, module.bias is not None)
    if type(module) is nn.Conv2d and module.out_channels == before and module.groups == 1:
        return nn.Conv2d(
            module.in_channels, classes, module.kernel_size, module.stride, module.padding,  # type: ignore[arg-type]
            module.dilation, bias=module.bias is not None, padding_mode=module.padding_mode,  # type: ignore[arg-type]
        )  # fmt: skip
    return None
