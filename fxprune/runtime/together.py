"""Any number of compiled networks, measured in turns: each round runs all of them once in onnxruntime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fxprune.emit.module import build_module
from fxprune.emit.onnx import OnnxReport, export_onnx
from fxprune.errors import MeasureError
from fxprune.phases import phase
from fxprune.program import Program
from fxprune.runtime.budget import Budget
from fxprune.runtime.dense_and_pruned import drawn_inputs, feeds_of
from fxprune.runtime.latency import Latency, Ratio, Rounds, in_turns, latency, ratio
from fxprune.runtime.machine import Machine, this_machine
from fxprune.runtime.runners import onnx_once

SECONDS = 30.0  # for all passes of all networks


@dataclass(frozen=True)
class Together:
    """Latencies over the same rounds.

    latency  name -> seconds of one pass
    faster   name -> the first network's seconds over its own, within each round
    """

    latency: dict[str, Latency]
    faster: dict[str, Ratio]
    passes: int
    warm_up: int
    threads: int
    batch: int
    machine: Machine

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Measuring:
    """Collects networks as ONNX files in a folder, and runs them all in the end."""

    def __init__(self, folder: Path, threads: int = 1, rounds: Rounds | None = None, seconds: float = SECONDS) -> None:
        self.folder, self.threads, self.rounds, self.seconds = folder, threads, rounds or Rounds(), seconds
        self.files: dict[str, OnnxReport] = {}
        self.program: Program | None = None

    def add(self, name: str, program: Program) -> None:
        """Write one network; all have to take the same inputs. The files are not compared with torch. Raises
        ExportError.
        """
        self.program = self.program or program
        with phase("export"), torch.no_grad():
            self.files[name] = export_onnx(
                build_module(program, bake=True), program.inputs.with_storage(),
                self.folder / f"{len(self.files)}.onnx", batches=(), dynamic_batch=program.dynamic_batch,
            )  # fmt: skip

    def run(self) -> Together:
        """One round after the other. Raises MeasureError where nothing was added or a pass takes too long."""
        if self.program is None:
            raise MeasureError("there is no network to measure")
        inputs, batch = drawn_inputs(self.program, 1, all(one.dynamic_batch for one in self.files.values()))
        with phase("measure"):
            once = [onnx_once(one.path, feeds_of(one, inputs), self.threads) for one in self.files.values()]
            found = in_turns(once, self.rounds, Budget(self.seconds).left)
        if found is None:
            raise MeasureError("latency not measured: a pass takes too long for the time allowed")
        times, warm_up = found
        sides = dict(zip(self.files, zip(*times, strict=True), strict=True))
        first = next(iter(sides.values()))
        faster = {name: ratio(list(zip(first, one, strict=True))) for name, one in sides.items()}
        return Together(
            {name: latency(one) for name, one in sides.items()}, faster, len(times), warm_up, self.threads, batch,
            this_machine(("onnxruntime",)),
        )  # fmt: skip
