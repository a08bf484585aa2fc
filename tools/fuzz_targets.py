"""What is done with a damaged file, the sound files to damage, and faults to plant in fxprune."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import nn

import fxprune
from fxprune.capture import files, load
from fxprune.capture.options import LoadOptions
from fxprune.errors import LoadError
from fxprune.recipe import Recipe

torch.set_num_threads(1)


class Block(nn.Module):
    """Channels that are added, concatenated and split."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 1),
        )
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        left, right = (x + self.second(x)).chunk(2, 1)
        out: torch.Tensor = self.head(torch.cat([left, x, right], 1).mean((2, 3)))
        return out


def grouped() -> nn.Module:
    """Conv groups that lose different channels, so that a recipe has something to say."""
    torch.manual_seed(1)
    first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(first, nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 3))


ARCH = "fuzz_targets:Block"


def write_sound(folder: Path) -> list[Path]:
    """One small sound file of each kind."""
    torch.manual_seed(0)
    model = Block().eval()
    chain = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 3)
    )
    torch.save(chain, folder / "whole.pt")
    torch.save({"epoch": 3, "args": {"lr": 0.1}, "model": model.state_dict()}, folder / "state.pt")
    save_file(model.state_dict(), folder / "weights.safetensors")
    batch = {0: torch.export.Dim("b")}
    torch.export.save(
        torch.export.export(model, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=(batch,)), folder / "exported.pt2"
    )
    (folder / "recipe.json").write_text(
        fxprune.compile(grouped(), torch.zeros(2, 3, 8, 8), keep_rate=0.5).recipe.to_json()
    )
    return [folder / name for name in ("whole.pt", "state.pt", "weights.safetensors", "exported.pt2", "recipe.json")]


def read_file(path: Path) -> str:
    """Load the file as the command line does, and compile the network without the proof. Raises FxpruneError."""
    if path.suffix == ".json":
        return read_recipe(path.read_text("utf-8", "replace"))
    weights_only = path.name.startswith(("state", "weights"))
    loaded = load.load(str(path), LoadOptions(arch=ARCH if weights_only else None))
    example = None if path.suffix == ".pt2" else torch.zeros(2, 3, 8, 8)
    done = fxprune.compile(loaded.module, example, keep_rate=0.5, proof=False)
    return f"{len(done.report.layers)} layers"


def read_recipe(text: str) -> str:
    """Apply it to the network it was made for."""
    small = Recipe.from_json(text).apply(grouped())
    return f"{sum(one.numel() for one in small.parameters())} parameters"


def planted(fault: str | None) -> AbstractContextManager[object]:
    """fxprune broken in a way that the fuzz run has to notice."""
    return nullcontext() if fault is None else patch.dict(files._READERS, _FAULTS[fault])


def _two_lines(*_: object) -> Any:
    raise LoadError("one line\nand another")


_FAULTS: dict[str, dict[str, Any]] = {
    "pickle without the gate": {"pickle": lambda path, _: (torch.load(path, weights_only=False), ())},
    "export without the gate": {"exported": lambda path, _: (files.read_unrestricted(path)[0], ())},
    "writes": {"safetensors": lambda path, _: Path(path.parent.parent / "fuzz-canary").write_text("x")},
    "grows": {"safetensors": lambda *_: ({"x": torch.ones(300 << 20)}, ())},  # zeros are not there until they are read
    "stumbles": {"safetensors": lambda *_: {}["x"]},
    "says two lines": {"safetensors": _two_lines},
    "sleeps": {"safetensors": lambda *_: time.sleep(1000)},
    "quits": {"safetensors": lambda *_: os.abort()},
}
