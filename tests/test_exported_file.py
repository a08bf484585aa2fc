"""Exported programs: read from .pt2 files without torch.export.load, whose ways to run code are shown beside it."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_trust import Calls
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

import fxprune
from fxprune import zoo
from fxprune.capture.exported import ExportedNetwork, from_program
from fxprune.capture.exported_file import read_exported
from fxprune.capture.files import load_file
from fxprune.capture.module import capture
from fxprune.capture.options import LoadOptions
from fxprune.errors import CaptureError, LoadError, UntrustedError
from fxprune.program import Inputs

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, where hostile files leave a file `canary` when their code runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Branching(nn.Module):
    """Nested arguments, a constant one, several results of one operator, sizes in arithmetic, a constant, an unread
    buffer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(4, 4, 1)
        self.again = self.out.weight
        self.register_buffer("factor", torch.rand(8), persistent=False)

    def forward(self, x: dict[str, Tensor], *, y: Tensor, wanted: bool = True) -> dict[str, Any]:
        left, right = torch.chunk(F.relu_(self.norm(self.conv(x["image"])) * self.factor.view(1, -1, 1, 1)), 2, 1)
        best, _ = torch.max(self.out(left), 1)
        right = F.conv2d(F.interpolate(right, scale_factor=2, mode="bilinear"), self.again)
        flat = right.reshape(right.shape[0], -1) * torch.tensor(2.0)
        return {"best-1": best, "rest": (flat, [y + 1]), "none": None}


class Counting(nn.Module):
    """Writes into a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.runs = self.runs + 1  # type: ignore[has-type]
        out: Tensor = self.conv(x).mean((2, 3)) * self.runs
        return out


def exported(model: nn.Module, *args: Any, dynamic: Any = None, **kwargs: Any) -> ExportedProgram:
    return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic)


def resnet(dynamic: bool = False) -> ExportedProgram:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return exported(zoo.build("resnet8", seed=5).eval(), x, dynamic=({0: Dim("b")},) if dynamic else None)


def branching(dynamic: bool) -> ExportedProgram:
    batch = {0: Dim("b")}
    shapes = {"x": {"image": batch}, "y": batch, "wanted": None} if dynamic else None
    return exported(Branching().eval(), {"image": X}, y=torch.ones(2), wanted=False, dynamic=shapes)


PROGRAMS: dict[str, Callable[[], ExportedProgram]] = {
    "static": resnet,
    "dynamic": lambda: resnet(True),
    "nested": lambda: branching(False),
    "nested and dynamic": lambda: branching(True),
    "decomposed": lambda: resnet().run_decompositions(),
    "decomposed and nested": lambda: branching(True).run_decompositions(),
    "writes": lambda: exported(Counting(), X),
    "writes, decomposed": lambda: exported(Counting(), X).run_decompositions(),
    "half": lambda: exported(nn.Conv2d(3, 4, 3).bfloat16(), X.bfloat16()),
    "channels last": lambda: exported(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), X),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_reads_what_torch_reads(kind: str, folder: Path) -> None:
    torch.export.save(PROGRAMS[kind](), "net.pt2")
    network = read_exported(Path("net.pt2"))
    theirs = torch.export.load("net.pt2")
    assert theirs.example_inputs is not None
    args, kwargs = theirs.example_inputs
    wanted, found = theirs.module()(*args, **kwargs), network(*args, **kwargs)
    assert pytree.tree_structure(wanted) == pytree.tree_structure(found)
    for one, other in zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True):
        assert one is other is None or torch.equal(one, other)
    shapes = pytree.tree_map(lambda one: one.shape if isinstance(one, Tensor) else one, (args, kwargs))
    ours = pytree.tree_map(
        lambda one: one.shape if isinstance(one, Tensor) else one, (network.inputs.args, dict(network.inputs.kwargs))
    )
    assert shapes == ours and network.dynamic_batch == ("dynamic" in kind or kind == "decomposed and nested")
    state = theirs.module(check_guards=False).state_dict()
    assert {name: one.dtype for name, one in network.state_dict().items()}.items() >= {
        name: one.dtype for name, one in state.items()
    }.items()
    assert all(one.stride() == network.state_dict()[name].stride() for name, one in state.items())


def test_tied_weights_stay_tied(folder: Path) -> None:
    torch.export.save(branching(False), "net.pt2")
    network = read_exported(Path("net.pt2"))
    assert network.get_parameter("out.weight") is network.get_parameter("again")


# --- compiled ---------------------------------------------------------------------------------------------------------


def test_compiles_like_the_network_itself(folder: Path) -> None:
    torch.export.save(resnet(True), "net.pt2")
    loaded = load_file("net.pt2")
    assert (loaded.origin, loaded.name, loaded.notes) == ("net.pt2", "net", ())
    done = fxprune.compile(loaded.module, sparsity=0.9)
    own = fxprune.compile(zoo.build("resnet8", seed=5), torch.zeros(2, 3, 32, 32), sparsity=0.9)
    assert {one.weight: one.after for one in done.report.layers} == {one.weight: one.after for one in own.report.layers}
    assert done.state_dict().keys() == own.state_dict().keys()
    assert done.report.front_end == "export"
    assert "exported program" in " ".join(done.report.notes) and "fixed" not in " ".join(done.report.notes)
    done.module.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    assert done.module.get_buffer("bn1.running_mean").abs().sum() > 0
    assert done.to_onnx("net.onnx").dynamic_batch


@pytest.mark.parametrize("batch", [1, 2])
def test_static_batch_stays_static_and_is_named(batch: int, folder: Path) -> None:
    program = exported(zoo.build("resnet8").eval(), torch.zeros(batch, 3, 32, 32))
    torch.export.save(program, "net.pt2")
    done = fxprune.compile(load_file("net.pt2").module, keep_rate=0.5)
    assert f"the batch size is fixed at {batch}, as it was exported" in done.report.notes
    report = done.to_onnx("net.onnx")
    assert not report.dynamic_batch and report.notes == ()  # it has been said


def test_exported_program_in_memory(folder: Path) -> None:
    model: Any = resnet()
    done = fxprune.compile(model, keep_rate=0.5)
    torch.export.save(model, "net.pt2")
    again = fxprune.compile(read_exported(Path("net.pt2")), keep_rate=0.5)
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in done.state_dict().items())
    assert groups_of(model) == groups_of(zoo.build("resnet8"))
    model.example_inputs = None
    with pytest.raises(CaptureError, match="holds no example inputs"):
        from_program(model)


def groups_of(model: Any) -> set[tuple[int, bool, frozenset[str]]]:
    found = fxprune.explain(model, X).groups
    return {(group.width, group.prunable, frozenset(map(str, group.members))) for group in found}


def test_grouped_convolutions_couple_as_they_do_in_modules() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 4, 1)).eval()
    assert groups_of(exported(model, X)) == groups_of(model)


def test_training_mode_is_switched_over() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 4, 3)).train()
    network = from_program(exported(model, X))
    program = capture(network, network.inputs)
    assert "exported in training mode" in program.notes[-1]
    flags = {
        mode: [node.args[5] for node in graph.nodes if "batch_norm" in node.name] for mode, graph in program.graphs()
    }
    assert flags == {"eval": [False], "train": [True]}
    done = fxprune.compile(network, keep_rate=0.5)
    counter = done.module.get_buffer("1.num_batches_tracked")
    done.module.eval()(X)
    assert counter == 0
    done.module.train()(X)
    assert counter == 1


def test_inputs_that_do_not_fit() -> None:
    network = from_program(resnet())
    with pytest.raises(CaptureError, match="the exported program does not run on the example inputs"):
        fxprune.compile(network, torch.zeros(2, 1, 32, 32), keep_rate=0.5)


# --- hostile and damaged ----------------------------------------------------------------------------------------------

SHOUT = "__import__('pathlib').Path('canary').touch()"


@functools.cache
def sound() -> dict[str, bytes]:
    """Contents of a sound .pt2 file."""
    stream = io.BytesIO()
    torch.export.save(resnet(True), stream)
    with zipfile.ZipFile(stream) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def write(change: Callable[[dict[str, Any]], object], records: dict[str, bytes] | None = None) -> None:
    """net.pt2 after a change to its JSON documents, `models/model.json` and others, and with other records in it."""
    members = sound()
    documents = {name: json.loads(content) for name, content in members.items() if name.endswith(".json")}
    change(documents)
    members = {
        **members,
        **{name: json.dumps(content).encode() for name, content in documents.items()},
        **(records or {}),
    }
    with zipfile.ZipFile("net.pt2", "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)


def graph(documents: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = documents["models/model.json"]["graph_module"]["graph"]
    return found


def weights(documents: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = documents["data/weights/model_weights_config.json"]["config"]
    return found


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def pickled_inputs() -> None:
    write(lambda _: None, {"data/sample_inputs/model.pt": saved(Calls(os.system, "touch canary"))})


def pickled_weight() -> None:
    def change(documents: dict[str, Any]) -> None:
        weights(documents)["conv1.weight"].update(use_pickle=True, path_name="weight_0")

    write(change, {"data/weights/weight_0": saved(Calls(os.system, "touch canary"))})


def pickled_object() -> None:
    opaque = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    write(
        lambda documents: documents["data/constants/model_constants_config.json"]["config"].update(c=opaque),
        {"data/constants/opaque_obj_0": pickle.dumps(Calls(os.system, "touch canary"))},
    )


def evaluated_size() -> None:
    def change(documents: dict[str, Any]) -> None:
        sizes = graph(documents)["tensor_values"]["relu"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": SHOUT, "hint": {"as_int": 2}}}

    write(change)


HARMFUL = {
    "pickled inputs": (pickled_inputs, None),  # they are not read, the rest is sound
    "pickled weight": (pickled_weight, "conv1.weight is pickled in it"),
    "pickled object": (pickled_object, "c is pickled in it"),
    "evaluated size": (evaluated_size, None),
}


@pytest.mark.skipif(os.name != "posix", reason="os.system has another name there")
@pytest.mark.parametrize("way", HARMFUL)
def test_nothing_runs_where_torch_would_run_it(way: str, folder: Path) -> None:
    make, reason = HARMFUL[way]
    make()
    if reason is None:
        fxprune.compile(load_file("net.pt2").module, keep_rate=0.5, proof=False)
    else:
        with pytest.raises(UntrustedError, match=reason) as caught:
            load_file("net.pt2")
        assert "\n" not in str(caught.value) and "--allow-pickle" in str(caught.value)
    assert not Path("canary").exists()
    with pytest.raises(LoadError, match=r"cannot be read: "):
        load_file("net.pt2", LoadOptions(allow_pickle=True))
    assert Path("canary").exists()


def first_node(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda documents: graph(documents)["nodes"][0].update(changes)


def call(target: str, *arguments: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """A node before all others that calls something."""
    inputs = [{"name": f"a{position}", "arg": one, "kind": 1} for position, one in enumerate(arguments)]
    node = {"target": target, "inputs": inputs, "outputs": [{"as_none": True}], "metadata": {}, "name": "boom"}
    return lambda documents: graph(documents)["nodes"].insert(0, node)


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(documents: dict[str, Any]) -> None:
        text = json.dumps(documents["models/model.json"]).replace(json.dumps(old), json.dumps(new))
        documents["models/model.json"] = json.loads(text)

    return change


def argument_name(name: str) -> Callable[[dict[str, Any]], None]:
    def change(documents: dict[str, Any]) -> None:
        call = documents["models/model.json"]["graph_module"]["module_call_graph"][0]["signature"]
        call["forward_arg_names"] = [name]

    return change


def keyword(name: str) -> Callable[[dict[str, Any]], None]:
    def change(documents: dict[str, Any]) -> None:
        graph(documents)["nodes"][0]["inputs"][0].update(kind=2, name=name)

    return change


def set_version(documents: dict[str, Any]) -> None:
    documents["models/model.json"]["schema_version"]["major"] = 9


STRING = {"as_string": "touch canary"}
HOSTILE_GRAPHS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "os.system": (call("torch.os.system", STRING), r"asks for the operator 'torch\.os\.system'"),
    "methodcaller": (call("_operator.methodcaller", STRING), r"'_operator\.methodcaller'"),
    "call": (call("_operator.call", STRING), r"'_operator\.call'"),
    "a file opened": (call("torch.ops.aten.from_file.default", STRING), r"aten\.from_file"),
    "a file written": (call("torch.ops.aten.save.default", STRING), r"aten\.save"),
    "another library": (call("torch.ops.profiler._record_function_enter.default", STRING), "operator"),
    "higher order": (call("torch.ops.higher_order.cond", STRING), "operator"),
    "not an operator": (call("torch.ops.aten.__class__.__mro__", STRING), "operator"),
    "private": (call("torch.ops.aten.relu.__init__", STRING), "operator"),
    "graph as argument": (call("torch.ops.aten.relu.default", {"as_graph": {"name": "g", "graph": {}}}), "as_graph"),
    "operator as argument": (call("torch.ops.aten.relu.default", {"as_operator": "torch.os.system"}), "as_operator"),
    "two kinds": (call("torch.ops.aten.relu.default", {"as_int": 1, "as_float": 1.0}), "exactly one key"),
    "code as text": (call("torch.ops.aten.gelu.default", {"as_string": "'+" + SHOUT}), "String should match"),
    "name of a value": (renamed("relu", f"relu = {SHOUT}; relu"), "String should match"),
    "name of an input": (renamed("input", f"input={SHOUT}"), "String should match"),
    "argument of forward": (argument_name(f"x={SHOUT}"), "String should match"),
    "word of Python": (argument_name("class"), "keeps for itself"),
    "keyword": (keyword(f"x={SHOUT}"), "damaged: its graph cannot be put together"),
    "name of a weight": (renamed("conv1.weight", f'conv1"+{SHOUT}'), "String should match"),
    "path of a record": (lambda d: weights(d)["bn1.weight"].update(path_name="../weight_0"), "String should match"),
    "another version": (set_version, "too old or too new"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_GRAPHS)
def test_graphs_that_are_more_than_data_are_refused(kind: str, folder: Path) -> None:
    change, reason = HOSTILE_GRAPHS[kind]
    write(change)
    with pytest.raises(LoadError, match=reason) as caught:
        load_file("net.pt2")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not Path("canary").exists()


def resize(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda documents: weights(documents)[name]["tensor_meta"].update(changes)


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "weight missing": (lambda d: weights(d).pop("conv1.weight"), "its graph cannot be put together"),
    "record missing": (lambda d: weights(d)["bn1.weight"].update(path_name="gone"), "has no data/weights/gone"),
    "weight too large": (resize("conv1.weight", sizes=[{"as_int": 2**30}] * 4), "does not fit its record"),
    "weight out of its record": (resize("bn1.weight", storage_offset={"as_int": 9}), "does not fit its record"),
    "repeated without end": (
        resize("bn1.weight", sizes=[{"as_int": 2**39}], strides=[{"as_int": 0}]),
        "does not fit its record",
    ),
    "strides missing": (resize("bn1.weight", strides=[]), "damaged"),
    "negative": (resize("bn1.weight", strides=[{"as_int": -1}]), "greater than or equal"),
    "type unknown": (resize("bn1.weight", dtype=99), "bn1.weight has type 99"),
    "size unknown": (resize("bn1.weight", sizes=[{"as_expr": {"expr_str": "s0"}}]), "a size that may change"),
    "value unknown": (lambda d: graph(d)["nodes"].pop(0), "its graph cannot be put together"),
    "value twice": (lambda d: graph(d)["nodes"].append(graph(d)["nodes"][0]), "two values are named"),
    "overload unknown": (first_node(target="torch.ops.aten.conv2d.other"), "operator"),
    "nodes missing": (lambda d: graph(d).pop("nodes"), "Field required"),
    "not a graph": (lambda d: d.update({"models/model.json": []}), "should be an object"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_programs_get_one_clear_line(kind: str, folder: Path) -> None:
    change, reason = DAMAGED[kind]
    write(change)
    with pytest.raises(LoadError, match=reason) as caught:
        load_file("net.pt2")
    assert "\n" not in str(caught.value)


def test_damaged_archives_get_one_clear_line(folder: Path) -> None:
    write(lambda _: None)
    whole = Path("net.pt2").read_bytes()
    Path("net.pt2").write_bytes(whole[:-200])
    with pytest.raises(LoadError, match=r"is truncated"):
        load_file("net.pt2")
    Path("net.pt2").write_bytes(whole[:2000] + bytes(~byte & 255 for byte in whole[2000:2100]) + whole[2100:])
    with pytest.raises(LoadError, match=r"truncated or damaged"):
        load_file("net.pt2")
    write(lambda documents: documents.clear(), {"models/model.json": b"{]"})
    with pytest.raises(LoadError, match=r"model\.json holds"):
        load_file("net.pt2")
    with zipfile.ZipFile("net.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/models/model.json", " " * 10**6)
    with pytest.raises(LoadError, match=r"model\.json is compressed"):
        load_file("net.pt2")
    with zipfile.ZipFile("net.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(LoadError, match=r"of an old torch"):
        load_file("net.pt2")


def test_allow_pickle_leaves_it_to_torch(folder: Path) -> None:
    torch.export.save(resnet(True), "net.pt2")
    loaded = load_file("net.pt2", LoadOptions(allow_pickle=True))
    assert isinstance(loaded.module, ExportedNetwork) and loaded.module.dynamic_batch
    assert isinstance(loaded.module.inputs, Inputs)
    assert "torch.export.load read the file" in loaded.notes[0]
