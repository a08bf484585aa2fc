"""model.py: whatever is compiled comes back from its source alone, number for number, in both modes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import families
import pytest
import torch
import torch.nn.functional as F
from emitted_sources import check, compiled, family, network
from models import NETWORKS, Net, conv
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from fxprune import Compiled
from fxprune.emit.source import Source, write_source
from fxprune.emit.source_check import check_source
from fxprune.emit.source_proof import prove_source
from fxprune.emit.source_run import network_from
from fxprune.emit.source_text import SourceError


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "stochastic_depth"])
def test_every_construct(name: str) -> None:
    proved = check(network(name))
    assert proved.notes == () and check_source(proved.source.text, "model.py").class_name in ("Net", "Pair")


@pytest.mark.parametrize("name", ["googlenet", "ghostnet_100"])
def test_families_with_two_graphs(name: str) -> None:
    proved = check(family(name))
    assert proved.notes == () and "_forward_train(x) if self.training" in proved.source.text


@pytest.mark.wide
@pytest.mark.parametrize("name", families.FAMILIES)
def test_families(name: str) -> None:
    assert check(family(name)).notes == ()


# ---- in an environment where there is nothing but torch

ALONE = """
import sys, torch
torch.set_num_threads(1)
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fxprune", "torchvision", "timm", "onnx", "networkx", "pydantic"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1])
import model
from safetensors.torch import load_file
given = load_file(sys.argv[1] + "/expected.safetensors")
network = getattr(model, model.__all__[0])()
print(network.load_state_dict(load_file(sys.argv[1] + "/model.safetensors"), strict=True))
network.eval()
with torch.no_grad():
    assert torch.equal(network(given["x"]), given["evaluated"])
network.train()
network(given["x"])
print("fxprune" in sys.modules)
"""


def test_text_and_weights_are_enough_where_only_torch_is_installed(tmp_path: Path) -> None:
    done = family("googlenet")
    x = families.pictures("googlenet", dtype=torch.float32)
    (tmp_path / "model.py").write_text(done.to_source().source.text)
    save_file({name: one.contiguous() for name, one in done.state_dict().items()}, tmp_path / "model.safetensors")
    with torch.no_grad():
        save_file({"x": x, "evaluated": done.module.eval()(x)}, tmp_path / "expected.safetensors")
    found = subprocess.run(
        [sys.executable, "-P", "-c", ALONE, str(tmp_path)],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split("\n")[:2] == ["<All keys matched successfully>", "False"]


# ---- awkward networks


def test_frozen_parameters_stay_frozen() -> None:
    model = NETWORKS["residual"].build()
    model.a.requires_grad_(False)
    model.bn.bias.requires_grad_(False)
    done = compiled(model, torch.randn(2, 3, 8, 6))
    net = network_from(done.to_source().source.text, done.state_dict(), "model.py")
    frozen = {name for name, one in net.named_parameters() if not one.requires_grad}
    assert frozen == {"a.weight", "a.bias", "bn.bias"}


def test_everything_frozen() -> None:
    done = compiled(NETWORKS["residual"].build().requires_grad_(False), torch.randn(2, 3, 8, 6))
    net = network_from(done.to_source().source.text, done.state_dict(), "model.py")
    assert not any(one.requires_grad for one in net.parameters())


def test_names_that_are_no_identifiers() -> None:
    net = nn.Module()
    model = Net(lambda s, x: s.c(getattr(s, "block1-0")(x) * getattr(s, "__scale")), c=conv(6, 5))
    model.add_module("block1-0", conv(3, 6))
    model.register_parameter("__scale", nn.Parameter(torch.ones(6, 1, 1)))
    model.add_module("unused", net)
    check(compiled(model, torch.randn(2, 3, 8, 6)))


def test_numbered_networks_are_rows_and_gaps_are_filled() -> None:
    model = nn.Sequential(conv(3, 8), nn.Identity(), nn.ReLU(), nn.Identity(), conv(8, 4))
    proved = check(compiled(model, torch.randn(2, 3, 8, 6)))
    assert "class Network(nn.ModuleList):" in proved.source.text and "self[4](" in proved.source.text
    assert proved.source.text.count("nn.Identity()") == 2


def test_one_module_under_two_names() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.inner = conv(3, 6), nn.Module()
            self.inner.first, self.inner.row = conv(6, 6), nn.ModuleList([conv(6, 6), nn.ReLU()])
            self.again, self.c = self.inner.first, conv(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(self.again(self.inner.row[0](self.inner.first(self.a(x)))))
            return out

    check(compiled(Shared(), torch.randn(2, 3, 8, 6)))


def test_arguments_with_names_of_the_file_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = conv(3, 6), conv(6, 5)

        def forward(self, torch: Tensor) -> Tensor:
            out: Tensor = self.c(self.a(torch))
            return out

    with pytest.raises(SourceError, match="the argument 'torch' of forward means something else"):
        compiled(Odd(), torch.randn(2, 3, 8, 6)).to_source()


def test_classes_of_a_main_script_or_a_function_are_refused() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x) if self.training else x

    model = Net(lambda s, x: s.c(s.noise(s.a(x))), a=conv(3, 6), noise=Noise(), c=conv(6, 5))
    with pytest.raises(SourceError, match="Noise cannot be imported"):
        compiled(model, torch.randn(2, 3, 8, 6)).to_source()


def test_leaf_of_another_package_is_imported_and_the_header_says_so() -> None:
    proved = check(network("stochastic_depth"))
    assert "It also needs models_modes." in proved.source.text
    assert proved.source.packages == ("models_modes",)
    assert proved.notes == ("model.py imports models_modes: fxprune.load runs it only with trust=True (--trust)",)


@fx.wrap
def halved(x: Tensor) -> Tensor:
    """A function that tracing does not look into."""
    return x / 2


def test_function_of_another_module_is_imported_and_no_variable_is_called_like_it() -> None:
    model = Net(lambda s, x: s.c(halved(s.a(x)) + halved(s.b(x))), a=conv(3, 6), b=conv(3, 6), c=conv(6, 5))
    proved = check(compiled(model, torch.randn(2, 3, 8, 6)))
    assert "from test_source import halved" in proved.source.text and "halved = " not in proved.source.text


@pytest.mark.parametrize("name", ["efficientnet_b0"])
def test_stochastic_depth_is_written_out(name: str) -> None:
    proved = check(family(name))
    assert proved.source.packages == () and "class DropPath(nn.Module)" in proved.source.text


def test_drop_path_of_timm_is_written_out() -> None:
    from fxprune.capture.zoo_imports import import_timm

    import_timm()
    from timm.layers import DropPath

    parts = {"drop": DropPath(0.4), "other": DropPath(0.3, scale_by_keep=False)}
    model = Net(lambda s, x: s.c(s.b(x) + s.other(s.drop(s.a(x)))), a=conv(3, 6), b=conv(3, 6), c=conv(6, 5), **parts)
    proved = check(compiled(model, torch.randn(6, 3, 8, 6)))
    assert "DropPath(0.4)" in proved.source.text and "DropPath(0.3, scale=False)" in proved.source.text


def test_dropout_as_a_function_needs_one_graph_only() -> None:
    assert "training=self.training" in network("dropout_function").to_source().source.text


# ---- planted faults: the proof looks at what the text does


def planted(old: str, new: str, name: str = "residual") -> tuple[Source, Compiled]:
    done = network(name)
    source = write_source(done.program, done.recipe.masks)
    assert old in source.text
    return Source(source.text.replace(old, new, 1), source.class_name, ()), done


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("x = x.relu()", "x = x.sigmoid()", "eval mode the written source differs"),
        ("nn.BatchNorm2d(6,", "nn.BatchNorm2d(6, momentum=0.2,", "train mode the written source differs"),
        ("nn.BatchNorm2d(6,", "nn.BatchNorm2d(7,", "do not fit"),
        ("self.fc(", "self.fcc(", "does not run"),
        ("return x", "return self", "does not run|differs"),
        ("class Net", "class Net(", "does not make a network"),
    ],
)
def test_text_that_computes_something_else_is_refused(old: str, new: str, complaint: str) -> None:
    source, done = planted(old, new)
    with pytest.raises(SourceError, match=complaint):
        prove_source(source, done.module, done.program.inputs)


def test_proof_changes_neither_the_module_nor_the_random_state() -> None:
    done = network("residual")
    before = {name: one.clone() for name, one in done.state_dict().items()}
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    done.to_source()
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one, before[name]) for name, one in done.state_dict().items())
    assert F.relu is torch.nn.functional.relu
