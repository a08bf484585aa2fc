"""Networks that whole families stand for, with fresh weights and random statistics, at sizes that run in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxprune.capture.specs import build_spec
from fxprune.report import GroupLine, Report

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Family:
    """One network: its spec, the small size it is tested at and its usual size (square pictures, in pixels).

    full   spec to build at the usual size, where the small one must leave something out
    """

    spec: str
    small: int = 64
    usual: int = 224
    full: str = ""


# Ten classes for SqueezeNet: its classifier is a convolution, whose outputs are the network's and stay.
# Inception's auxiliary head needs 299 pixels; the small variant goes without it.
FAMILIES = {
    "resnet50": Family("torchvision:resnet50"),
    "resnext50_32x4d": Family("torchvision:resnext50_32x4d"),
    "vgg16_bn": Family("torchvision:vgg16_bn"),
    "densenet121": Family("torchvision:densenet121"),
    "googlenet": Family("torchvision:googlenet"),
    "inception_v3": Family("torchvision:inception_v3?aux_logits=false", 96, 299, "torchvision:inception_v3"),
    "squeezenet1_1": Family("torchvision:squeezenet1_1?num_classes=10"),
    "mobilenet_v2": Family("torchvision:mobilenet_v2"),
    "mobilenet_v3_small": Family("torchvision:mobilenet_v3_small"),
    "efficientnet_b0": Family("torchvision:efficientnet_b0"),
    "mnasnet0_5": Family("torchvision:mnasnet0_5"),
    "shufflenet_v2_x1_0": Family("torchvision:shufflenet_v2_x1_0"),
    "regnet_y_400mf": Family("torchvision:regnet_y_400mf"),
    "res2net50_26w_4s": Family("timm:res2net50_26w_4s"),
    "hrnet_w18_small": Family("timm:hrnet_w18_small"),
    "cspresnet50": Family("timm:cspresnet50"),
    "ghostnet_100": Family("timm:ghostnet_100"),
    "skresnet18": Family("timm:skresnet18"),
    "dla34": Family("timm:dla34"),
    "ese_vovnet19b_dw": Family("timm:ese_vovnet19b_dw"),
    "repvgg_a0": Family("timm:repvgg_a0"),
    "convnext_tiny": Family("torchvision:convnext_tiny"),
}
EXACT = [name for name in FAMILIES if name != "convnext_tiny"]  # its LayerNorms see all channels at once


def build(name: str, size: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network with random statistics, in train mode as its class leaves it. `size` None means the small one."""
    family = FAMILIES[name]
    usual = size is not None and size >= family.usual
    module = build_spec(family.full if usual and family.full else family.spec, seed).module
    return randomise(module.to(dtype), seed)


def pictures(name: str, batch: int = 2, size: int | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random pictures (batch, 3, size, size)."""
    pixels = size or FAMILIES[name].small
    return torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(batch), dtype=dtype)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random BatchNorm statistics, affine parameters, biases and scales, in place; weights that are all zero are drawn.

    Fresh networks hide faults: mean 0 and bias 0 make removed and kept channels alike, a head of zeros makes every
    output equal, and a layer scale of 1e-6 mutes its whole branch.
    """
    draw = torch.Generator().manual_seed(seed)
    for part in module.modules():
        for leaf, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if not tensor.is_floating_point():
                continue
            if leaf == "running_var" or (leaf == "weight" and isinstance(part, NORMS)) or "scale" in leaf:
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
            elif sum(size > 1 for size in tensor.shape) <= 1 and leaf != "weight":
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.2)
            elif not tensor.any():
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * tensor[0].numel() ** -0.5)
    return module


# -- what a report says about a network ------------------------------------------------------------------------------


def prunable(report: Report) -> list[GroupLine]:
    """Groups whose channels may go and that some weight makes."""
    return [group for group in report.groups if group.producers and not group.frozen]


def conv_weights(module: nn.Module) -> Iterator[tuple[str, int, Tensor]]:
    """(name, output dimension, weight) of every convolution of the user's own module."""
    for path, part in module.named_modules():
        if isinstance(part, nn.modules.conv._ConvNd):
            yield f"{path}.weight", int(part.transposed), part.weight


def conv_share(module: nn.Module, report: Report) -> float:
    """Share of conv parameters whose output dimension lies in prunable groups.

    A convolution that makes channels of several groups counts only when none of them is frozen.
    """
    ours = {group.index for group in prunable(report)}
    groups_of: dict[str, set[int]] = {}
    for group in report.groups:
        for member in group.members:
            groups_of.setdefault(member, set()).add(group.index)
    total = inside = 0
    for name, dim, weight in conv_weights(module):
        groups = groups_of.get(f"{name}[{dim}]", set())
        total += weight.numel()
        inside += weight.numel() if groups and groups <= ours else 0
    return inside / total if total else 1.0
