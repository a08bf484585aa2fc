"""Reading a saved network makes layers without their constructors, fills them, and does nothing else.

Each hostile pickle is also read without this check, which does run the planted constructor or make the change.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saving import write_pickle
from torch import nn

from fxprune.capture import files, trust
from fxprune.capture.files import load_file
from fxprune.capture.options import LoadOptions
from fxprune.capture.zoo_imports import import_timm
from fxprune.errors import LoadError, UntrustedError

made: list[object] = []  # what constructors of `shop` have seen


class Counting(nn.Module):
    """Its constructor leaves a trace."""

    def __init__(self, *arguments: object) -> None:
        super().__init__()
        made.append(arguments)


class Settling(nn.Module):
    """Calls a method of its own when it gets its state."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.settle()

    def settle(self) -> None:
        self.settled = True


class Eager(nn.Module):
    """Leaves a trace when it is made from something."""

    def __new__(cls, *arguments: object) -> Eager:
        made.extend(arguments)
        return super().__new__(cls)


class Size(Enum):
    SMALL = "small"


@dataclass
class Config:
    width: int


@dataclass(slots=True)
class Slotted:
    width: int


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the user's, `shop`, in an empty working folder."""
    module = types.ModuleType("shop")
    for one in (Counting, Settling, Eager, Size, Config, Slotted):
        monkeypatch.setattr(one, "__module__", "shop")
        setattr(module, one.__name__, one)
    monkeypatch.setitem(sys.modules, "shop", module)
    monkeypatch.chdir(tmp_path)
    made.clear()
    yield
    made.clear()


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def read(instructions: bytes) -> object:
    write_pickle(Path("net.pt"), instructions)
    return load_file("net.pt", LoadOptions(trust=["shop"])).module


COUNTING = b"cshop\nCounting\n"
# Pickles that call a constructor, and what the refusal says about them.
CALLS = {
    "directly": (COUNTING + b")R.", r"calls shop\.Counting,"),
    "with arguments": (COUNTING + b"K\x01\x85R.", r"calls shop\.Counting,"),
    "from the memory": (b"(" + COUNTING + b"q\x00h\x00)RtR.", r"calls shop\.Counting,"),
    "inside a layer": (
        b"ctorch.nn.modules.linear\nIdentity\n)\x81}" + text("x") + COUNTING + b")Rsb.",
        r"calls shop\.Counting,",
    ),
    "as what rebuilds a tensor": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + COUNTING + b"q\x00h\x00)}tR.",
        "other than torch's functions that rebuild",
    ),
    "as a partial that rebuilds one": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cfunctools\npartial\n" + COUNTING + b"\x85R" + COUNTING + b")}tR.",
        "other than torch's functions that rebuild",
    ),
    "as a layer that rebuilds one": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch.nn.modules.linear\nIdentity\n)\x81}"
        + b"".join(text(f"_{name}") + b"}s" for name in ("modules", "parameters", "buffers", "backward_hooks"))
        + b"".join(text(f"_{name}") + b"}s" for name in ("backward_pre_hooks", "forward_hooks"))
        + text("_forward_pre_hooks") + b"}K\x00" + COUNTING + b"ssb" + COUNTING + b")}tR.",
        "other than torch's functions that rebuild",
    ),
    "in the place of a method": (
        b"cshop\nSettling\n)\x81}" + text("settle") + COUNTING + b"sb.",
        r"replaces 'settle' of shop\.Settling",
    ),
    "in the place of a method, in order": (
        b"cshop\nSettling\n)\x81ccollections\nOrderedDict\n)R" + text("settle") + COUNTING + b"sb.",
        r"replaces 'settle' of shop\.Settling",
    ),
    "in the place of a method, at once": (
        b"cshop\nSettling\n)\x81ccollections\nOrderedDict\n(]("
        + text("settle") + COUNTING + b"\x86" + b"etRb.",
        r"a state that is no plain data",
    ),
    "as the keys of a state": (
        b"ctorch.nn.modules.linear\nIdentity\n)\x81cargparse\nNamespace\n)\x81}" + text("keys") + COUNTING + b"sbb.",
        "a state that is no plain data",
    ),
    "as the keys of an ordered state": (
        b"ctorch.nn.modules.linear\nIdentity\n)\x81ccollections\nOrderedDict\n)R}" + text("keys") + COUNTING + b"sbb.",
        "replaces 'keys' of collections.OrderedDict",
    ),
    "as the name of an attribute, disguised": (
        b"cshop\nSettling\n)\x81}c_codecs\nencode\n" + text("frggyr") + text("rot13") + b"\x86R" + COUNTING + b"sb.",
        "makes text that cannot be read beforehand",
    ),
    "by arguments of __new__": (b"cshop\nEager\nK\x01\x85\x81.", r"makes shop\.Eager from arguments"),
}  # fmt: skip


@pytest.mark.parametrize("way", CALLS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_constructor_is_called(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instructions, reason = CALLS[way]
    with pytest.raises(UntrustedError, match=reason) as caught:
        read(instructions)
    assert not made
    assert "\n" not in str(caught.value) and "--allow-pickle" in str(caught.value)
    monkeypatch.setattr(files, "check_instructions", lambda *_: None)
    with contextlib.suppress(LoadError):  # what was made is no network
        read(instructions)
    assert made


# Pickles that make or change what is not theirs.
CHANGES = {
    "numpy's objects": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n" + text("O8") + b"\x85R" + COUNTING + b"tR)R.",
        "makes a numpy type that is no number",
    ),
    "numpy's objects, made": (b"cnumpy\ndtype\n" + text("O8") + b"\x85\x81.", r"makes numpy\.dtype from arguments"),
    "value of an enumeration": (
        b"cshop\nSize\n" + text("small") + b"\x85R}" + text("_value_") + text("x") + b"sb.",
        r"changes a value of shop\.Size",
    ),
    "class of a record": (
        b"cargparse\nNamespace\n)\x81N}" + text("__class__") + COUNTING + b"s\x86b.",
        r"replaces what argparse\.Namespace is",
    ),
    "numpy's idea of a number": (
        b"cnumpy\ndtype\n" + text("i8") + b"\x89\x88\x87R(K\x03" + text("<") + b"NNNK\x08K\x01K?tb.",
        "changes a numpy type",
    ),
    "method of a tensor": (
        b"ctorch._utils\n_rebuild_parameter_with_state\n(N\x89}}" + text("detach") + COUNTING + b"stR.",
        "replaces 'detach' of a tensor",
    ),
    "method of a tensor, by a slot": (
        b"ctorch._utils\n_rebuild_parameter_with_state\n(N\x89}N}" + text("detach") + COUNTING + b"s\x86tR.",
        "replaces 'detach' of a tensor",
    ),
    "method of a tensor that is rebuilt": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_parameter_with_state\nctorch\nTensor\n"
        b"(N\x89}}" + text("detach") + COUNTING + b"st}tR.",
        "replaces 'detach' of a tensor",
    ),
    "items of every ordered dictionary": (
        b"ccollections\nCounter\n)R}" + text("most_common") + COUNTING + b"sb.",
        "replaces 'most_common' of collections.Counter",
    ),
    "attributes without a name": (b"ctorch.nn.modules.linear\nIdentity\n)\x81}K\x01K\x02sb.", "names are no text"),
    "a set of as many numbers as it likes": (
        b"cbuiltins\nfrozenset\ncbuiltins\nrange\nJ\xff\xff\xff\x7f\x85R\x85R.",
        "makes builtins.frozenset from something other than its items",
    ),
    "as many bytes as it likes": (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "makes builtins.bytearray from"),
    "a key that is deep": (b"}N" + b"\x85" * 2000 + b"Ns.", "a key of very many parts"),
    "a key that is wide inside": (b"}N" + b"q\x00h\x00\x86" * 30 + b"Ns.", "a key of very many parts"),
    "a set of deep keys": (b"cbuiltins\nset\n]N" + b"\x85" * 2000 + b"a\x85R.", "a key of very many parts"),
    "a tensor of any size": (b"ctorch\nFloatTensor\nK\x01\x85R.", r"calls torch\.FloatTensor"),
    "a function": (b"ctorch.nn.functional\nrelu\n}" + text("x") + b"K\x01sb.", "changes what is no layer or record"),
    "a tensor": (b"ctorch._utils\n_rebuild_parameter\n(N\x89}tR}b.", "changes what is no layer or record"),
    "an activation function's turn": (b"ctorch.nn.functional\nrelu\nN\x85R.", r"calls torch\.nn\.functional\.relu"),
    "memory that nobody has filled": (b"ctorch\nFloatTensor\nJ\x00\x00\x00\x10\x85R.", r"calls torch\.FloatTensor"),
    "a tensor made by its class": (b"ctorch\nFloatTensor\n)\x81.", r"makes torch\.FloatTensor,"),
    "a view of other memory": (
        b"ctorch._utils\n_rebuild_nested_tensor\n(NNNNtR.",
        r"calls torch\._utils\._rebuild_nested_tensor",
    ),
    "a tensor of another class": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_wrapper_subclass\nN)}tR.",
        "other than torch's functions that rebuild",
    ),
    "a record, called": (b"cshop\nConfig\nK\x01\x85R.", r"calls shop\.Config"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_nothing_else_is_changed(what: str) -> None:
    instructions, reason = CHANGES[what]
    with pytest.raises(UntrustedError, match=reason):
        read(instructions)
    assert Size.SMALL.value == "small"


def test_what_networks_and_their_checkpoints_keep_comes_back() -> None:
    network = nn.Sequential(nn.LSTM(2, 3, 2), nn.MultiheadAttention(4, 2), nn.Upsample(scale_factor=2), nn.Softmax(1))
    network.register_parameter("marked", nn.Parameter(torch.ones(2)))
    network.marked.no_decay = True  # type: ignore[union-attr]
    network.seen = torch.ones(3)
    network.seen.origin = "here"  # type: ignore[attr-defined]
    network.kept = {  # type: ignore[assignment]
        "records": [Size.SMALL, Config(3), Namespace(lr=0.1), types.SimpleNamespace(x=1)],
        "plain": [range(3), slice(1), frozenset({1}), {2}, 1j, b"x", Path("a"), torch.Size([1]), torch.float16],
        "counted": [Counter("aab"), OrderedDict(a=1), np.float64(0.5), np.int32(3), np.bool_(True)],
    }
    network.norm = functools.partial(nn.LayerNorm, eps=1e-6)  # type: ignore[assignment]
    network.kind = nn.LayerNorm  # type: ignore[assignment]
    torch.save(network, "net.pt")
    loaded: Any = load_file("net.pt", LoadOptions(trust=["shop"])).module
    assert loaded.kept["records"] == network.kept["records"]  # type: ignore[index]
    assert [str(one) for one in loaded.kept["plain"]] == [str(one) for one in network.kept["plain"]]  # type: ignore[index]
    assert loaded.kept["counted"] == network.kept["counted"]  # type: ignore[index]
    assert loaded.norm.func is loaded.kind is nn.LayerNorm and loaded.norm.keywords == {"eps": 1e-6}
    assert loaded.marked.no_decay and loaded.seen.origin == "here"
    x = torch.rand(5, 1, 2)
    assert torch.equal(loaded[0](x)[0], network[0](x)[0])


def test_slots_are_filled() -> None:
    layer = nn.Identity()
    layer.kept = Slotted(3)  # type: ignore[assignment]
    torch.save(layer, "net.pt")
    assert load_file("net.pt", LoadOptions(trust=["shop"])).module.kept == Slotted(3)


def test_layer_that_settles_itself_is_filled() -> None:
    torch.save(Settling(), "net.pt")
    assert load_file("net.pt", LoadOptions(trust=["shop"])).module.settled


@pytest.mark.parametrize("name", sorted(trust._NEVER))
def test_networks_that_hold_code_are_never_allowed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a class of the user's that inherits from one of them."""
    import_timm()
    home, _, short = name.rpartition(".")
    parent = getattr(__import__(home, fromlist=[short]), short)
    own = types.new_class("Own", (parent,), exec_body=lambda space: space.update(__module__="shop", __slots__=()))
    monkeypatch.setattr(sys.modules["shop"], "Own", own, raising=False)
    wanted = trust.Trust(["shop"])
    with pytest.raises(UntrustedError, match=r"asks for shop\.Own"):
        trust.allowed_globals(["shop.Own"], wanted, "net.pt")
    monkeypatch.setattr(trust, "_NEVER", trust._NEVER - {name})
    others = [f"{base.__module__}.{base.__qualname__}" for base in own.__mro__]
    if not trust._NEVER & set(others):
        assert trust.allowed_globals(["shop.Own"], wanted, "net.pt") == [(own, "shop.Own")]


def test_what_the_user_has_told_torch_to_allow_is_allowed() -> None:
    torch.save(Counting(), "net.pt")
    with torch.serialization.safe_globals([Counting]):
        assert type(load_file("net.pt").module) is Counting
    with pytest.raises(UntrustedError, match="asks for shop.Counting"):
        load_file("net.pt")
