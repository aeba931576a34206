"""Checkpoints in 8-bit floats with a scale for each matrix, in both forms of files, and what is refused of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mistral.checkpoint.args_file import args_from_params
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.config_file import args_from_config
from mistral.checkpoint.fingerprint import fingerprint
from mistral.checkpoint.quantization import block_kind
from mistral.checkpoint.weight_memory import copied_nbytes, used_in_place, used_nbytes
from mistral.engine.sampling import log_softmax
from mistral.errors import InputError
from mistral.load import load_model, read_weight
from mistral.model.parameters import parameters
from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.blocks.kind import BY_NAME
from mistral.ops.blocks.quantize import quantize_blocks
from mistral.ops.float8 import FLOAT8, Float8
from mistral.ops.interface import Ops
from tests.support.adapters import random_factors, write_official
from tests.support.checkpoint_forms import (
    DENSE,
    SPARSE,
    Array,
    config_of,
    float8_tensors,
    params_of,
    random_tensors,
    refusal,
    write_checkpoint,
)
from tests.support.command_line import ARGS, TOKENIZER, CommandLine
from tests.support.oracle import oracle_logits

FORMS = ("consolidated.safetensors", "consolidated-sharded", "hf", "hf-sharded-index")
WQ, W2, NORM = "layers.1.attention.wq.weight", "layers.0.feed_forward.w2.weight", "norm.weight"
WIDE = replace(ARGS, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, sliding_windows=(5, 5))
IDS = [3, 7, 1, 12, 9, 3, 3, 20, 28]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def written(folder: Path, form: str, change: Callable[[dict[str, Array]], object] = lambda _: None) -> Path:
    """A model in 8-bit floats, its tensors changed as the files call them."""

    def changed(tensors: dict[str, Array]) -> dict[str, Array]:
        found = float8_tensors(tensors)
        change(found)
        return found

    return write_checkpoint(folder, DENSE, random_tensors(DENSE, dtype=ml_dtypes.bfloat16), form, changed)


def dense(name: str) -> Array:
    """What a matrix of `written` stands for."""
    (values, scale, *_) = float8_tensors({name: random_tensors(DENSE, dtype=ml_dtypes.bfloat16)[name]}).values()
    return Float8(values, np.float32(scale)).dense()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_weights(tmp_path: Path, form: str) -> None:
    checkpoint = open_checkpoint(written(tmp_path, form))
    assert checkpoint.args == DENSE and checkpoint.warnings == ()
    for name, each in parameters(DENSE).items():
        packed = each.is_matrix and each.layer is not None
        assert checkpoint.dtype(name) == (FLOAT8 if packed else ml_dtypes.bfloat16)
        assert checkpoint.nbytes(name) == (each.size + 4 if packed else 2 * each.size)
        if packed:
            assert np.array_equal(checkpoint.get(name), dense(name)) and checkpoint.get(name).dtype == np.float32


def test_values_are_views_of_the_file_but_for_rows_that_are_reordered(tmp_path: Path) -> None:
    for form in ("consolidated.safetensors", "hf"):
        checkpoint = open_checkpoint(written(tmp_path / form, form))
        for name in (WQ, W2):
            packed, reordered = checkpoint.packed(name), form == "hf" and name == WQ
            assert isinstance(packed, Float8) and not packed.values.flags.writeable
            assert checkpoint.in_place(name) != reordered
            mapped = checkpoint.mapped([name])[checkpoint.file_of(name)]
            assert np.shares_memory(packed.values, np.frombuffer(mapped, np.uint8)) != reordered
        copied = copied_nbytes(checkpoint, 16, "native")
        queries_and_keys = sum(checkpoint.nbytes(n) for n, each in parameters(DENSE).items() if each.heads)
        assert copied == (queries_and_keys if form == "hf" else 0)
        assert (WQ in used_in_place(checkpoint, 16, "native", range(2))) == (form != "hf")
        assert sum(used_nbytes(checkpoint, 16, "native").values()) == sum(map(checkpoint.nbytes, checkpoint.shapes))
        assert copied_nbytes(checkpoint, 16, "portable") == 4 * sum(each.size for each in parameters(DENSE).values())


def test_experts_may_be_8_bit_floats_and_a_router_is_not(tmp_path: Path) -> None:
    tensors = random_tensors(SPARSE, dtype=ml_dtypes.bfloat16)
    for form in ("consolidated.safetensors", "hf"):
        checkpoint = open_checkpoint(write_checkpoint(tmp_path / form, SPARSE, tensors, form, float8_tensors))
        assert checkpoint.dtype("layers.1.feed_forward.experts.2.w3.weight") == FLOAT8
        assert checkpoint.dtype("layers.1.feed_forward.gate.weight") == ml_dtypes.bfloat16


@pytest.mark.parametrize("form", ["consolidated.safetensors", "hf"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_scale_is_one_number_of_any_dtype(tmp_path: Path, form: str, dtype: Any, shape: tuple[int, ...]) -> None:
    scale = np.full(shape, 0.0123, dtype)
    name = "layers.0.feed_forward.w2.qscale_weight" if form != "hf" else "model.layers.0.mlp.down_proj.weight_scale_inv"
    packed = open_checkpoint(written(tmp_path, form, lambda t: t.update({name: scale}))).packed(W2)
    assert isinstance(packed, Float8)
    assert packed.scale == scale.astype(np.float32) and packed.scale.dtype == np.float32


@pytest.mark.parametrize("backend", ["portable", "native"])
@pytest.mark.parametrize("form", ["consolidated.safetensors", "hf"])
def test_a_model_computes_with_the_weights_that_the_file_stands_for(
    tmp_path: Path, ops: Ops, form: str, backend: str
) -> None:
    checkpoint = open_checkpoint(written(tmp_path, form))
    model = load_model(checkpoint, backend=backend, device="CPU", precise=True)
    found = model.forward(IDS, [len(IDS)]).asnumpy()
    tensors = {name: checkpoint.get(name) for name in checkpoint.shapes}
    np.testing.assert_allclose(found, oracle_logits(tensors, DENSE, IDS), rtol=0, atol=1e-4)
    weight = read_weight(checkpoint, parameters(DENSE)[W2], 16, backend)
    assert isinstance(weight, Float8)
    assert model.ops.weight(weight).dtype == ("float8" if backend == "native" else "float32")


@pytest.mark.parametrize("bits", [8, 4])
def test_bits_are_made_of_what_the_file_stands_for(tmp_path: Path, ops: Ops, bits: int) -> None:
    tensors = random_tensors(WIDE, dtype=ml_dtypes.bfloat16)
    folder = write_checkpoint(tmp_path, WIDE, tensors, "consolidated.safetensors", float8_tensors)
    checkpoint = open_checkpoint(folder)
    for name, parameter in parameters(WIDE).items():
        found, kind = read_weight(checkpoint, parameter, bits, "native"), block_kind(parameter, WIDE, bits)
        if kind is None:
            assert parameter.part == "norms" and not isinstance(found, BlockQuantized)
        else:
            assert isinstance(found, BlockQuantized) and found.kind is kind
            assert np.array_equal(found.values, quantize_blocks(checkpoint.get(name), kind).values)


def test_quantize_writes_it_and_an_adapter_is_merged_into_it(run: CommandLine, tmp_path: Path, ops: Ops) -> None:
    folder = write_checkpoint(
        tmp_path / "model", WIDE, random_tensors(WIDE, dtype=ml_dtypes.bfloat16), "consolidated.safetensors",
        float8_tensors,
    )  # fmt: skip
    shutil.copy(TOKENIZER, folder)
    (folder / "params.json").write_text(json.dumps(params_of(WIDE) | {"quantization": OFFICIAL}))
    lora = write_official(tmp_path / "lora", random_factors(WIDE))
    plain, merged = open_checkpoint(folder), open_checkpoint(folder, lora)
    assert merged.adapter
    name = "layers.0.attention.wq.weight"
    a, b = merged.adapter.deltas[name].factors()
    exact = plain.get(name).astype(np.float64) + merged.adapter.deltas[name].scale * (b.astype(np.float64) @ a)
    assert merged.get(name).dtype == ml_dtypes.bfloat16 and not merged.in_place(name)
    np.testing.assert_allclose(merged.get(name).astype(np.float64), exact, rtol=2**-8, atol=1e-6)
    sizes = {each: merged.loaded_nbytes(each) for each in merged.shapes}
    assert sizes[name] == 2 * parameters(WIDE)[name].size
    assert copied_nbytes(merged, 16, "native") == sum(sizes[each] for each in sizes if merged.is_merged(each))
    for more, source in (((), plain), (("--lora", lora), merged)):
        out = tmp_path / f"out{len(more)}.gguf"
        assert run("quantize", folder, out, *more).code == 0
        written_out = open_checkpoint(out)
        assert {written_out.type_name(name), written_out.type_name("tok_embeddings.weight")} == {"Q8_0"}
        assert np.array_equal(written_out.get(name), quantize_blocks(source.get(name), BY_NAME["Q8_0"]).dense())
    found = [
        log_softmax(load_model(place, device="CPU", backend="portable", bits=bits).forward(IDS, [9]).asnumpy())
        for place, bits in ((folder, 8), (tmp_path / "out0.gguf", 16))
    ]
    assert np.array_equal(found[0], found[1])


def test_fingerprints_differ_by_values_and_scales_and_not_by_what_lies_behind(tmp_path: Path) -> None:
    def of(number: int, change: Callable[[dict[str, Array]], object]) -> str:
        return fingerprint(open_checkpoint(written(tmp_path / str(number), "consolidated.safetensors", change)))

    scale = "layers.1.feed_forward.w3.qscale_weight"
    plain = of(0, lambda _: None)
    assert of(1, lambda t: t.update({scale: np.array(0.25, np.float32)})) != plain
    assert of(2, lambda t: t.update({W2: np.zeros_like(t[W2])})) != plain
    assert of(3, lambda t: t.update({"vision_encoder.x": np.zeros(9, np.float32)})) == plain
    assert of(4, lambda t: t.update({"vision_encoder.x": np.ones(9, np.float32)})) == plain


# What is refused

OFFICIAL = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
SCALES = {"consolidated.safetensors": "layers.0.feed_forward.w2.qscale_weight",
          "hf": "model.layers.0.mlp.down_proj.weight_scale_inv"}  # fmt: skip
UNSOUND: dict[str, tuple[Array | None, str]] = {
    "missing": (None, "is FP8 and its scale"),
    "a row": (np.ones(16, np.float32), "has shape (16,) where one number scales the matrix: FP8 in blocks or by rows"),
    "blocks": (np.ones((2, 1), np.float32), "has shape (2, 1) where one number"),
    "one block": (np.ones((1, 1), np.float32), "has shape (1, 1) where one number"),
    "empty": (np.ones(0, np.float32), "has shape (0,)"),
    "negative": (np.array(-0.5, np.float32), "is -0.5 and must be a positive number"),
    "NaN": (np.array(np.nan, np.float32), "is nan and must be a positive number"),
    "infinite": (np.array(np.inf, ml_dtypes.bfloat16), "is inf and must be a positive number"),
    "whole": (np.array(1, np.int64), "has dtype int64 and must be float32"),
}


@pytest.mark.parametrize("form", SCALES)
@pytest.mark.parametrize("fault", UNSOUND)
def test_a_scale_that_is_none_is_one_line(tmp_path: Path, form: str, fault: str) -> None:
    scale, message = UNSOUND[fault]

    def change(tensors: dict[str, Array]) -> None:
        del tensors[SCALES[form]]
        if scale is not None:
            tensors[SCALES[form]] = scale

    line = refusal(written(tmp_path, form, change))
    assert message in line and SCALES[form] in line and "download" in line and str(tmp_path) in line


@pytest.mark.parametrize("backend", ["portable", "native"])
def test_a_scale_of_zero_is_refused_when_weights_are_read(run: CommandLine, tmp_path: Path, backend: str) -> None:
    def change(tensors: dict[str, Array]) -> dict[str, Array]:
        return float8_tensors(tensors) | {SCALES["consolidated.safetensors"]: np.array(0, np.float32)}

    write_checkpoint(tmp_path, WIDE, random_tensors(WIDE), "consolidated.safetensors", change)
    shutil.copy(TOKENIZER, tmp_path)
    line = run("complete", tmp_path, "--prompt", "a", "--backend", backend).error
    assert "qscale_weight' is 0 and must be above 0; a part of the file may not be downloaded" in line
    assert "\nproblem" not in run("info", tmp_path).out
    line = run("quantize", tmp_path, tmp_path / "out.gguf").error
    assert "must be above 0" in line and not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("form", SCALES)
def test_other_8_bit_floats_and_places_for_them_are_refused(tmp_path: Path, form: str) -> None:
    stem = SCALES[form].rpartition(".")[0]
    extra = f"{stem}.weight_scale"
    line = refusal(written(tmp_path / "a", form, lambda t: t.update({extra: np.ones((), np.float32)})))
    assert f"tensor {extra!r} is not part of the model" in line
    embeddings = "model.embed_tokens.weight" if form == "hf" else "tok_embeddings.weight"
    line = refusal(written(tmp_path / "b", form, lambda t: t.update({embeddings: t[embeddings].astype(FLOAT8)})))
    assert "has dtype float8_e4m3fn; use weights in bfloat16" in line


def test_5_bits_of_exponent_are_refused_by_name(tmp_path: Path) -> None:
    file = written(tmp_path, "consolidated.safetensors") / "consolidated.safetensors"
    file.write_bytes(file.read_bytes().replace(b"F8_E4M3", b"F8_E5M2", 1))
    assert "has dtype float8_e5m2; use weights in bfloat16" in refusal(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"F8_E5M2", b"F8_E8M0", 1))
    assert "has dtype 'F8_E8M0', which is not supported" in refusal(tmp_path)


FP8_CONFIG = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None, "dequantize": False}
OTHERS: dict[str, tuple[Any, str]] = {
    "block FP8": (FP8_CONFIG | {"weight_block_size": [128, 128]}, "FP8 with a scale for each block"),
    "NVFP4": ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "compressed-tensors (NVFP4)"),
    "blocks": ({"quant_method": "compressed-tensors", "config_groups": {"FP8_BLOCK": {}}},
               "compressed-tensors (FP8 in blocks)"),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, "weights of compressed-tensors are not read"),
    "AWQ": ({"quant_method": "awq", "bits": 4}, "weights of AWQ are not read"),
    "GPTQ": ({"quant_method": "gptq", "bits": 4}, "weights of GPTQ are not read"),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "weights of bitsandbytes are not read"),
    "ModelOpt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt"),
    "another": ({"quant_method": "hqq"}, "weights of 'hqq' are not read"),
    "none": ({"bits": 4}, "weights of an unknown method are not read"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_weights_quantized_in_other_ways_are_refused_by_name_with_the_remedy(name: str) -> None:
    table, message = OTHERS[name]
    outside = {"model_type": "mistral3", "text_config": config_of(DENSE)}
    for read, plain in (
        (args_from_config, config_of(DENSE)), (args_from_config, outside), (args_from_params, params_of(DENSE))
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            read(plain | {"quantization_config": table})
        line = str(caught.value)
        assert ".json: quantization_config: " in line and message in line and "-BF16 repository" in line


def test_official_tables_of_other_formats_are_refused() -> None:
    for table, message in (
        ({"qformat_weight": "nvfp4", "qscheme_act": "TENSOR"}, "weights of the format 'nvfp4' are not read"),
        (OFFICIAL | {"qscheme_act": "BLOCK"}, "FP8 with scales by 'BLOCK' is not read"),
    ):
        with pytest.raises(InputError, match=message):
            args_from_params(params_of(DENSE) | {"quantization": table})
    assert args_from_params(params_of(DENSE) | {"quantization": OFFICIAL}) == DENSE
    assert args_from_config(config_of(DENSE) | {"quantization_config": FP8_CONFIG}) == DENSE
