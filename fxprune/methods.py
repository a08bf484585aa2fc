"""Whole methods by name: what each sets, and the one number that says how much is removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fxprune.errors import OptionError
from fxprune.options import Options


@dataclass(frozen=True)
class Method:
    """knob: "sparsity" or "keep_rate"; settings: options that make the method what it is."""

    knob: str
    settings: Mapping[str, Any]
    about: str


_TRAINED = {"keep_weights": True}

METHODS: dict[str, Method] = {
    "reconvene": Method(
        "sparsity",
        {"policy": "reconvene"},
        "mask, shrink the layers at least as sparse as the average, mask the others",
    ),
    "upai": Method("sparsity", {"policy": "none"}, "mask only: unstructured pruning at initialisation"),
    "spai": Method("sparsity", {"policy": "all"}, "shrink every layer to its density"),
    "inverted": Method("sparsity", {"policy": "inverted"}, "shrink the layers that Reconvene masks, and the reverse"),
    "random": Method("sparsity", {"policy": "random"}, "a coin decides which layers are shrunk"),
    "precrop": Method("sparsity", {"policy": "precrop"}, "even densities, square root of them as widths"),
    "precrop-synflow": Method(
        "sparsity", {"policy": "precrop-synflow", "criterion": "synflow"}, "SynFlow's densities, square root as widths"
    ),
    "3sp": Method("keep_rate", {"select": "gate", "pool": "global"}, "SNIP for channels, all ranked together"),
    "3sp-per-mac": Method("keep_rate", {"select": "gate-per-mac", "pool": "global"}, "3SP, by cost of a channel"),
    "prospr-structured": Method(
        "keep_rate", {"select": "gate-after-steps", "pool": "global"}, "ProsPr with one mask entry a channel"
    ),
    "l1": Method("keep_rate", {"select": "l1", **_TRAINED}, "smallest filters of each layer go (trained network)"),
    "fpgm": Method("keep_rate", {"select": "fpgm", **_TRAINED}, "most replaceable filters go (trained network)"),
    "slimming": Method(
        "keep_rate", {"select": "bn-scale", "pool": "global", **_TRAINED}, "smallest normalisation scales go (trained)"
    ),
    "sfp": Method("keep_rate", {"select": "l2", **_TRAINED}, "smallest filters go, after training with soft pruning"),
    "taylor": Method(
        "keep_rate", {"select": "taylor", "pool": "global", **_TRAINED}, "feature maps the loss misses least (trained)"
    ),
    "taylor-batch": Method(
        "keep_rate",
        {"select": "taylor-batch", "pool": "global", **_TRAINED},
        "Taylor, sign dropped behind the mean over a batch",
    ),
    "taylor-element": Method(
        "keep_rate", {"select": "taylor-element", "pool": "global", **_TRAINED}, "Taylor, sign dropped at each place"
    ),
    "uniform": Method(
        "keep_rate", {"select": "first", "pool": "local"}, "every layer keeps the same share: the control"
    ),
}


def method_named(name: str) -> Method:
    """The method of this name. Raises OptionError for an unknown one."""
    if name not in METHODS:
        raise OptionError(f"unknown method {name!r}: choose {', '.join(METHODS)}")
    return METHODS[name]


def with_method(name: str, given: Mapping[str, Any]) -> Options:
    """The given options with what the method sets. Raises OptionError where they ask for something else, be it the
    usual value of an option.
    """
    method = method_named(name)
    for option, value in method.settings.items():
        if given.get(option, value) != value:
            raise OptionError(f"method {name} sets {option} to {value!r}: leave {option}={given[option]!r} out")
    other = "keep_rate" if method.knob == "sparsity" else "sparsity"
    if other in given:
        raise OptionError(f"method {name} takes {method.knob} (or a target), not {other}")
    return Options(**{**given, **method.settings, "method": name})


def start_of_search(method: str | None, given: Mapping[str, Any]) -> dict[str, float]:
    """The sparsity or the keep rate to begin with when a target decides. Raises OptionError when one was given."""
    if "sparsity" in given or "keep_rate" in given:
        raise OptionError("a target takes the place of sparsity and keep_rate: give one of the three")
    return {"sparsity" if method is None else method_named(method).knob: 0.5}


def wants_data(name: str) -> bool:
    """Whether the method looks at gradients of a loss. Raises OptionError for an unknown one."""
    return with_method(name, start_of_search(name, {})).looks_at_data
