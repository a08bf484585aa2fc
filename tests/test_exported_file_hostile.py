"""Exported programs that are hostile or damaged: nothing runs, and each is refused in one clear line."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exported_files import SHOUT, call, graph, pickled_weight, saved, weights, write
from test_trust import Calls

import fxprune
from fxprune.capture.files import load_file
from fxprune.capture.options import LoadOptions
from fxprune.errors import LoadError, UntrustedError


def pickled_inputs() -> None:
    write(lambda _: None, {"data/sample_inputs/model.pt": saved(Calls(os.system, "touch canary"))})


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
def test_nothing_runs_where_torch_would_run_it(way: str, workplace: Path) -> None:
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
def test_graphs_that_are_more_than_data_are_refused(kind: str, workplace: Path) -> None:
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
def test_damaged_programs_get_one_clear_line(kind: str, workplace: Path) -> None:
    change, reason = DAMAGED[kind]
    write(change)
    with pytest.raises(LoadError, match=reason) as caught:
        load_file("net.pt2")
    assert "\n" not in str(caught.value)


def test_damaged_archives_get_one_clear_line(workplace: Path) -> None:
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
