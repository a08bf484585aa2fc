"""How often a network is traced: once, unless the trace asks for the mode or the network changes with it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.capture.module import capture
from fxprune.capture.trace import LeafTracer

X = torch.empty(2, 3, 8, 8)


class FlagAsLiteral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.conv(x), 0.5, self.training)


class SwitchesItself(nn.Module):
    """Becomes another network when it is told to train, without asking for the mode in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.double = nn.Conv2d(3, 4, 3), False

    def train(self, mode: bool = True) -> SwitchesItself:
        self.double = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * 2 if self.double else self.conv(x)


@pytest.mark.parametrize(("model", "times"), [(nn.Conv2d, 1), (FlagAsLiteral, 2), (SwitchesItself, 2)], ids=str)
def test_a_network_is_traced_once_unless_its_mode_matters(
    model: type[nn.Module], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), model(3, 4, 1) if times == 1 else model(), nn.Dropout())
    seen = []
    monkeypatch.setattr("fxprune.capture.trace.LeafTracer.trace", counting(LeafTracer.trace, seen))
    program = capture(network, X)
    assert len(seen) == times
    assert (program.train_graph is not None) == (times == 2)
    assert "training" not in vars(nn.Module)


def counting(function: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return function(*args, **kwargs)

    return counted


class HooksItself(nn.Module):
    """Registers a hook at its first call that keeps what passes, as transformers collect hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Sequential(nn.Conv2d(count, 8, 1)) for count in (3, 8, 8))
        self.hooked, self.seen = False, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if not self.hooked:
            for conv in self.convs:
                conv.register_forward_hook(lambda _module, _args, out: self.seen.append(out))
            self.hooked = True
        for conv in self.convs:
            x = conv(x)
        states = list(self.seen)
        self.seen.clear()
        return states[0] - F.dropout(states[1] * len(states), 0.0, self.training) + x


def test_each_trace_begins_as_the_first_one() -> None:
    program = capture(HooksItself(), X, compare=False)
    assert program.front_end == "fx" and program.train_graph is not None
    for _, graph in program.graphs():
        (product,) = graph.find_nodes(op="call_function", target=operator.mul)
        assert [str(one) for one in product.args] == ["convs_1_0", "3"]
