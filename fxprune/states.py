"""State dicts of compiled networks: plain names, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

_PARTS = {"original": "", "0.mask": "_mask"}  # what a mask parametrisation stores -> what to add to the weight's name


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state under the user's names: weights, and each mask as `<weight>_mask`.

    state  of a compiled module, whose masked weights are parametrisations, or one that is plain already

    Other parametrisations stay as they are.
    """
    found = {}
    for name, tensor in state.items():
        above, inside, rest = f".{name}".rpartition(".parametrizations.")
        leaf, _, part = rest.partition(".")
        masked = inside and all(f"{name.removesuffix(part)}{one}" in state for one in _PARTS)
        found[f"{above}.{leaf}{_PARTS[part]}"[1:] if masked and part in _PARTS else name] = tensor
    return found


def masked_weights(state: Mapping[str, Tensor], masked: Iterable[str]) -> dict[str, Tensor]:
    """The same with each `masked` weight multiplied by the mask that stands beside it; without one it stays."""
    found = dict(state)
    for name in masked:
        if name in state and f"{name}_mask" in state:
            found[name] = state[name] * state[f"{name}_mask"]
    return found
