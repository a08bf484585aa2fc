"""Weights in a file: where they are in a checkpoint, and whether they fit a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import LoadError

State = dict[str, Tensor]
# Where training scripts keep the weights, best first: what is averaged or trained beside them comes after.
_PLACES = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
)
_LISTED = 3  # keys of one kind in a message


def find_network(checkpoint: object) -> tuple[nn.Module | None, str]:
    """(the network in a checkpoint such as {"epoch": 3, "model": network}, a note); None when there is none."""
    found = {key: value for key, value in _places(checkpoint) if isinstance(value, nn.Module)}
    if not found:
        return None, ""
    key = next(iter(found))
    return found[key], f"the network was taken from {key!r} of the checkpoint"


def find_state(checkpoint: object, file: str) -> tuple[State, tuple[str, ...]]:
    """The weights by name, and notes saying where they were in the file. Raises LoadError when there are none."""
    notes = []
    if not isinstance(checkpoint, Mapping):
        raise LoadError(f"{file} holds a {type(checkpoint).__name__}, not weights")
    state = _tensors(checkpoint)
    if not state:
        inside = {key: _tensors(value) for key, value in _places(checkpoint)}
        key = next((key for key, tensors in inside.items() if tensors), None)
        if key is None:
            raise LoadError(f"{file} holds no weights: {_keys(checkpoint)}")
        state = inside[key]
        notes.append(f"weights were taken from {key!r} of the checkpoint")
    return state, tuple(notes)


def _places(checkpoint: object) -> Iterator[tuple[str, Any]]:
    """What stands in the usual places first, then everything else that has a name."""
    if not isinstance(checkpoint, Mapping):
        return
    yield from ((key, checkpoint[key]) for key in _PLACES if key in checkpoint)
    yield from ((key, value) for key, value in checkpoint.items() if isinstance(key, str) and key not in _PLACES)


def _tensors(value: object) -> State:
    """The tensors of a state dict; nothing for anything else, such as the state of an optimiser."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return {}
    return {key: one for key, one in value.items() if isinstance(one, Tensor)}


def _keys(checkpoint: Mapping[Any, Any]) -> str:
    if not checkpoint:
        return "it is an empty dictionary"
    return f"its keys are {', '.join(repr(key) for key in list(checkpoint)[:_LISTED])}"


def without_wrappers(state: State, own: Mapping[str, Tensor]) -> tuple[State, tuple[str, ...]]:
    """Take off the names that wrappers put before the network's own, as `module.` (DataParallel, averaging),
    `_orig_mod.` (torch.compile) or `model.` (Lightning).

    own  the network's state: a first name that is its own is no wrapper
    """
    notes = []
    if any("._orig_mod." in f".{name}" for name in state) and not any("_orig_mod" in name for name in own):
        state = {f".{name}".replace("._orig_mod.", ".").removeprefix("."): one for name, one in state.items()}
        notes.append("'_orig_mod.', which torch.compile puts into names, was taken off")
    state = {name: one for name, one in state.items() if name != "n_averaged" or name in own}
    outermost = {name.partition(".")[0] for name in own}
    while len(firsts := {name.partition(".")[0] for name in state}) == 1:
        first = firsts.pop()
        if first in outermost or not all("." in name for name in state):
            break
        state = {name.partition(".")[2]: one for name, one in state.items()}
        notes.append(f"{first + '.'!r}, which all names began with, was taken off")
    return state, tuple(notes)


@dataclass(frozen=True)
class Misfit:
    """How weights differ from what a network asks for. `shapes` holds (in the file, in the network)."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: Mapping[str, tuple[torch.Size, torch.Size]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def classes(self) -> int | None:
        """The number of classes that would make everything fit: the new length of dimension 0 where only that
        differs, and by the same everywhere. None when it is not as simple as that.
        """
        if self.missing or self.unexpected or not self.shapes:
            return None
        lengths = {(file[:1], own[:1]) for file, own in self.shapes.values() if file[1:] == own[1:] and file}
        others = [1 for file, own in self.shapes.values() if file[1:] != own[1:] or not file]
        return next(iter(lengths))[0][0] if len(lengths) == 1 and not others else None

    def __str__(self) -> str:
        parts = [
            _listed(self.missing, "are missing from the file"),
            _listed(self.unexpected, "are unknown to the network"),
            _listed(
                [f"{name}: {_shape(file)} in the file, {_shape(own)} in the network"
                 for name, (file, own) in self.shapes.items()],
                "have another shape",
            ),
        ]  # fmt: skip
        return "; ".join(part for part in parts if part)


def _listed(names: tuple[str, ...] | list[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {what} ({', '.join(names[:_LISTED])}{more})"


def _shape(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "one number"


def compare(state: State, own: Mapping[str, Tensor]) -> Misfit:
    """Where the weights do not fit. Counters of batch norms may be missing: files of old versions have none."""
    missing = tuple(name for name in own if name not in state and not name.endswith("num_batches_tracked"))
    unexpected = tuple(name for name in state if name not in own)
    shared = {name: (one.shape, own[name].shape) for name, one in state.items() if name in own}
    return Misfit(missing, unexpected, {name: both for name, both in shared.items() if both[0] != both[1]})


def put_in(state: State, module: nn.Module, file: str) -> tuple[str, ...]:
    """Copy weights that fit into the network, which keeps its own types; notes say which were converted.

    Raises LoadError for weights that are no numbers of the right kind, such as quantised ones or shapes alone.
    """
    own = module.state_dict()
    for name, one in state.items():
        plain = one.layout == torch.strided and not (one.is_quantized or one.is_meta)
        if not plain or one.is_floating_point() != own[name].is_floating_point():
            raise LoadError(f"{file} holds {name} as {_kind(one)}, the network needs {_kind(own[name])}")
    module.load_state_dict(state, strict=False)
    kinds = {(one.dtype, own[name].dtype) for name, one in state.items() if one.is_floating_point()}
    return tuple(
        f"weights are {_kind_of(file_type)} in the file and were converted to the network's {_kind_of(own_type)}"
        for file_type, own_type in sorted(kinds, key=str)
        if file_type != own_type
    )


def _kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return f"{_kind_of(tensor.dtype)} without its numbers (on the meta device)"
    layout = "" if tensor.layout == torch.strided else f" ({str(tensor.layout).removeprefix('torch.')})"
    return f"{_kind_of(tensor.dtype)}{layout}"


def _kind_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
