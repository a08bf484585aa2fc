"""Example inputs: read from the command line, or guessed from the network's first convolution."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from fxprune.capture.exported import ExportedNetwork
from fxprune.containers import check_result, know
from fxprune.errors import CaptureError, OptionError, described
from fxprune.example import LARGEST
from fxprune.program import Inputs, skeleton_of
from fxprune.quiet import quiet

BATCH = 2  # a batch of one would hide every mistake that broadcasting forgives
SIZES = (224, 32, 28, 64, 299)
_INPUT = re.compile(r"(?:(?P<name>[^\W\d]\w*)=)?(?P<shape>[0-9]+(?:x[0-9]+)*)(?::(?P<dtype>\w+))?")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    + (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
}


def parse_inputs(texts: Sequence[str], device: str = "meta") -> Inputs:
    """Read `[name=]1x3x224x224[:dtype]`, one text an argument: positional without a name, in the order given.

    The tensors are zeros on `device`; the dtype is float32 unless given. Raises OptionError, naming the text, when one
    cannot be read, has a dimension of 0 or too many elements, or repeats a name.
    """
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for text in texts:
        name, tensor = _parse(text, device)
        if name in kwargs:
            raise OptionError(f"--input {text!r}: {name} is given twice")
        if name is None:
            args.append(tensor)
        else:
            kwargs[name] = tensor
    return Inputs(tuple(args), kwargs)


def _parse(text: str, device: str) -> tuple[str | None, Tensor]:
    found = _INPUT.fullmatch(text.strip())
    if not found:
        raise OptionError(f"--input {text!r} is not of the form [name=]1x3x224x224[:dtype]")
    shape = [int(size) for size in found["shape"].split("x")]
    if 0 in shape:
        raise OptionError(f"--input {text!r}: every dimension is at least 1")
    if math.prod(shape) > LARGEST:
        raise OptionError(f"--input {text!r} has more than {LARGEST:,} elements: give a smaller shape")
    dtype = found["dtype"] or "float32"
    if dtype not in _DTYPES:
        raise OptionError(f"--input {text!r}: {dtype} is none of {', '.join(_DTYPES)}")
    return found["name"], torch.zeros(shape, dtype=_DTYPES[dtype], device=device)


def first_convolution(model: nn.Module) -> tuple[str, _ConvNd] | None:
    """Qualified name and module of the convolution registered first, of any kind; None when there is none."""
    return next(((name, module) for name, module in model.named_modules() if isinstance(module, _ConvNd)), None)


def guesses(model: nn.Module, hint: tuple[int, ...] | None) -> dict[tuple[int, ...], str]:
    """Input shapes worth trying -> where each comes from; best first, with a batch of 2.

    hint  the shape the network was made for, batch first, where its source knows it

    After the hint comes the size in the network's own `pretrained_cfg` or `default_cfg` (timm), then 224, 32, 28, 64
    and 299 along each spatial dimension of the first convolution. Empty when there is none of the three.
    """
    found: dict[tuple[int, ...], str] = {}
    for shape, source in _candidates(model, hint):
        found.setdefault(shape, source)
    return found


def choose_inputs(
    model: nn.Module,
    hint: tuple[int, ...] | None,
    try_forward: Callable[[nn.Module, Inputs], object] | None = None,
) -> tuple[Inputs, str]:
    """The first guess that the network's forward accepts, as meta tensors, and a sentence saying how it was chosen.

    model        the network with its parameters and buffers on the meta device; left in the mode it was in
    try_forward  runs the network on inputs and raises when they do not fit; `run_on_meta` unless given

    Raises CaptureError, asking for --input, with what was tried and the last reason for refusal.
    """
    tried: list[str] = []
    reason = "it has no convolution that knows its input channels"
    for shape, source in guesses(model, hint).items():
        inputs = Inputs((torch.zeros(shape, dtype=_dtype(model), device="meta"),))
        try:
            (try_forward or run_on_meta)(model, inputs)
        except Exception as error:  # a forward that does not fit can fail in any way
            tried.append(_text(shape))
            reason = described(error)
            continue
        return inputs, f"input {_text(shape)} chosen: {source}"
    what = f"none of {', '.join(tried)} runs" if tried else "no input can be guessed for the network"
    raise CaptureError(f"{what} ({reason}): give the shape with --input, as in --input 1x3x224x224")


def inputs_for(model: nn.Module, hint: tuple[int, ...] | None = None) -> tuple[Inputs, str]:
    """Inputs that a network runs on, and a sentence saying where they are from: those it was exported with, or a guess
    as `choose_inputs` makes it, on the meta device. Raises CaptureError.
    """
    if isinstance(model, ExportedNetwork):
        shapes = [_text(tuple(one.shape)) for one in tree_leaves(model.inputs.args) if isinstance(one, Tensor)]
        return model.inputs, f"input {', '.join(shapes)} chosen: the network was exported with it"
    skeleton, _ = skeleton_of(model)
    return choose_inputs(skeleton, hint)


def check_run(model: nn.Module, inputs: Inputs) -> None:
    """Run the network once, in eval mode, on the example inputs. Raises CaptureError that says what they do not fit.

    model  a copy that nobody else uses, with numbers: its buffers may be written to
    """
    real = inputs.with_storage()
    model.eval()  # one that is overridden may return nothing
    try:
        with torch.no_grad(), quiet():
            result = model(*real.args, **real.kwargs)
    except Exception as error:
        shapes = [
            _text(tuple(one.shape)) for one in tree_leaves((real.args, dict(real.kwargs))) if isinstance(one, Tensor)
        ]
        first = first_convolution(model)
        hint = f"; its first convolution, {first[0]}, takes {first[1].in_channels} channels" if first else ""
        raise CaptureError(
            f"{type(model).__name__} does not run on the example input {', '.join(shapes) or '(none)'}: "
            f"{described(error)}{hint}. Give inputs that it takes (--input)"
        ) from error
    know(result)
    try:
        check_result(result)
    except TypeError as error:
        raise CaptureError(f"{type(model).__name__} cannot be compiled: {error}") from error


def run_on_meta(model: nn.Module, inputs: Inputs) -> Any:
    """One forward in eval mode without gradients; every module is put back into the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            return model(*inputs.args, **inputs.kwargs)
    finally:
        for module in training:
            module.training = True


def _candidates(model: nn.Module, hint: tuple[int, ...] | None) -> Iterator[tuple[tuple[int, ...], str]]:
    """(shape, where it comes from), best first."""
    if hint:
        yield (BATCH, *hint[1:]), "the network was made for it"
    own = _configured(model)
    if own:
        yield (BATCH, *own), "the network's own configuration names it"
    first = first_convolution(model)
    if first is None or first[1].in_channels == 0:  # a lazy convolution does not know its channels yet
        return
    name, conv = first
    rank = len(conv.kernel_size)
    if own and len(own) == rank + 1:
        yield (BATCH, conv.in_channels, *own[1:]), f"channels from {name}, size from the network's own configuration"
    for size in SIZES:
        yield (BATCH, conv.in_channels, *[size] * rank), f"channels from {name}, the first of the usual sizes that runs"


def _configured(model: nn.Module) -> tuple[int, ...] | None:
    """(channels, height, width) from a timm configuration; None without one or when it makes no sense."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
        if isinstance(size, Sequence) and size and all(isinstance(one, int) and one > 0 for one in size):
            return tuple(size)
    return None


def _dtype(model: nn.Module) -> torch.dtype:
    first = first_convolution(model)
    return first[1].weight.dtype if first else torch.float32


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
