"""An artefact folder taken up again: loaded, trained and exported, and checked. A fault is planted for each check."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from models import NETWORKS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import fxprune
from fxprune import zoo
from fxprune.artefact_checks import Check, verify
from fxprune.artefacts import export
from fxprune.cli import app
from fxprune.emit.folder import write_folder
from fxprune.errors import ExportError, LoadError, UntrustedError

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def done() -> fxprune.Compiled:
    return fxprune.compile(zoo.build("resnet8"), torch.zeros(2, 3, 32, 32), sparsity=0.9, proof=False)


@pytest.fixture(scope="module")
def original(done: fxprune.Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(done, tmp_path_factory.mktemp("original") / "net").folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may damage, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(original, tmp_path / "net").name)


def evaluated(module: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = module.eval()(X)
    return found


def in_onnxruntime(path: Path) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0])


def change_recipe(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    recipe = json.loads((folder / "recipe.json").read_text())
    change(recipe)
    (folder / "recipe.json").write_text(json.dumps(recipe))


def rehash(folder: Path) -> None:
    """Faults that are covered up: the hashes are those of the damaged files."""

    def change(recipe: dict[str, Any]) -> None:
        recipe["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in recipe["files"]}

    change_recipe(folder, change)


# ---- load


def test_loaded_network_is_the_compiled_one(folder: Path, done: fxprune.Compiled) -> None:
    net = fxprune.load(folder)
    assert net.training and all(one.requires_grad for one in net.parameters())
    state, expected = net.state_dict(), done.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    assert torch.equal(evaluated(net), evaluated(done.module))
    with torch.no_grad():
        next(net.parameters()).zero_()
    assert torch.equal(evaluated(fxprune.load(str(folder))), evaluated(done.module))


def test_load_leaves_the_random_state_alone(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fxprune.load(folder)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["model.py", "model.safetensors"])
@pytest.mark.parametrize("damage", [lambda one: one[:-1], lambda one: one + b"\n", lambda one: b"", None])
def test_damaged_files_are_found(name: str, damage: Callable[[bytes], bytes] | None, folder: Path) -> None:
    if damage is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(LoadError, match="is missing" if damage is None else "is damaged or was changed"):
        fxprune.load(folder)


def test_what_is_no_folder_of_ours_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="nowhere does not exist"):
        fxprune.load("nowhere")
    with pytest.raises(LoadError, match="is no folder that fxprune wrote"):
        fxprune.load(folder / "model.py")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match=r"empty/recipe\.json is missing"):
        fxprune.load(tmp_path / "empty")


def test_folder_without_source_says_so(done: fxprune.Compiled, tmp_path: Path) -> None:
    write_folder(done, tmp_path / "net", emit=["weights"])
    with pytest.raises(LoadError, match=r"was written without model\.py"):
        fxprune.load(tmp_path / "net")
    with pytest.raises(LoadError, match=r"was written without model\.py"):
        export(tmp_path / "net", output=tmp_path / "out.onnx")
    assert [one.name for one in verify(tmp_path / "net")] == ["model.safetensors", "recipe", "masks"]


def test_source_from_elsewhere_runs_only_when_it_is_trusted(folder: Path) -> None:
    source = folder / "model.py"
    source.write_text(source.read_text().replace("import torch\n", "import os\nimport torch\n\nos.mkdir('ran')\n", 1))
    rehash(folder)
    with pytest.raises(UntrustedError, match=r"line \d+ does something else .* load it with trust=True \(--trust\)"):
        fxprune.load(folder)
    assert not Path("ran").exists()
    assert isinstance(fxprune.load(folder, trust=True), nn.Module) and Path("ran").exists()


def test_tied_and_frozen_parameters_come_back(tmp_path: Path) -> None:
    model = NETWORKS["tied_weights"].build()
    model.a.requires_grad_(False)
    done = fxprune.compile(model, torch.zeros(2, 3, 8, 6), sparsity=0.5, proof=False)
    net = fxprune.load(write_folder(done, tmp_path / "net").folder)
    assert net.get_parameter("c.weight") is net.get_parameter("b.weight")
    assert {name for name, one in net.named_parameters() if not one.requires_grad} == {"a.weight", "a.bias"}


# ---- export


def trained(folder: Path) -> nn.Module:
    """Moved away from where it was, statistics included."""
    net = fxprune.load(folder)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        net(X).square().mean().backward()
        optimiser.step()
    return net


def test_export_of_what_is_there_gives_the_same_file(folder: Path) -> None:
    report = export(folder, output="again.onnx")
    assert Path("again.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    assert report.dynamic_batch and report.difference < 1e-5


@pytest.mark.parametrize("how", ["pt", "safetensors", "wrapped", "nested", "without masks"])
def test_trained_weights_are_exported_with_their_masks(how: str, folder: Path, done: fxprune.Compiled) -> None:
    net = trained(folder)
    state = {name: one.contiguous() for name, one in net.state_dict().items()}
    file = Path("trained.safetensors" if how == "safetensors" else "trained.pt")
    if how == "safetensors":
        save_file(state, file)
    elif how == "wrapped":
        torch.save({f"module.{name}": one for name, one in state.items()}, file)
    elif how == "nested":
        torch.save({"epoch": 2, "state_dict": state}, file)
    elif how == "without masks":
        torch.save({name: one for name, one in state.items() if not name.endswith("_mask")}, file)
    else:
        torch.save(state, file)
    report = export(folder, file)
    assert report.path == Path("trained.onnx")
    assert torch.allclose(in_onnxruntime(report.path), evaluated(net), atol=1e-4)
    assert not torch.allclose(in_onnxruntime(report.path), in_onnxruntime(folder / "model.onnx"), atol=1e-3)


def test_weights_of_the_compiled_module_fit_too(folder: Path) -> None:
    """Their names are those of parametrisations."""
    again = fxprune.compile(zoo.build("resnet8"), torch.zeros(2, 3, 32, 32), sparsity=0.9, proof=False)
    with torch.no_grad():
        for one in again.module.parameters():
            one.mul_(1.1)
    torch.save(again.module.state_dict(), "module.pt")
    assert torch.allclose(in_onnxruntime(export(folder, "module.pt").path), evaluated(again.module), atol=1e-4)


def test_masked_weights_are_zero_in_the_file_whatever_training_did(folder: Path, done: fxprune.Compiled) -> None:
    state = {name: one.clone() for name, one in done.state_dict().items()}
    name = next(name for name in done.recipe.masks if name.startswith("layer"))
    state[name][~state[f"{name}_mask"]] = 9.0
    torch.save(state, "revived.pt")
    export(folder, "revived.pt")
    shape, masked = tuple(state[name].shape), int((~state[f"{name}_mask"]).sum())
    weights = [one for one in onnx.load("revived.onnx").graph.initializer if tuple(one.dims) == shape]
    assert any(int((onnx.numpy_helper.to_array(one) == 0).sum()) == masked for one in weights)
    assert torch.allclose(in_onnxruntime(Path("revived.onnx")), in_onnxruntime(folder / "model.onnx"), atol=1e-5)


def misfits(state: dict[str, Tensor]) -> dict[str, tuple[dict[str, Tensor], str]]:
    first, mask = "conv1.weight", "layer1.0.conv1.weight_mask"
    return {
        "missing": ({name: one for name, one in state.items() if name != first}, r"1 are missing .*conv1\.weight"),
        "unknown": ({**state, "extra": state[first]}, "1 are unknown to the network"),
        "shape": ({**state, first: state[first][:1]}, "1 have another shape"),
        "mask": ({**state, mask: ~state[mask]}, f"has another {mask} than the folder"),
        "sparse": ({**state, mask: state[mask].to_sparse()}, rf"holds {mask} as bool \(sparse_coo\)"),
        "meta": ({**state, first: state[first].to("meta")}, f"holds {first} as float32 without its numbers"),
    }


@pytest.mark.parametrize("what", ["missing", "unknown", "shape", "mask", "sparse", "meta"])
def test_weights_that_do_not_fit_are_refused(what: str, folder: Path, done: fxprune.Compiled) -> None:
    state, complaint = misfits(done.state_dict())[what]
    torch.save(state, "other.pt")
    with pytest.raises(LoadError, match=complaint):
        export(folder, "other.pt")
    assert not Path("other.onnx").exists()


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_weights_run_no_code(folder: Path) -> None:
    torch.save({"conv1.weight": Evil()}, "evil.pt")
    Path("bare.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "bare.pt", str(folder / "model.py"), "nowhere.pt"):
        with pytest.raises(LoadError):
            export(folder, name, "out.onnx")
    assert not Path("ran").exists()


def test_files_of_an_artefact_folder_are_not_written_over(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("model.onnx", "recipe.json"):
        with pytest.raises(ExportError, match="belongs to a folder that fxprune wrote"):
            export(folder, output=folder / name, force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_output_is_not_replaced_without_force(folder: Path) -> None:
    Path("out.onnx").write_text("mine")
    with pytest.raises(ExportError, match=r"out\.onnx exists already: replace it with --force"):
        export(folder, output="out.onnx")
    with pytest.raises(ExportError, match="its folder is missing"):
        export(folder, output="no/where.onnx")
    with pytest.raises(ExportError, match="it is a folder"):
        export(folder, output=folder, force=True)
    with pytest.raises(ExportError, match="give trained weights, or name an output file"):
        export(folder)
    for place in (".", "/", folder):
        with pytest.raises(LoadError, match="is a folder: give the file"):
            export(folder, place)
    for target in ("nowhere", "link.onnx"):  # a link to nothing is there all the same, and so is one to itself
        Path("link.onnx").unlink(missing_ok=True)
        Path("link.onnx").symlink_to(target)
        with pytest.raises(ExportError, match=r"link\.onnx exists already"):
            export(folder, output="link.onnx")
    assert Path("out.onnx").read_text() == "mine"
    export(folder, output="out.onnx", force=True, opset=18)
    assert onnx.load("out.onnx").opset_import[0].version == 18


@pytest.mark.parametrize("name", ["functional_conv", "einsum", "transposed", "kernel_as_matrix", "tied_weights"])
def test_masks_of_all_kinds_are_baked(name: str, tmp_path: Path) -> None:
    case = NETWORKS[name]
    torch.manual_seed(1)
    done = fxprune.compile(case.build(), tuple(torch.randn(shape) for shape in case.shapes), sparsity=0.5, proof=False)
    folder = write_folder(done, tmp_path / "net").folder
    report = export(folder, output=tmp_path / "again.onnx")
    assert report.difference < 1e-5 and done.recipe.masks
    assert not any("mask" in one.name.lower() for one in onnx.load(tmp_path / "again.onnx").graph.initializer)


# ---- verify


NAMES = ["model.onnx", "model.py", "model.safetensors", "recipe", "masks", "source", "onnx"]


def failing(checks: list[Check]) -> dict[str, str]:
    return {one.name: one.detail for one in checks if not one.ok}


def test_whole_folder_passes_every_check(folder: Path) -> None:
    checks = verify(folder)
    assert [one.name for one in checks] == NAMES and failing(checks) == {}


@pytest.mark.parametrize("name", ["model.onnx", "model.py", "model.safetensors"])
def test_one_byte_more_is_found(name: str, folder: Path) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    assert "is damaged or was changed" in failing(verify(folder))[name]


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    rehash(folder)


def revive(state: dict[str, Tensor]) -> None:
    name = next(name for name in state if name.endswith("_mask"))
    state[name.removesuffix("_mask")][~state[name]] = 1.0


def drop_mask(state: dict[str, Tensor]) -> None:
    del state["layer1.0.conv1.weight_mask"]


def other_mask(state: dict[str, Tensor]) -> None:
    state["layer1.0.conv1.weight_mask"][0] = True


def narrower(state: dict[str, Tensor]) -> None:
    name = next(name for name, one in state.items() if name.startswith("layer3") and one.ndim == 4)
    state[name] = state[name][:, :1].clone()


def other_numbers(state: dict[str, Tensor]) -> None:
    state["fc.bias"] += 1.0


@pytest.mark.parametrize(
    ("change", "check", "complaint"),
    [
        (revive, "masks", "masked weights of .* are not zero"),
        (drop_mask, "masks", "has no mask of its shape"),
        (other_mask, "masks", r"keeps [\d,]+ weights, not"),
        (narrower, "recipe", "and the recipe leaves"),
        (other_numbers, "onnx", "differs from torch by"),
    ],
)
def test_weights_that_are_others_are_found(
    change: Callable[[dict[str, Tensor]], None], check: str, complaint: str, folder: Path
) -> None:
    change_weights(folder, change)
    found = failing(verify(folder))
    assert re.search(complaint, found[check])


def test_onnx_that_computes_something_else_is_found(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    for one in model.graph.initializer:
        if list(one.dims) == [10]:
            one.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one) + 0.5, one.name))
    onnx.save(model, folder / "model.onnx")
    rehash(folder)
    assert list(failing(verify(folder))) == ["onnx"]


def test_source_that_is_not_ours_or_does_not_fit_is_found(folder: Path) -> None:
    text = (folder / "model.py").read_text()
    (folder / "model.py").write_text(text.replace("import torch\n", "import os\nimport torch\n", 1))
    rehash(folder)
    assert "fxprune does not write" in failing(verify(folder))["source"]
    assert failing(verify(folder, trust=True)) == {}
    (folder / "model.py").write_text(text.replace("(10,", "(11,") if "(10," in text else text.replace(", 10)", ", 11)"))
    rehash(folder)
    assert "do not fit" in failing(verify(folder))["source"]


def test_recipe_that_keeps_something_else_is_found(folder: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        name = next(name for name, dims in recipe["kept"].items() if "0" in dims)
        recipe["kept"][name]["0"] = recipe["kept"][name]["0"][:-1]

    change_recipe(folder, change)
    assert list(failing(verify(folder))) == ["recipe"]


@pytest.mark.parametrize("name", ["nowhere.weight", "fc", "", "layer1.0.bn1.weight"])
def test_recipe_with_a_mask_that_is_not_there_is_found(name: str, folder: Path) -> None:
    """recipe.json has no hash: whoever changed it gets an answer, in each command that reads it."""
    change_recipe(folder, lambda recipe: recipe["masks"].update({name: 1}))
    assert set(failing(verify(folder))) == {"masks", "onnx"}
    for weights in (None, folder / "model.safetensors"):
        with pytest.raises(LoadError, match=rf"names a mask of {re.escape(name)}, and model\.py has none"):
            export(folder, weights, "out.onnx")
    assert not Path("out.onnx").exists()


def test_recipe_that_cannot_be_read_is_an_error(folder: Path) -> None:
    (folder / "recipe.json").write_text("{")
    with pytest.raises(LoadError, match=r"recipe\.json is damaged or no JSON"):
        verify(folder)


# ---- on the command line


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_commands(folder: Path) -> None:
    done = run("verify", "net")
    assert done.exit_code == 0 and done.stdout.count("OK") == len(NAMES) and done.stderr == ""
    torch.save(trained(folder).state_dict(), "trained.pt")
    done = run("export", "net", "--weights", "trained.pt", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["path"] == "trained.onnx"
    assert run("export", "net", "--weights", "trained.pt", "-o", "other.onnx", "--opset", "18", "-q").stdout == ""
    assert Path("other.onnx").exists()


def test_commands_that_fail(folder: Path) -> None:
    change_weights(folder, other_numbers)
    done = run("verify", "net", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 1 and not told["ok"] and not told["checks"][-1]["ok"]
    assert "FAIL" in run("verify", "net").stdout
    for arguments in (("verify", "nowhere"), ("export", "net"), ("export", "net", "--weights", "no.pt")):
        done = run(*arguments)
        assert done.exit_code == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
