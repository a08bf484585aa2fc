"""Recipe: what was decided, in the user's own names, and how to do it again to another copy of the network."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import from_json
from torch import Tensor, nn

from fxprune.capture.plain import plain_weights
from fxprune.channels.leaves import follow_shapes
from fxprune.errors import LoadError, RewriteError
from fxprune.example import rebuilt
from fxprune.program import named_tensors
from fxprune.same_code import other_code
from fxprune.states import masked_weights, plain_names

FORMAT = "fxprune-recipe"
VERSION = 1
LONGEST = 256 << 20  # bytes of a recipe.json; that of ResNet-50 has half a million
_Number = Literal["groups", "num_groups", "num_channels", "normalized_shape", "unflattened_size", "padding"]
NUMBERS: tuple[str, ...] = get_args(_Number)  # attributes of leaf modules that shapes do not tell
_Artefact = Literal["model.onnx", "model.py", "model.safetensors"]


class Recipe(BaseModel):
    """Decisions of one compilation. Plain data: reading one runs nothing.

    kept            parameter or buffer name -> dimension -> surviving original indices, for everything that lost
                    channels
    kept_per_group  the same for grouped convolutions whose conv groups lost different positions: one list a conv group
    numbers         module name -> attribute -> value, for numbers that cannot be read off the shapes (groups,
                    num_groups)
    shapes          name -> shape in the dense network, of everything in `kept` and `kept_per_group`
    indices         index buffer -> its new values in order, which count among the survivors
    patched         graph nodes whose source holds a width; with any of them `apply` cannot work on the user's own class
    folded          weights that the network standardises: it would do so again with what is left of them, so `apply`
                    cannot work on the user's own class either
    masks           masked weight -> number of weights that are not masked
    constants       tensors of the compiled network that the user's state dict does not have
    inputs          the example inputs, see `fxprune.example`
    dynamic_batch   whether other batch sizes than theirs may be tried
    options         what was asked: sparsity or keep_rate, criterion, policy, coupling, seed, ...
    versions        of fxprune and torch
    files           artefact -> SHA-256 of its bytes
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["fxprune-recipe"] = "fxprune-recipe"
    version: Literal[1] = 1
    kept: dict[str, dict[int, list[int]]]
    kept_per_group: dict[str, dict[int, list[list[int]]]]
    numbers: dict[str, dict[_Number, int | list[int] | str]]
    shapes: dict[str, list[int]]
    indices: dict[str, list[int]]
    patched: tuple[str, ...]
    folded: tuple[str, ...] = ()
    masks: dict[str, int] = Field(default_factory=dict)
    constants: tuple[str, ...] = ()
    inputs: JsonValue = None
    dynamic_batch: bool = True
    options: dict[str, Any]
    versions: dict[str, str]
    files: dict[_Artefact, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _indices_fit_shapes(self) -> Self:
        for name, dims in self.kept.items():
            for dim, kept in dims.items():
                _check_rising(name, dim, kept, self._size(name, dim))
        for name, grouped in self.kept_per_group.items():
            for dim, columns in grouped.items():
                if dim != 1 or not columns or len({len(one) for one in columns}) != 1:
                    raise ValueError(f"{name} keeps something else than equally many columns in each conv group")
                for kept in columns:
                    _check_rising(name, dim, kept, self._size(name, dim))
                rows = len(self.kept.get(name, {}).get(0, range(self.shapes[name][0])))
                if rows % len(columns):
                    raise ValueError(f"{name} keeps {rows} rows, which {len(columns)} conv groups cannot share")
        return self

    def _size(self, name: str, dim: int) -> int:
        shape = self.shapes.get(name, [])
        if not 0 <= dim < len(shape):
            raise ValueError(f"{name} has no dimension {dim}")
        return shape[dim]

    # ---- using it

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the user's own network with the same channels removed; weights that survive are kept, masks are
        not applied, parametrised weights become plain ones.

        Works where the network's forward holds no width in its source, and computes no number from one: the compiled
        network keeps such numbers. Raises RewriteError where it does, and when names or sizes do not fit.
        """
        if self.patched:
            raise RewriteError(
                f"the source of {type(model).__name__} holds widths that would have to change "
                f"(at {', '.join(self.patched[:5])}): use the compiled module, in which they are patched"
            )
        self._check_not_folded(type(model).__name__)
        model, _ = plain_weights(model)
        tensors = named_tensors(model)
        self._check_dense(self.shapes, tensors, type(model).__name__)
        memo: dict[int, Any] = {}
        for name, tensor in tensors.items():
            if id(tensor) not in memo:
                memo[id(tensor)] = _like(tensor, self._cut(name, tensor.detach()))
        small = copy.deepcopy(model, memo)
        self._set_numbers(small)
        for module in small.modules():
            follow_shapes(module)
        self._check_code(model, small)
        return small

    def _check_code(self, dense: nn.Module, small: nn.Module) -> None:
        try:
            inputs = rebuilt(self.inputs, "the recipe")
        except LoadError:  # arguments of a kind that plain data cannot tell
            return
        fault = other_code(dense, small, inputs)
        if fault:
            raise RewriteError(
                f"with fewer channels the source of {type(dense).__name__} {fault}: use the compiled module, in which "
                "all numbers are kept"
            )

    def expand(self, small_state: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The dense network's state with the numbers of a trained compiled network in their original places.

        small_state  state of the compiled network: of `Compiled.module`, of the network in model.py, or of
                     `recipe.apply(model)`. A masked weight is a zero and is put back as one
        into         state dict of the dense network; it is not changed

        Returns a new dict with the names of `into`, in its types and on its devices. What was removed keeps the values
        that it has in `into`, and so does everything that `small_state` does not name. Raises RewriteError when names
        or shapes do not fit.
        """
        self._check_not_folded("the dense network")
        self._check_dense([name for name in self.shapes if name not in self.constants], into, "the dense state")
        small = masked_weights(plain_names(small_state), self.masks)
        missing = [name for name in self.shapes if name not in small]
        if missing:
            raise RewriteError(f"the trained state lacks {missing[0]}")
        masks = {f"{name}_mask" for name in self.masks if name in small}
        expanded = {name: tensor.detach().clone() for name, tensor in into.items()}
        for name, tensor in small.items():
            if name in self.indices or name in self.constants or (name in masks and name not in into):
                continue
            if name not in into:
                raise RewriteError(f"the dense state does not have {name}")
            self._place(name, tensor.detach(), expanded)
        return expanded

    def _check_not_folded(self, owner: str) -> None:
        if self.folded:
            raise RewriteError(
                f"{owner} computes statistics over its own weights (over {self.folded[0]}), which change when channels "
                "go: use the compiled module, in which they are folded into the weights"
            )

    def _check_dense(self, names: Iterable[str], tensors: Mapping[str, Tensor], owner: str) -> None:
        """These, which lost channels, are there in the dense shape."""
        for name in names:
            if name not in tensors:
                raise RewriteError(f"the recipe cuts {name}, which {owner} does not have")
            found, shape = tuple(tensors[name].shape), self.shapes[name]
            if found != tuple(shape):
                raise RewriteError(f"{name} has shape {found}; the recipe was made for {tuple(shape)}")

    def _place(self, name: str, tensor: Tensor, expanded: dict[str, Tensor]) -> None:
        dense, places = expanded[name], self._places(name)
        wanted = tuple(dense.shape) if places is None else self.small_shape(name)
        if tuple(tensor.shape) != wanted:
            raise RewriteError(f"{name} has shape {tuple(tensor.shape)}; the recipe leaves {wanted} of it")
        if places is None:
            dense.copy_(tensor)
        else:
            dense[tuple(one.to(dense.device) for one in places)] = tensor.to(dense.device, dense.dtype)

    def small_shape(self, name: str) -> tuple[int, ...]:
        """The shape that is left of a tensor that lost channels."""
        return tuple(torch.broadcast_shapes(*(one.shape for one in self._places(name) or ())))

    def _places(self, name: str) -> tuple[Tensor, ...] | None:
        """For each dimension the positions that survive, in shapes that broadcast to that of the small tensor. None
        where all do.
        """
        kept, grouped = self.kept.get(name, {}), self.kept_per_group.get(name, {})
        if not kept and not grouped:
            return None
        shape = self.shapes[name]
        places = []
        for dim, size in enumerate(shape):
            if dim in grouped:
                columns = torch.tensor(grouped[dim])
                rows = columns.repeat_interleave(len(kept.get(0, range(shape[0]))) // len(columns), dim=0)
                places.append(rows.reshape(*rows.shape, *[1] * (len(shape) - 2)))
                continue
            found = torch.tensor(kept[dim]) if dim in kept else torch.arange(size)
            places.append(found.reshape([-1 if one == dim else 1 for one in range(len(shape))]))
        return tuple(places)

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        places = self._places(name)
        try:
            if places is not None:
                tensor = tensor[tuple(one.to(tensor.device) for one in places)]
            if name in self.indices:
                return torch.tensor(self.indices[name], dtype=tensor.dtype).reshape(tensor.shape)
        except (IndexError, RuntimeError) as error:
            raise RewriteError(
                f"{name} has shape {tuple(tensor.shape)}, which the recipe does not fit: {error}"
            ) from None
        return tensor.clone()

    def _set_numbers(self, small: nn.Module) -> None:
        for path, attributes in self.numbers.items():
            try:
                module = small.get_submodule(path)
            except AttributeError:
                raise RewriteError(f"the recipe changes {path}, which {type(small).__name__} does not have") from None
            for attribute, value in attributes.items():
                setattr(module, attribute, tuple(value) if isinstance(value, list) else value)

    # ---- as text

    def with_files(self, files: Mapping[str, str]) -> Recipe:
        """The same with these hashes: artefact -> SHA-256."""
        return self.model_copy(update={"files": dict(files)})

    def to_json(self) -> str:
        """The recipe as text; equal recipes give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, file: str = "the recipe") -> Recipe:
        """Read what `to_json` wrote. `file` is what to call it in messages.

        Raises LoadError for anything that is no recipe, is damaged, or comes from a newer fxprune.
        """
        if len(text) > LONGEST:
            raise LoadError(f"{file} is no recipe: it has {len(text):,} bytes")
        try:
            found = cls.model_validate_json(text)
        except ValidationError as error:
            raise LoadError(f"{file} {_complaint(text, error)}") from None
        if not {"format", "version"} <= found.model_fields_set:
            raise LoadError(f"{file} is not a recipe that fxprune wrote")
        return found


def _check_rising(name: str, dim: int, kept: Iterable[int], size: int) -> None:
    """Positions below `size`, each once, in order."""
    last = -1
    for place in kept:
        if not last < place < size:
            raise ValueError(f"{name} keeps position {place} of dimension {dim}, which has {size}")
        last = place


def _complaint(text: str | bytes, error: ValidationError) -> str:
    """The rest of a sentence about a text that is no recipe."""
    try:
        found = from_json(text)
    except ValueError:
        return "is damaged or no JSON"
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return "is not a recipe that fxprune wrote"
    version = found.get("version")
    if isinstance(version, int) and version > VERSION:
        return f"has version {version}, and this fxprune reads up to {VERSION}: install a newer fxprune"
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return f"is damaged: {f'{place}: ' if place else ''}{reason}"[:500]


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
