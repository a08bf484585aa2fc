"""Running a graph over its skeleton on the meta device: shapes without numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.program import Inputs


@contextmanager
def on_meta(module: nn.Module, mode: str = "eval") -> Iterator[None]:
    """Everything inside makes tensors without storage, in train or eval mode; the module is left in eval mode."""
    module.train(mode == "train")
    try:
        with torch.no_grad(), torch.device("meta"):
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
