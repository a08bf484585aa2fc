"""Shell completion: commands, options, and values such as the names of networks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxprune import zoo
from fxprune.capture.zoo_imports import import_timm, import_torchvision
from fxprune.cli import app
from fxprune.cli_values import EMITTED, ZOO, registered
from fxprune.emit import folder

pytestmark = pytest.mark.usefixtures("workplace")


def test_names_are_those_of_the_packages() -> None:
    assert list(ZOO) == zoo.names()
    assert list(EMITTED) == list(folder.EMITTED)
    assert registered("torchvision") == sorted(import_torchvision().models.list_models())
    assert registered("timm") == sorted(import_timm().list_models())
    assert registered("no_such_package") == []


def environment(line: str, shell: str) -> dict[str, str]:
    """What the shells' scripts set when Tab is pressed at the end of this line."""
    if shell != "bash":
        return {"_FXPRUNE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
    words = [part for word in line.split(" ") for part in (re.split("(:)", word) if ":" in word else [word])]
    words = words[:-1] if words[-2:] == [":", ""] else words  # the colon itself is the word at the cursor
    return {
        "_FXPRUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }


def complete(line: str, shell: str = "bash") -> list[str]:
    """What comes back."""
    env = {**environment(line, shell), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = CliRunner(env=env).invoke(app, [], prog_name="fxprune")
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout.split()


def test_commands_options_and_choices() -> None:
    assert complete("fxprune com") == ["compile", "compare"]
    assert {"compile", "explain", "zoo"} <= set(complete("fxprune "))
    assert complete("fxprune compile --keep-r") == ["--keep-rate"]
    assert complete("fxprune compile zoo:vgg16 --policy re") == ["reconvene"]
    assert complete("fxprune compile zoo:vgg16 --emit so") == ["source"]
    assert complete("fxprune compile --coupling ") == ["max", "keep", "min"]


def test_networks_in_bash_which_replaces_what_follows_the_colon() -> None:
    assert complete("fxprune compile zoo:mob") == ["mobilenet10"]
    assert complete("fxprune compile zoo:") == zoo.names()
    assert complete("fxprune compile zo") == [f"zoo:{name}" for name in zoo.names()]
    assert complete("fxprune explain torchvision:resnet1") == ["resnet101", "resnet152", "resnet18"]
    assert complete("fxprune compile zoo:vgg16 --arch timm:ghostnetv2_1") == [
        "ghostnetv2_100",
        "ghostnetv2_130",
        "ghostnetv2_160",
    ]
    assert complete("fxprune compile hub:res") == []


def test_networks_in_other_shells() -> None:
    assert complete("fxprune compile zoo:mob", "fish") == ["zoo:mobilenet10"]
    assert "zoo\\\\:mobilenet10" in complete("fxprune compile zoo:mob", "zsh")[-1]


def test_files_beside_networks(workplace: Path) -> None:
    for name in ("train.py", "net.pt", "a [b].pt"):
        (workplace / name).touch()
    (workplace / "there").mkdir()
    assert complete("fxprune compile t") == ["torchvision:", "timm:", "there/", "train.py"]
    assert complete("fxprune compile n") == []  # nothing but files: the shell's own affair


@pytest.mark.parametrize("line", ["fxprune compile timm:resnet1", "fxprune compile --", "fxprune "])
def test_completion_does_not_import_torch(line: str) -> None:
    code = f"""
import os, sys
os.environ.update({environment(line, "bash")})
sys.argv = ["fxprune"]
from fxprune.__main__ import main
try:
    main()
finally:
    assert not {{"torch", "numpy", "timm", "torchvision", "onnx"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_the_script_in_bash(workplace: Path) -> None:
    command = workplace / "fxprune"
    command.write_text(f'#!/bin/bash\nexec {sys.executable} -c "from fxprune.__main__ import main; main()" "$@"\n')
    command.chmod(0o755)
    script = CliRunner(env={"_FXPRUNE_COMPLETE": "source_bash"}).invoke(app, [], prog_name="fxprune").stdout
    press_tab = (
        'COMP_WORDS=(fxprune compile zoo : mob); COMP_CWORD=4; _fxprune_completion ./fxprune; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["/bin/bash", "--noprofile", "--norc", "-c", f"{script}\n{press_tab}"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("mobilenet10\n", "")
