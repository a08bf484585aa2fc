"""What criteria that look at gradients share: a copy of the network to try things on, and batches to try it with."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxprune.emit.module import build_module
from fxprune.errors import OptionError, first_line
from fxprune.program import Program

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Data:
    """Batches of (inputs, labels), as a DataLoader gives them, and the loss of (outputs, labels).

    inputs   a tensor, or a tuple of positional arguments
    loss     mean over the batch; cross entropy where none is given. Of a network that returns several things (auxiliary
             heads) it sees all of them; without one given, the first
    name     for recipe.json
    """

    batches: Iterable[tuple[Any, Any]]
    loss: Loss | None = None
    name: str | None = None

    def take(self, count: int, criterion: str) -> list[tuple[tuple[Any, ...], Any]]:
        """The first `count` batches. Raises OptionError when there are fewer."""
        found = []
        for batch in self.batches:
            if not isinstance(batch, list | tuple) or len(batch) != 2:
                raise OptionError("data must give (inputs, labels) pairs, as a DataLoader over a labelled set does")
            inputs, labels = batch
            found.append((tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,), labels))
            if len(found) == count:
                return found
        raise OptionError(
            f"{criterion} needs {count} batches of data, {len(found)} were given: give more data, or smaller batches"
        )

    def loss_of(self, outputs: Any, labels: Any) -> Tensor:
        if self.loss is not None:
            return self.loss(outputs, labels)
        scores = first_tensor(outputs)
        try:
            return F.cross_entropy(scores, labels)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise OptionError(
                f"cross entropy cannot take these labels for outputs of shape {tuple(scores.shape)} "
                f"({first_line(error)}): give labels that fit, or a loss of your own with the data"
            ) from error


def as_data(given: Data | Iterable[tuple[Any, Any]] | None) -> Data | None:
    """Batches as Data."""
    return given if given is None or isinstance(given, Data) else Data(given)


def first_tensor(outputs: Any) -> Tensor:
    """The first tensor among a network's outputs."""
    return next(one for one in pytree.tree_leaves(outputs) if isinstance(one, Tensor))


def cooled(outputs: Any, temperature: float) -> Any:
    """All outputs divided by `temperature`."""
    return pytree.tree_map(lambda one: one / temperature if isinstance(one, Tensor) else one, outputs)


def needed(data: Data | None, criterion: str) -> Data:
    """Raise OptionError unless there are data."""
    if data is None:
        raise OptionError(
            f"{criterion} looks at gradients and needs labelled data: give data=loader (in Python), or --data with a "
            "folder of pictures, an .npz file, digits, or synthetic"
        )
    return data


def trial_network(program: Program, *, training: bool, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of the program's network with its own numbers, on which gradients may be taken."""
    network = build_module(program).train(training)
    network.requires_grad_(True)
    return network if dtype is None else network.to(dtype)


def weights_of(network: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The weights of these names, in order."""
    return {name: network.get_parameter(name) for name in names}


def slopes_of(loss: Tensor, weights: Mapping[str, Tensor], *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """dloss/dweight of each. Raises OptionError naming those that the loss does not reach: a score of 0 would mask an
    auxiliary head away for no better reason than that the loss left it out.
    """
    found = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph, allow_unused=True)
    missed = [name for name, slope in zip(weights, found, strict=True) if slope is None]
    if missed:
        more = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
        raise OptionError(
            f"the loss does not reach {', '.join(missed[:3])}{more}: give a loss of all that the network returns with "
            "the data, or leave these layers out with ignore"
        )
    return found


@contextmanager
def same_draws(seed: int) -> Iterator[None]:
    """Dropout and the like draw from the seed, and leave the caller's generator alone."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        yield


class ScoresOnce:
    """Scores that are worked out at the first call and kept; a criterion's `scores` may be asked several times."""

    def __init__(self) -> None:
        self._of: Callable[[], Program | None] = lambda: None  # a reference that does not keep the program's tensors
        self._found: Mapping[str, Tensor] = {}

    def get(self, program: Program, work: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        if self._of() is not program:
            self._of, self._found = weakref.ref(program), work()
        return self._found
