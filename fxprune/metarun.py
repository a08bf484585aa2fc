"""Running a graph over its skeleton on the meta device: shapes without numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.program import Inputs


@contextmanager
def plain_mode() -> Iterator[None]:
    """Work as outside of inference mode and with the CPU as default device, whatever the caller has set."""
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.inference_mode(False), torch.device("cpu") if elsewhere else nullcontext():
        yield


class OnPaper(TorchDispatchMode):
    """Answers the commonest operators itself: PyTorch's meta decompositions of them take milliseconds a call."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in _SHAPE_KEEPING:
            return torch.empty_like(args[0])
        if name == "aten::_native_batch_norm_legit_no_training" or (name == "aten::native_batch_norm" and not args[5]):
            return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        return func(*args, **(kwargs or {}))


_ACTIVATIONS = ("relu", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "hardtanh")
_SHAPE_KEEPING = {f"aten::{name}" for name in _ACTIVATIONS}


@contextmanager
def on_meta(module: nn.Module, mode: str = "eval") -> Iterator[None]:
    """Everything inside makes tensors without storage, in train or eval mode; the module is left in eval mode."""
    module.train(mode == "train")
    try:
        with torch.no_grad(), torch.device("meta"), OnPaper():  # type: ignore[no-untyped-call]
            yield
    finally:
        module.eval()


def meta_values(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """Meta tensors for the placeholders of a graph."""
    values = bind_inputs(graph, inputs)
    found: list[Any] = pytree.tree_map_only(Tensor, lambda one: torch.empty_like(one, device="meta"), values)
    return found


def bind_inputs(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """Values for the placeholders of a graph, in order: positional ones first, then by name, then defaults."""
    values = []
    positional = list(inputs.args)
    for node in graph.nodes:
        if node.op != "placeholder":
            continue
        if positional:
            values.append(positional.pop(0))
        elif node.target in inputs.kwargs:
            values.append(inputs.kwargs[node.target])
        elif node.args:
            values.append(node.args[0])
    return values
