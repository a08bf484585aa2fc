"""Soft filter pruning and slimming: what they do to weights and gradients while a network trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import zoo
from fxprune.errors import NothingPrunableError, OptionError
from fxprune.slimming import add_scale_slopes, scale_penalty, scales, start_scales
from fxprune.soft_pruning import SoftFilterPruning

IMAGE = torch.zeros(2, 3, 32, 32)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 32, 32, generator=draw), torch.randint(0, 10, (8,), generator=draw)


def trained(model: nn.Module, steps: int, after_backward: Any = lambda model: None) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for seed in range(steps):
        images, labels = batch(seed)
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        after_backward(model)
        optimiser.step()


def shifted(model: nn.Module) -> nn.Module:
    """ReLUs let everything pass, so that every filter gets a gradient."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 3.0)
    return model


def zero_filters(weight: Tensor) -> list[int]:
    return torch.nonzero(~weight.detach().reshape(len(weight), -1).any(1)).reshape(-1).tolist()


@pytest.mark.parametrize(("select", "method"), [("l2", "sfp"), ("l1", "l1"), ("fpgm", "fpgm")])
def test_compile_cuts_exactly_what_the_last_step_zeroed(select: str, method: str) -> None:
    """Over residual groups, whose layers lose the same channels."""
    model = shifted(zoo.build("resnet8"))
    pruning = SoftFilterPruning(model, IMAGE, 0.4, select=select, ignore=["layer2.0.conv1"])
    for _ in range(2):
        trained(model, 2)
        assert not any(zero_filters(one) for one in model.parameters() if one.ndim == 4)
        counts = pruning.step()
    assert counts["conv1.weight"] == counts["layer1.0.conv2.weight"] == 16 - 7  # ceil(0.4 * 16) stay
    assert "layer2.0.conv1.weight" not in counts
    done = fxprune.compile(model, IMAGE, method=method, keep_rate=0.4, ignore=["layer2.0.conv1"])
    assert done.report.proof_error is not None
    for name, weight in model.named_parameters():
        if weight.ndim == 4:
            kept = set(done.recipe.kept.get(name, {}).get(0, range(len(weight))))
            assert sorted(set(range(len(weight))) - kept) == zero_filters(weight), name
            assert len(zero_filters(weight)) == counts.get(name, 0)


def test_zeroed_filters_are_the_smallest_and_may_grow_back() -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)]
    model = shifted(nn.Sequential(*parts))
    small = torch.zeros(2, 3, 8, 8)
    norms = model[0].weight.detach().flatten(1).norm(dim=1)  # type: ignore[operator,union-attr]
    biases = model[0].bias.detach().clone()  # type: ignore[operator,union-attr]
    assert SoftFilterPruning(model, small, 0.5).step() == {"0.weight": 4}
    zeroed = zero_filters(model[0].weight)  # type: ignore[arg-type]
    assert zeroed == sorted(norms.argsort()[:4].tolist())
    assert torch.equal(model[0].bias, biases)  # type: ignore[arg-type]
    F.cross_entropy(model(batch(1)[0][:, :, :8, :8]), batch(1)[1]).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert zero_filters(model[0].weight) == []  # type: ignore[arg-type]


def test_soft_pruning_refuses_what_compile_refuses() -> None:
    model = zoo.build("resnet8")
    with pytest.raises(OptionError, match="keep_rate is the fraction"):
        SoftFilterPruning(model, IMAGE, 0.0)
    with pytest.raises(NothingPrunableError):
        SoftFilterPruning(nn.Sequential(nn.Conv2d(3, 8, 3)), IMAGE)


def test_slopes_are_those_of_the_penalty() -> None:
    """Central differences of strength * sum |gamma|, away from 0; at 0 the subgradient 0."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
    ).double()
    for gamma in scales(model):
        nn.init.uniform_(gamma, -1, 1)
    with torch.no_grad():
        scales(model)[0][2] = 0.0
    model(torch.randn(4, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
    before = [gamma.grad.clone() for gamma in scales(model)]  # type: ignore[union-attr]
    others = {name: one.grad.clone() for name, one in model.named_parameters() if one.ndim > 1}  # type: ignore[union-attr]
    add_scale_slopes(model, 0.3)
    step = 1e-6
    for number, gamma in enumerate(scales(model)):
        assert gamma.grad is not None
        for place in range(len(gamma)):
            sides = []
            for sign in (1, -1):
                twin = copy.deepcopy(model)
                with torch.no_grad():
                    scales(twin)[number][place] += sign * step
                sides.append(0.3 * scale_penalty(twin).item())
            slope = (sides[0] - sides[1]) / (2 * step)
            assert (gamma.grad - before[number])[place].item() == pytest.approx(slope, abs=1e-8)
    assert (scales(model)[0].grad - before[0])[2] == 0  # type: ignore[operator]
    assert all(torch.equal(model.get_parameter(name).grad, one) for name, one in others.items())  # type: ignore[arg-type]


def test_slimming_draws_scales_down_and_cuts_the_smallest() -> None:
    model, free = zoo.build("resnet8"), zoo.build("resnet8")
    for one in (model, free):
        start_scales(one)
        assert {value for gamma in scales(one) for value in gamma.tolist()} == {0.5}
    trained(model, 6, lambda model: add_scale_slopes(model, 0.05))
    trained(free, 6)
    assert scale_penalty(model).item() < scale_penalty(free).item()
    done = fxprune.compile(model, IMAGE, method="slimming", keep_rate=0.5)
    inner = "layer2.0.bn1.weight"
    kept = done.recipe.kept[inner][0]
    gamma = model.get_parameter(inner).detach().abs()
    gone = [place for place in range(len(gamma)) if place not in kept]
    assert gone and gamma[gone].max() <= gamma[kept].min()


def test_slimming_says_what_is_missing() -> None:
    model = zoo.build("resnet8")
    with pytest.raises(OptionError, match="no scale has a gradient"):
        add_scale_slopes(model)
    with pytest.raises(OptionError, match="not negative"):
        add_scale_slopes(model, -1)
    with pytest.raises(OptionError, match="needs batch normalisations"):
        start_scales(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)))


def test_filters_are_ranked_by_their_own_weights() -> None:
    for select in ("gate", "random", "nothing"):
        with pytest.raises(OptionError, match=f"unknown select '{select}': choose l2, l1, fpgm"):
            SoftFilterPruning(zoo.build("resnet8"), IMAGE, 0.5, select=select)
