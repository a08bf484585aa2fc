"""Folders that are written in no time: a result without a network, and what tells two folders apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file as load_tensors
from torch import Tensor

from fxprune.emit import folder as folders
from fxprune.emit.onnx import OnnxReport
from fxprune.emit.source import Source
from fxprune.emit.source_proof import ProvedSource
from fxprune.recipe import Recipe

FILES = ["model.onnx", "model.py", "model.safetensors", "recipe.json", "report.html", "report.json"]


class Done:
    """A result that is written in no time."""

    class report:
        @staticmethod
        def to_dict() -> dict[str, Any]:
            cost = {"parameters": 6, "nonzeros": 6, "macs": 6, "bytes": 24}
            none: dict[str, Any] = dict.fromkeys(["average_sparsity", "achieved_sparsity", "proof_error"])
            return {"before": cost, "after": cost, "layers": (), "groups": (), "asked": {}, "refused": {}, "notes": [],
                    "repaired_rows": {}, "densified": (), "lifted": (), **none}  # fmt: skip

    recipe = Recipe(
        kept={}, kept_per_group={}, numbers={}, shapes={}, indices={}, patched=(), options={}, versions={}
    )  # fmt: skip

    def __init__(self, value: float = 1.0) -> None:
        self.weight = torch.full((2, 3), value)

    def state_dict(self) -> dict[str, Tensor]:
        return {"a.weight": self.weight, "b.weight": self.weight, "c": self.weight.T}

    def to_onnx(self, path: Path, *, opset: int | None = None) -> OnnxReport:
        path.write_bytes(b"onnx")
        return OnnxReport(path, 4, 20, ("x",), ("output",), True, 1e-7, {}, ("the batch is fixed",))

    def to_source(self) -> ProvedSource:
        return ProvedSource(Source("source", "Net", ()), 0.0, 0.0)


def write(folder: Path, value: float = 1.0, force: bool = False, **more: Any) -> folders.Written:
    done: Any = Done(value)
    return folders.write_folder(done, folder, force=force, **more)


def value_in(folder: Path) -> float:
    return float(load_tensors(folder / "model.safetensors")["a.weight"][0, 0])
