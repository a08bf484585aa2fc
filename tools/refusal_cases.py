"""What fxprune has to refuse: files that are written for it, and the arguments and words of each case."""

from __future__ import annotations

import io
import math
import os
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune import zoo

CANARY = "canary"  # a file that hostile contents would make if they ran
_CODE = f"open('{CANARY}', 'w').close()"


@dataclass(frozen=True)
class Case:
    """`prepare` fills the working folder. If it returns a text, that is why the case cannot be tried here.

    arguments  of `fxprune compile`
    words      that the answer has to hold, all of them
    around     what has to be there while the command runs, such as a full disk
    prefix     a command that runs the command
    """

    name: str
    prepare: Callable[[], object]
    arguments: str
    words: tuple[str, ...]
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    prefix: tuple[str, ...] = ()


class _Calls:
    """Pickles into a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _net() -> nn.Module:
    return zoo.build("resnet8")


def _saved(value: Callable[[], object]) -> Callable[[], object]:
    return lambda: torch.save(value(), "net.pt")


def _bytes(content: Callable[[], bytes]) -> Callable[[], object]:
    return lambda: Path("net.pt").write_bytes(content())


def _whole() -> bytes:
    stream = io.BytesIO()
    torch.save(_net(), stream)
    return stream.getvalue()


def _pickle(instructions: bytes) -> Callable[[], object]:
    """An archive of torch.save's with this in the place of its pickle."""

    def write() -> None:
        stream = io.BytesIO()
        torch.save(None, stream)
        with zipfile.ZipFile(stream) as old, zipfile.ZipFile("net.pt", "w", zipfile.ZIP_STORED) as new:
            for name in old.namelist():
                new.writestr(name, b"\x80\x02" + instructions if name.endswith("data.pkl") else old.read(name))

    return write


def _with_child(name: str) -> nn.Module:
    net = _net()
    net._modules[name] = net._modules.pop("conv1")
    return net


def _with_number(number: float) -> nn.Module:
    net = _net()
    net.state_dict()["layer1.0.conv1.weight"].view(-1)[0] = number
    return net


def _traced() -> nn.Module:
    return torch.fx.symbolic_trace(_net())


def _script() -> None:
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), "net.pt")


def _folder_that_exists() -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("kept")


def _locked(path: str, mode: int) -> Callable[[], object]:
    def prepare() -> str | None:
        if path == "net.pt":
            torch.save(_net(), path)
        else:
            Path(path).mkdir()
        Path(path).chmod(mode)
        return None if os.geteuid() or WITHOUT_POWER else "root may do everything here, and there is no setpriv"

    return prepare


# root without the power to open what it may not: what every other user is like
WITHOUT_POWER = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    if os.geteuid() == 0 and shutil.which("setpriv")
    else ()
)


def _may_mount() -> str | None:
    """Also makes the place for it."""
    Path("disk").mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", "disk"], capture_output=True, text=True)
    if done.returncode:
        return f"a small disk cannot be mounted: {done.stderr.strip()}"
    subprocess.run(["umount", "disk"], check=True)
    return None


@contextmanager
def _small_disk() -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", "disk"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "disk"], check=True)


def _nothing() -> None:
    """The command line is enough."""


FILE, ZOO = "net.pt --sparsity 0.9", "zoo:resnet8 --sparsity 0.9"
_CONSTRUCTOR = b"ctorch.nn.modules.conv\nConv2d\n(K\x03K\x04K\x03tR."
_SCRIPT_MODULE = b"ctorch.jit._script\nRecursiveScriptModule\n)\x81}X\x01\x00\x00\x00xK\x01sb."
_NONE_OF_THEM = "no network that torch.save wrote asks for"


def cases(seed: int) -> list[Case]:
    """All of them; the seed is that of the random bytes."""
    noise = random.Random(seed).randbytes(3000)
    return [
        Case("missing file", _nothing, FILE, ("net.pt does not exist",)),
        Case("empty file", _bytes(bytes), FILE, ("net.pt is empty",)),
        Case("truncated file", _bytes(lambda: _whole()[:20000]), FILE, ("truncated or damaged",)),
        Case("end missing", _bytes(lambda: _whole()[:-10]), FILE, ("truncated or damaged",)),
        Case("random bytes", _bytes(lambda: noise), FILE, ("not a file that torch.save wrote",)),
        Case("os.system by reduce", _saved(lambda: _Calls(os.system, f"touch {CANARY}")), FILE, (".system",)),
        Case("builtins.eval", _saved(lambda: _Calls(eval, _CODE)), FILE, ("builtins.eval",)),
        Case("builtins.eval beside weights",
             _saved(lambda: {"state_dict": _net().state_dict(), "x": _Calls(eval, _CODE)}),
             f"{FILE} --arch zoo:resnet8", ("builtins.eval",)),
        Case("GraphModule", _saved(_traced), FILE, ("torch.fx.graph_module.reduce_graph_module",)),
        Case("ScriptModule", _pickle(_SCRIPT_MODULE), FILE, ("torch.jit._script.RecursiveScriptModule",)),
        Case("constructor by reduce", _pickle(_CONSTRUCTOR), FILE, ("calls torch.nn.modules.conv", _NONE_OF_THEM)),
        Case("hostile child name", _saved(lambda: _with_child(f'x", {_CODE}, "')), FILE, ("source code", "rename")),
        Case("child named class", _saved(lambda: _with_child("class")), FILE, ("'class'", "rename")),
        Case("TorchScript", _script, FILE, ("TorchScript archive",)),
        Case("state dict without --arch", _saved(lambda: _net().state_dict()), FILE, ("--arch torchvision:NAME",)),
        Case("state dict with keys missing", _saved(lambda: _net().state_dict()), f"{FILE} --arch zoo:resnet20",
             ("missing from the file (layer1.1.conv1.weight",)),
        Case("state dict with keys unknown", _saved(lambda: zoo.build("resnet20").state_dict()),
             f"{FILE} --arch zoo:resnet8", ("unknown to the network (layer1.1.conv1.weight",)),
        *(Case(f"sparsity {value}", _nothing, f"zoo:resnet8 --sparsity {value}", ("sparsity", f"not {value}"))
          for value in ("-0.1", "1.0", "1.5", "nan")),
        Case("weight NaN", _saved(lambda: _with_number(math.nan)), FILE, ("layer1.0.conv1.weight", "NaN")),
        Case("weight infinite", _saved(lambda: _with_number(-math.inf)), FILE, ("layer1.0.conv1.weight", "infinite")),
        Case("input of 1 channel", _nothing, f"{ZOO} --input 1x1x32x32", ("takes 3 channels", "--input")),
        Case("input of 3 dimensions", _nothing, f"{ZOO} --input 3x32x32", ("3x32x32", "--input")),
        Case("two inputs for one", _nothing, f"{ZOO} --input 1x3x32x32 --input 1x3", ("do not fit",)),
        Case("output folder exists", _folder_that_exists, ZOO, ("out", "--force")),
        Case("nothing prunable", _saved(lambda: nn.Sequential(nn.Conv2d(3, 8, 3))), FILE, ("no channel", "removed")),
        Case("file without permission", _locked("net.pt", 0), FILE, ("net.pt", "Permission denied"),
             prefix=WITHOUT_POWER),
        Case("folder without permission", _locked("locked", 0o555), f"{ZOO} -o locked/out", ("ermission",),
             prefix=WITHOUT_POWER),
        Case("full disk", _may_mount, f"{ZOO} -o disk/out", ("No space left",), around=_small_disk),
    ]  # fmt: skip
