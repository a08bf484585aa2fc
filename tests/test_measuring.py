"""Measuring two networks side by side: statistics, turns, budgets, peaks in processes of their own, notes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

import fxprune
from fxprune import zoo
from fxprune.capture.module import capture
from fxprune.cli_measured import latency_text, measured_facts, measured_rows, size_text
from fxprune.compiled import Compiled
from fxprune.emit.onnx import OnnxReport
from fxprune.errors import MeasureError
from fxprune.example import described
from fxprune.program import Inputs, Program
from fxprune.runtime import dense_and_pruned, runners
from fxprune.runtime.budget import Budget
from fxprune.runtime.dense_and_pruned import MeasureOptions, measure
from fxprune.runtime.latency import Latency, Rounds, Timed, alternate, latency, ratio
from fxprune.runtime.machine import Machine, processor
from fxprune.runtime.measured import Measured, Pair
from fxprune.runtime.peak import PeakJob, peak_memory
from fxprune.runtime.runners import cuda_once, onnx_once, torch_once, torch_threads

MIB = 1 << 20
LONG = 600.0  # seconds: however busy the machine is, what has to happen within them happens


class FakeTime:
    """A clock that only its own sides move."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, ""

    def side(self, name: str, seconds: float) -> Callable[[], float]:
        def once() -> float:
            self.now += seconds
            self.calls += name
            return seconds

        return once

    def perf_counter(self) -> float:
        return self.now

    def budget(self, seconds: float) -> Budget:
        return Budget(seconds, self.perf_counter)


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that measure memory have time to start."""
    monkeypatch.setattr(dense_and_pruned, "PATIENCE", LONG)


def test_statistics_by_hand() -> None:
    assert latency([4.0, 1.0, 2.0, 3.0]) == Latency(median=2.5, p90=3.7, mean=2.5, deviation=pytest.approx(1.2909944))
    assert latency([2.0]) == Latency(2.0, 2.0, 2.0, 0.0)
    found = ratio([(2.0, 1.0), (9.0, 3.0), (4.0, 1.0)])
    assert (found.low, found.median, found.high) == (pytest.approx(2.2), 3.0, pytest.approx(3.8))


def test_what_slows_a_whole_round_cancels_in_the_ratio() -> None:
    found = ratio([(2.0, 1.0), (200.0, 100.0), (2.0, 1.0)])
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)


# --- turns and budgets ------------------------------------------------------------------------------------------------


def test_sides_take_turns() -> None:
    fake = FakeTime()
    found = alternate(fake.side("A", 0.3), fake.side("B", 0.1), Rounds(), fake.budget(1000).left)
    assert fake.calls == "AB" * 40
    assert found is not None and (found.warm_up, found.passes, found.full) == (10, 30, True)
    assert found.first.median == 0.3 and found.second.median == 0.1 and found.ratio.median == pytest.approx(3.0)


def test_short_passes_are_repeated_up_to_a_limit() -> None:
    fake = FakeTime()
    found = alternate(fake.side("A", 0.005), fake.side("B", 0.005), Rounds(), fake.budget(1000).left)
    assert found is not None and found.passes in (100, 101)
    found = alternate(fake.side("A", 1e-6), fake.side("B", 1e-6), Rounds(), fake.budget(1000).left)
    assert found is not None and found.passes == 300
    found = alternate(fake.side("A", 1e-6), fake.side("B", 1e-6), Rounds.exactly(2), fake.budget(1000).left)
    assert found is not None and (found.passes, found.full) == (2, True)


@pytest.mark.parametrize(
    ("seconds", "warm_up", "passes"),
    [
        (100.0, 10, 30),
        (35.0, 5, 30),  # the warm-up shrinks first
        (20.5, 1, 20),  # then the passes
    ],
)
def test_the_budget_holds(seconds: float, warm_up: int, passes: int) -> None:
    fake = FakeTime()
    found = alternate(fake.side("A", 0.75), fake.side("B", 0.25), Rounds(), fake.budget(seconds).left)
    assert found is not None and (found.warm_up, found.passes) == (warm_up, passes)
    assert found.full == (seconds == 100.0)
    assert fake.now <= seconds + 1.0, "no more than one round too long"


def test_the_fewest_passes_are_run_though_no_time_is_left() -> None:
    fake = FakeTime()
    found = alternate(fake.side("A", 1.5), fake.side("B", 0.5), Rounds(), fake.budget(1.0).left)
    assert found is not None and (found.warm_up, found.passes, found.full) == (1, 5, False)


def test_too_few_passes_are_no_statistic() -> None:
    fake = FakeTime()
    assert alternate(fake.side("A", 9.0), fake.side("B", 1.0), Rounds(), fake.budget(45.0).left) is None
    assert fake.calls == "AB", "nothing is run for nothing"


def test_part_of_a_budget() -> None:
    fake = FakeTime()
    whole = fake.budget(10.0)
    fake.now = 4.0
    assert whole.left() == 6.0
    assert whole.part(0.5).left() == 3.0
    fake.now = 12.0
    assert whole.left() == -2.0
    assert whole.part(0.5).left() == 0.0


# --- runners ----------------------------------------------------------------------------------------------------------


def test_a_slow_side_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lasting(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            fake.now += self.seconds
            return x

    fake = FakeTime()
    monkeypatch.setattr(runners, "time", fake)
    fast, slow = (torch_once(Lasting(seconds), Inputs((torch.zeros(1),))) for seconds in (0.25, 2.0))
    found = alternate(slow, fast, Rounds.exactly(5), lambda: LONG)
    assert found is not None and (found.first.median, found.second.median) == (2.0, 0.25)
    assert (found.ratio.low, found.ratio.high) == (8, 8)


def test_gpu_passes_are_timed_by_events_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def elapsed_time(self, _end: object) -> float:
            return 2.5  # milliseconds

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append("run")
            return x

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    assert cuda_once(Net(), Inputs((torch.zeros(1),)))() == 0.0025
    assert calls == ["wait", "record", "run", "record", "wait"]


def test_threads_of_torch_come_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# --- peaks in processes of their own ----------------------------------------------------------------------------------


def filling(path: Path, numbers: int) -> Path:
    """An ONNX file that makes a tensor of so many float32 of its one input, and returns its largest number."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [numbers])
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["big"]),
        helper.make_node("Exp", ["big"], ["bigger"]),
        helper.make_node("ReduceMax", ["bigger"], ["y"], keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "filling", [x], [y], [shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def job(path: Path, name: str = "x") -> PeakJob:
    return PeakJob("onnxruntime", str(path), [(name, (1,), "float32")])


def test_memory_that_a_pass_takes_shows(tmp_path: Path) -> None:
    small = peak_memory(job(filling(tmp_path / "small.onnx", 10)), LONG)
    large = peak_memory(job(filling(tmp_path / "large.onnx", 50 * MIB)), LONG)
    assert large.bytes - small.bytes >= 2 * 200 * MIB, "what goes into Exp and what comes out"
    assert small.bytes < 60 * MIB


def test_memory_that_a_pass_takes_in_torch_shows(tmp_path: Path) -> None:
    source = """
import torch
from torch import nn

__all__ = ["Net"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(x) + torch.ones({numbers}).sum()
"""
    peaks = []
    for numbers in (10, 50 * MIB):
        folder = tmp_path / str(numbers)
        folder.mkdir()
        (folder / "model.py").write_text(source.replace("{numbers}", str(numbers)))
        save_file(nn.Linear(1, 1).state_dict(prefix="layer."), folder / "model.safetensors")
        inputs = described(Inputs((torch.zeros(1, 1),)))
        peaks.append(peak_memory(PeakJob("torch", str(folder), inputs, trust=True), LONG).bytes)
    assert peaks[0] < 20 * MIB and 190 * MIB <= peaks[1] - peaks[0] <= 220 * MIB
    (folder / "model.py").write_text(f"import os\n{source}")
    with pytest.raises(MeasureError, match="^torch cannot run it: UntrustedError: "):
        peak_memory(PeakJob("torch", str(folder), inputs), LONG)


def test_faults_of_the_process_are_one_line(tmp_path: Path) -> None:
    path = filling(tmp_path / "net.onnx", 10)
    with pytest.raises(MeasureError, match="^onnxruntime cannot run it: .*z"):
        peak_memory(job(path, "z"), LONG)
    for script, told in {
        "import os; os.abort()": "was ended while running it, by SIGABRT",
        "import os; os.kill(os.getpid(), 9)": r"by SIGKILL \(often: out of memory\)",
        "import sys; sys.exit(3)": "cannot run it: exit status 3",
        "print('nothing')": "gave no number",
    }.items():
        child = tmp_path / "child.py"
        child.write_text(script)
        with pytest.raises(MeasureError, match=told) as caught:
            peak_memory(job(path), LONG, child)
        assert "\n" not in str(caught.value)
    child.write_text("import time; time.sleep(1000)")
    with pytest.raises(MeasureError, match="took more than 2 s"):
        peak_memory(job(path), 2, child)


def test_the_process_imports_nothing_from_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filling(tmp_path / "net.onnx", 10)
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    assert peak_memory(job(path), LONG).bytes > 0


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
