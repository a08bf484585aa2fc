"""Program -> model.py: readable source of the compiled network that needs nothing but torch.

The modules have the user's names, so that the plain names of model.safetensors load. A masked weight is a parameter
beside a mask of its shape, multiplied where it is used: its gradient is zero there, and a weight that starts at zero
with a gradient of zero stays at zero under every optimiser that looks at gradient, weight and momentum alone.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx, nn

from fxprune.emit.source_forward import Forward
from fxprune.emit.source_functions import RESERVED, Needs
from fxprune.emit.source_modes import merged, simplified
from fxprune.emit.source_parts import PARTS
from fxprune.emit.source_text import INDENT, literal, wrapped
from fxprune.emit.source_tree import Tree
from fxprune.own_version import own_version
from fxprune.program import Program

_HEADER = '''"""{name}, made small by fxprune {version}. This file and model.safetensors are the whole network.

    from safetensors.torch import load_file
    from model import {name}

    network = {name}()
    network.load_state_dict(load_file("model.safetensors"))

Train it like any other module. {masks}{packages}
"""
'''
_WITH_MASKS = """Masked weights stay zero.
torch.save(network.state_dict(), PATH) keeps weights and masks, and `fxprune export FOLDER --weights PATH` writes them
as ONNX."""
_WITHOUT_MASKS = """`fxprune export FOLDER --weights PATH` writes as ONNX what
torch.save(network.state_dict(), PATH) has saved."""


@dataclass(frozen=True)
class Source:
    """The text of a model.py. `packages` besides torch have to be installed where it is used."""

    text: str
    class_name: str
    packages: tuple[str, ...]


def write_source(program: Program, masked: Iterable[str]) -> Source:
    """Source of a program's network. `masked` names the weights that have masks, each tied name for itself.

    Raises SourceError when something in the network has no exact text: a module that no constructor call makes anew, a
    function that cannot be imported, a graph within the graph.
    """
    needs, weights = Needs(), set(masked)
    graphs = [simplified(graph, program.module) for _, graph in program.graphs()]
    both = merged(graphs[0], graphs[1]) if len(graphs) == 2 else graphs[0]
    graphs = graphs if both is None else [both]
    called = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"}
    tree = Tree(program.module, called, weights, needs)
    made = tree.lines()
    methods = list(_methods(graphs, program.module, tree, weights, needs))
    name = _class_name(type(program.module).__name__, needs)
    body = [f"class {name}({tree.base}):", f"{INDENT}def __init__(self):", *made, *methods]
    return Source(_file(name, body, needs), name, tuple(sorted(needs.packages)))


def _methods(
    graphs: list[fx.Graph], root: nn.Module, tree: Tree, weights: set[str], needs: Needs
) -> Iterator[str]:  # fmt: skip
    """forward, or one method for each mode and a forward that chooses."""
    written = [Forward(graph, root, tree, weights, needs) for graph in graphs]
    evaluate = written[0]
    if len(written) == 1:
        yield from _method("forward", evaluate)
        return
    call = evaluate.call()
    yield from ("", *wrapped(f"def forward(self, {evaluate.signature()}):", 1))
    choice = f"return self._forward_train({call}) if self.training else self._forward_eval({call})"
    yield from wrapped(choice, 2)
    yield from _method("_forward_eval", evaluate)
    yield from _method("_forward_train", written[1])


def _method(name: str, forward: Forward) -> Iterator[str]:
    yield ""
    yield from wrapped(f"def {name}(self, {forward.signature()}):", 1)
    yield from forward.lines()


def _file(name: str, body: list[str], needs: Needs) -> str:
    parts = [PARTS[part].strip("\n") for part in PARTS if part in needs.parts]
    records = [
        f'{record} = namedtuple("{record}", {literal(list(fields))})' for record, fields in needs.records.items()
    ]
    text = "\n\n\n".join(["\n".join(one) for one in (records,) if one] + parts + ["\n".join(body)])
    imports = {*needs.imports, "import torch", "from torch import nn"}
    if re.search(r"\bF\.", text):
        imports.add("import torch.nn.functional as F")
    return f'{_header(name, needs)}\n{_sorted(imports)}\n\n__all__ = ["{name}"]\n\n\n{text}\n'


def _header(name: str, needs: Needs) -> str:
    masks = _WITH_MASKS if any(part.startswith("Masked") for part in needs.parts) else _WITHOUT_MASKS
    packages = f"\n\nIt also needs {', '.join(sorted(needs.packages))}." if needs.packages else ""
    return _HEADER.format(name=name, version=own_version(), masks=masks, packages=packages)


def _sorted(imports: set[str]) -> str:
    """The standard library first."""
    own = sorted(line for line in imports if line.split()[1] in ("collections", "math", "operator"))
    rest = sorted((line for line in imports if line not in own), key=lambda line: (line.startswith("from"), line))
    return "\n".join([*own, "", *rest] if own else rest)


def _class_name(wish: str, needs: Needs) -> str:
    taken = {*RESERVED, *PARTS, *needs.records, *(line.rpartition(" ")[2] for line in needs.imports)}
    usable = wish.isidentifier() and wish.isascii() and not keyword.iskeyword(wish) and not wish.startswith("__")
    return wish if usable and wish not in taken and not hasattr(nn, wish) else "Network"
