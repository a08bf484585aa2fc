"""Torch-Pruning's choices: the same criteria keep the same channels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.zoo_imports import import_torchvision


def theirs(model: nn.Module, image: Tensor, importance: Any, *, norms_only: bool = False) -> dict[str, list[int]]:
    """Output channels that each layer keeps when Torch-Pruning removes half of every group, locally."""
    pruning = pytest.importorskip("torch_pruning")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    kept = {name: list(range(one.weight.shape[0])) for name, one in layers(model).items()}
    names = {module: name for name, module in layers(model).items()}
    pruner = pruning.pruner.BasePruner(
        model, image, importance=importance, pruning_ratio=0.5, ignored_layers=linear if norms_only else linear[-1:]
    )
    for group in pruner.step(interactive=True):
        for item in group:
            if item.dep.pruning_fn in (pruning.prune_conv_out_channels, pruning.prune_linear_out_channels):
                gone = set(item.idxs)
                name = names[item.dep.layer]
                kept[name] = [channel for channel in kept[name] if channel not in gone]
    return kept


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: one for name, one in model.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}


def ours(model: nn.Module, image: Tensor, select: str) -> dict[str, list[int]]:
    hidden = ["classifier.*"] if select == "bn-scale" and hasattr(model, "classifier") else None
    done = fxprune.compile(model, image, keep_rate=0.5, select=select, keep_weights=True, proof=False, ignore=hidden)
    return {
        name: done.recipe.kept.get(f"{name}.weight", {}).get(0, list(range(one.weight.shape[0])))  # type: ignore[arg-type]
        for name, one in layers(model).items()
    }


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(import_torchvision().models, name)(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.double().eval()  # in float32 two neighbours may change places by how a processor adds up


IMAGE = torch.zeros(1, 3, 64, 64, dtype=torch.float64)


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
@pytest.mark.parametrize("select", ["group-l1", "group-l2", "bn-scale"])
def test_keeps_what_torch_pruning_keeps(name: str, select: str) -> None:
    pruning = pytest.importorskip("torch_pruning")
    importance = {
        "group-l1": lambda: pruning.importance.GroupMagnitudeImportance(p=1, group_reduction="mean"),
        "group-l2": lambda: pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        "bn-scale": lambda: pruning.importance.BNScaleImportance(group_reduction="mean"),
    }[select]()
    model = network(name)
    assert ours(model, IMAGE, select) == theirs(
        copy.deepcopy(model), IMAGE, importance, norms_only=select == "bn-scale"
    )


def test_fpgm_agrees_with_torch_pruning_where_weights_are_not_negative() -> None:
    pruning = pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    )
    with torch.no_grad():
        model[0].weight.abs_()
        model[2].weight.fill_(0.1)  # input slices that are all alike tell their criterion nothing
        model[5].weight.fill_(0.1)
    importance = pruning.importance.FPGMImportance(p=1, group_reduction="mean", normalizer=None)
    expected = theirs(copy.deepcopy(model), torch.zeros(1, 3, 16, 16), importance)["0"]
    assert ours(model, torch.zeros(1, 3, 16, 16), "fpgm")["0"] == expected
    assert np.array_equal(expected, sorted(expected))
