"""Is the captured graph the network? Both are run on random numbers: results in eval mode, and what can be told of
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.autocast import without_autocast
from fxprune.capture.chance import generators_kept
from fxprune.capture.export import cloned, copy_in_mode
from fxprune.capture.own_functions import functions_noted
from fxprune.compare import difference, random_inputs
from fxprune.errors import described
from fxprune.metarun import bind_inputs
from fxprune.program import Inputs, Program, materialise, named_tensors

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


def compared(model: nn.Module, program: Program, asked: bool = True) -> Program:
    """The program, with notes about what is other in training. Raises LostInTracing where results are others.

    asked   the network's code has looked at the mode or changed it: training is compared too
    """
    theirs, ours, nudge = _nudged_outputs(model, program)
    error = difference(theirs.outputs, ours.outputs) if len(theirs.outputs) == len(ours.outputs) else math.inf
    if not error <= EVAL:
        raise LostInTracing(f"the captured graph differs from the network by {error:.1e}")
    notes = program.notes + _about_gradients(model, program, theirs.functions, nudge, training=False)
    if asked or program.train_graph is not None:
        notes += _about_training(model, program, nudge)
    return replace(program, notes=tuple(dict.fromkeys(notes)))


Nudge = Callable[[Tensor], Tensor]


def _nudged_outputs(model: nn.Module, program: Program) -> tuple[_Seen, _Seen, Nudge]:
    """Parameters are moved away from their values first, unless that gives no numbers: behind a gate that starts at
    zero nothing would be seen.
    """
    nudges: tuple[Nudge, ...] = (_Nudge(model), cloned)
    for nudge in nudges:
        theirs, ours = _both_seen(model, program, nudge)
        if all(one.isfinite().all() for one in theirs.outputs if isinstance(one, Tensor)):
            break
    return theirs, ours, nudge


def _both_seen(model: nn.Module, program: Program, nudge: Nudge) -> tuple[_Seen, _Seen]:
    """With the example's batch size, then with twice as many examples where both take these."""
    network, graph = _pair(model, program, nudge, training=False)
    examples = (program.inputs, program.inputs.twice()) if program.dynamic_batch else (program.inputs,) * 2
    try:
        theirs = _seen(network, examples)
    except Exception:  # a batch size that the network does not take
        examples = (program.inputs,) * 2
        network, graph = _pair(model, program, nudge, training=False)
        theirs = _seen(network, examples)
    try:
        return theirs, _seen(graph, examples)
    except Exception as error:
        raise LostInTracing(f"the captured graph does not run on what the network does ({described(error)})") from error


class _Nudge:
    """What a tensor of the user's is in a comparison: a clone, and of a parameter one with other numbers.

    Only what may be a gate is: vectors, and tensors of zeros. By a tenth of its size, and by a tenth at least.
    """

    def __init__(self, model: nn.Module) -> None:
        self.places = {id(one): place for place, one in enumerate(named_tensors(model).values())}

    def __call__(self, tensor: Tensor) -> Tensor:
        twin = cloned(tensor)
        if not isinstance(twin, nn.Parameter) or not twin.is_floating_point():
            return twin
        if twin.numel() != max(twin.shape, default=1) and twin.any():
            return twin
        draw = torch.Generator().manual_seed(self.places.get(id(tensor), 0))
        with torch.no_grad():
            step = 0.1 * max(1.0, float(twin.double().square().mean().sqrt()) if twin.numel() else 0.0)
            twin.add_((step * torch.randn(twin.shape, generator=draw)).to(twin))
        return twin


def _pair(model: nn.Module, program: Program, nudge: Nudge, *, training: bool) -> tuple[nn.Module, nn.Module]:
    """The network and its graph, over the same numbers, none of which are the user's own."""
    numbers = {name: nudge(one) for name, one in program.tensors.items()}
    graph: fx.GraphModule = materialise(program.module, numbers)
    if training and program.train_graph is not None:
        vars(graph)["forward"] = _Interpreted(graph, program.train_graph)
    return copy_in_mode(model, training, nudge), graph.train(training)


class _Interpreted:
    """Another graph over the same module."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.module, self.graph = module, graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return fx.Interpreter(self.module, graph=self.graph).run(*bind_inputs(self.graph, Inputs(args, kwargs)))


def _about_training(model: nn.Module, program: Program, nudge: Nudge) -> tuple[str, ...]:
    try:
        twice = (program.inputs, program.inputs)
        theirs, ours = (_seen(one, twice) for one in _pair(model, program, nudge, training=True))
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
    return _about_gradients(model, program, theirs.functions, nudge, training=True)


def _about_gradients(
    model: nn.Module, program: Program, functions: set[str], nudge: Nudge, *, training: bool
) -> tuple[str, ...]:
    """Says so where a Function's own backward computes other gradients than its forward has."""
    if not functions:
        return ()
    try:
        pair = _pair(model, program, nudge, training=training)
        theirs, ours = (_seen(one, (program.inputs,), gradients=True).gradients for one in pair)
    except Exception:  # a Function without a backward, say: nobody trains through it
        return ()
    if all(difference(theirs[name], ours[name]) <= TRAINING for name in theirs.keys() & ours.keys()):
        return ()
    return (told(functions, "its own backward, which computes others, is not part of a graph"),)


def told(functions: set[str], why: str) -> str:
    return f"gradients of {', '.join(sorted(functions))} are those of its forward in the compiled network: {why}"


def _seen(network: nn.Module, examples: Sequence[Inputs], gradients: bool = False) -> _Seen:
    """One backward pass, or several calls: what a network carries from one to the next is no part of a graph."""
    inputs = [random_inputs(one, seed) for seed, one in enumerate(examples)]  # anew: it may write into them
    with without_autocast(), generators_kept(), functions_noted() as functions:
        torch.manual_seed(0)
        if not gradients:
            with torch.no_grad():
                outputs = [pytree.tree_leaves(network(*one.args, **one.kwargs)) for one in inputs]
            statistics = {name: one for name, one in network.named_buffers() if one.is_floating_point()}
            return _Seen(sum(outputs, []), {}, statistics, functions)
        with torch.enable_grad():
            return _Seen([], _gradients(network, inputs[0]), {}, functions)


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
