"""Weights alone: found in checkpoints, fitted into the network of --arch, refused with the names that differ."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from saving import assert_same
from torch import Tensor, nn

from fxprune import zoo
from fxprune.capture.files import load_file
from fxprune.capture.load import load
from fxprune.capture.loaded import Loaded
from fxprune.capture.options import LoadOptions
from fxprune.errors import LoadError, OptionError

State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(seed: int = 3, **options: Any) -> nn.Module:
    """A network whose every number is its own."""
    return zoo.build("resnet8", seed=seed, **options)


def read(content: object, arch: str = "zoo:resnet8", name: str = "net.pt") -> Loaded:
    torch.save(content, name)
    return load_file(name, LoadOptions(arch=arch))


def named(prefix: str, state: State) -> State:
    return {prefix + name: one for name, one in state.items()}


PLACES: dict[str, tuple[Callable[[State], object], tuple[str, ...]]] = {
    "plain": (lambda state: state, ()),
    "state_dict": (lambda state: {"epoch": 3, "state_dict": state}, ("weights were taken from 'state_dict'",)),
    "beside an optimiser": (
        lambda state: {"optimizer": {"state": {0: {"step": torch.zeros(1)}}}, "model_state_dict": state},
        ("weights were taken from 'model_state_dict'",),
    ),
    "model before its average": (lambda state: {"ema": {"x": torch.ones(1)}, "model": state}, ("taken from 'model'",)),
    "average alone": (lambda state: {"ema": state, "epoch": 1}, ("taken from 'ema'",)),
    "a key of one's own": (lambda state: {"my_weights": state, "lr": 0.1}, ("taken from 'my_weights'",)),
    "parallel": (lambda state: named("module.", state), ("'module.', which all names began with",)),
    "compiled": (lambda state: named("_orig_mod.", state), ("'_orig_mod.', which torch.compile",)),
    "both": (lambda state: named("module._orig_mod.", state), ("'_orig_mod.'", "'module.'")),
    "averaged": (lambda state: {"n_averaged": torch.tensor(3), **named("module.", state)}, ("'module.'",)),
    "lightning": (
        lambda state: {"state_dict": named("model.", state), "pytorch-lightning_version": "2"},
        ("taken from 'state_dict'", "'model.', which all"),
    ),
    "arguments and numpy": (
        lambda state: {"args": Namespace(lr=0.1, out=Path("x")), "best": np.float64(0.9), "model": state},
        ("taken from 'model'",),
    ),
    "without counters": (
        lambda state: {name: one for name, one in state.items() if "num_batches" not in name},
        (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_wherever_they_are(place: str, folder: Path) -> None:
    wrap, notes = PLACES[place]
    model = small()
    loaded = read(wrap(model.state_dict()))
    assert_same(loaded.module, model)
    assert (loaded.origin, loaded.name, loaded.fresh, loaded.input_hint) == ("net.pt", "net", False, (1, 3, 32, 32))
    assert len(loaded.notes) == len(notes), loaded.notes
    assert all(part in note for part, note in zip(notes, loaded.notes, strict=True))


def test_safetensors(folder: Path) -> None:
    model = small()
    save_file(model.state_dict(), "net.safetensors", {"format": "pt"})
    assert_same(load_file("net.safetensors", LoadOptions(arch="zoo:resnet8")).module, model)
    with pytest.raises(LoadError, match=r"without the network they belong to: name it with --arch torchvision:NAME"):
        load_file("net.safetensors")


def test_number_of_classes_is_read_off_the_weights(folder: Path) -> None:
    model = small(num_classes=7)
    loaded = read(model.state_dict())
    assert_same(loaded.module, model)
    assert loaded.notes == ("the weights are for 7 classes: zoo:resnet8?num_classes=7 was built",)


@pytest.mark.parametrize(
    ("arch", "made"),
    [
        ("torchvision:squeezenet1_1", "torchvision:squeezenet1_1?num_classes=5"),  # its head is a convolution
        ("torchvision:mobilenet_v3_small?dropout=0.1", "torchvision:mobilenet_v3_small?dropout=0.1&num_classes=5"),
        ("timm:ghostnet_050", "timm:ghostnet_050?num_classes=5"),
    ],
)
def test_classes_of_other_sources(arch: str, made: str, folder: Path) -> None:
    from fxprune.capture.specs import build_spec

    model = build_spec(made, seed=4).module
    loaded = read(model.state_dict(), arch)
    assert_same(loaded.module, model)
    assert loaded.notes == (f"the weights are for 5 classes: {made} was built",)


def changed(**changes: Tensor | None) -> State:
    state = small().state_dict()
    for name, one in changes.items():
        state[name.replace("__", ".")] = one  # type: ignore[assignment]
    return {name: one for name, one in state.items() if one is not None}


MISFITS = {
    "missing": (lambda: changed(conv1__weight=None), ["1 are missing from the file (conv1.weight)"]),
    "unknown": (lambda: changed(extra=torch.ones(1)), ["1 are unknown to the network (extra)"]),
    "shape": (
        lambda: changed(conv1__weight=torch.ones(16, 1, 3, 3)),
        ["1 have another shape (conv1.weight: 16x1x3x3 in the file, 16x3x3x3 in the network)"],
    ),
    "another network": (
        lambda: zoo.build("vgg11").state_dict(),
        ["are missing from the file (", "are unknown to the network (", " and ", " more)"],
    ),
    "two new lengths": (
        lambda: changed(fc__weight=torch.ones(7, 64), fc__bias=torch.ones(8)),
        ["2 have another shape (fc.weight: 7x64 in the file, 10x64 in the network, fc.bias: 8 in the file, 10"],
    ),
    "wider somewhere": (
        lambda: changed(bn1__weight=torch.ones(20), bn1__bias=torch.ones(20)),
        ["2 have another shape (bn1.weight: 20 in the file, 16"],
    ),
    "scalar": (lambda: changed(fc__bias=torch.tensor(1.0)), ["fc.bias: one number in the file"]),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_weights_that_do_not_fit(kind: str, folder: Path) -> None:
    make, words = MISFITS[kind]
    with pytest.raises(LoadError) as caught:
        read(make())
    message = str(caught.value)
    assert "the weights in net.pt do not fit zoo:resnet8: " in message and "\n" not in message
    assert [word for word in words if word not in message] == []
    assert "num_classes=10" in message  # how options are written


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_converted(dtype: torch.dtype, folder: Path) -> None:
    model = small().to(dtype)
    loaded = read(model.state_dict())
    assert_same(loaded.module, model.float())
    name = str(dtype).removeprefix("torch.")
    assert loaded.notes == (f"weights are {name} in the file and were converted to the network's float32",)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_whole_network_is_converted_too(dtype: str, folder: Path) -> None:
    torch.save(small().to(getattr(torch, dtype)), "net.pt")
    loaded = load("net.pt")
    assert_same(loaded.module, small().to(getattr(torch, dtype)).float())
    assert loaded.notes == (f"weights are {dtype} in the file and were converted to float32",)


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        (lambda shape: torch.ones(shape, dtype=torch.int8), "int8"),
        (lambda shape: torch.ones(shape).to_sparse(), r"float32 \(sparse_coo\)"),
    ],
)
def test_weights_of_another_kind_are_refused(weights: Callable[[torch.Size], Tensor], kind: str, folder: Path) -> None:
    shape = small().get_parameter("conv1.weight").shape
    with pytest.raises(LoadError, match=f"holds conv1.weight as {kind}, the network needs float32"):
        read(changed(conv1__weight=weights(shape)))


NO_WEIGHTS: dict[str, tuple[object, str]] = {
    "empty": ({}, "holds no weights: it is an empty dictionary"),
    "settings": ({"lr": 0.1, "epochs": 3}, "holds no weights: its keys are 'lr', 'epochs'"),
    "tensor": (torch.ones(3), "holds a Tensor, not weights"),
    "list": ([torch.ones(3)], "holds a list, not weights"),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_files_without_weights(kind: str, folder: Path) -> None:
    content, reason = NO_WEIGHTS[kind]
    with pytest.raises(LoadError, match=reason):
        read(content)


def test_architecture_for_a_whole_network_is_refused(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"net\.pt holds a whole network, and zoo"):
        read(small())


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"\xff" * 8 + raw[8:],
        lambda raw: raw[:8] + b"[1, 2" + raw[13:],
        lambda raw: raw.replace(b'"F32"', b'"F99"'),
        lambda raw: raw.replace(b'"shape":[16', b'"shape":[99'),
    ],
)
def test_damaged_safetensors(damage: Callable[[bytes], bytes], folder: Path) -> None:
    save_file(small().state_dict(), "net.safetensors")
    raw = Path("net.safetensors").read_bytes()
    Path("net.safetensors").write_bytes(damage(raw))
    with pytest.raises(LoadError, match=r"net\.safetensors is damaged or no safetensors file: ") as caught:
        load_file("net.safetensors", LoadOptions(arch="zoo:resnet8"))
    assert "\n" not in str(caught.value)


def test_hostile_checkpoint_runs_nothing(folder: Path) -> None:
    from test_trust import Calls

    stream = io.BytesIO()
    torch.save({"model": small().state_dict(), "args": Calls(eval, "open('canary', 'w')")}, stream)
    Path("net.pt").write_bytes(stream.getvalue())
    with pytest.raises(LoadError, match=r"asks for builtins\.eval"):
        load_file("net.pt", LoadOptions(arch="zoo:resnet8"))
    assert not Path("canary").exists()
