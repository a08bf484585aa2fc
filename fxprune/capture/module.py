"""capture(): an nn.Module and example inputs become a Program. The module itself is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fxprune.capture.autocast import autocast_noted
from fxprune.capture.chance import generators_kept
from fxprune.capture.export import cloned, export_graph, exported_program, structure_copy
from fxprune.capture.exported import ExportedNetwork, from_program
from fxprune.capture.gradient_hooks import gradient_hooks
from fxprune.capture.inputs import check_run
from fxprune.capture.left_alone import buffers_kept
from fxprune.capture.names import check_names
from fxprune.capture.own_functions import functions_noted
from fxprune.capture.plain import plain_weights
from fxprune.capture.sameness import compared, told
from fxprune.capture.trace import bind_arguments, trace_modes
from fxprune.capture.unfit import check_layers
from fxprune.channels.engine import WalkError
from fxprune.containers import know
from fxprune.errors import CaptureError, described
from fxprune.metarun import ONE_AT_A_TIME, meta_values, on_meta
from fxprune.program import Inputs, Program, Skeleton, adopt, named_tensors, real_tensors, skeleton_of
from fxprune.wording import counted


def as_inputs(example: Any) -> Inputs:
    """A tensor, a tuple or list of positional arguments, a dict of keyword arguments, or Inputs."""
    if isinstance(example, Inputs):
        know((example.args, dict(example.kwargs)))
        return example
    know(example)
    if isinstance(example, Mapping):
        return Inputs((), dict(example))
    if isinstance(example, list | tuple):
        return Inputs(tuple(example))
    return Inputs((example,))


def as_network(model: object) -> nn.Module:
    """The network to compile: an nn.Module as it is, an exported program as a network. Raises CaptureError as
    `check_model` does.
    """
    if isinstance(model, ExportedProgram):
        model = from_program(model)
    return check_model(model)


def check_model(model: object, *, shapes_only: bool = False) -> nn.Module:
    """Raise CaptureError for what is no network, has no numbers, or has names that are unsafe in source code."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a ScriptModule has no Python source to trace: pass the nn.Module that it was made from")
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"expected an nn.Module, got {type(model).__name__}; a state dict needs its network around it"
        )
    check_names(model)
    check_layers(model)
    for name, tensor in named_tensors(model).items():
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise CaptureError(f"{name} is not initialised yet: run the network once, then compile it")
        if tensor.is_meta and not shapes_only:
            raise CaptureError(f"{name} is on the meta device and holds no numbers: load the weights first")
    return model


def check_numbers(model: nn.Module) -> None:
    """Raise CaptureError, naming the tensor, when a weight is NaN or infinite: nothing could be ranked or proved.

    Buffers may hold infinities, as attention masks do; the statistics of batch norms may not.
    """
    held = {name: one for name, one in named_tensors(model).items() if one.is_floating_point() or one.is_complex()}
    if _sum_up(held.values()):
        return
    for name, tensor in held.items():
        if _sum_up([tensor]):
            continue
        strict = isinstance(tensor, nn.Parameter) or name.endswith(("running_mean", "running_var"))
        wrong = ~tensor.detach().isfinite() if strict else tensor.isnan()
        if wrong.any():
            raise CaptureError(
                f"{name} holds {int(wrong.sum())} numbers that are NaN or infinite, of {tensor.numel()}: the training "
                "that made it has diverged, or the file is damaged; use an earlier checkpoint"
            )


def _sum_up(tensors: Iterable[Tensor]) -> bool:
    """Finite sums have finite terms; they are several times quicker than looking at each of these."""
    sums: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for one in tensors:
        sums.setdefault((one.dtype, one.device), []).append(one.detach().sum())
    return all(bool(torch.stack(found).isfinite().all()) for found in sums.values())


Trial = Callable[[Program], Program]


def run_on_paper(program: Program) -> Program:
    """The trial that asks for nothing more: every graph runs on the meta device. Raises WalkError."""
    for mode, graph in program.graphs():
        try:
            with on_meta(program.module, mode):
                fx.Interpreter(program.module, graph=graph).run(*meta_values(graph, program.inputs))
        except Exception as error:
            raise WalkError(mode, "", error, {}) from error
    return program


def capture(
    model: nn.Module,
    example: Any,
    *,
    record_sources: bool = False,
    compare: bool = False,
    shapes_only: bool = False,
    checked: bool = False,
    trial: Trial = run_on_paper,
) -> Program:
    """Trace `model` into a Program that shares the model's tensors. Parametrised weights become plain ones.

    example         example inputs, see `as_inputs`; only shapes and dtypes of tensors count
    record_sources  keep the user's source line of every node (slower; for `explain`)
    compare         run model and graph once on random numbers; where they differ, torch.export is tried instead
    shapes_only     the model may be on the meta device; the program then holds no numbers
    checked         the model has passed `check_model`
    trial           runs what torch.fx made of the network and returns it, with whatever it found out; a WalkError in
                    eval mode makes torch.export the next to try

    Raises CaptureError when the names are unsafe, the inputs do not fit, or neither torch.fx nor torch.export can
    follow.
    """
    if not checked:
        check_model(model, shapes_only=shapes_only)
    inputs = as_inputs(example)
    with ONE_AT_A_TIME, buffers_kept(model), generators_kept():
        if isinstance(model, ExportedNetwork):
            return _of_exported(model, inputs, trial)
        return _of_module(model, inputs, trial, record_sources, compare)


def _of_module(model: nn.Module, inputs: Inputs, trial: Trial, record_sources: bool, compare: bool) -> Program:
    try:
        model, settled = plain_weights(model)
        skeleton, tensors = skeleton_of(model)
    except Exception as error:
        raise CaptureError(f"{type(model).__name__} cannot be copied: {described(error)}") from error
    try:
        given = bind_arguments(skeleton, inputs.args, inputs.kwargs)
    except TypeError as error:
        raise CaptureError(f"the example inputs do not fit {type(model).__name__}.forward: {error}") from None

    def by_fx(skeleton: nn.Module, tensors: dict[str, Tensor], **how: bool) -> Program:
        program, functions, asked = _by_fx(skeleton, tensors, inputs, given, record_sources=record_sources, **how)
        program = _tried(program, trial)
        if compare:
            return compared(model, program, asked)
        unknown = told(functions, "nobody has compared them with its own backward")
        return _with_note(program, unknown) if functions else program

    try:
        program = by_fx(skeleton, tensors)
    except CaptureError:
        raise
    except Exception as error:
        try:
            program = by_fx(*skeleton_of(model), instances=True)
        except CaptureError:
            raise
        except Exception:
            program = _by_export(model, inputs, error, compare, trial)
    program = replace(program, constants=_constants(program, model), notes=(*program.notes, *gradient_hooks(model)))
    return _with_unused(_with_settled(program, settled), model)


def _of_exported(network: ExportedNetwork, inputs: Inputs, trial: Trial) -> Program:
    """Nothing is traced: the graph is there. It has to run on the inputs, in both modes."""
    try:
        return _tried(exported_program(network, inputs), trial)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"the exported program does not run on the example inputs: {described(error)}") from error


def _by_fx(
    skeleton: nn.Module, tensors: dict[str, Tensor], inputs: Inputs, given: Mapping[str, Any], **how: bool
) -> tuple[Program, set[str], bool]:
    """The program, the names of Functions with a backward of their own that were traced through, and whether code of
    the network's own asks for the mode.
    """
    with autocast_noted() as notes, functions_noted() as functions:
        evaluate, train_graph, asked = trace_modes(skeleton, given, **how)
    module = Skeleton(skeleton, evaluate, class_name=type(skeleton).__name__)
    if train_graph is not None:
        adopt(module, skeleton, train_graph)
    real = real_tensors(module, tensors)
    module.eval()
    return Program(module, real, inputs, train_graph, notes=tuple(notes)), functions, asked


def _tried(program: Program, trial: Trial) -> Program:
    try:
        return trial(program)
    except WalkError as error:
        cause = error.__cause__
        assert isinstance(cause, Exception)
        if error.place[0] == "eval":
            raise cause from cause.__cause__
        if program.dynamic_batch and program.inputs.batch == 1:  # a batch norm has nothing to average over
            with suppress(WalkError):
                twice = "in train mode one example is not enough for the network: the example inputs are taken twice"
                return trial(_with_note(replace(program, inputs=program.inputs.twice()), twice))
        raise CaptureError(
            f"in train mode the network does not run on the example inputs ({described(cause)}): "
            "give inputs that both modes accept"
        ) from cause


def _by_export(model: nn.Module, inputs: Inputs, first_error: Exception, compare: bool, trial: Trial) -> Program:
    if not any(tensor.is_meta for tensor in named_tensors(model).values()):
        check_run(structure_copy(model, cloned), inputs)

    def finished(program: Program) -> Program:
        program = _tried(program, trial)
        return compared(model, program) if compare else program

    try:
        program = export_graph(model, inputs, described(first_error))
        if program.dynamic_batch:
            with suppress(Exception):  # what the network does with other batch sizes may be something else
                return finished(program)
            program = export_graph(model, inputs, described(first_error), fixed=True)
        return finished(program)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be captured. torch.fx: {described(first_error)}. "
            f"torch.export: {described(error)}. Check the example inputs; control flow on values is not supported, but "
            "a part of the network that has none can be compiled by itself (submodule=, --submodule NAME)"
        ) from error


def _with_note(program: Program, note: str) -> Program:
    return replace(program, notes=(*program.notes, note)) if note else program


def _with_settled(program: Program, names: tuple[str, ...]) -> Program:
    """Note weights that the model computes and the compiled network holds as they are."""
    if not names:
        return program
    what = counted(len(names), "tensor")
    note = f"{what} that the network computes at each call, plain weights now: {', '.join(names[:5])}"
    return replace(program, notes=(*program.notes, note))


def _constants(program: Program, model: nn.Module) -> tuple[str, ...]:
    """Tensors of the program that a state dict of the model leaves out: made in forward, or not persistent."""
    kept = {
        f"{path}.{name}" if path else name
        for path, part in model.named_modules(remove_duplicate=False)
        for name in (*part._parameters, *part._buffers)
        if name in part._parameters or name not in part._non_persistent_buffers_set
    }
    return tuple(name for name in program.tensors if name not in kept)


def _with_unused(program: Program, model: nn.Module) -> Program:
    """Note parameters of the model that no forward pass reads; they are not part of the compiled network."""
    used = {id(one) for one in program.tensors.values()}
    if used.issuperset(map(id, named_tensors(model).values())):
        return program
    unused = [name for name, _ in model.named_parameters() if name not in program.tensors]
    if not unused:
        return program
    what = counted(len(unused), "parameter")
    note = f"{what} left out, never read by forward: {', '.join(unused[:5])}"
    return replace(program, notes=(*program.notes, note))
