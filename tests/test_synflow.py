"""SynFlow: conserved from layer to layer, step by step, through activations that saturate and gates."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from criterion_scores import scored
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.capture.module import capture
from fxprune.errors import OptionError
from fxprune.saliency.synflow import Synflow


def chain(norm: bool) -> nn.Module:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for ins, outs in ((2, 6), (6, 8), (8, 5)):
        parts += [nn.Conv2d(ins, outs, 3, padding=1, bias=False), *[nn.BatchNorm2d(outs)] * norm, nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(80, 3, bias=False)).double()


@pytest.mark.parametrize("norm", [False, True])
def test_synflow_is_conserved_from_layer_to_layer(norm: bool) -> None:
    model = chain(norm)
    names = [name for name, one in model.named_parameters() if one.ndim > 1]
    sums = [float(score.sum()) for score in scored(Synflow(0.0), model, names).values()]
    assert sums[0] > 0
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-12)


def test_synflow_goes_step_by_step_on_the_masked_network() -> None:
    model, sparsity, steps = chain(False), 0.9, 5
    names = [name for name, one in model.named_parameters() if one.ndim > 1]
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        for one in twin.parameters():
            one.abs_()
    flat: Tensor = torch.zeros(0)
    for step in range(1, steps + 1):
        twin.zero_grad()
        twin(torch.ones(1, 2, 4, 4, dtype=torch.float64)).sum().backward()
        scores = [twin.get_parameter(name).grad * twin.get_parameter(name).detach() for name in names]  # type: ignore[operator]
        flat = torch.cat([score.reshape(-1) for score in scores])
        if step == steps:
            break
        lost = len(flat) - round(len(flat) * (1 - sparsity) ** (step / steps))
        bar = flat.kthvalue(lost).values
        with torch.no_grad():
            for name, score in zip(names, scores, strict=True):
                twin.get_parameter(name).mul_(score > bar)
    found = scored(Synflow(sparsity, steps), model, names)
    assert torch.allclose(torch.cat([one.reshape(-1) for one in found.values()]), flat, rtol=1e-10)


class Clipped(nn.Module):
    """ReLU6 as a module and as a function, or ReLU."""

    def __init__(self, clip: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Conv2d(2, 8, 3).double(), nn.Conv2d(8, 3, 2).double()
        self.module = nn.ReLU6() if clip else nn.ReLU()
        self.function = F.relu6 if clip else F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.second(self.module(40 * self.first(x))))


def test_synflow_flows_through_clipped_activations() -> None:
    names = ["first.weight", "second.weight"]
    clipped, plain = (scored(Synflow(0.5, 5), Clipped(clip), names) for clip in (True, False))
    assert all(torch.equal(clipped[name], plain[name]) for name in names)
    assert float(plain["first.weight"].sum()) > 0
    assert Clipped(True)(torch.ones(1, 2, 4, 4, dtype=torch.float64)).max().item() <= 6


class Gated(nn.Module):
    """Six squeeze-and-excitation blocks whose gates saturate on sums of absolute weights."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)])
        self.squeezes = nn.ModuleList([nn.Conv2d(8, 4, 1) for _ in range(6)])
        self.excites = nn.ModuleList([nn.Conv2d(4, 8, 1) for _ in range(6)])
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        for conv, squeeze, excite in zip(self.convs, self.squeezes, self.excites, strict=True):
            x = conv(x).relu()
            x = x * self.gate(excite(squeeze(x.mean((2, 3), keepdim=True)).relu()))
        return x


GATES: list[Callable[[Tensor], Tensor]] = [
    *(nn.Sigmoid(), nn.Hardsigmoid(inplace=True), torch.sigmoid, F.sigmoid, F.hardsigmoid, Tensor.sigmoid),
    *(lambda x: x.sigmoid_(), lambda x: torch.ops.aten.sigmoid.default(x)),
]


@pytest.mark.parametrize("gate", GATES)
def test_synflow_flows_through_gates_and_past_them(gate: Callable[[Tensor], Tensor]) -> None:
    model = Gated(gate).double()
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(40)
    names = [name for name, one in model.named_parameters() if one.ndim > 1]
    program = capture(model, torch.zeros(1, 8, 4, 4, dtype=torch.float64))
    totals = {name: float(score.sum()) for name, score in Synflow(0.0).scores(program, names)}
    assert len(totals) == 18
    assert min(totals.values()) > 0
    convs = [total for name, total in totals.items() if "convs" in name]
    assert max(convs) < 3 * min(convs)  # gates as the identity would double the score with each block: 32 times


@pytest.mark.parametrize("kind", [nn.Tanh, nn.Softsign, nn.LogSigmoid])
def test_synflow_is_conserved_through_activations_that_saturate(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layers = [
        nn.Linear(32, 16, bias=False),
        kind(),
        nn.Linear(16, 12, bias=False),
        kind(),
        nn.Linear(12, 3, bias=False),
    ]
    model = nn.Sequential(nn.Flatten(), *layers).double()
    names = [name for name, _ in model.named_parameters()]
    sums = [float(score.sum()) for score in scored(Synflow(0.0), model, names).values()]
    assert sums[0] > 0
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-12)


def test_synflow_says_where_even_float64_overflows() -> None:
    model = chain(False)
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(1e200)
    with pytest.raises(OptionError, match="SynFlow's scores of 0.weight overflow even in float64"):
        scored(Synflow(0.5, 2), model, ["0.weight"])
