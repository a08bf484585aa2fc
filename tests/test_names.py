"""Names that would end up in generated source: what fx accepts passes, what would break out of the code is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune import zoo
from fxprune.capture.names import check_names
from fxprune.errors import CaptureError

X = torch.zeros(1, 3, 4, 4)
REFUSED = ["class", "None", "a b", "²", "٣", "ﬁ", "", "a+b", "a\\", 'x"', "1\n", "conv\n"]
BREAKS_FX = ["class", "None", "ﬁ", 'x"']
ACCEPTED = ["0", "12", "conv1", "_hidden", "größe", "match", "self", "print", "3x3", "block1-0", "-", "if-0"]


class Lookup(nn.Module):
    """Calls its only child by name, so that the name reaches the generated code."""

    def __init__(self, name: str, child: nn.Module) -> None:
        super().__init__()
        self.name = name
        self._modules[name] = child

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        child = self._modules[self.name]
        assert child is not None
        out: torch.Tensor = child(x)
        return out


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_module_names(name: str) -> None:
    with pytest.raises(CaptureError) as caught:
        check_names(nn.Sequential(Lookup(name, nn.ReLU())))
    assert f"the module {name!r} in 0 " in str(caught.value)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepts_what_fx_can_write(name: str) -> None:
    model = Lookup(name, nn.Conv2d(3, 3, 1))
    check_names(model)
    assert torch.fx.symbolic_trace(model)(X).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("name", BREAKS_FX)
def test_fx_cannot_write_what_is_refused(name: str) -> None:
    with pytest.raises((SyntaxError, AttributeError)):
        torch.fx.symbolic_trace(Lookup(name, nn.Conv2d(3, 3, 1)))(X)


@pytest.mark.parametrize(("registry", "kind"), [("_parameters", "parameter"), ("_buffers", "buffer")])
def test_refuses_tensor_names(registry: str, kind: str) -> None:
    inner = nn.ReLU()
    model = nn.Sequential(nn.Sequential(inner))
    vars(inner)[registry]['w"'] = nn.Parameter(torch.zeros(1))
    with pytest.raises(CaptureError, match=f"the {kind} 'w\"' in 0.0 "):
        check_names(model)


def test_refuses_names_of_plain_tensor_attributes() -> None:
    model = nn.ReLU()
    vars(model)['w"'] = torch.zeros(1)
    with pytest.raises(CaptureError, match="the tensor attribute 'w\"' at the top"):
        check_names(model)


def test_other_plain_attributes_may_have_any_name() -> None:
    model = nn.ReLU()
    vars(model)["any thing"] = 3
    check_names(model)


def test_refuses_names_that_are_no_text() -> None:
    model = nn.Sequential()
    model._modules[0] = nn.ReLU()  # type: ignore[index]
    with pytest.raises(CaptureError, match="the module 0 "):
        check_names(model)


def test_hostile_name_runs_a_command_unless_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = 'x", getattr(__import__("os"), "system")("echo > canary") and "'
    model = Lookup(name, nn.Conv2d(3, 3, 1))
    with pytest.raises(CaptureError):
        check_names(model)
    assert not Path("canary").exists()
    with pytest.raises(TypeError):  # by then the command has run
        torch.fx.symbolic_trace(model)(X)
    assert Path("canary").exists()


def test_names_module_without_registries() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            pass

    with pytest.raises(CaptureError, match=r"Forgetful.*super\(\).__init__"):
        check_names(Forgetful())


def test_refuses_child_that_is_no_module() -> None:
    model = nn.Sequential(nn.Sequential())
    model[0]._modules["0"] = "text"  # type: ignore[assignment]
    with pytest.raises(CaptureError, match=r"0\.0 is a str"):
        check_names(model)


def test_ends_on_modules_that_contain_themselves() -> None:
    model = nn.Sequential(nn.ReLU())
    model._modules["again"] = model
    model.register_module("none", None)
    check_names(model)


def test_methods_of_the_network_are_not_called() -> None:
    model = nn.Sequential(nn.ReLU())
    for method in ("modules", "named_modules", "named_parameters", "children", "forward"):
        vars(model)[method] = pytest.fail
    check_names(model)


def test_accepts_the_zoo() -> None:
    for name in ("vgg16", "resnet20", "mobilenet10"):
        check_names(zoo.build(name))
