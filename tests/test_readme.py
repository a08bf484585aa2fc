"""What the README shows works: its Python runs, its commands exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxprune.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(blocks("python")) >= 2
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "resnet20.onnx").stat().st_size > 0


def test_commands_and_options_exist() -> None:
    lines = [line.split("#")[0].split() for block in blocks("bash") for line in block.splitlines()]
    calls = [words for words in lines if words and words[0] == "fxprune"]
    assert {words[1] for words in calls} == {"compile", "explain", "zoo"}
    for words in calls:
        text = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
        assert all(word in text for word in words if word.startswith("-")), words


def test_tools_are_there_and_can_be_run() -> None:
    tools = [words.split()[0] for block in blocks("bash") for words in block.splitlines() if words.startswith("tools/")]
    assert tools == ["tools/demo", "tools/test"]
    assert all(os.access(ROOT / tool, os.X_OK) for tool in (*tools, "tools/check", ".ci/run"))
