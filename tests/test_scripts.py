"""Code of the user's own runs when it is named with --trust or --arch, as an import and not as a program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from saving import trusting_load
from torch import nn

from fxprune.capture.architectures import build_architecture
from fxprune.capture.files import load_file
from fxprune.capture.options import LoadOptions
from fxprune.capture.scripts import run_script, searching
from fxprune.errors import LoadError, OptionError, UntrustedError

TRAIN = """
import sys
from dataclasses import dataclass
from pathlib import Path

import layers_beside
from torch import nn

@dataclass
class Settings:
    width: "int"

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.settings = Settings(width)
        self.conv = layers_beside.convolution(width)

def hostile(text):
    Path("canary").touch()

class Traced:
    pass

print("training", sys.argv[1:])
count = len(Path("runs").read_text()) if Path("runs").exists() else 0
Path("runs").write_text("x" * (count + 1))

if __name__ == "__main__":
    import torch

    torch.save(Net(5), "net.pt")
    Path("trained").touch()
"""
BESIDE = """
from torch import nn

def convolution(width):
    return nn.Conv2d(3, width, 1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with net.pt in it, saved by lab/train.py as a program: its class is `__main__.Net`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "train.py").write_text(TRAIN)
    (tmp_path / "lab" / "layers_beside.py").write_text(BESIDE)
    save_as_program(tmp_path / "lab" / "train.py", monkeypatch)
    path = list(sys.path)
    sys.modules.pop("train", None)  # of another test
    yield tmp_path
    assert sys.path == path
    for name in ("train", "layers_beside", "fxprune_script_train"):
        sys.modules.pop(name, None)


def save_as_program(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `python lab/train.py` does, without starting another Python."""
    from types import ModuleType

    with monkeypatch.context() as program:
        program.setitem(sys.modules, "__main__", ModuleType("__main__"))
        program.syspath_prepend(script.parent)
        exec(script.read_text(), vars(sys.modules["__main__"]))
    sys.modules.pop("layers_beside")
    for mark in ("runs", "trained"):
        Path(mark).unlink()


def test_class_of_the_users_own_script(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UntrustedError, match=r"__main__\.Net, __main__\.Settings.*--trust path/to/train\.py"):
        load_file("net.pt")
    arguments = list(sys.argv)
    loaded = load_file("net.pt", LoadOptions(trust=["lab/train.py"]))
    assert loaded.module.conv.weight.shape == (5, 3, 1, 1)  # type: ignore[union-attr]
    assert loaded.notes == ("the file lab/train.py was executed, as --trust asks",)
    assert type(loaded.module).__module__ == "train" and not Path("trained").exists()
    assert sys.argv == arguments
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "training []\n")


@pytest.mark.parametrize("first", [True, False])
def test_a_folder_that_is_searched_anyway_keeps_its_place(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.path)
    with searching(tmp_path, first=first):
        assert sys.path[0 if first else -1] == str(tmp_path) and len(sys.path) == len(before) + 1
    assert sys.path == before


def test_class_saved_under_the_name_of_the_script(folder: Path) -> None:
    script = run_script("lab/train.py")
    torch.save(script.Net(6), "net.pt")
    assert load_file("net.pt", LoadOptions(trust="lab/train.py")).module.conv.out_channels == 6  # type: ignore[union-attr]
    assert Path("runs").read_text() == "x"  # one run for both


def test_script_is_executed_only_when_it_is_needed(folder: Path) -> None:
    torch.save(nn.ReLU(), "net.pt")
    assert load_file("net.pt", LoadOptions(trust=["lab/train.py"])).notes == ()
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["hostile", "Traced", "Path", "gone"])
def test_script_lends_no_functions(name: str, folder: Path) -> None:
    from saving import write_pickle

    write_pickle(Path("net.pt"), f"c__main__\n{name}\nX\x06\x00\x00\x00canary\x85R.".encode("latin-1"))
    with pytest.raises(UntrustedError, match=rf"__main__\.{name}\. .*does not define all of them"):
        load_file("net.pt", LoadOptions(trust=["lab/train.py"]))
    assert not Path("canary").exists()


def test_name_that_is_taken(folder: Path) -> None:
    Path("lab/train.py").rename("lab/json.py")
    loaded = load_file("net.pt", LoadOptions(trust=["lab/json.py"]))
    assert type(loaded.module).__module__ == "fxprune_script_json"
    assert sys.modules["json"].__name__ == "json"
    del sys.modules["fxprune_script_json"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "train.py does not exist"),
        ("1 / 0", "train.py was executed and failed: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('usage')", "train.py was executed and ended the program: .*__main__"),
        ("this does not parse", "train.py was executed and failed: SyntaxError"),
    ],
)
def test_scripts_that_do_not_run(content: str | None, reason: str, folder: Path) -> None:
    Path("lab/train.py").unlink()
    if content is not None:
        Path("lab/train.py").write_text(content)
    with pytest.raises(LoadError, match=reason):
        load_file("net.pt", LoadOptions(trust=["lab/train.py"]))
    assert "train" not in sys.modules


def test_module_beside_the_working_folder_can_be_trusted(folder: Path) -> None:
    Path("own_nets.py").write_text("from torch import nn\nclass Net(nn.ReLU):\n    pass\n")
    torch.save(run_script("own_nets.py").Net(), "net.pt")
    del sys.modules["own_nets"]
    assert type(load_file("net.pt", LoadOptions(trust=["own_nets"])).module).__module__ == "own_nets"
    del sys.modules["own_nets"]
    Path("own_nets.py").rename("lab/own_nets.py")
    with pytest.raises(LoadError, match=r"importing own_nets failed.*--trust path/to/own_nets\.py"):
        load_file("net.pt", LoadOptions(trust=["own_nets"]))


# --- --allow-pickle ---------------------------------------------------------------------------------------------------


def test_allow_pickle_reads_what_nothing_else_reads(folder: Path) -> None:
    torch.save(torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1))), "net.pt")
    with pytest.raises(UntrustedError, match=r"--allow-pickle"):
        load_file("net.pt")
    loaded = load_file("net.pt", LoadOptions(allow_pickle=True))
    assert isinstance(loaded.module, torch.fx.GraphModule)
    assert "unpickled without any check" in loaded.notes[0]


def test_allow_pickle_reads_old_files(folder: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 1), "net.pt", _use_new_zipfile_serialization=False)
    assert type(load_file("net.pt", LoadOptions(allow_pickle=True)).module) is nn.Conv2d


def test_allow_pickle_finds_classes_of_a_trusted_script(folder: Path) -> None:
    loaded = load_file("net.pt", LoadOptions(trust=["lab/train.py"], allow_pickle=True))
    assert type(loaded.module).__module__ == "train" and len(loaded.notes) == 2
    with pytest.raises(LoadError, match="cannot be unpickled: AttributeError"):
        load_file("net.pt", LoadOptions(allow_pickle=True))


def test_allow_pickle_is_never_a_fallback(folder: Path) -> None:
    from saving import write_pickle

    write_pickle(Path("net.pt"), b"c__main__\neval\nX\x06\x00\x00\x00canary\x85R.")
    for options in (LoadOptions(), LoadOptions(trust=["lab/train.py"]), LoadOptions(arch="zoo:resnet8")):
        with pytest.raises(UntrustedError):
            load_file("net.pt", options)


# --- --arch -----------------------------------------------------------------------------------------------------------


def test_factory_of_a_script_or_module(folder: Path) -> None:
    made = build_architecture("lab/train.py:Net?width=7")
    assert made.module.conv.out_channels == 7 and made.name == "Net"  # type: ignore[union-attr]
    assert made.notes == ("the file lab/train.py was executed, as --arch asks",)
    Path("own_nets.py").write_text("from torch import nn\nclass Nets:\n    small = nn.ReLU\n")
    assert type(build_architecture("own_nets:Nets.small").module) is nn.ReLU
    del sys.modules["own_nets"]


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("resnet50", "names no network: write torchvision:NAME"),
        ("lab/train:Net", "names no network"),
        ("lab/train.py:", "names no network"),
        ("lab/train.py:Gone", "lab/train.py has no Gone"),
        ("lab/train.py:count", "count is a int, not a class or function"),
        ("lab/train.py:Net?wide=3", "cannot be built: TypeError: .*wide"),
        ("lab/train.py:Settings?width=3", "returned a Settings, not a network"),
        ("lab/none.py:Net", "lab/none.py does not exist"),
        ("no_such_package:Net", "importing no_such_package failed: ModuleNotFoundError"),
        ("torchvision:resnet51", "torchvision has no network 'resnet51'"),
    ],
)
def test_architectures_that_cannot_be_built(arch: str, reason: str, folder: Path) -> None:
    with pytest.raises(LoadError, match=reason) as caught:
        build_architecture(arch)
    assert "\n" not in str(caught.value)


def test_seed_decides_the_weights_of_a_factory(folder: Path) -> None:
    first, again, other = (build_architecture("lab/train.py:Net", seed) for seed in (1, 1, 2))
    weights = [one.module.get_parameter("conv.weight") for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_hostile_files_do_run_when_pickle_is_allowed(folder: Path) -> None:
    """The refusals above are worth something: the same file does harm when read without them."""
    from test_trust import HOSTILE

    torch.save(HOSTILE["builtins.eval"], "net.pt")
    with pytest.raises(LoadError, match=r"holds a NoneType"):
        load_file("net.pt", LoadOptions(allow_pickle=True))
    assert Path("canary").exists()
    Path("canary").unlink()
    trusting_load()
    assert Path("canary").exists()


def test_trust_is_checked_when_it_is_given() -> None:
    with pytest.raises(OptionError, match="cannot be trusted"):
        LoadOptions(trust=["__main__"])
