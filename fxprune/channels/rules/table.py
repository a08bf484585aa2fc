"""The table from ATen operator to rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fxprune.channels.context import Context
from fxprune.channels.records import Call

Rule = Callable[[Context, Call], None]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule. ATen operators are named without namespace ("relu"), others with it ("mylib::crelu"); overloads
    share a rule, and so does the in-place form `name_`.

    A rule registered later takes the place of an earlier one.
    """

    def register(function: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = function
        return function

    return register


def rule_for(function: Any) -> Rule | None:
    """The rule of an OpOverload: by name, then by PyTorch's own tag for element-wise operators, else None."""
    name = function._schema.name.removeprefix("aten::")
    found = RULES.get(name) or RULES.get(name.removesuffix("_"))
    if found is None and function.namespace == "aten" and torch.Tag.pointwise in function.tags:
        return RULES["pointwise"]
    return found


def freeze_everything(ctx: Context, call: Call, reason: str) -> None:
    """The default: whatever meets an operator that is not understood stays as it is."""
    for tensor in tensors_in(call.arguments.values()):
        ctx.freeze_all(ctx.of(tensor), reason)
    for result in call.results():
        ctx.label(result, ())


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Every tensor among argument values, lists of tensors included."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(one for one in value if isinstance(one, torch.Tensor))
    return found
