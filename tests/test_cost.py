"""Costs: parameters, non-zeros, multiply-accumulates and bytes, from shapes and masks alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune import zoo
from fxprune.cost import Cost


def costs(model: nn.Module, inputs: object, **options: object) -> tuple[Cost, Cost]:
    done = fxprune.compile(model, inputs, **{"sparsity": 0.5, "proof": False, **options})  # type: ignore[arg-type]
    return done.report.before, done.report.after


def test_of_a_network_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 6 * 6, 5))
    before, _ = costs(model, torch.empty(4, 3, 8, 8))
    parameters = 3 * 8 * 9 + 2 * 8 + 8 * 36 * 5 + 5
    assert before == Cost(
        parameters=parameters,
        nonzeros=parameters,
        macs=3 * 8 * 9 * 36 + 8 * 36 * 5,
        bytes=4 * (parameters + 2 * 8) + 8,  # and the statistics, and num_batches_tracked
    )


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_macs_are_those_of_one_example(batch: int) -> None:
    assert costs(zoo.build("resnet8"), torch.empty(batch, 3, 32, 32)) == costs(
        zoo.build("resnet8"), torch.empty(3, 3, 32, 32)
    )


def counted(module: nn.Module, shape: tuple[int, ...]) -> int:
    """MACs of one example, counted while the module runs."""
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(shape))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ["resnet8", "resnet8_a", "mobilenet10", "vgg11"])
def test_equals_what_running_the_networks_shows(name: str) -> None:
    model = zoo.build(name)
    done = fxprune.compile(model, torch.empty(2, 3, 32, 32), sparsity=0.8, policy="all", proof=False)
    for cost, module in ((done.report.before, model), (done.report.after, done.module)):
        assert cost.macs == counted(module, (1, 3, 32, 32))
        state = done.state_dict() if module is done.module else model.state_dict()
        held = [one for key, one in state.items() if not key.endswith("_mask")]
        assert cost.bytes == sum(one.numel() * one.element_size() for one in held)
        assert cost.parameters == sum(one.numel() for one in module.parameters())


def test_nonzeros_are_counted_under_the_masks() -> None:
    done = fxprune.compile(zoo.build("resnet8"), torch.empty(2, 3, 32, 32), sparsity=0.9, policy="none", proof=False)
    after = done.report.after
    assert after.parameters == done.report.before.parameters
    zeros = sum(int((~mask).sum()) for key, mask in done.state_dict().items() if key.endswith("_mask"))
    assert after.nonzeros == after.parameters - zeros
    weights = sum(mask.numel() for key, mask in done.state_dict().items() if key.endswith("_mask"))
    assert zeros == pytest.approx(0.9 * weights, rel=0.01)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.again = nn.Conv2d(8, 8, 1)
        self.again.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.again(self.second(self.first(x))))
        return out


def test_tied_weights_are_held_once_and_multiplied_twice() -> None:
    before, _ = costs(Tied(), torch.empty(2, 3, 4, 4))
    assert before.parameters == 24 + 8 + 64 + 8 + 8 + 16 + 2
    assert before.bytes == 4 * before.parameters
    assert before.macs == 16 * (24 + 64 + 64 + 16)


class TwoGraphs(nn.Module):
    """An auxiliary head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.main, self.auxiliary = nn.Conv2d(3, 8, 1), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.dropout(self.conv(x).mean((2, 3)), 0.1, self.training)
        out: Tensor = self.main(x)
        return (out, self.auxiliary(x)) if self.training else out


def test_macs_are_those_of_inference() -> None:
    before, _ = costs(TwoGraphs(), torch.empty(2, 3, 4, 4))
    assert before.macs == 3 * 8 * 16 + 8 * 5
    assert before.parameters == 3 * 8 + 8 + 2 * (8 * 5 + 5)


def test_half_precision_takes_half_the_bytes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    full, _ = costs(model, torch.empty(2, 3, 4, 4))
    half, _ = costs(model.bfloat16(), torch.empty(2, 3, 4, 4, dtype=torch.bfloat16))
    assert (half.bytes, half.macs) == (full.bytes // 2, full.macs)


@pytest.mark.parametrize(("name", "macs"), [("vgg16", 313.2), ("resnet20", 40.6), ("mobilenet10", 33.55)])
def test_published_millions_of_macs(name: str, macs: float) -> None:
    before, _ = costs(zoo.build(name), torch.empty(1, 3, 32, 32, device="meta"))
    assert before.macs / 1e6 == pytest.approx(macs, rel=0.02)
