"""Is the captured graph the network? Both are run on random numbers: results in eval mode, and what can be told of
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.autocast import without_autocast
from fxprune.capture.export import structure_copy
from fxprune.capture.own_functions import functions_noted
from fxprune.compare import difference, random_inputs
from fxprune.metarun import bind_inputs
from fxprune.program import Inputs, Program, materialise

EVAL = 1e-3  # mostly the same calls in the same order; a lost one shows up as a difference of order one
TRAINING = 1e-2  # batch norms over two pictures magnify


class LostInTracing(Exception):
    """The captured graph is not the network."""


@dataclass(frozen=True)
class _Seen:
    """What one run of a network has shown."""

    outputs: list[Any]
    gradients: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    functions: set[str]  # names of torch.autograd.Function that were applied


def compared(model: nn.Module, program: Program) -> Program:
    """The program, with notes about what is other in training. Raises LostInTracing where results are others."""
    theirs, ours = (_seen(one, program.inputs) for one in _pair(model, program, training=False))
    error = difference(theirs.outputs, ours.outputs)
    if not error <= EVAL:
        raise LostInTracing(f"the captured graph differs from the network by {error:.1e}")
    notes = program.notes + _about_gradients(model, program, theirs.functions, training=False)
    if program.train_graph is not None:
        notes += _about_training(model, program)
    return replace(program, notes=tuple(dict.fromkeys(notes)))


def _pair(model: nn.Module, program: Program, *, training: bool) -> tuple[nn.Module, nn.Module]:
    """The network and its graph, over the user's parameters and buffers of their own."""
    numbers = {name: one if isinstance(one, nn.Parameter) else one.clone() for name, one in program.tensors.items()}
    graph: fx.GraphModule = materialise(program.module, numbers)
    if training and program.train_graph is not None:
        vars(graph)["forward"] = _Interpreted(graph, program.train_graph)
    return structure_copy(model, clone_buffers=True).train(training), graph.train(training)


class _Interpreted:
    """Another graph over the same module."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.module, self.graph = module, graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return fx.Interpreter(self.module, graph=self.graph).run(*bind_inputs(self.graph, Inputs(args, kwargs)))


def _about_training(model: nn.Module, program: Program) -> tuple[str, ...]:
    try:
        theirs, ours = (_seen(one, program.inputs) for one in _pair(model, program, training=True))
    except Exception:  # too few pictures for a batch norm: there is nothing to compare
        return ()
    shared = theirs.buffers.keys() & ours.buffers.keys()
    apart = {name: difference(theirs.buffers[name], ours.buffers[name]) for name in sorted(shared)}
    if len(theirs.outputs) != len(ours.outputs) or difference(theirs.outputs, ours.outputs) > TRAINING:
        return (
            "in train mode the captured network computes something else than yours: what your code does then is not "
            "part of a graph",
        )
    names = [name for name, gap in apart.items() if gap > TRAINING]
    if names:
        return (f"in train mode the captured network leaves other numbers in {', '.join(names[:5])} than yours",)
    return _about_gradients(model, program, theirs.functions, training=True)


def _about_gradients(model: nn.Module, program: Program, functions: set[str], *, training: bool) -> tuple[str, ...]:
    """Says so where a Function's own backward computes other gradients than its forward has."""
    if not functions:
        return ()
    try:
        pair = _pair(model, program, training=training)
        theirs, ours = (_seen(one, program.inputs, gradients=True).gradients for one in pair)
    except Exception:  # a Function without a backward, say: nobody trains through it
        return ()
    if all(difference(theirs[name], ours[name]) <= TRAINING for name in theirs.keys() & ours.keys()):
        return ()
    return (told(functions, "its own backward, which computes others, is not part of a graph"),)


def told(functions: set[str], why: str) -> str:
    return f"gradients of {', '.join(sorted(functions))} are those of its forward in the compiled network: {why}"


def _seen(network: nn.Module, example: Inputs, gradients: bool = False) -> _Seen:
    inputs = random_inputs(example, 0)  # anew: a network may write into what it is given
    with without_autocast(), torch.random.fork_rng(devices=[]), functions_noted() as functions:
        torch.manual_seed(0)
        if not gradients:
            with torch.no_grad():
                outputs = pytree.tree_leaves(network(*inputs.args, **inputs.kwargs))
            statistics = {name: one for name, one in network.named_buffers() if one.is_floating_point()}
            return _Seen(outputs, {}, statistics, functions)
        with torch.enable_grad():
            return _Seen([], _gradients(network, inputs), {}, functions)


def _gradients(network: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Of a sum of the outputs with fixed random weights, by parameters and inputs; zero where there is none."""
    given = [one for one in pytree.tree_leaves((inputs.args, inputs.kwargs)) if isinstance(one, Tensor)]
    asked = {f"input {place}": one.requires_grad_() for place, one in enumerate(given) if one.is_floating_point()}
    asked |= {name: one for name, one in network.named_parameters() if one.requires_grad}
    outputs = pytree.tree_leaves(network(*inputs.args, **inputs.kwargs))
    draw = torch.Generator().manual_seed(0)
    sums = [
        (one * torch.randn(one.shape, generator=draw, dtype=torch.float64).to(one)).sum()
        for one in outputs
        if isinstance(one, Tensor) and one.requires_grad and one.is_floating_point()
    ]
    if not sums:
        return {}
    found = torch.autograd.grad(torch.stack(sums).sum(), list(asked.values()), allow_unused=True)
    return {
        name: torch.zeros_like(one) if gradient is None else gradient
        for (name, one), gradient in zip(asked.items(), found, strict=True)
    }
