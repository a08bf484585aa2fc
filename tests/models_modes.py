"""Networks that compute one thing in train mode and another in eval mode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models import Net, conv, network, pooled
from torch import Tensor, nn

PLAIN = {"a.weight": (3, 3, 3, 3), "c.weight": (5, 3, 1, 1)}


@network(PLAIN, random=True)
def dropout_module() -> nn.Module:
    return Net(lambda s, x: s.c(s.drop(s.a(x))), a=conv(3, 6), drop=nn.Dropout(0.4), c=conv(6, 5, 1))


@network(PLAIN, random=True)
def dropout_function() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(F.dropout(s.a(x), 0.4, s.training))

    return Net(run, a=conv(3, 6), c=conv(6, 5, 1))


class DropPath(nn.Module):
    """Leaves out a residual branch, image by image."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(0.6)
        return x * keep / 0.6


@network({"a.weight": (3, 3, 3, 3), "b.weight": (3, 3, 3, 3), "c.weight": (5, 3, 1, 1)}, (5, 3, 8, 6), random=True)
def stochastic_depth() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.c(x + s.drop(s.b(x)))

    return Net(run, a=conv(3, 6), b=conv(6, 6), drop=DropPath(), c=conv(6, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "b.weight": (5, 3, 3, 3), "aux.weight": (4, 3), "fc.weight": (4, 5)})
def auxiliary_head() -> nn.Module:
    """A second classifier half-way, in train mode only."""

    def run(s: Net, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = s.bn(s.a(x)).relu()
        out = s.fc(pooled(s.b(x)))
        return (out, s.aux(pooled(x))) if s.training else out

    return Net(run, a=conv(3, 6), bn=nn.BatchNorm2d(6), b=conv(6, 10), aux=nn.Linear(6, 4), fc=nn.Linear(10, 4))
