"""Specs are built with fresh weights that their seed decides; torchvision and timm are imported in one place."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from saving import assert_same
from torch import nn

from fxprune import zoo
from fxprune.capture import zoo_imports
from fxprune.capture.loaded import Loaded
from fxprune.capture.specs import build_spec
from fxprune.capture.zoo_imports import import_timm, import_torchvision
from fxprune.errors import LoadError, OptionError


def test_spec_describes_what_was_built() -> None:
    loaded = build_spec("zoo:vgg16?num_classes=7&bias=false")
    assert (loaded.origin, loaded.name) == ("zoo:vgg16?num_classes=7&bias=false", "vgg16")
    assert (loaded.input_hint, loaded.fresh, loaded.notes) == ((1, 3, 32, 32), True, ())
    assert loaded.module.get_parameter("classifier.weight").shape == (7, 512)
    assert not any(isinstance(one, nn.Conv2d) and one.bias is not None for one in loaded.module.modules())
    assert_same(loaded.module, zoo.build("vgg16", num_classes=7, bias=False))


@pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1?num_classes=5", "timm:ghostnet_050", "zoo:resnet8"])
def test_seed_decides_the_weights_and_leaves_the_generator_alone(spec: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (build_spec(spec, seed=seed).module for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(first, again)
    with pytest.raises(AssertionError):
        assert_same(first, other)


@pytest.mark.parametrize("spec", ["torchvision:googlenet", "torchvision:inception_v3", "timm:ghostnet_100"])
@pytest.mark.filterwarnings("error::FutureWarning", "error::UserWarning")
def test_builds_without_warnings(spec: str) -> None:
    assert build_spec(spec).input_hint is None


def test_segmentation_networks_do_not_download_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", pytest.fail)
    module = build_spec("torchvision:deeplabv3_mobilenet_v3_large?num_classes=4").module
    assert module.get_parameter("classifier.4.weight").shape[0] == 4


def test_pretrained_tags_only_name_the_architecture() -> None:
    assert type(build_spec("timm:ghostnet_100.in1k").module).__name__ == "GhostNet"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("vgg16", "'vgg16' is no spec.*zoo:NAME"),
        ("keras:vgg16", "'keras:vgg16' is no spec"),
        ("", "'' is no spec"),
        ("zoo:vgg17", "zoo has no network 'vgg17'; did you mean vgg1"),
        ("zoo:", "zoo has no network ''; fxprune zoo lists them"),
        ("torchvision:resnet51", "torchvision has no network 'resnet51'; did you mean resnet"),
        ("torchvision:ResNet50", "did you mean resnet50"),
        ("timm:ghostnet_10", "timm has no network 'ghostnet_10'; did you mean .*ghostnet_100"),
        ("timm:hf-hub:someone/net", "timm has no network 'hf-hub:someone/net'"),
        ("timm:local-dir:here", "timm has no network"),
        ("zoo:vgg16?num_classes", "not of the form key=value"),
        ("zoo:vgg16?seed=3", "seed is no option"),
        ("torchvision:resnet18?weights=DEFAULT", "weights is no option here"),
        ("torchvision:fcn_resnet50?weights_backbone=DEFAULT", "weights_backbone is no option here"),
        ("timm:ghostnet_100?pretrained=true", "pretrained is no option here"),
        ("timm:ghostnet_100?checkpoint_path=net.pt", "checkpoint_path is no option here"),
        ("torchvision:resnet18?classes=3", "cannot be built: TypeError: .*classes"),
        ("torchvision:resnet18?num_classes=many", "cannot be built: TypeError"),
        ("timm:ghostnet_100?wide=3", "cannot be built: TypeError: .*wide"),
    ],
)
def test_specs_that_cannot_be_built(spec: str, reason: str) -> None:
    with pytest.raises(LoadError, match=reason) as caught:
        build_spec(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, None])
def test_seeds_outside_their_range(seed: Any) -> None:
    with pytest.raises(OptionError, match="seed is"):
        build_spec("timm:ghostnet_100", seed=seed)


def test_options_of_the_zoo_explain_themselves() -> None:
    with pytest.raises(OptionError, match="no option 'wide'"):
        build_spec("zoo:vgg16?wide=3")


def test_loaded_cannot_be_changed() -> None:
    loaded = Loaded(nn.ReLU(), "x", "x")
    with pytest.raises(AttributeError):
        loaded.name = "y"  # type: ignore[misc]


# --- importing torchvision and timm ---------------------------------------------------------------------------


def test_imports_are_the_real_packages() -> None:
    assert import_torchvision() is sys.modules["torchvision"]
    assert import_timm() is sys.modules["timm"]
    assert import_torchvision().ops.nms is not None


@pytest.mark.parametrize(("package", "load"), [("torchvision", import_torchvision), ("timm", import_timm)])
def test_missing_packages_are_named(package: str, load: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    import_torchvision()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LoadError, match=rf"{package} is not installed: pip install 'fxprune\[zoo\]'"):
        load()
    with pytest.raises(LoadError, match="fxprune"):
        build_spec(f"{package}:resnet18")


@pytest.mark.parametrize("failure", [RuntimeError("broken\nbadly"), ImportError("broken"), OSError("broken")])
def test_broken_torchvision_is_reported(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> None:
        raise failure

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(LoadError, match=rf"^torchvision cannot be imported: {type(failure).__name__}: broken$"):
        import_torchvision()


def test_schemas_are_declared_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    kept: list[object] = []
    declared: list[str] = []
    monkeypatch.setattr(zoo_imports, "_kept_alive", kept)
    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(torch.library, "Library", lambda *_: type("Fake", (), {"define": declared.append}))
    with pytest.raises(LoadError, match="torchvision::nms"):
        import_torchvision()
    assert len(kept) == 1
    assert [schema.partition("(")[0] for schema in declared] == ["nms", "qnms"]
