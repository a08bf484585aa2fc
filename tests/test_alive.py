"""A network compiled at 98 % sparsity still computes something: each class sees the picture, each parameter learns."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.capture.specs import build_spec
from fxprune.passes import shrink

NETWORKS = {
    "torchvision:resnet50": 64,
    "torchvision:mobilenet_v2": 64,
    "zoo:vgg16": 32,
    "zoo:resnet20": 32,
    "timm:ghostnet_100": 64,
}
SIGNAL = 1e-9  # in float64, relative to the largest score: far above rounding, far below what a dependence gives


def smooth(size: int, seed: int, count: int = 32) -> Tensor:
    """Random pictures that differ in the large: after a global pool, pixel noise is the same picture every time."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.interpolate(coarse, size=(size, size), mode="bilinear") * 3


@pytest.mark.parametrize("spec", NETWORKS)
def test_alive_at_98_percent(spec: str) -> None:
    size = NETWORKS[spec]
    model = build_spec(spec).module
    done = fxprune.compile(model, torch.randn(2, 3, size, size), sparsity=0.98)
    assert done.report.achieved_sparsity is not None and done.report.achieved_sparsity > 0.9
    net = done.module
    fresh = copy.deepcopy(net).double().eval()  # what an ONNX file written now computes
    assert deaf_classes(fresh, smooth(size, 4)) == []
    net.train()
    assert trains(net, smooth(size, 0).float())  # also moves the running statistics
    net.double()
    assert deaf_classes(copy.deepcopy(net), smooth(size, 1)) == []  # its statistics stay those of one batch
    net.eval()
    assert deaf_classes(net, smooth(size, 2)) == []
    assert sees(net.float(), smooth(size, 3).float())


def trains(net: nn.Module, x: Tensor) -> bool:
    """One loss gives the input a gradient, and every parameter a finite one."""
    x.requires_grad_()
    F.cross_entropy(net(x), torch.arange(len(x)) % 10).backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in gradients)
    return x.grad is not None and bool(x.grad.isfinite().all() and x.grad.any())


def deaf_classes(net: nn.Module, x: Tensor) -> list[int]:
    """Classes whose score is the same for all pictures."""
    with torch.no_grad():
        scores = net(x)
    spread = (scores.amax(0) - scores.amin(0)) / scores.abs().max()
    return (~(spread > SIGNAL)).nonzero().flatten().tolist()


def sees(net: nn.Module, x: Tensor) -> bool:
    """A random combination of the scores has a gradient with respect to the pictures."""
    scores = net(x.requires_grad_())
    (gradient,) = torch.autograd.grad((scores * torch.randn_like(scores)).sum(), x)
    return bool(gradient.isfinite().all() and gradient.any())


# -- the checks above can fail ---------------------------------------------------------------------------------------


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(*parts).double()


def test_a_dead_row_is_noticed() -> None:
    net = tiny().eval()
    net[5].weight.data[7] = 0
    assert deaf_classes(net, smooth(16, 0)) == [7]
    assert sees(net, smooth(16, 0))


def test_a_dead_network_is_noticed() -> None:
    net = tiny().eval()
    net[0].weight.data.zero_()
    assert deaf_classes(net, smooth(16, 0)) == list(range(10))
    assert not sees(net, smooth(16, 0)) and not trains(net, smooth(16, 0))


def test_without_repair_classes_die(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the repairs are for: turned off, the masks take classes away."""
    monkeypatch.setattr(shrink._Masks, "_revive", lambda self, name, mask: None)
    monkeypatch.setattr(shrink._Masks, "_is_starved_head", lambda self, name, mask: False)
    model = build_spec("torchvision:resnet50").module
    net = fxprune.compile(model, torch.randn(2, 3, 64, 64), sparsity=0.98).module.train().double()
    assert deaf_classes(net, smooth(64, 1))
