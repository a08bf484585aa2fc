"""What a rule may say. One `Context` lives as long as one analysis; rules call it and never touch each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxprune.channels.atoms import Atoms
from fxprune.channels.layers import Labels, along, pad_left, varying
from fxprune.channels.records import CallKey, Claim, Contraction, Normalisation, Producer, Scale

if TYPE_CHECKING:
    from fxprune.channels.rules.convolution import Kernel


@dataclass
class Context:
    """The state of one analysis: labels of live tensors, and everything the rules have recorded."""

    values: Mapping[str, Tensor]
    approximate: str = "cut"
    forced: Mapping[tuple[str, str], str] = field(default_factory=dict)
    atoms: Atoms = field(default_factory=Atoms)
    parameter_labels: dict[str, Labels] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    normalisations: list[Normalisation] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    producers: list[Producer] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)  # id of a skeleton tensor -> its qualified name
    readings: dict[tuple[str, str], str] = field(default_factory=dict)  # (mode, node) -> "crossed" or "whole groups"
    flops: int = 0
    flops_at: dict[str, int] = field(default_factory=dict)  # node of the eval graph -> its own
    parameters: set[str] = field(default_factory=set)  # names of parameters; a buffer makes no channels of its own
    kernels: dict[tuple[int, int], Kernel] = field(default_factory=dict)  # by id of a parameter and its conv groups
    numbers_used: set[str] = field(
        default_factory=set
    )  # index tensors whose values are used for more than picking channels
    opaque: dict[str, int] = field(default_factory=dict)  # parameters of opaque modules -> site
    mode: str = "eval"
    node: str = ""
    operator: str = ""
    key: CallKey | None = None
    opaque_node: str = ""
    _labels: dict[int, tuple[Tensor, Labels]] = field(default_factory=dict)

    # -- labels of tensors ------------------------------------------------------------------------------------------

    def of(self, tensor: Tensor) -> Labels:
        """Labels of a tensor; a parameter that no rule has seen yet gets fresh atoms along every dimension > 1."""
        held = self._labels.get(id(tensor))
        if held is not None:
            return held[1]
        name = self.names.get(id(tensor))
        if name is None:
            return Labels(tuple(tensor.shape))
        return self._begin(name, tensor)

    def untouched(self, tensor: Tensor) -> str | None:
        """The name of a parameter that no rule has given labels to so far, else None."""
        name = self.names.get(id(tensor))
        return None if name is None or name in self.parameter_labels or name in self.opaque else name

    def is_parameter(self, labels: Labels) -> bool:
        """Whether these are the labels that a parameter began with."""
        return labels.source is not None and self.parameter_labels.get(labels.source) is labels

    def begin_with(self, tensor: Tensor, name: str, layers: tuple[Tensor, ...]) -> Labels:
        """Give a parameter its first labels (grouped convolutions lay them out in their own way)."""
        labels = Labels(tuple(tensor.shape), layers, name)
        self.parameter_labels[name] = labels
        self._labels[id(tensor)] = (tensor, labels)
        return labels

    def _begin(self, name: str, tensor: Tensor) -> Labels:
        if name in self.parameter_labels:  # the same parameter in the other graph
            return self.parameter_labels[name]
        if name in self.opaque:
            return Labels(tuple(tensor.shape), (), name)
        sizes = [(dim, size) for dim, size in enumerate(tensor.shape) if size > 1]
        layers = [along(self.atoms.fresh(name, dim, size), dim, tensor.ndim) for dim, size in sizes]
        return self.begin_with(tensor, name, tuple(layers))

    def label(
        self, tensor: Tensor, layers: Iterable[Tensor], source: str | None = None, *, piece: bool = False
    ) -> None:
        """Attach labels to a result. A layer of a single atom would remove the whole tensor: its atom is frozen.

        piece   the result is a part of another tensor, and must not lose all its channels
        """
        kept = []
        for layer in self._without_mixed_constants(list(layers)):
            wide = varying(layer)
            if not wide:
                self.freeze(layer, "its last remaining channel is used by itself")
                continue
            if len(wide) > 1:
                self.atoms.keep_rectangular(layer, self.site())
            kept.append(layer)
            if piece:
                self.atoms.least.append((layer.reshape(-1), 1))
        self._labels[id(tensor)] = (tensor, Labels(tuple(tensor.shape), tuple(kept), source))

    def _without_mixed_constants(self, layers: list[Tensor]) -> list[Tensor]:
        """A constant's atoms give way where they share a dimension with channels (a token copied along a sequence)."""
        if len(layers) < 2:
            return layers
        constant = [layer for layer in layers if varying(layer) and self.atoms.made(layer)]
        channels = [layer for layer in layers if all(layer is not one for one in constant)]
        crowded = [one for one in constant if any(varying(one) & varying(layer) for layer in channels)]
        for layer in crowded:
            self.freeze(layer, "a constant laid out along channels")
        return [layer for layer in layers if all(layer is not one for one in crowded)]

    def made(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Fresh atoms for a constant that the graph itself creates (torch.zeros and the like)."""
        name = f"{self.mode}:{self.node}"
        sizes = [(dim, size) for dim, size in enumerate(tensor.shape) if size > 1]
        return tuple(along(self.atoms.fresh(name, dim, size, "made"), dim, tensor.ndim) for dim, size in sizes)

    def mask(self, index: Tensor | None) -> Tensor | None:
        """The numbers of a constant mask over one dimension, None for any other index."""
        values = self.values.get(self.names.get(id(index), ""))
        plain = values is not None and values.dtype == torch.bool and values.ndim == 1 and not values.is_meta
        return values if plain else None

    # -- statements -------------------------------------------------------------------------------------------------

    def site(self, reason: str = "") -> int:
        return self.atoms.site(self.node, self.operator, reason)

    def freeze(self, layer: Tensor, reason: str) -> None:
        self.atoms.freeze(layer, self.site(reason))

    def freeze_all(self, labels: Labels, reason: str) -> None:
        for layer in labels.layers:
            self.freeze(layer, reason)

    def tie(self, left: Tensor, right: Tensor) -> None:
        self.atoms.tie(left, right, self.site())

    def fold(self, layer: Tensor, dims: Iterable[int]) -> Tensor:
        """Tie all entries along `dims`; the result does not vary along them any more."""
        for dim in sorted(set(dims) & varying(layer)):
            first = layer.narrow(dim, 0, 1)
            self.tie(first, layer)
            layer = first
        return layer

    def fold_all(self, labels: Labels, dims: Iterable[int]) -> Labels:
        """Fold every layer along `dims`. A layer that varies along nothing else afterwards is frozen and dropped."""
        dims = set(dims)
        kept = []
        for layer in labels.layers:
            folded = self.fold(layer, dims)
            if varying(folded):
                kept.append(folded)
            else:
                self.freeze(layer, "every entry along this dimension is needed")
        return Labels(labels.shape, tuple(kept), labels.source)

    def inexact(self, layer: Tensor, reason: str) -> bool:
        """Say that removal changes a statistic over these atoms. True when they may go all the same ("cut")."""
        if self.approximate == "freeze":
            self.freeze(layer, f"{reason} would change value")
            return False
        self.atoms.flag_approximate(layer, self.site(reason))
        return True

    def keep_at_least(self, layer: Tensor, count: int) -> None:
        """Say that less than `count` of these entries is of no use, as the variance of a single number is."""
        if 1 < count < layer.numel():
            self.atoms.least.append((layer.reshape(-1), count))
        elif count > 1:
            self.freeze(layer, f"a statistic over channels needs {count} of them")

    def claim(self, kind: str, layer: Tensor, detail: Any = None) -> None:
        self.claims.append(Claim(kind, self.mode, self.node, layer, detail))

    def reads(self, reading: str, otherwise: bool) -> bool:
        """Whether this call is read in this way: as decided before, else as `otherwise` says. The decision is kept."""
        place = (self.mode, self.node)
        chosen = self.forced.get(place) == reading or otherwise
        if chosen:
            self.readings[place] = reading
        return chosen

    def produces(self, source: str | None, outputs: Tensor, kind: str) -> None:
        """A weight computed from parameter `source` makes these output channels."""
        if source in self.parameters:
            self.producers.append(Producer(source, outputs.reshape(-1), kind, self.mode, self.node))

    def scales_with(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """A normalisation's affine parameters, where they are parameters of the network."""
        names = [None if one is None else self.names.get(id(one)) for one in (weight, bias)]
        if names[0] is not None and names[0] in self.parameters:
            self.scales.append(Scale(names[0], names[1], self.mode, self.node))

    def contracted(self, operand: int, layer: Tensor) -> None:
        assert self.key is not None
        self.contractions.append(Contraction(self.key, operand, layer))

    # -- two tensors that meet element by element -------------------------------------------------------------------

    def unify(self, left: Labels, right: Labels) -> tuple[Tensor, ...]:
        """Tie two tensors that are broadcast against each other; returns the layers of the result.

        Elements that meet must be removed together. A dimension of size 1 imposes nothing; a full dimension on which
        the other side has no labels at all cannot lose anything.
        """
        ndim = max(left.ndim, right.ndim)
        left, right = pad_left(left, ndim), pad_left(right, ndim)
        if len(left.layers) == len(right.layers) == 1 and left.layers[0].shape == right.layers[0].shape:
            self.tie(left.layers[0], right.layers[0])  # what the general way below comes to, most of the time
            return left.layers
        ours = self._settle(left, right)
        theirs = self._settle(right, left)
        return tuple(ours + self._pair(ours, theirs))

    def _settle(self, own: Labels, other: Labels) -> list[Tensor]:
        """Give up what cannot go: fold own layers over dimensions that are full but unlabelled on the other side."""
        covered: set[int] = set().union(*(varying(layer) for layer in other.layers)) if other.layers else set()
        full = {dim for dim, size in enumerate(other.shape) if size > 1}
        settled = []
        for layer in own.layers:
            bare = (varying(layer) & full) - covered
            if not bare:
                settled.append(layer)
                continue
            folded = self.fold(layer, bare)
            if varying(folded):
                settled.append(folded)
            else:
                bare_side = "a tensor none of whose channels can go, such as the network's input"
                self.freeze(layer, f"meets {'channels that cannot be removed' if other.layers else bare_side}")
        return settled

    def _pair(self, ours: list[Tensor], theirs: list[Tensor]) -> list[Tensor]:
        """Tie layers that meet, first those along the same dimensions, in order. Returns theirs that met none."""
        free = list(ours)
        left_over = []
        for layer in theirs:
            mine = next((one for one in free if varying(one) == varying(layer)), None)
            if mine is None:
                left_over.append(layer)
                continue
            free = [one for one in free if one is not mine]
            self.tie(mine, layer)
        alone = []
        for layer in left_over:
            meeting = [one for one in ours if varying(one) & varying(layer)]
            for one in meeting:
                self.tie(one, layer)
            if not meeting:
                alone.append(layer)
        self._tie_unmatched(free, theirs)
        return alone

    def _tie_unmatched(self, free: list[Tensor], theirs: list[Tensor]) -> None:
        for layer in free:
            for other in theirs:
                if varying(other) & varying(layer):
                    self.tie(layer, other)
