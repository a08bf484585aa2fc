"""Model files: networks come back bit for bit, everything else gets one clear line."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from saving import assert_same, write_pickle
from torch import nn

from fxprune.capture.files import load_file
from fxprune.capture.names import check_names
from fxprune.capture.specs import build_spec
from fxprune.errors import CaptureError, LoadError

FAMILIES = [
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:densenet121",
    "torchvision:googlenet",
    "torchvision:inception_v3",
    "torchvision:efficientnet_b0",
    "torchvision:efficientnet_v2_s",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:squeezenet1_1",
    "torchvision:regnet_y_400mf",
    "torchvision:mnasnet0_5",
    "torchvision:convnext_tiny",
    "torchvision:vgg11_bn?num_classes=2",
    "torchvision:vit_b_16",  # keeps a functools.partial
    "torchvision:lraspp_mobilenet_v3_large",
    "timm:ghostnet_100",
    "timm:res2net50_26w_4s",
    "timm:vit_tiny_patch16_224",  # keeps an enumeration
    "timm:dm_nfnet_f0",  # keeps an activation function
    "zoo:vgg16",
    "zoo:resnet20_a",
    "zoo:mobilenet10",
]


@pytest.mark.parametrize("spec", FAMILIES)
def test_pickled_networks_come_back_bit_for_bit(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build_spec(spec).module
    torch.save(built, tmp_path / "net.pt")
    allowed_before = set(torch.serialization.get_safe_globals())
    with monkeypatch.context() as patched:
        patched.setattr(nn.Module, "__init__", None)  # no constructor is called
        loaded = load_file(tmp_path / "net.pt")
    assert set(torch.serialization.get_safe_globals()) == allowed_before
    assert (loaded.origin, loaded.name, loaded.fresh, loaded.notes) == ("net.pt", "net", False, ())
    assert_same(loaded.module, built)
    check_names(loaded.module)


def test_networks_that_differ_are_told_apart(tmp_path: Path) -> None:
    built = nn.Sequential(nn.BatchNorm2d(3))
    torch.save(built, tmp_path / "net.pt")
    built[0].running_mean[1] = 1e-40  # type: ignore[operator]
    with pytest.raises(AssertionError):
        assert_same(load_file(tmp_path / "net.pt").module, built)


def test_loaded_network_computes_the_same(tmp_path: Path) -> None:
    built = build_spec("torchvision:shufflenet_v2_x0_5").module.eval()
    torch.save(built, tmp_path / "net.pt")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_file(str(tmp_path / "net.pt")).module(x), built(x))


def test_data_parallel_is_taken_off(tmp_path: Path) -> None:
    torch.save(nn.DataParallel(nn.Conv2d(3, 4, 1)), tmp_path / "net.pt")
    loaded = load_file(tmp_path / "net.pt")
    assert type(loaded.module) is nn.Conv2d
    assert "DataParallel" in loaded.notes[0]


def test_network_in_a_checkpoint_is_taken_out(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "ema": nn.ReLU(), "model": nn.Conv2d(3, 4, 1)}, tmp_path / "net.pt")
    loaded = load_file(tmp_path / "net.pt")
    assert type(loaded.module) is nn.Conv2d
    assert loaded.notes == ("the network was taken from 'model' of the checkpoint",)


def test_functions_that_layers_keep(tmp_path: Path) -> None:
    model = nn.ReLU()
    functions = [torch.nn.functional.relu, torch.nn.functional.gelu, torch.nn.functional.hardswish]
    model.acts = functions  # type: ignore[assignment]
    torch.save(model, tmp_path / "net.pt")
    assert load_file(tmp_path / "net.pt").module.acts == functions


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, for relative paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- files that are no networks ---------------------------------------------------------------------------------------


def pickled(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def of_protocol_4() -> bytes:
    stream = io.BytesIO()
    torch.save(nn.ReLU(), stream, pickle_protocol=4)
    return stream.getvalue()


def legacy(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def scripted() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), stream)
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/b.txt", "text")
    return stream.getvalue()


def compressed() -> bytes:
    """A few hundred bytes that would be a megabyte of weights."""
    whole, small = zipfile.ZipFile(io.BytesIO(pickled(nn.Linear(512, 512)))), io.BytesIO()
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, bytes(len(whole.read(name))) if "/data/" in name else whole.read(name))
    return small.getvalue()


def of_the_future() -> bytes:
    """An archive that says it needs version 12.8 of the format."""
    content = bytearray(pickled(nn.ReLU()))
    content[content.index(b"PK\x01\x02") + 6] = 128
    return bytes(content)


NO_NETWORKS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("net.pt", lambda: b"", "is empty"),
    "empty safetensors": ("net.safetensors", lambda: b"", "is empty"),
    "random": ("net.pt", lambda: bytes(range(7, 250)), "is not a file that torch.save wrote"),
    "truncated": ("net.pt", lambda: pickled(nn.Conv2d(3, 4, 3))[:-300], "is truncated or damaged"),
    "start of a zip": ("net.pt", lambda: b"PK\x03\x04" + bytes(300), "is truncated or damaged"),
    "zip of the future": ("net.pt", of_the_future, "is truncated or damaged"),
    "protocol 4": ("net.pt", of_protocol_4, "has pickle protocol 4: save it again"),
    "text": ("net.py", lambda: b"import torch", "is not a file that torch.save wrote"),
    "compressed": ("net.pt", compressed, "is compressed, which torch.save never does"),
    "another zip": ("net.zip", zipped, "not one that torch.save wrote"),
    "state dict": ("net.pth", lambda: pickled(nn.Linear(2, 2).state_dict()), "--arch"),
    "checkpoint": ("net.tar", lambda: pickled({"epoch": 3, "model": nn.Linear(2, 2).state_dict()}), "--arch"),
    "safetensors": ("net.safetensors", lambda: b"\x08" + bytes(20), "--arch"),
    "tensor": ("net.pt", lambda: pickled(torch.zeros(3)), "holds a Tensor, not a network"),
    "nothing": ("net.pt", lambda: pickled({}), "without tensors"),
    "bare pickle": ("net.pkl", lambda: pickle.dumps(nn.ReLU()), "is a bare pickle or older than torch 1.6"),
    "old format": ("net.pt", lambda: legacy(nn.ReLU()), "is a bare pickle or older than torch 1.6"),
    "TorchScript": ("net.pt", scripted, "is a TorchScript archive"),
    "ONNX": ("net.onnx", lambda: b"\x08\x07", "is an ONNX file"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", NO_NETWORKS)
def test_other_files_get_one_clear_line(kind: str, folder: Path) -> None:
    name, content, reason = NO_NETWORKS[kind]
    (folder / name).write_bytes(content())
    with pytest.raises(LoadError) as caught:
        load_file(folder / name)
    assert_clear(caught.value, name, reason)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.pt", "does not exist"),
        (".", "is a folder"),
        ("a\0b.pt", "cannot be read"),
        ("x/y.pt2", "does not exist"),
    ],
)
def test_paths_without_a_file(path: str, reason: str, folder: Path) -> None:
    with pytest.raises(LoadError) as caught:
        load_file(path)
    assert_clear(caught.value, path, reason)


@pytest.mark.parametrize(
    "instructions",
    [
        b"",
        b"(",
        b"0.",
        b"\x95" + bytes(8) + b".",  # an instruction of a newer pickle protocol
        b"R.",
        b"ctorch.nn.modules.rnn\nLSTM\n)\x81}b.",  # nothing says how many weights there are
        b"ctorch.nn.modules.linear\nIdentity\n)\x81K\x05b.",  # a state that is no dictionary
        b"ctorch.nn.modules.linear\n",
        b"X\xff\xff\xff\xff.",
    ],
)
def test_damaged_pickles_get_one_clear_line(instructions: bytes, folder: Path) -> None:
    write_pickle(Path("net.pt"), instructions)
    with pytest.raises(LoadError) as caught:
        load_file("net.pt")
    assert_clear(caught.value, "net.pt", "is damaged")


def assert_clear(error: LoadError, path: str, reason: str) -> None:
    message = str(error)
    assert type(error) is LoadError
    assert path in message and reason in message
    assert "\n" not in message and "weights_only" not in message and "Traceback" not in message


def test_hollow_network_is_found_by_the_check_of_names(folder: Path) -> None:
    write_pickle(Path("net.pt"), b"ctorch.nn.modules.linear\nIdentity\n)\x81.")
    with pytest.raises(CaptureError, match="not a module that has been set up"):
        check_names(load_file("net.pt").module)


def test_loading_warns_of_nothing(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Lines on stderr are for errors; torch warns of every protocol but its own."""
    torch.save(nn.ReLU(), "net.pt", pickle_protocol=3)
    assert type(load_file("net.pt").module) is nn.ReLU
    assert not recwarn.list


def test_hollow_wrapper_is_no_network(folder: Path) -> None:
    write_pickle(Path("net.pt"), b"ctorch.nn.parallel.data_parallel\nDataParallel\n)\x81.")
    with pytest.raises(LoadError, match="holds a NoneType"):
        load_file("net.pt")
