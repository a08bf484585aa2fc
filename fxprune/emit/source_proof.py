"""Proof of a model.py: its text is run, given the numbers, and compared with the compiled module in both modes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.compare import difference, random_inputs
from fxprune.copying import copied
from fxprune.emit.module import plain_state
from fxprune.emit.source import Source
from fxprune.emit.source_check import check_source
from fxprune.emit.source_run import network_from
from fxprune.emit.source_text import SourceError
from fxprune.errors import FxpruneError, UntrustedError, described
from fxprune.program import Inputs

_SAME = 1e-6  # the same calls in the same order: any difference at all is noted, a larger one is a mistake


@dataclass(frozen=True)
class ProvedSource:
    """A model.py and what was found when it ran.

    difference  largest max|a - b| / max|a| of any output in eval mode; in train mode of any output, and of any buffer
                afterwards (None where the network does not run in train mode on the example inputs)
    notes       what a reader of the report should know
    """

    source: Source
    difference: float
    train_difference: float | None
    notes: tuple[str, ...] = ()


def prove_source(source: Source, module: nn.Module, inputs: Inputs) -> ProvedSource:
    """Compare the network that the text makes with `module`, on random numbers and equal draws; changes neither.

    Raises SourceError when the text does not run or computes something else.
    """
    try:
        network = network_from(source.text, _state(module), "model.py", trust=True)
    except FxpruneError as error:
        raise SourceError(str(error)) from error
    reference = copied(module, {id(one): one for one in module.parameters()})
    sample = random_inputs(inputs.with_storage(), 0)
    evaluated = _gap(_run(reference, sample, False), _ours(network, sample, False))
    trained, notes = _compare_training(reference, network, sample)
    for mode, gap in (("eval", evaluated), ("train", trained or 0.0)):
        if not gap <= _SAME:
            raise SourceError(f"in {mode} mode the written source differs from the network by {gap:.1e}")
        if gap:
            notes += (f"in {mode} mode model.py differs from the network by {gap:.1e}",)
    return ProvedSource(source, evaluated, trained, notes + _untrusted(source))


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters as they are; copies of buffers, which training writes into."""
    buffers = dict(module.named_buffers())
    return {name: one.clone() if name in buffers else one for name, one in plain_state(module).items()}


def _compare_training(reference: nn.Module, network: nn.Module, sample: Inputs) -> tuple[float | None, tuple[str, ...]]:
    try:
        expected = _run(reference, sample, True)
    except Exception as error:  # a batch of one, for instance
        return None, (f"model.py was not compared in train mode: {described(error)}",)
    found = _ours(network, sample, True)
    theirs, ours = dict(reference.named_buffers()), dict(network.named_buffers())
    names = sorted(theirs.keys() & ours.keys())
    return max(_gap(expected, found), _gap([theirs[name] for name in names], [ours[name] for name in names])), ()


def _gap(expected: list[Tensor], found: list[Tensor]) -> float:
    return difference(expected, found) if len(expected) == len(found) else math.inf


def _ours(network: nn.Module, sample: Inputs, train: bool) -> list[Tensor]:
    try:
        return _run(network, sample, train)
    except Exception as error:
        raise SourceError(f"the written source does not run: {described(error)}") from error


def _run(module: nn.Module, sample: Inputs, train: bool) -> list[Tensor]:
    """The tensors of the outputs, on copies of the inputs: a network may write into what it is given."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (sample.args, dict(sample.kwargs)))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        outputs = module.train(train)(*args, **kwargs)
    return [one for one in pytree.tree_leaves(outputs) if isinstance(one, Tensor)]


def _untrusted(source: Source) -> tuple[str, ...]:
    """Whether `fxprune.load` will take the file as it is."""
    if source.packages:
        packages = ", ".join(source.packages)
        return (f"model.py imports {packages}: fxprune.load runs it only with trust=True (--trust)",)
    try:
        check_source(source.text, "model.py")
    except UntrustedError as error:
        return (f"fxprune.load runs model.py only with trust=True (--trust): {error}",)
    return ()
