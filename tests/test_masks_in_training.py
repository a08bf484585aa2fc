"""Masks and modes while a compiled network is trained: no optimiser revives a masked weight, no copy loses a mask."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxprune
from fxprune import Compiled, zoo
from fxprune.capture.zoo_imports import import_torchvision
from fxprune.emit.module import plain_state

STEPS = 20
OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=1e-4),
}


class Functional(nn.Module):
    """Owns its weights; one of them is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Parameter(torch.randn(16, 3, 3, 3))
        self.twice = nn.Parameter(torch.randn(16, 16, 3, 3))
        self.classes = nn.Parameter(torch.randn(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.stem, padding=1))
        for _ in range(2):
            x = F.relu(F.conv2d(x, self.twice, padding=1))
        return F.linear(x.mean((2, 3)), self.classes)


def compiled(name: str, sparsity: float = 0.9, policy: str = "reconvene") -> Compiled:
    torch.manual_seed(0)
    model = Functional() if name == "functional" else zoo.build(name)
    return fxprune.compile(model, torch.zeros(2, 3, 32, 32), sparsity=sparsity, policy=policy, proof=False)


def train(module: nn.Module, kind: str, steps: int = STEPS, averaged: AveragedModel | None = None) -> None:
    module.train()
    draw = torch.Generator().manual_seed(1)
    optimiser = OPTIMISERS[kind](module.parameters())
    for _ in range(steps):
        x = torch.randn(4, 3, 32, 32, generator=draw)
        optimiser.zero_grad()
        out = module(x)
        F.cross_entropy(out, torch.arange(4) % out.shape[1]).backward()
        optimiser.step()
        if averaged is not None:
            averaged.update_parameters(module)


def masks_of(done: Compiled) -> dict[str, Tensor]:
    found = {name.removesuffix("_mask"): mask for name, mask in done.state_dict().items() if name.endswith("_mask")}
    assert found and any(not mask.all() for mask in found.values())
    return found


def assert_masked(state: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    """Masked weights are exactly zero, the others are not all."""
    for name, mask in masks.items():
        assert not state[name][~mask].any(), name
        assert state[name][mask].any(), name


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("name", ["resnet8", "mobilenet10", "functional"])
def test_masked_weights_stay_zero_through_training(name: str, kind: str) -> None:
    done = compiled(name)
    before, masks = {key: value.clone() for key, value in done.state_dict().items()}, masks_of(done)
    train(done.module, kind)
    after = done.state_dict()
    assert_masked(after, masks)
    for key, mask in masks.items():
        assert torch.equal(after[f"{key}_mask"], mask)
        assert not torch.equal(after[key], before[key]), f"{key} was not trained"


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_the_effective_weight_is_what_forward_reads(kind: str) -> None:
    """Momentum and decay may move the stored numbers; the weight that the layer computes with is masked."""
    done = compiled("resnet8", policy="none")
    train(done.module, kind, steps=3)
    weight = done.module.get_submodule("conv1").weight
    mask = masks_of(done)["conv1.weight"]
    assert not weight[~mask].any()
    x = torch.randn(1, 3, 32, 32)
    expected = F.conv2d(x, done.state_dict()["conv1.weight"], padding=1)
    assert torch.equal(done.module.get_submodule("conv1")(x), expected)


def test_state_dict_round_trip() -> None:
    done, other = compiled("resnet8"), compiled("resnet8")
    train(done.module, "sgd", steps=3)
    file = io.BytesIO()
    torch.save(done.module.state_dict(), file)
    file.seek(0)
    other.module.load_state_dict(torch.load(file, weights_only=True), strict=True)
    ours, theirs = done.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    train(other.module, "adam", steps=3)
    assert_masked(other.state_dict(), masks_of(done))


def test_deepcopy_after_forward_and_training() -> None:
    done = compiled("resnet8")
    train(done.module, "sgd", steps=2)
    twin = copy.deepcopy(done.module)
    kept = {key: value.clone() for key, value in done.state_dict().items()}
    train(twin, "sgd", steps=3)
    assert_masked(plain_state(twin), masks_of(done))
    assert all(torch.equal(kept[key], value) for key, value in done.state_dict().items()), "the copy shares numbers"
    assert not torch.equal(plain_state(twin)["conv1.weight"], kept["conv1.weight"])


@pytest.mark.parametrize("kind", ["average", "ema"])
def test_averaged_models(kind: str) -> None:
    done = compiled("resnet8")
    how = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)} if kind == "ema" else {}
    averaged = AveragedModel(done.module, **how)
    train(done.module, "sgd", averaged=averaged)
    state = plain_state(averaged.module)
    assert_masked(state, masks_of(done))
    assert not torch.equal(state["conv1.weight"], done.state_dict()["conv1.weight"])
    averaged.eval()
    x = torch.randn(2, 3, 32, 32)
    assert averaged(x).isfinite().all()


def test_user_s_names_and_nothing_else() -> None:
    done = compiled("resnet8")
    names = {name for name, _ in zoo.build("resnet8").state_dict().items()}
    assert {name for name in done.state_dict() if not name.endswith("_mask")} == names
    assert {f"{name}_mask" for name in masks_of(done)} == set(done.state_dict()) - names


def test_masked_weights_are_zero_in_the_onnx_file(tmp_path: Path) -> None:
    """Batch norms are folded into the weights, which scales rows: zeros stay zeros."""
    done = compiled("resnet8", 0.8)
    train(done.module, "sgd", steps=3)
    done.to_onnx(tmp_path / "model.onnx")
    tensors = [numpy_helper.to_array(one) for one in onnx.load(tmp_path / "model.onnx").graph.initializer]
    for name, mask in masks_of(done).items():
        wanted = mask.numpy()
        patterns = [wanted] if wanted.ndim > 2 else [wanted, wanted.T]
        matching = [one for one in tensors if any(one.shape == p.shape and not one[~p].any() for p in patterns)]
        assert matching, f"no initialiser has the zeros of {name}"
        assert any((one != 0).mean() > 0.9 * wanted.mean() for one in matching)


def test_untrained_masks_reach_the_onnx_file_through_the_module_s_own_numbers(tmp_path: Path) -> None:
    """The file follows the module as it is now, not as it was compiled."""
    done = compiled("functional")
    with torch.no_grad():
        done.module.get_parameter("parametrizations.twice.original").fill_(3.0)
    done.to_onnx(tmp_path / "model.onnx")
    tensors = [numpy_helper.to_array(one) for one in onnx.load(tmp_path / "model.onnx").graph.initializer]
    mask = masks_of(done)["twice"].numpy()
    assert any(one.shape == mask.shape and np.array_equal(one, 3 * mask.astype(np.float32)) for one in tensors)


# ---- gradients


@pytest.mark.parametrize("sparsity", [0.5, 0.98])
@pytest.mark.parametrize("name", ["resnet8", "resnet20_a", "mobilenet10", "functional"])
def test_every_parameter_has_a_finite_gradient(name: str, sparsity: float) -> None:
    module = compiled(name, sparsity).module
    module(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_gradients_do_not_reach_the_user_s_model() -> None:
    model = zoo.build("resnet8")
    done = fxprune.compile(model, torch.zeros(2, 3, 32, 32), sparsity=0.5, keep_weights=True, proof=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(done.module, "sgd", steps=2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# ---- train() and eval()


class FunctionalDropout(nn.Module):
    """Dropout as a function: tracing bakes its flag into the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.classes = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.norm(self.conv(x))), 0.5, self.training)
        out: Tensor = self.classes(x.mean((2, 3)))
        return out


def modes_differ(module: nn.Module, size: int = 8) -> tuple[bool, bool]:
    """(two runs in train mode differ, two runs in eval mode differ); batch statistics are the same in both."""
    x = torch.randn(4, 3, size, size)
    module.train()
    random = not torch.equal(module(x), module(x))
    module.eval()
    return random, not torch.equal(module(x), module(x))


def test_dropout_as_a_function_follows_the_mode() -> None:
    module = fxprune.compile(FunctionalDropout(), torch.empty(2, 3, 8, 8), sparsity=0.5).module
    assert module.training
    assert modes_differ(module) == (True, False)
    twin = copy.deepcopy(module)
    assert not twin.training
    assert modes_differ(twin) == (True, False)
    assert modes_differ(copy.deepcopy(module.train())) == (True, False)


def test_dropout_as_a_module_follows_the_mode() -> None:
    layers = [nn.Conv2d(3, 16, 3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
    module = fxprune.compile(nn.Sequential(*layers), torch.empty(2, 3, 8, 8), sparsity=0.5).module
    assert modes_differ(module) == (True, False)


def test_batch_norm_follows_the_mode() -> None:
    done = compiled("resnet8")
    x = 5 + torch.randn(8, 3, 32, 32)
    statistics = done.state_dict()["bn1.running_mean"].clone()
    done.module.eval()
    inference = done.module(x)
    assert torch.equal(done.state_dict()["bn1.running_mean"], statistics)
    done.module.train()
    assert not torch.allclose(done.module(x), inference)
    assert not torch.equal(done.state_dict()["bn1.running_mean"], statistics)


def test_optimiser_made_in_one_mode_trains_the_other() -> None:
    """Both graphs run over the same parameters."""
    module = fxprune.compile(FunctionalDropout(), torch.empty(2, 3, 8, 8), sparsity=0.5).module
    ids = {id(parameter) for parameter in module.eval().parameters()}
    assert {id(parameter) for parameter in module.train().parameters()} == ids


@pytest.fixture(scope="module")
def googlenet() -> Compiled:
    model = import_torchvision().models.googlenet(num_classes=10, aux_logits=True, init_weights=False)
    return fxprune.compile(model, torch.empty(2, 3, 96, 96), keep_rate=0.25, select="first", proof=False)


def test_auxiliary_heads_of_googlenet_in_train_mode(googlenet: Compiled) -> None:
    module = googlenet.module
    x = torch.randn(2, 3, 96, 96)
    module.train()
    outputs = module(x)
    assert [tuple(one.shape) for one in outputs] == [(2, 10)] * 3
    sum(one.square().sum() for one in outputs).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    module.zero_grad(set_to_none=True)
    module.eval()
    assert module(x).shape == (2, 10)


def test_copy_of_a_module_with_two_graphs_has_both(googlenet: Compiled) -> None:
    x = torch.randn(1, 3, 96, 96)
    for mode in (True, False):
        twin = copy.deepcopy(googlenet.module.train(mode))
        assert twin.training == mode
        twin.eval()
        assert torch.equal(twin(x), googlenet.module.eval()(x))
        assert len(twin.train()(torch.randn(2, 3, 96, 96))) == 3
        again = copy.deepcopy(copy.deepcopy(twin)).eval()
        assert again(x).shape == (1, 10)
