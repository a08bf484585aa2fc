"""What tests of the structure learner share: a network with every kind of layer, batches, steps, a learned book."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.learner import StructureLearner

IMAGES = (6, 3, 8, 8)


class Plain(nn.Module):
    """Convolution with and without a normalisation behind it, a residual add, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.inner = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.outer = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(8, 8))
        self.bare = nn.Conv2d(8, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        return self.head(F.relu(self.bare(x)).mean((2, 3)))


def plain(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = Plain().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def batch(dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(IMAGES, generator=draw, dtype=dtype), torch.randint(0, 4, IMAGES[:1], generator=draw)


def step(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    model.zero_grad()
    loss = F.cross_entropy(model(data[0]), data[1])
    loss.backward()
    return loss.detach()


def learned(model: nn.Module, epochs: int = 2, **options: Any) -> StructureLearner:
    learner = StructureLearner(model, batch()[0], scope="all", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        for number in range(3):
            step(model, batch(seed=10 * epoch + number))
            learner.update()
            optimizer.step()
        learner.redistribute()
    return learner
