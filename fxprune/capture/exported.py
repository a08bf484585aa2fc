"""ExportedNetwork: what torch.export captured, from a file or from memory, as a network to compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from fxprune.errors import CaptureError
from fxprune.program import Inputs, named_tensors
from fxprune.quiet import quiet


class ExportedNetwork(fx.GraphModule):
    """An exported graph over its own parameters and buffers.

    inputs         example inputs, of the shapes it was exported with
    dynamic_batch  whether it was exported for any batch size
    """

    inputs: Inputs
    dynamic_batch: bool

    def __init__(self, root: nn.Module, graph: fx.Graph, inputs: Inputs, dynamic_batch: bool) -> None:
        super().__init__(root, graph, "ExportedNetwork")
        self.inputs, self.dynamic_batch = inputs, dynamic_batch
        unread = {name: one for name, one in named_tensors(root).items() if name not in named_tensors(self)}
        for name, tensor in unread.items():  # counters of batch norms: the graph has no use for them, training has
            hold(self, name, tensor)


def hold(root: nn.Module, path: str, tensor: Tensor) -> None:
    """Register a tensor as `path` below `root`, as a parameter if it is one. Raises KeyError when the name is taken."""
    *holders, leaf = path.split(".")
    for name in holders:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        child = root._modules[name]
        assert child is not None
        root = child
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, tensor)
    else:
        root.register_buffer(leaf, tensor)


def from_program(program: ExportedProgram) -> ExportedNetwork:
    """The network in an exported program. Raises CaptureError when the program does not know its example inputs."""
    if program.example_inputs is None:
        raise CaptureError(
            "the exported program holds no example inputs: export it again, or pass the nn.Module itself"
        )
    with quiet():
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    args, kwargs = program.example_inputs
    return ExportedNetwork(module, module.graph, Inputs(tuple(args), dict(kwargs)), _takes_any_batch(program))


def _takes_any_batch(program: ExportedProgram) -> bool:
    """Whether the first tensor that the user passes may have any length along dimension 0."""
    specs = {one.arg.name: one for one in program.graph_signature.input_specs}
    for node in program.graph.find_nodes(op="placeholder"):
        spec = specs.get(node.name)
        value: Any = node.meta.get("val")
        if spec is None or spec.kind is not InputKind.USER_INPUT or isinstance(spec.arg, ConstantArgument):
            continue
        if isinstance(value, Tensor) and value.ndim:
            return isinstance(value.shape[0], torch.SymInt)
    return False
