"""What network slimming does during training: scales of normalisations are drawn to zero (Liu et al., ICCV 2017).

The loss becomes L + strength * sum |gamma| over the scales of all batch normalisations. |gamma| has no slope at 0, so
that its subgradient sign(gamma) is added to what backward() has left:

    start_scales(model)                 # once, before training
    ...
        loss.backward()
        add_scale_slopes(model, 1e-4)   # each step, before optimizer.step()
    small = fxprune.compile(model, example_inputs, method="slimming", keep_rate=0.5)

The paper takes 1e-4 for VGG and 1e-5 for ResNet and DenseNet, and trains the cut network on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.errors import OptionError


def scales(model: nn.Module) -> list[nn.Parameter]:
    """gamma of every batch normalisation that has one. Raises OptionError for a network without any."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    found = [one.weight for one in norms if isinstance(one.weight, nn.Parameter)]
    if not found:
        raise OptionError("slimming needs batch normalisations with scales; this network has none")
    return found


@torch.no_grad()
def start_scales(model: nn.Module, value: float = 0.5) -> None:
    """Set every scale to where slimming begins, so that none is ahead of the others."""
    for gamma in scales(model):
        gamma.fill_(value)


@torch.no_grad()
def add_scale_slopes(model: nn.Module, strength: float = 1e-4) -> None:
    """Add the subgradient of strength * sum |gamma| to the gradients. Call after backward() and before step().

    With a GradScaler call it after `scaler.unscale_(optimizer)`. Raises OptionError where there are no gradients yet,
    or strength is negative.
    """
    if not strength >= 0:
        raise OptionError(f"strength is not negative, not {strength}")
    wanted = [gamma for gamma in scales(model) if gamma.requires_grad]
    if all(gamma.grad is None for gamma in wanted):
        raise OptionError("no scale has a gradient: call this after backward() and before zero_grad()")
    for gamma in wanted:
        if gamma.grad is not None:  # else the network does not use it
            gamma.grad.add_(gamma.sign(), alpha=strength)


def scale_penalty(model: nn.Module) -> Tensor:
    """sum |gamma|, for whoever adds it to the loss or watches it."""
    return torch.stack([gamma.abs().sum() for gamma in scales(model)]).sum()
