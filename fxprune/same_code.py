"""Does a network's own code compute the same when its parameters are smaller? Two traces of it are compared."""

from __future__ import annotations

from torch import fx, nn

from fxprune.capture.graph_equality import first_difference
from fxprune.capture.trace import bind_arguments, trace_modes
from fxprune.errors import described
from fxprune.metarun import plain_mode
from fxprune.program import Inputs, skeleton_of


def other_code(dense: nn.Module, small: nn.Module, inputs: Inputs) -> str:
    """What `small` computes otherwise than with smaller tensors; empty when nothing does. Changes neither.

    dense, small  two networks of one class, whose parameters and buffers differ in their shapes
    inputs        example inputs of both

    Sizes of activations are part of a trace, while a number that Python code has made from a width (of
    `conv.out_channels` or `weight.shape[0]`) stands in it as it is. Of a network that torch.fx cannot follow nothing is
    known, and nothing said.
    """
    with plain_mode():
        try:
            wanted = _traces(dense, inputs)
        except Exception:  # torch.export has captured it then
            return ""
        try:
            found = _traces(small, inputs)
        except Exception as error:  # code fails in every possible way
            return f"does not run ({described(error)})"
    for left, right in zip(wanted, found, strict=True):
        node = first_difference(left, right)
        if node is not None:
            return f"computes with another number at {node.name}"
    return ""


def _traces(network: nn.Module, inputs: Inputs) -> tuple[fx.Graph, fx.Graph]:
    """In eval mode and in train mode."""
    skeleton, _ = skeleton_of(network)
    evaluate, train, _ = trace_modes(skeleton, bind_arguments(skeleton, inputs.args, inputs.kwargs))
    return evaluate, evaluate if train is None else train
