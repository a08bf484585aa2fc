"""A compiled folder whose network has been trained: the same files with the new weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxprune.artefacts import RECIPE, SOURCE, bake, intact, load, read, read_recipe, text
from fxprune.emit.onnx import OnnxReport, export_onnx
from fxprune.emit.page import report_page
from fxprune.emit.source import Source
from fxprune.emit.source_proof import ProvedSource, prove_source
from fxprune.errors import LoadError
from fxprune.example import rebuilt
from fxprune.program import Inputs
from fxprune.recipe import Recipe

REPORT = "report.json"
_SAID_ANEW = ("files", "onnx", "source", "seconds", "training")


@dataclass(frozen=True)
class OldReport:
    """What report.json of the folder said. All of it still holds but what is said anew: files, seconds, training."""

    document: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {name: one for name, one in self.document.items() if name not in _SAID_ANEW}


@dataclass(frozen=True, eq=False)
class Retrained:
    """The network of an artefact folder; training it changes what is written, see `fxprune.emit.folder.Result`."""

    network: nn.Module
    inputs: Inputs
    recipe: Recipe
    report: OldReport
    source: str

    def state_dict(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.network.state_dict()
        return state

    def to_onnx(self, path: str | Path, *, opset: int | None = None) -> OnnxReport:
        baked = bake(copy.deepcopy(self.network), self.recipe.masks)
        metadata = {
            "producer": f"fxprune {self.recipe.versions.get('fxprune', '')}",
            "seed": str(self.recipe.options.get("seed")),
        }
        return export_onnx(
            baked, self.inputs, Path(path), opset=opset, metadata=metadata, dynamic_batch=self.recipe.dynamic_batch
        )

    def to_source(self) -> ProvedSource:
        """The text as it was, run once more with the new numbers."""
        source = Source(self.source, type(self.network).__name__, ())
        return prove_source(source, self.network, self.inputs)


def open_folder(folder: Path, *, trust: bool = False) -> Retrained:
    """The network of a folder that `fxprune compile`, `learn` or `train` wrote. Raises what `fxprune.load` does."""
    network, recipe = load(folder, trust=trust), read_recipe(folder)
    source = text(intact(folder, SOURCE, recipe), folder / SOURCE)
    inputs = rebuilt(recipe.inputs, str(folder / RECIPE))
    return Retrained(network, inputs, recipe, OldReport(_document(folder / REPORT)), source)


def _document(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read(file))
    except (ValueError, RecursionError):
        raise LoadError(f"{file} is damaged or no JSON") from None
    try:
        report_page(found)
    except Exception as error:  # it is written again when all training is done, which is late to find out
        raise LoadError(f"{file} is not a report that fxprune wrote, or one of another version") from error
    document: dict[str, Any] = found
    return document
