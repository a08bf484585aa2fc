"""onnxruntime keeps to itself: nothing is written to the home folder, and no thread sends anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import os, sys
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper, save

x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [x], [y])
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "net.onnx")
from fxprune.runtime.runners import onnx_once
onnx_once(Path("net.onnx"), {"x": np.zeros(1, np.float32)}, 1)()
from fxprune.runtime.peak import PeakJob, peak_memory
peak_memory(PeakJob("onnxruntime", "net.onnx", [("x", (1,), "float32")]), 600.0)
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize(("asked", "used"), [(None, "1"), ("0", "0")])
def test_it_leaves_the_home_alone_unless_it_is_told(asked: str | None, used: str, workplace: Path) -> None:
    home = workplace / "home"
    home.mkdir()
    theirs = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    around = {name: value for name, value in os.environ.items() if name not in theirs}
    around |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    around |= {} if asked is None else {"ORT_DISABLE_TELEMETRY": asked}
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env=around)
    assert (done.returncode, done.stdout) == (0, f"{used}\n"), done.stderr
    assert asked == "0" or not list(home.iterdir())
