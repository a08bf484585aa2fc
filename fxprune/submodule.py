"""Part of a network: one module is compiled, the rest stays as it is and may be beyond tracing.

The part is captured by itself, on the inputs that it gets when the whole network runs. Its program is then moved under
the part's path, so that every name that a user sees, in patterns, reports and recipes, is a name of the whole network.
Its outputs keep their widths as those of any network do, so that the rest never notices.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture.export import cloned, copy_in_mode
from fxprune.capture.inputs import choose_inputs, inputs_for
from fxprune.capture.module import Trial, as_inputs, capture, run_on_paper
from fxprune.copying import copied
from fxprune.emit.module import build_module
from fxprune.errors import CaptureError, OptionError, described
from fxprune.facts import WeightMasks
from fxprune.program import Inputs, Program, loose_tensors, named_tensors

_CONTENTS = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
_PLAIN = (bool, int, float, str, tuple, list, dict, type(None))


@dataclass(frozen=True, eq=False)
class Whole:
    """The given network, left as it was, and the path of the module in it that was compiled."""

    model: nn.Module
    path: str

    def rebuilt(self, program: Program) -> nn.Module:
        """A copy of the network, in train mode, with the compiled part in its place. No number is shared."""
        part = self.model.get_submodule(self.path)
        compiled = build_module(_raised(program, self.path))
        vars(compiled).update(
            (name, value)
            for name, value in vars(part).items()
            if not name.startswith("_") and name not in vars(compiled) and isinstance(value, _PLAIN)
        )  # what the rest may ask the part for, as `out_channels`
        memo: dict[int, Any] = {id(one): one.detach().clone() for one in loose_tensors(self.model)}
        twin: nn.Module = copied(self.model, {**memo, id(part): compiled})
        twin.train()
        return twin


def capture_chosen(
    model: nn.Module,
    example: Any,
    path: str | None,
    *,
    compare: bool = False,
    record_sources: bool = False,
    trial: Trial = run_on_paper,
) -> tuple[Program, tuple[str, ...]]:
    """The program of a network, or of the module at `path` in it, and notes on how it came about; see `capture`.

    model     has passed `check_model`
    example   None: guessed from the first convolution
    """
    if path is not None:
        return capture_part(model, path, example, compare=compare, record_sources=record_sources)
    notes: tuple[str, ...] = ()
    if example is None:
        example, note = inputs_for(model)
        notes = (note,)
    program = capture(model, example, compare=compare, record_sources=record_sources, checked=True, trial=trial)
    return program, notes


def capture_part(
    model: nn.Module, path: str, example: Any, *, compare: bool = False, record_sources: bool = False
) -> tuple[Program, tuple[str, ...]]:
    """The program of the module at `path`, under the names of the whole network, and notes on how it came about.

    model    only the part has to be traceable
    path     qualified name of a module, as `backbone.body`
    example  inputs of the whole network as `compile` takes them (a list of images in a tuple: `([image, image],)`);
             None: guessed from the first convolution

    The network runs once in eval mode, on a copy of its modules, up to the first call of the part. Raises OptionError
    for a path that names no module, CaptureError when the part is not called, shares numbers with the rest, or cannot
    be traced.
    """
    part = _find(model, path)
    _check_apart(model, part, path)
    notes: tuple[str, ...] = (f"only {path} was compiled, an ONNX file holds it alone; the rest is as it was",)
    if example is None:
        example, note = choose_for_part(model, path)
        notes = (note, *notes)
    inputs = recorded(model, path, as_inputs(example))
    return _lowered(capture(part, inputs, compare=compare, record_sources=record_sources), path), notes


def choose_for_part(model: nn.Module, path: str, hint: tuple[int, ...] | None = None) -> tuple[Inputs, str]:
    """Inputs with which the network gets as far as the module at `path`; see `choose_inputs`."""
    _find(model, path)
    return choose_inputs(model, hint, lambda whole, inputs: recorded(whole, path, inputs))


def _find(model: nn.Module, path: str) -> nn.Module:
    known = dict(model.named_modules())
    if path and path in known:
        found: nn.Module = known[path]
        return found
    near = difflib.get_close_matches(path, [name for name in known if name], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"its modules are named like {list(known)[1:4]}"
    raise OptionError(f"submodule {path!r} is no module of {type(model).__name__}; {hint}")


def _check_apart(model: nn.Module, part: nn.Module, path: str) -> None:
    """A number that the rest reads too cannot be cut."""
    own = {id(one) for one in named_tensors(part).values()}
    inside = {id(module) for module in part.modules()}
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and id(tensor) in own:
                raise CaptureError(
                    f"{path} shares {name}.{leaf} with the rest of the network: compile a module around both"
                )


class _Reached(Exception):
    """The part has been called; the rest of the run is not needed."""


def recorded(model: nn.Module, path: str, inputs: Inputs) -> Inputs:
    """What the module at `path` is called with first when the network runs on these inputs, in eval mode."""
    twin = copy_in_mode(model, False, cloned)
    calls: list[Inputs] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Inputs(args, kwargs))
        raise _Reached

    twin.get_submodule(path).register_forward_pre_hook(keep, with_kwargs=True)
    real = inputs.with_storage()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            twin(*real.args, **real.kwargs)
    except _Reached:
        return _plain_inputs(calls[0], path)
    except Exception as error:
        raise CaptureError(f"{type(model).__name__} does not run on the example inputs: {described(error)}") from error
    raise CaptureError(f"{path} is not called when {type(model).__name__} runs in eval mode on the example inputs")


def _plain_inputs(inputs: Inputs, path: str) -> Inputs:
    """Raises CaptureError for what is neither a tensor nor plain data."""
    for leaf in pytree.tree_leaves((inputs.args, dict(inputs.kwargs))):
        if not isinstance(leaf, Tensor | bool | int | float | str | None):
            raise CaptureError(f"{path} is called with a {type(leaf).__name__}, which cannot be traced")
    return inputs


def _lowered(program: Program, path: str) -> Program:
    """The same program with everything one path further down. Takes the fresh program apart."""
    holder = nn.Module()
    for name in _CONTENTS:
        vars(holder)[name] = vars(program.module)[name]
        vars(program.module)[name] = type(vars(holder)[name])()
    for name in reversed(path.split(".")[1:]):
        above = nn.Module()
        above.add_module(name, holder)
        holder = above
    program.module.add_module(path.split(".")[0], holder)
    program.module.eval()
    tensors = {f"{path}.{name}": one for name, one in program.tensors.items()}
    train_graph = copied(program.train_graph)  # one that knows no module it would have to fit
    lowered = replace(program, tensors=tensors, train_graph=train_graph)
    _retarget(lowered, lambda name: f"{path}.{name}")
    return lowered


def _raised(program: Program, path: str) -> Program:
    """The part as a program of its own, without the path; of its facts only the masks."""
    module, train_graph = copied(program.module), copied(program.train_graph)
    inner = module.get_submodule(path)
    for name in _CONTENTS:
        vars(module)[name] = vars(inner)[name]
    masks = program.facts[WeightMasks].masks if WeightMasks in program.facts else {}
    raised = replace(
        program,
        module=module,
        train_graph=train_graph,
        tensors={name.removeprefix(f"{path}."): one for name, one in program.tensors.items()},
        facts={WeightMasks: WeightMasks({name.removeprefix(f"{path}."): one for name, one in masks.items()})},
    )
    _retarget(raised, lambda name: name.removeprefix(f"{path}."))
    return raised


def _retarget(program: Program, rename: Callable[[str], str]) -> None:
    for _, graph in program.graphs():
        for node in graph.nodes:
            if node.op in ("get_attr", "call_module"):
                node.target = rename(str(node.target))
