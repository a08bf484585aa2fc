"""A part of a network is compiled; the rest, which nobody can trace, neither changes nor notices."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detection import DETECTORS, detector, pictures, targets
from models import Net, conv
from oracle import EXACT, difference
from torch import Tensor, nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli import app
from fxprune.errors import CaptureError, NothingPrunableError, OptionError
from fxprune.submodule import recorded


class Body(nn.Module):
    """Takes a dictionary, a flag and an optional argument; returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.mid, self.head = conv(3, 8), nn.BatchNorm2d(8), conv(8, 12), conv(12, 5, 1)
        self.out_channels = 5

    def forward(self, maps: dict[str, Tensor], *, gain: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        x = self.norm(self.stem(maps["image"])).relu() * gain
        x = self.mid(x).relu()
        return {"map": self.head(x), "mean": self.head(x).mean((2, 3))}


class Detector(nn.Module):
    """Loops over values: no tracer can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"body": Body()})
        self.score = nn.Linear(5, 2)
        self.calls = nn.Buffer(torch.zeros(()))

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        self.calls += 1
        batch = torch.stack([image[:, :8, :6] for image in images])
        maps = self.backbone["body"]({"image": batch}, gain=torch.tensor(2.0))
        assert self.backbone["body"].out_channels == 5
        return [self.score(row) for row in maps["mean"] if float(row.sum()) < float("inf")]


def images(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.rand(3, 9, 7, generator=generator, dtype=torch.float64) for _ in range(count)]


def network() -> Detector:
    torch.manual_seed(0)
    return Detector().double()


def halved(model: nn.Module, **options: Any) -> fxprune.Compiled:
    asked = {"keep_rate": 0.5, "keep_weights": True, "submodule": "backbone.body", "retry": False, **options}
    return fxprune.compile(model, (images(),), **asked)


def test_the_rest_neither_changes_nor_notices() -> None:
    model = network()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    done = halved(model)
    small = done.module
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert type(small) is Detector and small.training and small.calls == 0
    assert small.state_dict().keys() == model.state_dict().keys() == done.state_dict().keys()
    assert small.get_parameter("backbone.body.mid.weight").shape == (6, 4, 3, 3)
    assert small.get_parameter("backbone.body.head.weight").shape == (5, 6, 1, 1)
    ours = {id(one) for one in model.state_dict(keep_vars=True).values()}
    assert not any(id(one) in ours for one in small.state_dict(keep_vars=True).values())
    assert torch.equal(small.score.weight, model.score.weight)


def test_exact() -> None:
    model = network()
    done = halved(model)
    dense = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name in ("backbone.body.mid.weight", "backbone.body.head.weight"):
            kept = done.recipe.kept[name][1]
            gone = [one for one in range(dense.get_parameter(name).shape[1]) if one not in kept]
            dense.get_parameter(name)[:, gone] = 0
        for count in (1, 2, 3):
            assert difference(dense(images(count)), done.module.eval()(images(count))) <= EXACT


def test_recipe_repeats_it_on_the_whole_network() -> None:
    model = network()
    done = halved(model)
    assert set(done.recipe.kept) and all(name.startswith("backbone.body.") for name in done.recipe.kept)
    again = fxprune.apply(done.recipe, model).eval()
    assert difference(done.module.eval()(images()), again(images())) <= EXACT
    again.load_state_dict(done.state_dict())


def test_masked_weights_train_in_the_whole_network() -> None:
    done = halved(network(), keep_rate=None, keep_weights=False, sparsity=0.5, policy="reconvene")
    small = done.module
    torch.stack(small(images())).square().sum().backward()
    assert all(bool(one.grad.isfinite().all()) for one in small.parameters() if one.grad is not None)
    assert small.score.weight.grad is not None and done.module is small


def test_patterns_are_names_of_the_whole_network() -> None:
    done = halved(network(), ignore=["backbone.body.st*"])
    assert done.module.get_parameter("backbone.body.stem.weight").shape[0] == 8
    assert done.module.get_parameter("backbone.body.mid.weight").shape == (6, 8, 3, 3)
    with pytest.raises(OptionError, match=r"'stem'.*backbone\.body\.stem"):
        halved(network(), only=["stem"])


def test_onnx_is_of_the_part(tmp_path: Path) -> None:
    small = [image.float() for image in images()]
    done = fxprune.compile(network().float(), (small,), keep_rate=0.5, submodule="backbone.body")
    assert any("backbone.body" in note and "ONNX" in note for note in done.report.notes)
    assert done.to_onnx(tmp_path / "body.onnx").difference <= 1e-4


def test_explain() -> None:
    why = fxprune.explain(network(), (images(),), submodule="backbone.body")
    (group, others), *_ = why.coupled_with("backbone.body.stem")
    assert group.width == 8 and "backbone.body.mid.weight[1]" in {str(one) for one in others}
    frozen = next(one for one in why.groups if "backbone.body.head.weight[0]" in {str(m) for m in one.members})
    assert frozen.frozen is not None


def test_inputs_are_those_of_the_first_call() -> None:
    from fxprune.program import Inputs

    found = recorded(network(), "backbone.body", Inputs((images(),)))
    assert found.args[0]["image"].shape == (2, 3, 8, 6) and found.kwargs["gain"] == 2.0


def test_two_modes_of_a_part() -> None:
    """A part with an auxiliary head switches with the network around it."""

    def run(s: Net, x: Tensor) -> Any:
        x = s.a(x).relu()
        return (s.b(x), s.side(x)) if s.training else s.b(x)

    inner = Net(run, a=conv(3, 8), b=conv(8, 4, 1), side=conv(8, 2, 1))
    model = Net(lambda s, x: [one for one in (s.inner(x),) if float(1)], inner=inner)
    done = fxprune.compile(model, torch.rand(2, 3, 8, 6), keep_rate=0.5, submodule="inner")
    assert isinstance(done.module.train()(torch.rand(2, 3, 8, 6))[0], tuple)
    assert isinstance(done.module.eval()(torch.rand(2, 3, 8, 6))[0], Tensor)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "backbone.boddy", "nowhere"])
def test_unknown_part(path: str) -> None:
    with pytest.raises(OptionError, match="is no module of Detector; .*backbone"):
        halved(network(), submodule=path)


def test_part_that_is_not_called() -> None:
    model = network()
    model.spare = nn.Linear(5, 2)
    with pytest.raises(CaptureError, match="spare is not called when Detector runs"):
        halved(model, submodule="spare")


def test_network_that_does_not_run() -> None:
    with pytest.raises(CaptureError, match="Detector does not run on the example inputs"):
        fxprune.compile(network(), ([torch.rand(2)],), keep_rate=0.5, submodule="backbone.body")


def test_shared_numbers() -> None:
    model = network()
    model.twin = nn.Conv2d(3, 8, 3)
    model.twin.weight = model.backbone["body"].stem.weight
    with pytest.raises(CaptureError, match=r"backbone\.body shares twin\.weight with the rest"):
        halved(model)


def test_nothing_to_remove() -> None:
    with pytest.raises(NothingPrunableError):
        halved(network(), submodule="score")


# -- the command line, and torchvision's detectors -------------------------------------------------------------------


def test_command_line(tmp_path: Path) -> None:
    detector("ssdlite320_mobilenet_v3_large")
    asked = ["torchvision:ssdlite320_mobilenet_v3_large", "--submodule", "backbone", "--json"]
    explained = CliRunner().invoke(app, ["explain", *asked, "--quiet", "--input", "2x3x96x96"])
    assert explained.exit_code == 0, explained.output
    assert all("backbone." in name for group in json.loads(explained.stdout)["groups"] for name in group["members"])
    folder = tmp_path / "small"
    options = ["--keep-rate", "0.5", "--no-measure", "--no-proof", "--quiet", "-o", str(folder)]
    compiled = CliRunner().invoke(app, ["compile", *asked, *options])
    assert compiled.exit_code == 0, compiled.output
    assert any("only backbone was compiled" in note for note in json.loads(compiled.stdout)["notes"])
    assert (folder / "model.onnx").exists() and (folder / "recipe.json").exists()


SLOW = [pytest.param(name, marks=pytest.mark.wide) for name in DETECTORS if not name.startswith("ssdlite")]


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", *SLOW])
def test_detectors(name: str) -> None:
    """The backbone loses half its channels; the detector still detects, and trains a step."""
    model = detector(name)
    done = fxprune.compile(model, (pictures(),), keep_rate=0.5, submodule=DETECTORS[name])
    assert not done.report.refused and done.report.after.parameters < 0.6 * done.report.before.parameters
    small = done.module
    with torch.no_grad():
        found = small.eval()(pictures())
    assert [set(one) >= {"boxes", "labels", "scores"} for one in found] == [True, True]
    optimiser = torch.optim.SGD([one for one in small.train().parameters() if one.requires_grad], lr=1e-4)
    losses = small(pictures(), targets())
    sum(losses.values()).backward()
    grads = {key: one.grad for key, one in small.named_parameters() if one.requires_grad}
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads.values())
    optimiser.step()
    assert all(bool(one.isfinite().all()) for one in small.parameters())
