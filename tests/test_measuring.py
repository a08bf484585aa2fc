"""Measuring a dense and a pruned network side by side: what is found, what is left out, notes, rows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune import zoo
from fxprune.capture.module import capture
from fxprune.cli_measured import latency_text, measured_facts, measured_rows, size_text
from fxprune.compiled import Compiled
from fxprune.emit.onnx import OnnxReport
from fxprune.errors import MeasureError
from fxprune.program import Program
from fxprune.runtime import dense_and_pruned
from fxprune.runtime.dense_and_pruned import MeasureOptions, measure
from fxprune.runtime.latency import Rounds, Timed, latency, ratio
from fxprune.runtime.machine import Machine, processor
from fxprune.runtime.measured import Measured, Pair
from fxprune.runtime.runners import onnx_once, torch_once

MIB = 1 << 20
LONG = 600.0  # seconds: however busy the machine is, what has to happen within them happens


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that measure memory have time to start."""
    monkeypatch.setattr(dense_and_pruned, "PATIENCE", LONG)


# --- the machine ------------------------------------------------------------------------------------------------------


def test_name_of_the_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU: 3 GHz\nflags : a\n")
    assert processor(info) == "Some CPU: 3 GHz"
    info.write_text("processor\t: 0\nmodel name\t: \n\nModel\t\t: Raspberry Pi 4\n")
    assert processor(info) == "Raspberry Pi 4"
    assert processor(tmp_path / "missing")


# --- a compilation ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Compiled, OnnxReport]:
    """Dense, result and ONNX file of a small network."""
    model = zoo.build("resnet8")
    done = fxprune.compile(model, torch.zeros(2, 3, 32, 32), keep_rate=0.25)
    onnx_file = done.to_onnx(tmp_path_factory.mktemp("compiled") / "model.onnx")
    return capture(model, torch.zeros(2, 3, 32, 32)), done, onnx_file


def test_dense_and_pruned(compiled: tuple[Program, Compiled, OnnxReport], monkeypatch: pytest.MonkeyPatch) -> None:
    dense, done, written = compiled
    numbers = {name: tensor.clone() for name, tensor in dense.tensors.items()}
    folders: list[Path] = []
    export = dense_and_pruned.export_onnx

    def remember(module: nn.Module, inputs: object, path: Path, **options: object) -> OnnxReport:
        held = dict(module.named_parameters())
        assert all(held[name].data_ptr() == dense.tensors[name].data_ptr() for name in held), "numbers are not copied"
        folders.append(path.parent)
        report = export(module, inputs, path, **options)  # type: ignore[arg-type]
        assert math.isnan(report.difference), "the dense file is not compared with torch"
        return report

    monkeypatch.setattr(dense_and_pruned, "export_onnx", remember)
    found = measure(dense, done.program, written, MeasureOptions(1, 3, LONG, Rounds(2, 6, 0.0)))
    assert not folders[0].exists()
    assert all(torch.equal(numbers[name], dense.tensors[name]) for name in numbers)
    assert list(found.latency) == ["onnxruntime", "torch"] and list(found.memory) == ["onnxruntime", "torch"]
    assert all((one.warm_up, one.passes, one.full) == (2, 6, True) for one in found.latency.values())
    assert found.batch == Pair(3, 3)
    weights = found.files["model.safetensors"]
    assert weights.first is not None and weights.first > sum(one.nbytes for one in set(dense.tensors.values()))
    sizes = found.files["model.onnx"]
    assert sizes.second == written.path.stat().st_size and sizes.first is not None and sizes.first > 2 * sizes.second
    assert all("other programs" in note for note in found.notes)
    told = found.to_dict()
    assert told["latency"]["torch"]["pruned"]["median"] == found.latency["torch"].second.median
    assert told["peak_memory"]["onnxruntime"]["dense"] == found.memory["onnxruntime"].first.bytes


def test_a_dense_network_without_onnx_costs_that_part_only(
    compiled: tuple[Program, Compiled, OnnxReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> OnnxReport:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(dense_and_pruned, "export_onnx", fail)
    dense, done, written = compiled
    found = measure(dense, done.program, written, MeasureOptions(seconds=LONG, rounds=Rounds(1, 5, 0.0)))
    assert found.notes[0] == "the dense network in onnxruntime not measured: RuntimeError: no such operator"
    assert list(found.latency) == ["torch"] and list(found.memory) == ["torch"]
    assert list(found.files) == ["model.safetensors"]


def test_a_gpu_is_measured_where_there_is_one(
    compiled: tuple[Program, Compiled, OnnxReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way there, on a processor that stands in for one."""

    def fail(*_: object, **__: object) -> OnnxReport:
        raise RuntimeError("not needed here")

    monkeypatch.setattr(dense_and_pruned, "export_onnx", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Graphics")
    monkeypatch.setattr(dense_and_pruned, "GPU", "cpu")
    monkeypatch.setattr(dense_and_pruned, "cuda_once", torch_once)
    monkeypatch.setattr(dense_and_pruned, "_peak_in_torch", lambda *_: None)  # seconds, and not the point
    dense, done, written = compiled
    found = measure(dense, done.program, written, MeasureOptions(seconds=LONG, rounds=Rounds(1, 5, 0.0)))
    assert list(found.latency) == ["torch", "torch on Graphics"]
    monkeypatch.setattr(dense_and_pruned, "GPU", "cuda:99")
    found = measure(dense, done.program, written, MeasureOptions(seconds=LONG, rounds=Rounds(1, 5, 0.0)))
    assert list(found.latency) == ["torch"]
    assert any(note.startswith("latency on the GPU not measured: ") for note in found.notes)


def test_without_time_nothing_is_pretended(
    compiled: tuple[Program, Compiled, OnnxReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_and_pruned, "PATIENCE", 0.001)
    dense, done, written = compiled
    found = measure(dense, done.program, written, MeasureOptions(seconds=0.0, rounds=Rounds(patience=0.0)))
    assert not found.latency and not found.memory
    told = "\n".join(found.notes)
    for runtime in ("onnxruntime", "torch"):
        assert f"peak memory in {runtime} not measured: dense: loading and running it in {runtime} took more" in told
        assert f"latency in {runtime} not measured: a pass takes too long for the time allowed" in told
    assert list(measured_rows(found)) == []
    assert {label for label, _ in measured_facts(found)} == {"note"}


def test_onnxruntime_refuses_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"random")
    with pytest.raises(MeasureError, match=r"^onnxruntime cannot run net\.onnx: ") as caught:
        onnx_once(tmp_path / "net.onnx", {}, 1)
    assert "\n" not in str(caught.value)


# --- print ------------------------------------------------------------------------------------------------------------


def test_rows_and_circumstances() -> None:
    timed = Timed(latency([0.2]), latency([0.05]), ratio([(0.2, 0.05), (0.3, 0.05)]), 1, 12, False)
    machine = Machine("CPU", 4, 9.0, "Linux", {"python": "3.11", "onnxruntime": "1.2", "torch": "2.0"})
    found = Measured(("A", "B"), machine, Pair(1, 2), 2, latency={"torch": timed})
    assert list(measured_rows(found)) == [("latency, torch", "200 ms (200)", "50.0 ms (50.0)", "5.00x")]
    told = dict(measured_facts(found))
    assert told["measured"] == "CPU, 2 threads, batch 1 and 2, torch 2.0"
    assert "of 12 passes for each side, taken in turns after 1 to warm up" in told["latency"]
    assert machine.busy and not Machine("CPU", 4, 4.0, "Linux", {}).busy and not Machine("", 1, None, "", {}).busy


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0000041, "4.10 us (4.10)"), (0.0123, "12.3 ms (12.3)"), (1234.0, "1,234 s (1,234)")]
)
def test_times_in_their_units(seconds: float, text: str) -> None:
    assert latency_text(latency([seconds])) == text


def test_sizes_in_their_units() -> None:
    assert [size_text(one) for one in (0, 512, 1536, 200 * MIB, 3 << 30)] == [
        "0.00 bytes", "512 bytes", "1.50 KiB", "200 MiB", "3.00 GiB",
    ]  # fmt: skip
