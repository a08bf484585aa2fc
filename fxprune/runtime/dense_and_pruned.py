"""The dense and the pruned network of one compilation, measured side by side within a number of seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.emit.module import build_module
from fxprune.emit.onnx import OnnxReport, export_onnx
from fxprune.emit.onnx_compare import drawn_like, leaves
from fxprune.phases import phase
from fxprune.program import Inputs, Program, materialise
from fxprune.runtime.budget import Budget
from fxprune.runtime.collector import Collector
from fxprune.runtime.latency import Rounds
from fxprune.runtime.machine import this_machine
from fxprune.runtime.measured import Measured, Pair
from fxprune.runtime.peak import PeakJob
from fxprune.runtime.runners import cuda_once, onnx_once, torch_once, torch_threads

GPU = "cuda"
NAMES = ("dense", "pruned")
SECONDS = 15.0  # for all runs together; writing the dense network as ONNX comes on top
LEAST = 4.0  # seconds for the latency in one runtime, whatever the rest has taken
PATIENCE = 10.0  # seconds after which a process that measures memory is ended


@dataclass(frozen=True)
class MeasureOptions:
    """`batch` is what is asked for; a network with a fixed batch keeps its own. `seconds` as SECONDS."""

    threads: int = 1
    batch: int = 1
    seconds: float = SECONDS
    rounds: Rounds = field(default_factory=Rounds)


def measure(dense: Program, small: Program, onnx: OnnxReport, options: MeasureOptions | None = None) -> Measured:
    """Bytes, latency and peak memory of both networks. `onnx` is the file of the small one, where it lies now.

    What cannot be measured is left out, and a note says why. The numbers of the dense network are used, not copied; its
    ONNX file lies in a temporary folder meanwhile.
    """
    wanted, found = options or MeasureOptions(), Collector(NAMES)
    machine = this_machine(("onnxruntime", "torch"))
    files: dict[str, Pair[int | None]] = {}
    with TemporaryDirectory(prefix="fxprune-", ignore_cleanup_errors=True) as box, torch.no_grad():
        path = Path(box) / "model.onnx"
        with phase("export dense"), found.tried("the dense network in onnxruntime"):
            module = materialise(dense.module, dense.tensors, fx.GraphModule)
            inputs = dense.inputs.with_storage()
            theirs = export_onnx(module.eval(), inputs, path, opset=onnx.opset, batches=(1,))
            files["model.onnx"] = Pair(theirs.size, onnx.size)
        reports = Pair(theirs, onnx) if files else None
        feeds, batch = _inputs(small, reports or Pair(onnx, onnx), wanted.batch)
        with phase("measure"):
            budget = Budget(wanted.seconds)
            if reports:
                _in_onnxruntime(found, reports, feeds, wanted, budget)
            _in_torch(found, dense, small, feeds, wanted, budget)
            if torch.cuda.is_available():
                _on_gpu(found, dense, small, feeds, wanted.rounds, budget)
    if batch != wanted.batch:
        found.notes.append(f"measured with batches of {batch}: the network takes no others")
    found.note_load(machine)
    return Measured(
        NAMES, machine, Pair(batch, batch), wanted.threads, files,
        latency=found.latency, memory=found.memory, notes=tuple(found.notes),
    )  # fmt: skip


def _inputs(program: Program, onnx: Pair[OnnxReport], batch: int) -> tuple[Inputs, int]:
    """(random inputs with the batch that both networks take, that batch). Whole numbers come from the example."""
    inputs = program.inputs.with_storage()
    own = next((one.shape[0] for one in leaves(inputs) if one.ndim), 1)
    if not (onnx.first.dynamic_batch and onnx.second.dynamic_batch):
        batch = own
    batched = [one.ndim > 0 and one.shape[0] == own for one in leaves(inputs)]
    return drawn_like(inputs, batched, batch, torch.Generator().manual_seed(0)), batch


def _in_onnxruntime(
    found: Collector, onnx: Pair[OnnxReport], inputs: Inputs, wanted: MeasureOptions, budget: Budget
) -> None:
    arrays = [one.numpy() for one in leaves(inputs)]

    def job(report: OnnxReport) -> PeakJob:
        feeds = [(name, one.shape, one.dtype.name) for name, one in zip(report.inputs, arrays, strict=True)]
        return PeakJob("onnxruntime", str(report.path), feeds, wanted.threads)

    with found.tried("peak memory in onnxruntime"):
        found.peaks(Pair(job(onnx.first), job(onnx.second)), PATIENCE)
    with found.tried("latency in onnxruntime"):
        once = [
            onnx_once(one.path, dict(zip(one.inputs, arrays, strict=True)), wanted.threads)
            for one in (onnx.first, onnx.second)
        ]
        found.time("onnxruntime", Pair(*once), wanted.rounds, _share(budget, 0.5).left)


def _in_torch(
    found: Collector, dense: Program, small: Program, inputs: Inputs, wanted: MeasureOptions, budget: Budget
) -> None:
    with torch_threads(wanted.threads), found.tried("latency in torch"):
        modules = materialise(dense.module, dense.tensors, fx.GraphModule).eval(), build_module(small, bake=True)
        once = Pair(*(torch_once(module, inputs) for module in modules))
        found.time("torch", once, wanted.rounds, _share(budget, 1.0).left)


def _on_gpu(found: Collector, dense: Program, small: Program, inputs: Inputs, rounds: Rounds, budget: Budget) -> None:
    """Copies go there: moving the module itself would move the user's own numbers."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.detach().to(GPU)

    with found.tried("latency on the GPU"):
        args, kwargs = pytree.tree_map_only(Tensor, moved, (inputs.args, dict(inputs.kwargs)))
        there = materialise(dense.module, {name: moved(one) for name, one in dense.tensors.items()}, fx.GraphModule)
        modules = there.eval(), build_module(small, bake=True).to(GPU)
        once = Pair(*(cuda_once(module, Inputs(args, kwargs)) for module in modules))
        found.time(f"torch on {torch.cuda.get_device_name()}", once, rounds, _share(budget, 1.0).left)


def _share(budget: Budget, part: float) -> Budget:
    """Its part of what is left, or the seconds that the latency in any runtime may take, if that is more."""
    return max(budget.part(part), Budget(LEAST), key=Budget.left)
