"""Parts of a forward that run without gradients: what is compiled trains what the network itself would train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.module import capture
from fxprune.program import materialise


class Net(nn.Module):
    """A backbone, `run` with it, and a head."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.run = run
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(2))
        self.scores = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scores(self.run(self, x).mean(2))
        return out


def frozen(net: Any, x: Tensor) -> Any:
    with torch.no_grad():
        x = net.backbone(x)
    return net.head(x)


def in_inference_mode(net: Any, x: Tensor) -> Any:
    with torch.inference_mode():
        x = net.backbone(x)
    return net.head(x.clone())


def pieces(net: Any, x: Tensor) -> Any:
    """Several tensors leave at once, and are joined outside."""
    with torch.no_grad():
        halves = net.backbone(x).chunk(2, 1)
    return net.head(torch.cat(halves, 1) + torch.cat([halves[1], halves[0]], 1))


def allowed_again(net: Any, x: Tensor) -> Any:
    with torch.no_grad():
        x = net.backbone[0](x)
        with torch.enable_grad():
            x = net.backbone[2](net.backbone[1](x))
    return net.head(x)


def scale_only(net: Any, x: Tensor) -> Any:
    """A number that is only looked at, and sizes, which have no gradients anyway."""
    x = net.backbone(x)
    with torch.no_grad():
        scale, rows = 1 + net.scores.weight.abs().sum(), x.shape[0]
    return net.head((x / scale).view(rows, 8, 6, 6))


def everything(net: Any, x: Tensor) -> Any:
    return net.head(net.backbone(x))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    module.train()(X).square().sum().backward()
    return {name: one.grad for name, one in module.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("under", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("run", [frozen, in_inference_mode, pieces, allowed_again, scale_only, everything])
def test_gradients_are_those_of_the_network(run: Callable[[Any, Tensor], Any], under: Any) -> None:
    """Whether the caller computes gradients is no matter."""
    torch.manual_seed(0)
    model = Net(run)
    with under():
        program = capture(model, X, compare=True)
    assert program.front_end == "fx"
    copies = {name: nn.Parameter(one.detach().clone()) if isinstance(one, nn.Parameter) else one.clone()
              for name, one in program.tensors.items()}  # fmt: skip
    found, wanted = gradients(materialise(program.module, copies)), gradients(model)
    assert found.keys() == wanted.keys() and len(wanted) == {everything: 8, scale_only: 8, allowed_again: 6}.get(run, 4)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


def test_the_written_source_keeps_it() -> None:
    done = fxprune.compile(Net(frozen), X, keep_rate=0.5)
    assert not done.report.refused and done.report.after.parameters < done.report.before.parameters
    assert done.to_source().source.text.count(".detach()") == 1
    assert not {name for name in gradients(done.module) if name.startswith("backbone.")}


def test_frozen_layers_that_are_drawn_anew_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 4))
    model[0].requires_grad_(False)
    x = torch.zeros(2, 3, 6, 6)
    notes = fxprune.compile(model, x, 0.8).report.notes
    assert any(note.startswith("2 parameters without requires_grad drawn anew") for note in notes), notes
    assert any("0.weight, 0.bias (" in note for note in notes)
    kept = fxprune.compile(model, x, keep_rate=0.5, select="first", keep_weights=True)
    assert not any("requires_grad" in note for note in kept.report.notes)
