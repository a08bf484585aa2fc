"""The dense and the pruned network of one compilation, measured side by side within a number of seconds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.emit.folder import apart
from fxprune.emit.module import build_module
from fxprune.emit.onnx import OnnxReport, export_onnx
from fxprune.emit.onnx_compare import drawn_like, leaves
from fxprune.emit.source import write_source
from fxprune.example import described
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
PATIENCE = 15.0  # seconds after which a process that measures memory is ended


@dataclass(frozen=True)
class MeasureOptions:
    """`batch` is what is asked for; a network with a fixed batch keeps its own. `seconds` as SECONDS."""

    threads: int = 1
    batch: int = 1
    seconds: float = SECONDS
    rounds: Rounds = field(default_factory=Rounds)


def measure(
    dense: Program, small: Program, onnx: OnnxReport, options: MeasureOptions | None = None, box: Path | None = None
) -> Measured:
    """Bytes, latency and peak memory of both networks. `onnx` is the file of the small one, where it lies now.

    What cannot be measured is left out, and a note says why. The numbers of the dense network are used, not copied; its
    files lie in a temporary folder meanwhile, inside `box` if that is given.
    """
    wanted, found = options or MeasureOptions(), Collector(NAMES)
    machine = this_machine(("onnxruntime", "torch"))
    work = _Work(found, wanted, Pair(dense, small), Pair(_module(dense), build_module(small, bake=True)))
    with torch.no_grad():
        with TemporaryDirectory(".onnx", dir=box, ignore_cleanup_errors=True) as folder:
            with phase("export dense"):
                reports = _export_dense(work, onnx, Path(folder))
            work.budget = Budget(wanted.seconds)
            free = onnx.dynamic_batch and (reports or Pair(onnx, onnx)).first.dynamic_batch
            inputs, batch = drawn_inputs(small, wanted.batch, free)
            with phase("measure"), TemporaryDirectory(".torch", dir=box, ignore_cleanup_errors=True) as other:
                if reports:
                    _peak_in_onnxruntime(work, reports, inputs)
                _peak_in_torch(work, inputs, Path(other), onnx.path.with_name("model.safetensors"))
                if reports:
                    _in_onnxruntime(work, reports, inputs)
        with phase("measure"):
            _in_torch(work, inputs)
            if torch.cuda.is_available():
                _on_gpu(work, inputs)
    if batch != wanted.batch:
        found.notes.append(f"measured with batches of {batch}: the network takes no others")
    found.note_load(machine)
    return Measured(
        NAMES, machine, Pair(batch, batch), wanted.threads, work.files,
        latency=found.latency, memory=found.memory, notes=tuple(found.notes),
    )  # fmt: skip


@dataclass
class _Work:
    """What the steps share. `modules` are in eval mode, with masks multiplied in."""

    found: Collector
    wanted: MeasureOptions
    programs: Pair[Program]
    modules: Pair[nn.Module]
    files: dict[str, Pair[int | None]] = field(default_factory=dict)
    budget: Budget = field(default_factory=lambda: Budget(SECONDS))


def _module(program: Program) -> nn.Module:
    """The program's network with the numbers themselves, not copies."""
    return materialise(program.module, program.tensors, fx.GraphModule).eval()


def _export_dense(work: _Work, onnx: OnnxReport, folder: Path) -> Pair[OnnxReport] | None:
    """Both ONNX files; None when that of the dense network cannot be written.

    It is not compared with torch, which takes as long again: the file of the small network was, and comes out of the
    same exporter.
    """
    dense = work.programs.first
    with work.found.tried("the dense network in onnxruntime"):
        report = export_onnx(
            work.modules.first, dense.inputs.with_storage(), folder / "model.onnx", opset=onnx.opset, batches=(),
            dynamic_batch=dense.dynamic_batch and onnx.dynamic_batch,
        )  # fmt: skip
        work.files["model.onnx"] = Pair(report.size, onnx.size)
        return Pair(report, onnx)
    return None


def drawn_inputs(program: Program, batch: int, free: bool) -> tuple[Inputs, int]:
    """(random inputs, their batch: the one asked for where it is free). Whole numbers come from the example."""
    inputs = program.inputs.with_storage()
    own = next((one.shape[0] for one in leaves(inputs) if one.ndim), 1)
    batch = batch if free else own
    batched = [one.ndim > 0 and one.shape[0] == own for one in leaves(inputs)]
    return drawn_like(inputs, batched, batch, torch.Generator().manual_seed(0)), batch


def _peak_in_onnxruntime(work: _Work, onnx: Pair[OnnxReport], inputs: Inputs) -> None:
    def job(report: OnnxReport) -> PeakJob:
        feeds = [(name, one.shape, one.dtype.name) for name, one in feeds_of(report, inputs).items()]
        return PeakJob("onnxruntime", str(report.path), feeds, work.wanted.threads)

    with work.found.tried("peak memory in onnxruntime"):
        work.found.peaks(Pair(job(onnx.first), job(onnx.second)), PATIENCE)


def _in_onnxruntime(work: _Work, onnx: Pair[OnnxReport], inputs: Inputs) -> None:
    wanted = work.wanted
    with work.found.tried("latency in onnxruntime"):
        once = Pair(*(onnx_once(one.path, feeds_of(one, inputs), wanted.threads) for one in (onnx.first, onnx.second)))
        work.found.time("onnxruntime", once, wanted.rounds, work.budget.part(0.5).left)


def feeds_of(report: OnnxReport, inputs: Inputs) -> dict[str, Any]:
    """What a file is fed, by name."""
    return dict(zip(report.inputs, (one.numpy() for one in leaves(inputs)), strict=True))


def _peak_in_torch(work: _Work, inputs: Inputs, folder: Path, emitted: Path) -> None:
    """Each network goes to its process as source and weights, masks multiplied in. `emitted` are the weights that the
    user gets, with masks beside them; they may not be there.
    """

    def job(name: str, program: Program, module: nn.Module) -> PeakJob:
        (folder / name).mkdir()
        (folder / name / "model.py").write_text(write_source(program, ()).text, "utf-8")
        save_file(apart(module.state_dict()), folder / name / "model.safetensors")
        return PeakJob("torch", str(folder / name), described(inputs), work.wanted.threads, trust=True)

    with work.found.tried("peak memory in torch"):
        programs, modules = work.programs, work.modules
        jobs = [job("dense", programs.first, modules.first), job("pruned", programs.second, modules.second)]
        written = [folder / name / "model.safetensors" for name in NAMES]
        sizes = [one.stat().st_size for one in (written[0], emitted if emitted.is_file() else written[1])]
        work.files["model.safetensors"] = Pair(*sizes)
        work.found.peaks(Pair(*jobs), PATIENCE)


def _in_torch(work: _Work, inputs: Inputs) -> None:
    with torch_threads(work.wanted.threads), work.found.tried("latency in torch"):
        once = Pair(torch_once(work.modules.first, inputs), torch_once(work.modules.second, inputs))
        work.found.time("torch", once, work.wanted.rounds, work.budget.left)


def _on_gpu(work: _Work, inputs: Inputs) -> None:
    """Copies go there: moving the module itself would move the user's own numbers."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.detach().to(GPU)

    with work.found.tried("latency on the GPU"):
        args, kwargs = pytree.tree_map_only(Tensor, moved, (inputs.args, dict(inputs.kwargs)))
        dense = work.programs.first
        there = _module(replace(dense, tensors={name: moved(one) for name, one in dense.tensors.items()}))
        modules = there, build_module(work.programs.second, bake=True).to(GPU)
        once = Pair(*(cuda_once(module, Inputs(args, kwargs)) for module in modules))
        name = f"torch on {torch.cuda.get_device_name()}"
        work.found.time(name, once, work.wanted.rounds, work.budget.left)
