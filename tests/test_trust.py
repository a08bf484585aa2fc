"""Nothing that a file asks for runs unless it is trusted.

Each hostile file is also loaded the trusting way, which does run its code: a test that could not fail proves nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from saving import trusting_load, write_pickle
from torch import nn
from torch.fx.graph_module import reduce_graph_module

from fxprune.capture.files import load_file
from fxprune.capture.load import load
from fxprune.capture.names import check_names
from fxprune.capture.options import LoadOptions
from fxprune.errors import CaptureError, LoadError, OptionError, UntrustedError


class Calls:
    """Pickles into a call of `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


HOSTILE = {
    "posix.system": Calls(os.system, "echo > canary"),
    "builtins.eval": Calls(eval, "open('canary', 'w').close()"),
    "builtins.exec": Calls(exec, "open('canary', 'w').close()"),
    "torch.fx.graph_module.reduce_graph_module": Calls(
        reduce_graph_module, {"_code": "def forward(self): pass"}, "open('canary', 'w').close()\n"
    ),
    "io.open": Calls(open, "canary", "w"),
    "builtins.getattr": Calls(Path("canary").touch),
}
skip_elsewhere = pytest.mark.skipif(os.name != "posix", reason="os.system has another name there")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, where the hostile files leave a file `canary` when their code runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@skip_elsewhere
@pytest.mark.parametrize("wanted", HOSTILE)
@pytest.mark.parametrize("inside", [False, True])
def test_hostile_files_are_refused_and_run_nothing(wanted: str, inside: bool, folder: Path) -> None:
    model = nn.ReLU()
    model.extra = HOSTILE[wanted]  # type: ignore[assignment]
    torch.save(model if inside else HOSTILE[wanted], "net.pt")
    with pytest.raises(UntrustedError) as caught:
        load_file("net.pt", LoadOptions(trust=["os", "posix", "io", "builtins", "torch", "pathlib"]))
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("canary").exists()
    trusting_load()
    assert Path("canary").exists()


def test_class_of_main_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Module):
        def __setstate__(self, state: dict[str, Any]) -> None:
            Path("canary").touch()

    Net.__module__, Net.__qualname__ = "__main__", "Net"
    monkeypatch.setattr(sys.modules["__main__"], "Net", Net, raising=False)
    torch.save(Net(), "net.pt")
    with pytest.raises(UntrustedError, match=r"__main__.Net.*--trust path/to/train.py"):
        load_file("net.pt")
    with pytest.raises(OptionError, match="'__main__' cannot be trusted"):
        load_file("net.pt", LoadOptions(trust=["__main__"]))
    assert not Path("canary").exists()
    trusting_load()
    assert Path("canary").exists()


def test_traced_network_is_refused(folder: Path) -> None:
    torch.save(torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())), "net.pt")
    with pytest.raises(UntrustedError, match="reduce_graph_module"):
        load_file("net.pt")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.fx.graph_module", "GraphModule"),
        ("torch.fx", "GraphModule"),
        ("torch.jit._script", "ScriptModule"),
        ("torch.jit", "RecursiveScriptModule"),
        ("torch.distributed.nn.api.remote_module", "RemoteModule"),
        ("torch._dynamo.eval_frame", "OptimizedModule"),
        ("torch.export.unflatten", "InterpreterModule"),
        ("torchvision.models.feature_extraction", "DualGraphModule"),
        ("torch.nn.functional", "handle_torch_function"),
        ("torch.nn.utils.parametrize", "register_parametrization"),
        ("torch.nn.modules.module", "namedtuple"),
        ("timm.layers.format", "Enum"),
        ("timm.models", "create_model"),
        ("torchvision.models", "get_model"),
        ("timm.models._helpers", "load_checkpoint"),
        ("torch.nn.modules.container", "OrderedDict"),
        ("fxprune.zoo", "build"),
        ("fxprune.manager", "PassManager"),
        ("collections", "defaultdict"),
        ("my\x1b[2J", "Net"),
    ],
)
def test_what_is_never_allowed(module: str, name: str, folder: Path) -> None:
    write_pickle(Path("net.pt"), f"c{module}\n{name}\n)\x81.".encode("latin-1"))
    with pytest.raises(UntrustedError) as caught:
        load_file("net.pt", LoadOptions(trust=["torch", "torchvision", "timm", "fxprune", "collections"]))
    assert (f"{module}.{name}" if module.isprintable() else repr(f"{module}.{name}")) in str(caught.value)
    assert "To trust" not in str(caught.value)  # it would not help


def test_what_stands_beside_is_allowed(folder: Path) -> None:
    write_pickle(Path("net.pt"), b"ctorch.nn.modules.linear\nIdentity\n)\x81.")
    assert type(load_file("net.pt").module) is nn.Identity


def test_hostile_child_name_loads_but_never_reaches_generated_code(folder: Path) -> None:
    name = 'x", getattr(__import__("os"), "system")("echo > canary") and "'
    model = nn.Sequential()
    model._modules[name] = nn.Conv2d(3, 3, 1)
    torch.save(model, "net.pt")
    loaded = load_file("net.pt")
    with pytest.raises(CaptureError, match="canary"):
        check_names(loaded.module)
    assert not Path("canary").exists()
    with pytest.raises(TypeError):
        torch.fx.symbolic_trace(loaded.module)(torch.zeros(1, 3, 2, 2))
    assert Path("canary").exists()


@pytest.mark.parametrize("name", ["named_parameters", "_apply", "eval"])
def test_attributes_in_the_place_of_methods_are_refused(name: str, folder: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    vars(model[0])[name] = torch.nn.functional.relu
    torch.save(model, "net.pt")
    with pytest.raises(LoadError, match=f"the attribute '{name}' in 0 stands in the place of a method"):
        load("net.pt")
    vars(model[0]).update(type="wide", forward=nn.Identity())
    del vars(model[0])[name]
    torch.save(model, "net.pt")
    assert load("net.pt").module[0].type == "wide"  # type: ignore[index]


# --- packages of the user --------------------------------------------------------------------------------------------

PACKAGE = """
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from os import system
from pathlib import Path
from typing import NamedTuple

import torch.fx
from torch import nn

Path("imported").touch()

class Kind(Enum):
    BIG = "big"

@dataclass
class Config:
    width: int

class Pair(NamedTuple):
    one: int
    two: int

class Eager:
    def __init__(self, text):
        Path("canary").touch()

class Traced(torch.fx.GraphModule):
    pass

class Borrowed(nn.Module):
    __module__ = "elsewhere.nets"

@dataclass
class Busy:
    text: str

    def __post_init__(self):
        Path("canary").touch()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.kept = [Kind.BIG, Config(3), Pair(1, 2)]

def run(text):
    Path("canary").touch()
"""


@pytest.fixture
def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of the user's. Importing it leaves a file `imported`."""
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").touch()
    (folder / "shop" / "nets.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(folder)
    yield "shop"
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


@pytest.fixture
def saved(package: str) -> None:
    """net.pt with a network of the package, which is not imported any more."""
    nets = __import__(f"{package}.nets").nets
    torch.save(nets.Net(), "net.pt")
    forget()
    Path("imported").unlink()


@pytest.mark.usefixtures("saved")
def test_package_that_is_not_trusted_is_not_even_imported() -> None:
    with pytest.raises(UntrustedError) as caught:
        load_file("net.pt", LoadOptions(trust=["shopping", "sho", "nets"]))
    message = str(caught.value)
    assert all(f"shop.nets.{name}" in message for name in ("Net", "Kind", "Config", "Pair"))
    assert "trust the layers of shop too" in message and "torch.nn" not in message
    assert not Path("imported").exists()
    trusting_load()
    assert Path("imported").exists()


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("trust", [["shop"], ["shop.nets"], "shop"])
def test_trusted_package_is_used(trust: list[str]) -> None:
    module = load_file("net.pt", LoadOptions(trust=trust)).module
    assert type(module).__name__ == "Net"
    assert [type(value).__name__ for value in module.kept] == ["Kind", "Config", "Pair"]  # type: ignore[union-attr]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", ["run", "system", "Eager", "Busy", "Traced", "Borrowed", "Path", "OrderedDict"])
def test_trusted_package_lends_no_functions(name: str) -> None:
    write_pickle(Path("net.pt"), f"cshop.nets\n{name}\nX\x0d\x00\x00\x00echo > canary\x85R.".encode("latin-1"))
    with pytest.raises(UntrustedError, match=rf"asks for shop\.nets\.{name}\."):
        load_file("net.pt", LoadOptions(trust=["shop"]))
    assert not Path("canary").exists()
    trusting_load()
    assert Path("canary").exists() == (name in ("run", "system", "Eager", "Busy"))


@pytest.mark.usefixtures("saved")
def test_trusted_package_that_is_gone_or_broken() -> None:
    Path("shop/nets.py").write_text("from torch import nn")
    with pytest.raises(LoadError, match=r"needs shop\.nets\.\w+, which the installed shop does not have"):
        load_file("net.pt", LoadOptions(trust=["shop"]))
    forget()
    Path("shop/nets.py").write_text("this file does not even parse")
    with pytest.raises(LoadError, match="importing shop.nets failed"):
        load_file("net.pt", LoadOptions(trust=["shop"]))
    for code, complaint in (("import math; math.nowhere", "AttributeError"), ("import nowhere", "ModuleNotFoundError")):
        forget()
        Path("shop/nets.py").write_text(code)
        with pytest.raises(LoadError, match=rf"importing shop\.nets failed: {complaint}: .*nowhere'?$"):
            load_file("net.pt", LoadOptions(trust=["shop"]))
    forget()
    Path("shop/nets.py").unlink()
    with pytest.raises(LoadError, match=r"a file of your own is named by its path: --trust path/to/shop\.py"):
        load_file("net.pt", LoadOptions(trust=["shop"]))


@pytest.mark.parametrize("trust", [["a/b.pyc"], [""], ["a."], ["a", "b c"], ["a/b"]])
def test_only_packages_and_scripts_can_be_trusted(trust: list[str], folder: Path) -> None:
    torch.save(nn.ReLU(), "net.pt")
    with pytest.raises(OptionError, match="cannot be trusted"):
        load_file("net.pt", LoadOptions(trust=trust))
