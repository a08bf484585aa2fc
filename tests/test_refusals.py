"""What is refused: one line on stderr, a status that is not 0, no traceback, nothing written, no code run."""

from __future__ import annotations

import io
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import refused, run
from exported_files import pickled_weight
from safetensors.torch import save_file
from saving import write_pickle
from test_trust import HOSTILE
from torch import nn

from fxprune import zoo

Case = tuple[Callable[[], str | None], tuple[str, ...]]  # (writes files, returns the command line; words of the answer)


def saved(value: object, *options: str) -> Callable[[], str]:
    """`compile net.pt` with the value in that file, written by torch.save."""

    def write() -> str:
        torch.save(value() if callable(value) and not isinstance(value, nn.Module) else value, "net.pt")
        return " ".join(("net.pt", *options))

    return write


def holding(content: bytes | Callable[[], bytes], name: str = "net.pt") -> Callable[[], str]:
    """`compile net.pt` with these bytes in that file."""

    def write() -> str:
        Path(name).write_bytes(content if isinstance(content, bytes) else content())
        return name

    return write


def whole() -> bytes:
    stream = io.BytesIO()
    torch.save(zoo.build("resnet8"), stream)
    return stream.getvalue()


def script_module() -> str:
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), "net.pt")
    return "net.pt"


def weights_as_safetensors() -> str:
    save_file(zoo.build("resnet8").state_dict(), "net.safetensors")
    return "net.safetensors"


def hostile_child(name: str) -> nn.Module:
    model = zoo.build("resnet8")
    model._modules[name] = model._modules.pop("conv1")
    return model


def with_number(number: float, name: str = "layer1.0.conv1.weight") -> nn.Module:
    model = zoo.build("resnet8")
    model.state_dict()[name].view(-1)[0] = number
    return model


def unreadable() -> str:
    Path("net.pt").write_bytes(whole())
    Path("net.pt").chmod(0)
    return "net.pt"


def exported_with_pickle() -> str:
    pickled_weight()
    return "net.pt2"


def no_network_in_script() -> str:
    Path("train.py").write_text("raise SystemExit(3)")
    return str(saved(zoo.build("resnet8").state_dict(), "--arch train.py:Net")())


CODE = 'x", open("canary", "w"), "'
FILES: dict[str, Case] = {
    "missing": (lambda: "net.pt", ("net.pt does not exist",)),
    "missing .pt2": (lambda: "net.pt2", ("net.pt2 does not exist",)),
    "folder": (lambda: ".", ("is a folder",)),
    "empty": (holding(b""), ("net.pt is empty",)),
    "empty safetensors": (holding(b"", "net.safetensors"), ("net.safetensors is empty",)),
    "truncated": (holding(lambda: whole()[:5000]), ("truncated or damaged",)),
    "end missing": (holding(lambda: whole()[:-10]), ("truncated or damaged",)),
    "random bytes": (holding(random.Random(0).randbytes(3000)), ("is not a file that torch.save wrote",)),
    "random safetensors": (
        lambda: holding(bytes(range(200)), "net.safetensors")() + " --arch zoo:resnet8",
        ("is damaged or no safetensors file",),
    ),
    "TorchScript": (script_module, ("TorchScript archive", "torch.save(model, path)")),
    "ONNX": (holding(b"\x08\x07", "net.onnx"), ("is an ONNX file", "the torch network")),
    "tensor": (saved(torch.ones(3)), ("holds a Tensor, not a network",)),
    "state dict": (saved(zoo.build("resnet8").state_dict()), ("--arch torchvision:NAME",)),
    "safetensors": (weights_as_safetensors, ("--arch torchvision:NAME",)),
    "weights of another network": (
        saved(zoo.build("resnet8").state_dict(), "--arch zoo:resnet20"),
        ("do not fit zoo:resnet20", "are missing from the file (layer1.1.conv1.weight"),
    ),
    "weights of another shape": (
        saved(zoo.build("vgg11").state_dict(), "--arch zoo:resnet8"),
        ("do not fit zoo:resnet8", "are unknown to the network"),
    ),
    "unknown architecture": (
        saved(zoo.build("resnet8").state_dict(), "--arch zoo:resnet9"),
        ("zoo has no network 'resnet9'; did you mean resnet8",),
    ),
    "script that ends": (no_network_in_script, ("train.py was executed and ended the program", "__main__")),
    "no such script": (saved(nn.ReLU(), "--trust train.py"), ("train.py does not exist",)),
    "quoted child name": (saved(lambda: hostile_child(CODE)), ("cannot be written into source code", "rename it")),
    "child named like a keyword": (saved(lambda: hostile_child("class")), ("the module 'class'", "rename it")),
    "traced network": (
        saved(lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1)))),
        ("torch.fx.graph_module.reduce_graph_module", "--allow-pickle"),
    ),
    "exported with a pickle": (exported_with_pickle, ("conv1.weight is pickled in it", "--allow-pickle")),
    "NaN": (saved(lambda: with_number(math.nan)), ("layer1.0.conv1.weight holds 1 numbers that are NaN or infinite",)),
    "infinite": (saved(lambda: with_number(-math.inf)), ("layer1.0.conv1.weight holds 1 numbers",)),
    "infinite statistics": (saved(lambda: with_number(math.inf, "bn1.running_var")), ("bn1.running_var holds 1",)),
    "nothing to remove": (
        saved(nn.Sequential(nn.Conv2d(3, 8, 3))),
        ("no channel of this network can be removed", "a network output"),
    ),
}
FILES |= {
    f"calls {name}": (saved(hostile), (f"asks for {name}", "Trusted unasked are only"))
    for name, hostile in HOSTILE.items()
}
FILES |= {
    f"calls {name}, with an architecture": (saved({"state_dict": hostile}, "--arch zoo:resnet8"), (f"asks for {name}",))
    for name, hostile in HOSTILE.items()
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "zoo:resnet8 --sparsity -0.1": ("sparsity", "0 to below 1, not -0.1"),
    "zoo:resnet8 --sparsity 1.0": ("sparsity", "not 1.0"),
    "zoo:resnet8 --sparsity 1.5": ("sparsity", "not 1.5"),
    "zoo:resnet8 --sparsity nan": ("sparsity", "not nan"),
    "zoo:resnet8 --sparsity inf": ("sparsity", "not inf"),
    "zoo:resnet8 --keep-rate nan": ("keep_rate", "not nan"),
    "zoo:resnet8 --arch zoo:resnet8": ("zoo:resnet8 names a network already", "--arch"),
    "zoo:resnet8 --trust __main__": ("'__main__' cannot be trusted", "a .py file"),
    "zoo:resnet8 --input 1x1x32x32": ("the example input 1x1x32x32", "conv1, takes 3 channels", "--input"),
    "zoo:resnet8 --input 3x32x32": ("the example input 3x32x32", "--input"),
    "zoo:resnet8 --input 1x3x32x32 --input 1x3": ("do not fit", "too many positional arguments"),
    "zoo:resnet8 --input y=1x3x32x32": ("do not fit", "missing a required argument: 'input'"),
    "zoo:resnet8 --input 1xx3": ("'1xx3' is not of the form",),
    "zoo:resnet8 --input 1x0x32x32": ("every dimension is at least 1",),
}
BOTH = ("missing", "truncated", "state dict", "quoted child name", "calls posix.system", "exported with a pickle")


def lying_here() -> list[Path]:
    """All that is in the working folder, but for what Python keeps of a script that it was told to import."""
    return sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)


def check_refused(line: str, words: tuple[str, ...], command: str = "compile") -> None:
    before = lying_here()
    ways = [] if command == "explain" or "--sparsity" in line or "--keep-rate" in line else ["--sparsity", "0.98"]
    refused(run(command, *line.split(), *ways), *words)
    assert lying_here() == before
    assert not Path("canary").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", FILES)
def test_files(case: str, workplace: Path) -> None:
    write, words = FILES[case]
    check_refused(str(write()), words)


@pytest.mark.parametrize("case", BOTH)
def test_explain_refuses_the_same(case: str, workplace: Path) -> None:
    write, words = FILES[case]
    check_refused(str(write()), words, "explain")


@pytest.mark.parametrize("line", OPTIONS)
def test_options(line: str, workplace: Path) -> None:
    check_refused(line, OPTIONS[line])


def test_file_without_permission(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = unreadable()
    if os.access("net.pt", os.R_OK):  # nobody keeps root from reading

        def refuse(path: Path, *_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", refuse)
    check_refused(line, ("net.pt cannot be read", "Permission denied"))


@pytest.mark.parametrize(
    ("write", "word"),
    [
        (saved(HOSTILE["posix.system"]), "posix.system"),
        (saved(lambda: hostile_child(CODE)), "cannot be written into source code"),
        (exported_with_pickle, "is pickled in it"),
        (lambda: "zoo:resnet8", "not 1.5"),
    ],
)
def test_the_same_in_a_process_of_its_own(write: Callable[[], str], word: str, workplace: Path) -> None:
    line, before = write(), lying_here()
    sparsity = "1.5" if line == "zoo:resnet8" else "0.98"
    command = [sys.executable, "-m", "fxprune", "compile", line, "--sparsity", sparsity]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and word in done.stderr and "Traceback" not in done.stderr
    assert lying_here() == before


def test_a_file_that_is_sound_does_leave_something(workplace: Path, quick_onnx: None) -> None:
    """The checks above can fail."""
    torch.save(zoo.build("resnet8"), "net.pt")
    with pytest.raises(AssertionError):
        check_refused("net.pt", ())
    write_pickle(Path("bad.pt"), b"c__main__\neval\n)R.")
    with pytest.raises(AssertionError):
        check_refused("bad.pt", ("another reason",))
