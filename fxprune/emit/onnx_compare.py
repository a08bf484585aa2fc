"""torch against onnxruntime on the same numbers, and the names that arguments and results carry in an ONNX file."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.compare import relative
from fxprune.errors import ExportError
from fxprune.onnx_runtime import onnxruntime
from fxprune.program import Inputs


def difference(module: nn.Module, model: bytes, inputs: Inputs, batches: Sequence[int], seed: int) -> float:
    """The largest max|a - b| / max|a| of any output at any batch size; NaN when either side computes one.

    `inputs` in signature order, the module in eval mode. A model with a fixed batch is run with the example's shapes.
    """
    session = _session(model)
    wanted = session.get_inputs()
    dynamic = [bool(value.shape) and isinstance(value.shape[0], str) for value in wanted]
    draw = torch.Generator().manual_seed(seed)
    worst = [0.0]
    for size in batches if any(dynamic) else (None,):
        sample = drawn_like(inputs, dynamic, size, draw)
        feeds = {value.name: leaf.numpy().copy() for value, leaf in zip(wanted, leaves(sample), strict=True)}
        expected = [tensor for _, tensor in named("", module(*sample.args, **sample.kwargs))]
        found = [torch.from_numpy(array) for array in session.run(None, feeds)]
        worst += [_apart(a, b) for a, b in zip(expected, found, strict=True)]
    return float(np.max(worst))  # unlike max() this one keeps a NaN


def in_signature_order(module: nn.Module, inputs: Inputs) -> Inputs:
    """Keyword arguments sorted as `forward` declares them. Raises ExportError when the inputs do not fit."""
    order = list(arguments(module, inputs))
    return Inputs(tuple(inputs.args), {name: inputs.kwargs[name] for name in order if name in inputs.kwargs})


def arguments(module: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Argument name -> value, in the order of forward's signature; what **kwargs catches goes by its own name."""
    signature = inspect.signature(module.forward)
    try:
        found = dict(signature.bind(*inputs.args, **inputs.kwargs).arguments)
    except TypeError as error:
        raise ExportError(f"the inputs do not fit forward{signature}: {error}") from error
    rest = [name for name, kind in signature.parameters.items() if kind.kind is kind.VAR_KEYWORD]
    extra = found.pop(rest[0], {}) if rest else {}
    return {**found, **extra}


def output_names(outputs: Any) -> list[str]:
    """`output` for a tensor, `output_0`, ... for a tuple, the keys of a dict; deeper levels joined with `_`."""
    return [name for name, _ in named("" if isinstance(outputs, Mapping) else "output", outputs)]


def named(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) for each tensor in a nest of dicts, lists and tuples; anything else is passed over."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | tuple | list):
        for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from named(f"{name}_{key}" if name else str(key), child)


def leaves(inputs: Inputs) -> list[Tensor]:
    """Every input tensor, positional ones first."""
    return [tensor for _, tensor in named("", (inputs.args, inputs.kwargs))]


def with_tensors(inputs: Inputs, swap: Mapping[int, Tensor]) -> Inputs:
    """The same nest with other tensors in it, by id: deepcopy takes what its memo knows instead of copying."""
    args, kwargs = copy.deepcopy((inputs.args, dict(inputs.kwargs)), dict(swap))
    return Inputs(args, kwargs)


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def drawn_like(inputs: Inputs, dynamic: Sequence[bool], size: int | None, draw: torch.Generator) -> Inputs:
    """The same nest with random numbers. Tensors marked `dynamic`, in the order of `leaves`, get `size` in front."""
    swap = {}
    for tensor, moves in zip(leaves(inputs), dynamic, strict=True):
        shape = [size, *tensor.shape[1:]] if moves and size is not None else list(tensor.shape)
        swap[id(tensor)] = _like(tensor, shape, draw)
    return with_tensors(inputs, swap)


def _like(tensor: Tensor, shape: list[int], draw: torch.Generator) -> Tensor:
    """Normal numbers; whole ones are taken from the example itself, so that an index stays a valid index."""
    pool = tensor.detach().flatten()
    if not pool.numel() or tensor.is_floating_point():
        return torch.randn(shape, generator=draw).to(tensor.dtype)
    return pool[torch.randint(len(pool), shape, generator=draw)]


def _apart(torchs: Tensor, onnxs: Tensor) -> float:
    """Infinities in the same places are equal, as in masked scores. NaN is not: whoever exports it wants to know."""
    if torchs.isnan().any() or onnxs.isnan().any():
        return math.nan
    return relative(torchs, onnxs)
