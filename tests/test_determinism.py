"""The same seed gives the same bytes in every process; another seed gives other weights."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import hashlib, json, sys, tempfile
from pathlib import Path
import torch
torch.set_num_threads(1)
import fxprune
from fxprune import zoo
torch.manual_seed(int(sys.argv[2]))  # the caller's own generator has no say
torch.rand(int(sys.argv[2]))
print(json.dumps({"order": list({"conv", "linear", "norm", "stem", "head"})}))
for name, options in json.loads(sys.argv[1]):
    done = fxprune.compile(zoo.build(name), torch.zeros(2, 3, 32, 32), **options)
    state = hashlib.sha256()
    for key, tensor in done.state_dict().items():
        state.update(key.encode() + str(tensor.dtype).encode() + str(tuple(tensor.shape)).encode())
        state.update(tensor.contiguous().numpy().tobytes())
    onnx = b""
    if name == "resnet8":
        with tempfile.TemporaryDirectory() as folder:
            done.to_onnx(Path(folder) / "model.onnx")
            onnx = (Path(folder) / "model.onnx").read_bytes()
    found = {"state": state.hexdigest(), "recipe": done.recipe.to_json(), "onnx": hashlib.sha256(onnx).hexdigest()}
    found |= {"order": list(done.state_dict()), "widths": [line.after for line in done.report.layers]}
    print(json.dumps(found))
"""
CASES = {
    "masks": ("resnet8", {"sparsity": 0.9, "seed": 3}),
    "random": ("mobilenet10", {"sparsity": 0.8, "criterion": "random", "policy": "random", "seed": 3, "proof": False}),
    "uniform": ("resnet8_a", {"keep_rate": 0.5, "select": "random", "keep_weights": True, "proof": False}),
    "other seed": ("resnet8", {"sparsity": 0.9, "seed": 4}),
}


Outcome = dict[str, dict[str, Any]]


def start(hash_seed: int) -> subprocess.Popen[str]:
    """A fresh process with this seed of Python's string hashes; it prints the outcome of all cases."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": paths}
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(CASES.values())), str(hash_seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def outcome(process: subprocess.Popen[str]) -> Outcome:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    first, *lines = map(json.loads, output.splitlines())
    return {"python": first} | dict(zip(CASES, lines, strict=True))


@pytest.fixture(scope="module")
def outcomes() -> tuple[Outcome, Outcome]:
    first, second = start(1), start(20)
    return outcome(first), outcome(second)


def test_the_two_processes_order_sets_differently(outcomes: tuple[Outcome, Outcome]) -> None:
    """Else the comparison below could not fail."""
    first, second = outcomes
    assert first["python"]["order"] != second["python"]["order"]


@pytest.mark.parametrize("part", ["state", "recipe", "onnx", "order"])
@pytest.mark.parametrize("case", CASES)
def test_same_seed_gives_the_same_bytes_in_two_processes(
    case: str, part: str, outcomes: tuple[Outcome, Outcome]
) -> None:
    first, second = outcomes
    assert first[case][part] == second[case][part]


def test_another_seed_gives_other_weights_in_the_same_widths(outcomes: tuple[Outcome, Outcome]) -> None:
    ours, theirs = outcomes[0]["masks"], outcomes[0]["other seed"]
    assert ours["state"] != theirs["state"] and ours["onnx"] != theirs["onnx"]
    assert ours["order"] == theirs["order"]
    widths = zip(ours["widths"], theirs["widths"], strict=True)
    assert all(abs(a - b) <= 1 for a, b in widths)


def test_compiling_twice_in_one_process_gives_the_same_bytes() -> None:
    import torch

    import fxprune
    from fxprune import zoo

    def digest() -> str:
        done = fxprune.compile(zoo.build("resnet8"), torch.zeros(2, 3, 32, 32), sparsity=0.9, seed=3)
        whole = hashlib.sha256()
        for name, tensor in done.state_dict().items():
            whole.update(name.encode() + tensor.numpy().tobytes())
        return whole.hexdigest()

    first = digest()
    torch.rand(100)
    assert digest() == first
