"""Running a graph over its skeleton on the meta device: shapes without numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.program import Inputs

# Tracing patches torch and nn.Module, and the proof sets torch's default type: two threads would undo each other's.
ONE_AT_A_TIME = threading.RLock()


@contextmanager
def plain_mode() -> Iterator[None]:
    """Work as outside of inference mode and with the CPU as default device, whatever the caller has set."""
    elsewhere = torch.get_default_device().type != "cpu"
    with ONE_AT_A_TIME, torch.inference_mode(False), torch.device("cpu") if elsewhere else nullcontext():
        yield


class OnPaper(TorchDispatchMode):
    """Runs every operator by `on_paper`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_paper(func, args, kwargs or {})


def on_paper(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of an ATen call on the meta device.

    The commonest operators are answered here: PyTorch works them out in Python, up to a millisecond a call.
    """
    answer = _ANSWERS.get(func)
    found = None if answer is None or kwargs else answer(args)
    return func(*args, **kwargs) if found is None else found


def blank(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A meta tensor of another shape."""
    return torch.empty(shape, dtype=like.dtype, device="meta")


def plain_floats(value: Any) -> bool:
    """A tensor of floats in row-major order: whatever is computed from such ones alone is one, too."""
    return isinstance(value, Tensor) and value.is_meta and value.is_contiguous() and value.is_floating_point()


def _same_shape(args: tuple[Any, ...]) -> Tensor | None:
    return blank(args[0], args[0].shape) if plain_floats(args[0]) else None


def _written(args: tuple[Any, ...]) -> Tensor | None:
    """An operator that writes into its first argument and returns it."""
    return args[0] if plain_floats(args[0]) else None


def _arithmetic(args: tuple[Any, ...]) -> Tensor | None:
    shape = met(*args[:2])
    return None if shape is None else blank(args[0], shape)


def met(left: Any, right: Any) -> tuple[int, ...] | None:
    """The shape of two plain tensors of one type and as many dimensions, broadcast; None where they are not such."""
    if not (plain_floats(left) and plain_floats(right)) or left.dtype != right.dtype or left.ndim != right.ndim:
        return None
    pairs = list(zip(left.shape, right.shape, strict=True))
    fits = all(a == b or 1 in (a, b) for a, b in pairs)
    return tuple(b if a == 1 else a for a, b in pairs) if fits else None


def _product(args: tuple[Any, ...]) -> Tensor | None:
    """bias + left @ right"""
    bias, left, right = args
    fits = plain_floats(left) and plain_floats(bias) and left.dtype == right.dtype == bias.dtype
    if not fits or left.shape[1:] != right.shape[:1] or bias.shape != right.shape[1:]:
        return None
    return blank(left, (left.shape[0], right.shape[1]))


def _normalised(args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Batch norm with running statistics; the saved ones are empty then."""
    if not plain_floats(args[0]):
        return None
    return blank(args[0], args[0].shape), blank(args[0], (0,)), blank(args[0], (0,))


def _pooled(args: tuple[Any, ...]) -> Tensor | None:
    tensor, dims, keep = (*args, False)[:3]
    if not plain_floats(tensor) or tensor.ndim != 4 or sorted(dim % 4 for dim in dims or ()) != [2, 3]:
        return None
    return blank(tensor, (*tensor.shape[:2], 1, 1) if keep else tensor.shape[:2])


_aten = torch.ops.aten
_ACTIVATIONS = ("relu", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "hardtanh", "tanh")
_ANSWERS: dict[Any, Callable[[tuple[Any, ...]], Any]] = {
    **{getattr(_aten, name).default: _same_shape for name in (*_ACTIVATIONS, "clone")},
    **{getattr(_aten, f"{name}_").default: _written for name in _ACTIVATIONS},
    **{getattr(_aten, name).Tensor: _arithmetic for name in ("add", "sub", "mul", "div")},
    _aten._native_batch_norm_legit_no_training.default: _normalised,
    _aten.native_batch_norm.default: lambda args: None if args[5] else _normalised(args),
    _aten.addmm.default: _product,
    _aten.mean.dim: _pooled,
}


@contextmanager
def in_mode(module: nn.Module, mode: str) -> Iterator[None]:
    """Train or eval mode, no gradients; the module, which is in eval mode as a whole or not, is left in eval mode."""
    if mode == "train" or module.training:
        module.train(mode == "train")
    try:
        with torch.no_grad():
            yield
    finally:
        if module.training:
            module.eval()


@contextmanager
def on_meta(module: nn.Module, mode: str = "eval") -> Iterator[None]:
    """Everything inside makes tensors without storage, in train or eval mode; the module is left in eval mode."""
    with in_mode(module, mode), torch.device("meta"), OnPaper():  # type: ignore[no-untyped-call]
        yield


def meta_values(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """Meta tensors for the placeholders of a graph."""
    values = bind_inputs(graph, inputs)
    found: list[Any] = pytree.tree_map_only(Tensor, lambda one: torch.empty_like(one, device="meta"), values)
    return found


def bind_inputs(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """Values for the placeholders of a graph, in order: positional ones first, then by name, then defaults.

    An exported graph has a placeholder for every leaf of its arguments.
    """
    values = []
    positional = list(inputs.args)
    placeholders = graph.find_nodes(op="placeholder")
    leaves = pytree.tree_leaves((inputs.args, dict(inputs.kwargs)))
    if isinstance(graph._codegen, _PyTreeCodeGen) and len(leaves) == len(placeholders):
        return leaves
    for node in placeholders:
        if positional:
            values.append(positional.pop(0))
        elif node.target in inputs.kwargs:
            values.append(inputs.kwargs[node.target])
        elif node.args:
            values.append(node.args[0])
    return values
