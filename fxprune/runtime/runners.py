"""One pass of a network as a call that returns its seconds: in onnxruntime, in torch, on a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import MeasureError, first_line
from fxprune.runtime.latency import Once

if TYPE_CHECKING:
    from torch import nn

    from fxprune.program import Inputs


def onnx_once(path: Path, feeds: Mapping[str, Any], threads: int) -> Once:
    """A session on the CPU with default optimisations. Raises MeasureError when onnxruntime refuses the file.

    Threads of a session spin after a run in the hope of another one; here they would do so during the other side's run.
    """
    from fxprune.onnx_runtime import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
    except Exception as error:  # onnxruntime's own hierarchy derives from nothing else
        raise MeasureError(f"onnxruntime cannot run {path.name}: {first_line(error)[:300]}") from error

    def once() -> float:
        start = time.perf_counter()
        session.run(None, feeds)
        return time.perf_counter() - start

    return once


def torch_once(module: nn.Module, inputs: Inputs) -> Once:
    """A pass on the CPU, without gradients. The module is in eval mode already."""
    import torch

    def once() -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            module(*inputs.args, **inputs.kwargs)
            return time.perf_counter() - start

    return once


def cuda_once(module: nn.Module, inputs: Inputs) -> Once:
    """A pass on the GPU, timed there: a call returns before the GPU is done. Both arguments are on the GPU already."""
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def once() -> float:
        with torch.inference_mode():
            torch.cuda.synchronize()
            start.record()
            module(*inputs.args, **inputs.kwargs)
            end.record()
            torch.cuda.synchronize()
            return float(start.elapsed_time(end)) / 1000

    return once


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch computes with so many threads inside, and with as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
