"""What tests of channel criteria share: a residual network in float64, and batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WITH_DATA = ("taylor", "taylor-batch", "taylor-element", "gate", "gate-per-mac", "gate-after-steps")


class Residual(nn.Module):
    """One group made by two layers, one made by one; both behind normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.outer_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu(self.inner_norm(self.inner(x)))
        return self.head(F.relu(x + self.outer_norm(self.outer(y))).flatten(1))


def residual() -> nn.Module:
    torch.manual_seed(0)
    model = Residual().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 3, 4, 4, generator=draw, dtype=torch.float64), torch.randint(0, 5, (6,), generator=draw))
        for _ in range(count)
    ]
