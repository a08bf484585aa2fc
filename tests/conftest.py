"""What all tests share: one thread for torch, the same random numbers and terminal, golden files, an empty folder to
work in, no ONNX export.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)  # the tests run in several processes
# the same examples each time: a test run says something about the change, never about the draw
settings.register_profile("fxprune", derandomize=True, deadline=None, database=None)
settings.load_profile("fxprune")

# What the terminal of whoever runs the tests is like says nothing about the change. Here, because typer asks as it is
# imported; the processes that tests start inherit it.
_OF_A_TERMINAL = "COLUMNS LINES NO_COLOR FORCE_COLOR PY_COLORS GITHUB_ACTIONS TTY_COMPATIBLE TTY_INTERACTIVE"
for _name in _OF_A_TERMINAL.split():
    os.environ.pop(_name, None)
os.environ["TERM"] = "xterm"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime by themselves, too


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a fixture of a whole module draws does not depend on the test that came first."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """What a test draws does not depend on those that ran before it."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ instead of comparing with it")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): `text` must equal tests/golden/<name>.txt, which must exist; --update-golden writes it.

    Line ends at the end of the text do not count: a golden file always ends with one.
    """
    act = write_golden if request.config.getoption("--update-golden") else compare_golden
    return lambda name, text: act(GOLDEN / f"{name}.txt", text.rstrip("\n") + "\n")


def write_golden(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def compare_golden(path: Path, text: str) -> None:
    if not path.is_file():
        pytest.fail(f"no {path.name}: look at this text, then run pytest --update-golden\n{text}", pytrace=False)
    expected = path.read_text("utf-8")
    if text != expected:
        diff = difflib.unified_diff(expected.splitlines(), text.splitlines(), path.name, "now", lineterm="")
        pytest.fail("\n".join(["not as its golden file; --update-golden accepts it", *diff]), pytrace=False)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quick_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ONNX export, which takes seconds."""
    from fxprune.emit import onnx as onnx_writer
    from fxprune.emit.onnx import OnnxReport

    def written(_module: object, _inputs: object, path: Path, **_: object) -> OnnxReport:
        path.write_bytes(b"onnx")
        return OnnxReport(path, 4, 20, ("x",), ("output",), True, 1e-7, {})

    monkeypatch.setattr(onnx_writer, "export_onnx", written)
