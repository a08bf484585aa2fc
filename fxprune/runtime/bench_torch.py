"""The torch half of `bench`: two artefact folders as modules, masks multiplied in, in eval mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from torch import nn

from fxprune.artefacts import bake, load, read_recipe
from fxprune.emit.onnx_compare import leaves, with_tensors
from fxprune.errors import MeasureError
from fxprune.example import described, rebuilt
from fxprune.program import Inputs
from fxprune.runtime.collector import Collector
from fxprune.runtime.latency import Rounds
from fxprune.runtime.measured import Pair
from fxprune.runtime.peak import Feed, PeakJob
from fxprune.runtime.peak_child import draw
from fxprune.runtime.runners import torch_once, torch_threads


@dataclass(frozen=True)
class Artefact:
    """A folder that fxprune wrote, and what its ONNX file is fed: the network takes the same shapes in torch."""

    folder: Path
    feeds: Sequence[Feed]


def measure_in_torch(found: Collector, sides: Pair[Artefact], threads: int, rounds: Rounds, patience: float) -> None:
    """Peak memory and latency. A model.py is run only when it holds nothing but what fxprune writes. Raises
    MeasureError, LoadError, UntrustedError.
    """
    ready = [_network(sides.first), _network(sides.second)]
    jobs = [
        PeakJob("torch", str(side.folder.resolve()), described(inputs), threads, masked=masked)
        for side, (_, inputs, masked) in zip((sides.first, sides.second), ready, strict=True)
    ]
    found.peaks(Pair(*jobs), patience)
    with torch_threads(threads):
        once = Pair(*(torch_once(network, inputs) for network, inputs, _ in ready))
        found.time("torch", once, rounds, lambda: inf)


def _network(side: Artefact) -> tuple[nn.Module, Inputs, tuple[str, ...]]:
    """(the network for inference, random inputs, its masked weights)."""
    network, recipe = load(side.folder), read_recipe(side.folder)
    inputs = rebuilt(recipe.inputs, str(side.folder))
    tensors = leaves(inputs)
    if len(tensors) != len(side.feeds):
        raise MeasureError(f"{side.folder} takes {len(tensors)} tensors in torch and {len(side.feeds)} in onnxruntime")
    drawn = draw(side.feeds)
    swap = {id(one): torch.from_numpy(drawn[name]) for one, (name, _, _) in zip(tensors, side.feeds, strict=True)}
    masked = tuple(recipe.masks)
    return bake(network, masked), with_tensors(inputs, swap), masked
