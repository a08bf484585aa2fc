"""Copies of modules are what copy.deepcopy makes: nothing shared, nothing lost, sharing inside kept."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fxprune.copying import copied


class Odd(nn.Module):
    """Attributes of every kind; the same list, table and layer held twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.again = self.layer
        self.cache: dict[str, Any] = {}
        self.sizes = [1, [2, 3]]
        self.table = OrderedDict(first=self.sizes, second=self.cache)
        self.loose = [self.layer]
        self.pair = (1, self.sizes)
        self.names = {"a"}
        self.layer.register_forward_hook(self.note)
        self.register_buffer("steps", torch.zeros(2), persistent=False)

    def note(self, *_: Any) -> None:
        self.cache["seen"] = True


class Proud(nn.Module):
    """Copies itself in its own way."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Proud:
        twin = Proud()
        twin.copied = True
        return twin


def held(module: nn.Module) -> set[int]:
    return {id(value) for value in vars(module).values() if isinstance(value, dict | list | set)}


def test_nothing_is_shared_and_nothing_is_lost() -> None:
    model = Odd()
    twin = copied(model)
    assert list(vars(twin)) == list(vars(copy.deepcopy(model)))
    assert twin.state_dict().keys() == model.state_dict().keys() and "steps" not in twin.state_dict()
    ours, theirs = (
        {id(value) for value in vars(one).values() if isinstance(value, dict | list | set)} for one in (model, twin)
    )
    assert not ours & theirs
    assert twin.layer is not model.layer and twin.layer.weight is not model.layer.weight


def test_what_is_held_twice_is_held_twice_in_the_copy() -> None:
    twin = copied(Odd())
    assert twin.again is twin.layer is twin.loose[0]
    assert twin.table["first"] is twin.sizes is twin.pair[1] and twin.table["second"] is twin.cache
    twin.layer(torch.zeros(1, 3, 2, 2))
    assert twin.cache == {"seen": True}  # a bound method follows its object


def test_the_memo_decides() -> None:
    model = Odd()
    stand_in = nn.Parameter(torch.ones(4, 3, 1, 1))
    assert copied(model, {id(model.layer.weight): stand_in}).layer.weight is stand_in


def test_who_knows_better_is_asked() -> None:
    model = nn.Sequential(Proud(), weight_norm(nn.Linear(2, 3)))
    twin = copied(model)
    assert twin[0].copied
    assert type(twin[1]) is not nn.Linear
    x = torch.randn(1, 2)
    assert torch.equal(twin[1](x), model[1](x))
