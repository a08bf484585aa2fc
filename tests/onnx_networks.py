"""Networks for the ONNX export, and a scanner for what a file must not tell."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.program import Inputs

ROOT = Path(__file__).parents[1]
HERE = "|".join(re.escape(path) for path in (str(ROOT), sys.prefix)).encode()
LOCAL = re.compile(HERE + rb"|/(?:home|root|tmp|usr|opt|var|Users)/|[A-Z]:\\|\.py\b|Traceback|line \d+, in ")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5, inplace=True), nn.Linear(8, 5))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        y = self.body(x)
        y += x
        return self.head(y)


class Block(nn.Module):
    """One function of parameters of its own, for networks that need no class."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.how = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)
        self.table = nn.Embedding(7, 6)

    def forward(self, left: Tensor, right: Tensor, *, scale: Tensor, index: Tensor) -> dict[str, Any]:
        both = self.left(left) + self.right(right)
        return {"both": both * scale, "pair": (both.relu(), self.table(index))}


class Clashing(nn.Module):
    """Names that an exporter would use inside the file, at its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.fc = nn.Linear(4, 4)

    def forward(self, weight: Tensor, linear: Tensor) -> dict[str, Tensor]:
        hidden = self.fc(weight * self.weight)
        return {
            "relu": hidden.sigmoid(),
            "linear": hidden.relu() + linear,
            "same": hidden,
            "again": hidden,
            "in": weight,
        }


def shuffled(self: Any, x: Tensor) -> Tensor:
    x = self.conv(x)
    n, c, h, w = x.shape
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return F.pixel_shuffle(x, 2)


def fixed(self: Any, x: Tensor) -> Tensor:
    return self.fc(self.conv(x).view(2, 4 * 8 * 8))


def seen_by_others(self: Any, x: Tensor) -> Tensor:
    x = self.conv(x)
    view = x[:, :2]
    y = torch.relu_(x)
    return torch.cat([view.add_(1.0), y, x], 1)


def picture(*shape: int) -> Inputs:
    return Inputs((torch.randn(*(shape or (2, 3, 8, 8))),))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "residual": lambda: (Residual(), picture()),
    "residual, batch of one": lambda: (Residual(), picture(1, 3, 8, 8)),
    "view": lambda: (
        Block(lambda s, x: s.fc(s.conv(x).view(-1, 4 * 64)), conv=nn.Conv2d(3, 4, 1), fc=nn.Linear(256, 3)),
        picture(),
    ),
    "strided pool behind padding": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ZeroPad2d((1, 0, 1, 0)), nn.AvgPool2d(1, 2), nn.AvgPool2d(1)),
        picture(),
    ),
    "shuffle": lambda: (Block(shuffled, conv=nn.Conv2d(3, 8, 1)), picture()),
    "layer norm": lambda: (
        Block(lambda s, x: s.norm(s.conv(x).permute(0, 2, 3, 1)), conv=nn.Conv2d(3, 8, 1), norm=nn.LayerNorm(8)),
        picture(),
    ),
    "1-D": lambda: (
        nn.Sequential(
            nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ELU(inplace=True), nn.AdaptiveAvgPool1d(1), nn.Flatten()
        ),
        picture(2, 3, 12),
    ),
    "transposed": lambda: (
        nn.Sequential(
            nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), nn.BatchNorm2d(4, affine=False), nn.SiLU()
        ),
        picture(),
    ),
    "pad": lambda: (
        Block(lambda s, x: s.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)), conv=nn.Conv2d(3, 6, 1, stride=2)),
        picture(),
    ),
    "pooling": lambda: (
        Block(
            lambda s, x: (F.adaptive_avg_pool2d(x, (4, 2)), F.adaptive_avg_pool2d(x, 8), F.adaptive_max_pool2d(x, 1)),
        ),
        picture(),
    ),
    "written view": lambda: (Block(seen_by_others, conv=nn.Conv2d(3, 4, 1)), picture()),
}


def build(name: str) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module, inputs


def secrets(blob: bytes) -> list[bytes]:
    """What in the file betrays a machine or a source file. Weights are cut away: noise spells anything."""
    model = onnx.ModelProto.FromString(blob)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    return LOCAL.findall(model.SerializeToString())


def joined() -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    kwargs = {"index": torch.tensor([0, 6]), "scale": torch.randn(1)}  # not in the order of the signature
    return Joined(), Inputs((torch.randn(2, 4), torch.randn(2, 3)), kwargs)
