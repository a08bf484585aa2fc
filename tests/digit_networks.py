"""Small networks for 8 x 8 digits, and settings under which they train in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.data import open_data
from fxprune.program import Inputs
from fxprune.training.batches import Part, split
from fxprune.training.settings import Settings

INPUT = "2x1x8x8"
SETTINGS = Settings(epochs=2, batch=256)


def network(first: int = 8, second: int = 12) -> nn.Module:
    """Batch statistics and dropout: both have to be as they were when a run is taken up again."""
    torch.manual_seed(1)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, first), nn.MaxPool2d(2), *block(first, second), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 10))


def inputs() -> Inputs:
    return Inputs((torch.zeros(2, 1, 8, 8),))


def digits(settings: Settings = SETTINGS) -> tuple[Part, Part]:
    return split(open_data("digits", (1, 8, 8), 10), None, settings.held_out, settings.seed)


def settings(**changes: Any) -> Settings:
    return replace(SETTINGS, **changes)


def save(path: Path) -> Path:
    torch.save(network(), path)
    return path
