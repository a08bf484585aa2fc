"""Example inputs: the text form, and guesses that a network's forward has to confirm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture.inputs import choose_inputs, first_convolution, guesses, parse_inputs, run_on_meta
from fxprune.errors import CaptureError, OptionError
from fxprune.program import Inputs


def meta(model: nn.Module) -> nn.Module:
    return model.to("meta")


def flat(channels: int, size: int) -> nn.Module:
    """Accepts images of one size only."""
    return nn.Sequential(nn.Conv2d(channels, 4, 1), nn.Flatten(), nn.Linear(4 * size * size, 2))


def shapes(inputs: Inputs) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in inputs.args]


def test_parses_positional_and_named_inputs() -> None:
    inputs = parse_inputs(["1x3x224x224", "mask=2x7:bool", "8:int64"])
    assert shapes(inputs) == [(1, 3, 224, 224), (8,)]
    assert [tensor.dtype for tensor in inputs.args] == [torch.float32, torch.int64]
    assert list(inputs.kwargs) == ["mask"]
    assert (inputs.kwargs["mask"].shape, inputs.kwargs["mask"].dtype) == ((2, 7), torch.bool)
    assert inputs.args[0].device.type == "meta"


def test_real_inputs_are_zeros() -> None:
    (tensor,) = parse_inputs(["2x3:float64"], device="cpu").args
    assert torch.equal(tensor, torch.zeros(2, 3, dtype=torch.float64))


def test_no_text_gives_no_inputs() -> None:
    assert parse_inputs([]) == Inputs()


@pytest.mark.parametrize(
    "text", ["", "3x", "x3", "1x-3", "1*3", "a b=1x3", "=1x3", "1x3:", "1x3x", "1,3", "1x3:int64:int8", "٣x3", "1x3.0"]
)
def test_refuses_text_that_is_no_shape(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_inputs([text])
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["1x0x3"], "at least 1"),
        (["1x3x16384x16384"], "more than 268,435,456 elements"),
        (["1x3x99999999999999999999x32"], "more than 268,435,456 elements"),  # no size of any tensor
        (["1x3:float31"], "float31 is none of"),
        (["1x3:nn"], "nn is none of"),
        (["x=1x3", "x=2x3"], "x is given twice"),
    ],
)
def test_refuses_values_that_make_no_sense(texts: list[str], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        parse_inputs(texts)


def test_first_convolution_of_any_kind() -> None:
    found = first_convolution(
        nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ConvTranspose1d(5, 2, 1)), nn.Conv2d(3, 1, 1))
    )
    assert found is not None
    assert (found[0], found[1].in_channels) == ("1.0", 5)
    assert first_convolution(nn.Linear(1, 1)) is None


@pytest.mark.parametrize(("kind", "rank"), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
def test_guesses_follow_the_first_convolution(kind: type[nn.Module], rank: int) -> None:
    assert list(guesses(nn.Sequential(kind(5, 2, 1)), None)) == [
        (2, 5, *[size] * rank) for size in (224, 32, 28, 64, 299)
    ]


def test_hint_comes_first_and_repeats_are_left_out() -> None:
    found = guesses(flat(3, 32), (1, 3, 32, 32))
    assert next(iter(found.items())) == ((2, 3, 32, 32), "the network was made for it")
    assert len(found) == 5


def test_no_guess_is_tried_twice() -> None:
    tried = []

    def refuse(model: nn.Module, inputs: Inputs) -> None:
        tried.append(tuple(inputs.args[0].shape))
        raise ValueError("no")

    with pytest.raises(CaptureError):
        choose_inputs(meta(flat(3, 17)), (1, 3, 32, 32), refuse)
    assert len(tried) == len(set(tried)) == 5


def test_configuration_of_the_network_comes_before_the_usual_sizes() -> None:
    model = flat(1, 48)
    model.default_cfg = {"input_size": (3, 48, 48)}  # type: ignore[assignment]
    assert list(guesses(model, None))[:3] == [(2, 3, 48, 48), (2, 1, 48, 48), (2, 1, 224, 224)]
    inputs, note = choose_inputs(meta(model), None)
    assert shapes(inputs) == [(2, 1, 48, 48)]
    assert "2x1x48x48" in note and "configuration" in note


@pytest.mark.parametrize("size", [None, "3x48x48", (3, "48", 48), (3, 0, 48), (), 48])
def test_configuration_without_sense_is_ignored(size: object) -> None:
    model = flat(1, 48)
    model.pretrained_cfg = {"input_size": size}  # type: ignore[assignment]
    assert next(iter(guesses(model, None))) == (2, 1, 224, 224)


@pytest.mark.parametrize("size", [224, 32, 28, 64, 299])
def test_chooses_the_size_that_runs(size: int) -> None:
    inputs, note = choose_inputs(meta(flat(1, size)), None)
    assert shapes(inputs) == [(2, 1, size, size)]
    assert inputs.args[0].device.type == "meta"
    assert f"2x1x{size}x{size}" in note and "channels from 0" in note


def test_chooses_the_dtype_of_the_weights() -> None:
    inputs, _ = choose_inputs(meta(flat(1, 28)).double(), None)
    assert inputs.args[0].dtype == torch.float64


def test_hint_wins_over_what_would_run_as_well() -> None:
    inputs, note = choose_inputs(meta(nn.Conv2d(3, 4, 1)), (1, 3, 40, 40))
    assert shapes(inputs) == [(2, 3, 40, 40)]
    assert "made for it" in note


def test_runs_in_eval_mode_without_gradients_and_puts_modes_back() -> None:
    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    seen: list[tuple[bool, bool]] = []
    model = meta(nn.Sequential(nn.Conv2d(3, 1, 1), Spy(), nn.BatchNorm2d(1), nn.Dropout()))
    model[2].eval()  # type: ignore[index]
    choose_inputs(model, None)
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


def test_puts_modes_back_when_forward_fails() -> None:
    model = meta(flat(1, 17))
    with pytest.raises(RuntimeError):
        run_on_meta(model, Inputs((torch.zeros(2, 1, 8, 8, device="meta"),)))
    assert all(module.training for module in model.modules())


def test_says_what_was_tried_and_why_the_last_one_failed() -> None:
    with pytest.raises(CaptureError) as caught:
        choose_inputs(meta(flat(1, 17)), None)
    message = str(caught.value)
    assert "2x1x224x224, 2x1x32x32, 2x1x28x28, 2x1x64x64, 2x1x299x299" in message
    assert "RuntimeError" in message and "--input" in message and "\n" not in message


def test_asks_for_the_input_of_a_network_without_convolutions() -> None:
    with pytest.raises(CaptureError, match="no convolution.*--input"):
        choose_inputs(meta(nn.Linear(3, 4)), None)


def test_lazy_convolution_gives_no_guess() -> None:
    assert list(guesses(nn.LazyConv2d(4, 1), None)) == []


def test_try_forward_decides() -> None:
    def only_64(_model: nn.Module, inputs: Inputs) -> None:
        assert inputs.args[0].shape[-1] == 64

    inputs, _ = choose_inputs(meta(nn.Conv2d(3, 1, 1)), None, only_64)
    assert shapes(inputs) == [(2, 3, 64, 64)]
