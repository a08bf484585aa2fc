"""model.py and model.safetensors where there is nothing but torch: the same numbers as the compiled module, or not?

`python tools/prove_sources.py PYTHON SPEC...` compiles each network at sparsity 0.98, writes its artefact folder, and
runs it with PYTHON, an interpreter whose environment holds torch and safetensors only (one that can import fxprune is
refused). Prints the largest difference of any output in eval and in train mode, and exits with 1 when there is one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.capture.inputs import choose_inputs
from fxprune.capture.load import load
from fxprune.compare import random_inputs
from fxprune.emit.folder import write_folder
from fxprune.program import skeleton_of

SPARSITY = 0.98
CHILD = """
import importlib.util, json, sys
for name in ("fxprune", "torchvision", "timm", "numpy", "onnx"):
    if importlib.util.find_spec(name):
        sys.exit(f"{name} is installed here")
import torch
from safetensors.torch import load_file
from torch.utils import _pytree as pytree
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import model
given = load_file(sys.argv[1] + "/../expected.safetensors")
network = getattr(model, model.__all__[0])()
network.load_state_dict(load_file(sys.argv[1] + "/model.safetensors"), strict=True)
gaps = {}
for mode in ("eval", "train"):
    torch.manual_seed(0)
    with torch.no_grad():
        found = [one for one in pytree.tree_leaves(network.train(mode == "train")(given["x"])) if one is not None]
    gaps[mode] = max(float((one - given[f"{mode}.{n}"]).abs().max()) for n, one in enumerate(found))
    assert sum(name.startswith(mode) for name in given) == len(found)
print(json.dumps(gaps))
"""


def outputs(module: nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(mode and number, tensor) of what a network computes in eval mode and then in train mode."""
    for mode in ("eval", "train"):
        torch.manual_seed(0)
        with torch.no_grad():
            found = module.train(mode == "train")(x)
        tensors = [one for one in pytree.tree_leaves(found) if isinstance(one, Tensor)]
        yield from ((f"{mode}.{number}", one.clone()) for number, one in enumerate(tensors))


def gaps(python: str, spec: str, box: Path) -> dict[str, float]:
    """Largest differences by mode."""
    loaded = load(spec)
    inputs, _ = choose_inputs(skeleton_of(loaded.module)[0], loaded.input_hint)
    inputs = inputs.with_storage()
    done = fxprune.compile(loaded.module, inputs, sparsity=SPARSITY, proof=False)
    write_folder(done, box / "net", emit=["source", "weights"])
    x = random_inputs(inputs, 1).args[0]
    save_file({"x": x, **dict(outputs(done.module, x))}, box / "expected.safetensors")
    command = [python, "-I", "-c", CHILD, str(box / "net")]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(f"{spec}: {child.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(child.stdout)
    return found


def main() -> int:
    """Compile, run elsewhere, compare, print."""
    torch.set_num_threads(1)
    python, *specs = sys.argv[1:] or [""]
    if not specs:
        raise SystemExit("usage: python tools/prove_sources.py PYTHON SPEC...")
    worst = 0.0
    for spec in specs:
        with TemporaryDirectory() as box:
            found = gaps(python, spec, Path(box))
            lines = len((Path(box) / "net" / "model.py").read_text().splitlines())
        print(f"{spec:36} {lines:5} lines   eval {found['eval']:.1e}   train {found['train']:.1e}", flush=True)
        worst = max(worst, *found.values())
    return int(worst > 0)


if __name__ == "__main__":
    raise SystemExit(main())
