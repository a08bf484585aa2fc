"""tools/layers.py: a planted import against the layers is named with its line; the allowed ones pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LAYERS = Path(__file__).resolve().parent.parent / "tools" / "layers.py"

ALLOWED = {
    "fxprune/errors.py": "import sys\n",
    "fxprune/program.py": "import torch\nfrom fxprune.errors import FxpruneError\n",
    "fxprune/channels/__init__.py": "from fxprune.channels.labels import Labels\n",
    "fxprune/channels/labels.py": "from fxprune import errors\nfrom ..program import Program\n",
    "fxprune/verify.py": "from fxprune.channels import labels\n",
    "fxprune/pipeline.py": "from fxprune.passes import mask\nfrom fxprune.passes.plan import Plan\n",
    "fxprune/__init__.py": "from fxprune.pipeline import compile\n",
    "fxprune/cli.py": "import fxprune\nfrom fxprune.pipeline import compile\n",
    "passes/__init__.py": "from fxprune.passes.mask import Mask\n",
    "passes/mask.py": "from fxprune.channels.labels import Labels\n",
    "passes/plan.py": "from fxprune.verify import prove\n",
    "tests/test_mask.py": "from fxprune.passes.mask import Mask\n",
}

PLANTED = [
    ("fxprune/errors.py", "import fxprune.program", "errors stands below program"),
    ("fxprune/errors.py", "from fxprune.verify import prove", "errors stands below verify"),
    ("fxprune/program.py", "from .channels import labels", "program stands below channels"),
    ("fxprune/program.py", "from fxprune import compile", "program stands below the package itself"),
    ("fxprune/channels/labels.py", "from ..pipeline import compile", "channels stands below pipeline"),
    (
        "fxprune/channels/labels.py",
        "from fxprune.passes import mask",
        "only options, pass_lists and pipeline may import passes",
    ),
    ("fxprune/verify.py", "from fxprune import cli", "verify stands below cli"),
    (
        "fxprune/verify.py",
        "def late():\n    from fxprune import passes",
        "only options, pass_lists and pipeline may import passes",
    ),
    ("fxprune/cli.py", "import fxprune.passes.mask", "only options, pass_lists and pipeline may import passes"),
    ("fxprune/pipeline.py", "from fxprune import cli", "pipeline stands below cli"),
    ("passes/mask.py", "from fxprune.passes.plan import Plan", "never each other"),
    ("passes/mask.py", "from . import plan", "never each other"),
    ("passes/mask.py", "from fxprune.pipeline import compile", "passes stands below pipeline"),
    ("passes/mask.py", "import passes.plan", "write fxprune.passes"),
    ("tests/test_mask.py", "from passes import mask", "write fxprune.passes"),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small tree, with the link, in which every import points the right way."""
    for name, text in ALLOWED.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "fxprune" / "passes").symlink_to("../passes")
    return tmp_path


def run_layers(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(LAYERS), str(checkout)], capture_output=True, text=True)


def test_allowed_imports_pass(checkout: Path) -> None:
    done = run_layers(checkout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize(("file", "line", "message"), PLANTED)
def test_planted_import_is_named(checkout: Path, file: str, line: str, message: str) -> None:
    with (checkout / file).open("a") as out:
        out.write(f"\n{line}\n")
    where = ALLOWED[file].count("\n") + 1 + len(line.split("\n"))
    done = run_layers(checkout)
    problems = done.stdout.splitlines()
    assert done.returncode == 1
    assert len(problems) == 1, "once, although the link shows passes/ a second time"
    assert problems[0].startswith(f"{file}:{where}: ")
    assert problems[0].endswith(message)


def test_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    assert run_layers(tmp_path).returncode == 1
