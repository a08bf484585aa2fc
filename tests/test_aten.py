"""Operators that a file may name: those that networks are made of, none that trusts its caller."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exported_files import call, write
from torch import nn

import fxprune
from fxprune.aten import find_operator, is_operator
from fxprune.capture.exported_file import read_exported
from fxprune.capture.files import load_file
from fxprune.capture.specs import build_spec
from fxprune.emit.source_run import network_from
from fxprune.errors import UntrustedError

NETWORKS = {
    "torchvision:resnet18": "as exported",
    "torchvision:mobilenet_v3_small": "decomposed",
    "torchvision:efficientnet_b0": "as exported",
    "timm:convnext_atto": "as exported",
    "timm:vit_tiny_patch16_224?img_size=64": "decomposed",
}


@pytest.mark.parametrize("spec", NETWORKS)
def test_exported_networks_come_back(spec: str, tmp_path: Path) -> None:
    x = torch.rand(1, 3, 64, 64)
    program = torch.export.export(build_spec(spec).module.eval(), (x,))
    program = program.run_decompositions() if NETWORKS[spec] == "decomposed" else program
    torch.export.save(program, tmp_path / "net.pt2")
    with torch.no_grad():
        assert torch.equal(read_exported(tmp_path / "net.pt2")(x), program.module()(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exported_rows_of_layers_have_a_source(dtype: torch.dtype) -> None:
    """Their batch norms ask for the mode of a network that is a list."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(dtype).eval()
    program = torch.export.export(net, (torch.ones(2, 3, 8, 8, dtype=dtype),))
    done = fxprune.compile(program, keep_rate=0.5, proof=False)
    made = network_from(done.to_source().source.text, done.state_dict(), "model.py")
    assert {one.dtype for one in made.parameters()} == {dtype}


# Storage that is replaced under a tensor, kernels that trust their caller, packed weights, parts of sparse tensors,
# files, threads, the random state, in short what no network has to name.
DANGEROUS = [
    *("set_.source_Storage_storage_offset", "set_.source_Tensor", "set.source_Tensor", "resize_.default"),
    *("resize_as_.default", "_resize_output_.default", "_reshape_alias.default", "from_file.default"),
    *("_sparse_coo_tensor_unsafe.default", "_sparse_csr_tensor_unsafe.default", "sparse_coo_tensor.size"),
    *("_sparse_compressed_tensor_unsafe.default", "sparse_resize_.default", "_values.default", "indices.default"),
    *("to_sparse.default", "_embedding_bag.default", "_embedding_bag_forward_only.default", "_index_put_impl_.default"),
    *("fbgemm_linear_int8_weight.default", "fbgemm_pack_quantized_matrix.default", "_weight_int4pack_mm.default"),
    *("mkldnn_convolution.default", "mkldnn_rnn_layer.default", "_mkldnn_transpose_.default", "to_mkldnn.default"),
    *("cudnn_convolution.default", "miopen_convolution.default", "quantize_per_tensor.default"),
    *("_make_per_tensor_quantized_tensor.default", "q_scale.default", "_nested_view_from_buffer.default"),
    *("_wrapped_quantized_linear_prepacked.default", "quantized_gru_cell.default", "record_stream.default"),
    *("_thnn_fused_lstm_cell.default", "_pack_padded_sequence.default", "_sobol_engine_scramble_.default"),
    *("embedding_renorm_.default", "max_pool2d_with_indices_backward.default", "_weight_norm.default"),
    *("add.out", "cat.out", "max.dim_max", "initial_seed.default", "_cufft_set_plan_cache_max_size.default"),
]


@pytest.mark.parametrize("target", DANGEROUS)
def test_operators_that_trust_their_caller_are_refused(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, overload = target.split(".")
    assert getattr(getattr(torch.ops.aten, name), overload), "there is such an operator"
    assert not is_operator(name, overload)
    write(call(f"torch.ops.aten.{target}", {"as_none": True}))
    with pytest.raises(UntrustedError, match=rf"asks for the operator 'torch\.ops\.aten\.{name}") as caught:
        load_file("net.pt2")
    assert "\n" not in str(caught.value)


def test_no_allowed_operator_takes_a_file_or_a_storage() -> None:
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        if full.startswith("aten::") and is_operator(name, overload or "default"):
            schema = torch._C._get_schema(f"aten::{name}", overload)
            kinds = " ".join(str(one.type) for one in schema.arguments)
            assert not any("file" in one.name for one in schema.arguments), full
            assert not any(kind in kinds for kind in ("Storage", "Stream", "Any", "__torch__")), full


@pytest.mark.parametrize("name", ["__class__", "relu.x", "", "relu ", "__dict__", "no_such_operator", "default"])
def test_what_is_no_operator_is_not_found(name: str) -> None:
    assert find_operator(name, "default") is None
    assert find_operator("relu", name) is None or name == "default"
