"""Networks that are recognised by their layers as none that can be compiled, with what to do instead."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.errors import CaptureError

_QUANTISED = (
    "torch.ao.nn.quantized.",
    "torch.ao.nn.qat.",
    "torch.ao.nn.intrinsic.quantized.",
    "torch.ao.nn.intrinsic.qat.",
)


def check_layers(model: nn.Module) -> None:
    """Raise CaptureError for networks that have been quantised, or are wrapped for training on several machines."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise CaptureError("the network is wrapped for training on several devices: pass its .module")
    for name, part in model.named_modules():
        if f"{type(part).__module__}.".startswith(_QUANTISED) and not isinstance(part, _FLOATING):
            raise CaptureError(
                f"{name or 'the network'} is a {type(part).__name__}: the network has been quantised, or prepared for "
                "it; compile the floating-point network and quantise what comes out"
            )


_FLOATING = (torch.ao.nn.quantized.FloatFunctional, torch.ao.nn.quantized.FXFloatFunctional)
