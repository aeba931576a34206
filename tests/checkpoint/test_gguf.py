"""GGUF files as checkpoints: the same model as the arrays in them, whatever the types, and what is refused by name."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.fingerprint import fingerprint
from mistral.errors import InputError
from mistral.gguf.header import read_gguf
from mistral.load import load_model
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.parameters import HEAD
from mistral.model.rope import FactorScaling, LinearScaling, Llama4Scaling, YarnScaling
from mistral.ops.blocks.kind import BLOCK_KINDS, KINDS, SUPPORTED
from mistral.places import find_checkpoint
from tests.support.checkpoint_forms import random_tensors
from tests.support.gguf_files import Spoil, add, write_gguf
from tests.support.oracle import oracle_logits

DENSE = ModelArgs(
    dim=256, n_layers=2, head_dim=32, hidden_dim=256, n_heads=4, n_kv_heads=2, vocab_size=40, norm_eps=1e-5,
    rope_theta=1e4, sliding_windows=(None, None), max_seq_len=4096,
)  # fmt: skip
SPARSE = replace(DENSE, moe=MoeArgs(3, 2))
IDS = [3, 17, 5, 39, 0, 8, 21]


def close(path: Path, args: ModelArgs, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Check that a file holds a model of `args`, with the logits that the oracle finds for its arrays."""
    checkpoint = open_checkpoint(path)
    assert checkpoint.args == args
    found = load_model(checkpoint, device="CPU", threads=1).forward(IDS, [len(IDS)]).asnumpy()
    expected = oracle_logits(arrays, args, IDS)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", SUPPORTED)
def test_every_type_is_the_model_that_the_gguf_package_reads(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    close(path, DENSE, write_gguf(path, DENSE, random_tensors(DENSE), kind))
    checkpoint = open_checkpoint(path)
    name = "layers.0.attention.wq.weight"
    plain = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    assert (checkpoint.type_name(name), checkpoint.has_blocks) == (plain.get(kind, kind), kind in BLOCK_KINDS)
    assert checkpoint.shapes[name] == (128, 256)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_K"])
def test_experts_are_read_merged_and_split(merged: bool, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    close(path, SPARSE, write_gguf(path, SPARSE, random_tensors(SPARSE), kind, merged))


def test_a_set_of_files_and_tied_embeddings(tmp_path: Path) -> None:
    args = replace(DENSE, tied_embeddings=True)
    arrays = write_gguf(tmp_path / "m.gguf", args, random_tensors(args), "Q5_1", size=7)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    close(files[1], args, arrays)
    checkpoint = open_checkpoint(tmp_path)  # the folder holds nothing else
    assert (checkpoint.form, checkpoint.files, checkpoint.path) == ("GGUF (3 files)", tuple(files), files[0])


FACTORS = tuple(float(np.float32(1 + pair / 3)) for pair in range(16))
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope_scaling": LinearScaling(4.0)},
    ),
    "a factor alone": ({"rope.scaling.factor": 4.0}, {"rope_scaling": LinearScaling(4.0)}),
    "linear of old files": ({"rope.scale_linear": 2.0}, {"rope_scaling": LinearScaling(2.0)}),
    "linear twice": ({"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}, {"rope_scaling": LinearScaling(4.0)}),
    "linear in parts": (
        {"rope.scaling.type": "linear", "rope.scale_linear": 2.0},
        {"rope_scaling": LinearScaling(2.0)},
    ),
    "a factor of 0": ({"rope.scaling.type": "linear", "rope.scaling.factor": 0.0}, {}),
    "none": ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
    "base left out": ({"rope.freq_base": None}, {}),
    "window": ({"attention.sliding_window": 3}, {"sliding_windows": (3, 3)}),
    "window 0": ({"attention.sliding_window": 0}, {}),
    "period": (
        {"attention.sliding_window": 3, "attention.sliding_window_pattern": 2},
        {"sliding_windows": (3, None)},
    ),
    "list": (
        {"attention.sliding_window": 3, "attention.sliding_window_pattern": [False, True]},
        {"sliding_windows": (None, 3)},
    ),
    "heads by layer": ({"attention.head_count": [4, 4], "feed_forward_length": [256, 256]}, {}),
    "neutral": ({"logit_scale": 0.0, "attention.causal": True, "expert_count": 0, "attention.scale": 32**-0.5}, {}),
    "vocabulary": ({"vocab_size": 40}, {}),
    "a context that is not said": ({"context_length": None}, {"max_seq_len": None}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_values_of_the_header_become_the_architecture(name: str, tmp_path: Path) -> None:
    changes, fields = SHAPES[name]
    args = replace(DENSE, **fields)
    close(tmp_path / "m.gguf", args, write_gguf(tmp_path / "m.gguf", args, random_tensors(args), changes=changes))


def factors(*values: float) -> Spoil:
    """Adds the tensor of rotary factors."""
    return lambda writer: writer.add_tensor("rope_freqs.weight", np.array(values, np.float32))


def test_rotary_factors_in_a_tensor(tmp_path: Path) -> None:
    args, path = replace(DENSE, rope_scaling=FactorScaling(FACTORS)), tmp_path / "m.gguf"
    close(path, args, write_gguf(path, args, random_tensors(args), spoil=factors(*FACTORS)))
    close(path, DENSE, write_gguf(path, DENSE, random_tensors(DENSE), spoil=factors(*([1.0] * 16))))


YARN = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 4,
    "rope.scaling.yarn_beta_fast": 4.0, "rope.scaling.yarn_beta_slow": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "sharpness"),
    [
        ({"rope.scaling.yarn_log_multiplier": 1.0}, 1.0),  # what the official files call apply_scale false
        ({}, 0.1 * math.log(8) + 1),
        ({"rope.scaling.yarn_log_multiplier": 0.5}, (0.1 * math.log(8) + 1) / (0.05 * math.log(8) + 1)),
        ({"rope.scaling.yarn_attn_factor": 0.1 * math.log(8) + 1}, 0.1 * math.log(8) + 1),  # says the same again
        ({"rope.scaling.attn_factor": 0.5}, 0.5 * (0.1 * math.log(8) + 1)),
    ],
)
def test_yarn_and_temperatures_of_mistral3(more: dict[str, Any], sharpness: float, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    args = replace(DENSE, rope_scaling=YarnScaling(8.0, 4, 4.0, 1.0, sharpness), llama_4_scaling=Llama4Scaling(4, 0.1))
    changes = YARN | {"attention.temperature_scale": 0.1} | more
    arrays = write_gguf(path, args, random_tensors(args), architecture="mistral3", changes=changes)
    close(path, args, arrays)
    changes["attention.temperature_length"] = 3
    args = replace(args, llama_4_scaling=Llama4Scaling(3, 0.1))
    close(path, args, write_gguf(path, args, random_tensors(args), architecture="mistral3", changes=changes))


def test_mistral3_without_scaling_is_the_same_decoder(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    close(path, DENSE, write_gguf(path, DENSE, random_tensors(DENSE), "Q6_K", architecture="mistral3"))


def tensor(name: str) -> Spoil:
    """Adds a tensor that is no part of the model."""
    return lambda writer: writer.add_tensor(name, np.ones(4, np.float32))


def value(key: str, what: Any) -> Spoil:
    """Adds a value."""
    return lambda writer: add(writer, key, what)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architecture": "qwen2"}, "is of the architecture 'qwen2', which is not supported (llama and"),
    "adapter": ({"spoil": value("general.type", "adapter")}, "holds no model but 'adapter'; name the model's own file"),
    "projector": ({"spoil": value("general.type", "mmproj")}, "holds no model but 'mmproj'"),
    "bias": ({"spoil": tensor("blk.0.attn_q.bias")}, "not part of the model that its values describe: biases are not"),
    "norm": ({"spoil": tensor("blk.0.attn_q_norm.weight")}, "norms of queries and keys are not supported"),
    "layer": ({"spoil": tensor("blk.2.attn_norm.weight")}, "'blk.2.attn_norm.weight' is not part of the model"),
    "missing": ({"changes": {"block_count": 3}}, "tensor 'blk.2.attn_q.weight' is missing"),
    "shape": ({"changes": {"feed_forward_length": 512}}, "has shape (256, 256) and its values ask for (512, 256)"),
    "yarn": ({"changes": {"rope.scaling.type": "yarn"}}, "rope.scaling.original_context_length is missing"),
    "yarn's factor": (
        {
            "changes": {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 4,
                "rope.scaling.yarn_attn_factor": 1.5,
            }
        },
        "llama.rope.scaling.yarn_attn_factor 1.5 is not supported; 1.13863 follows from the other keys",
    ),
    "longrope": ({"changes": {"rope.scaling.type": "longrope"}}, "rope.scaling.type 'longrope' is not supported"),
    "softcap": ({"changes": {"final_logit_softcapping": 30.0}}, "llama.final_logit_softcapping is '30.0', and this"),
    "scale": ({"changes": {"attention.scale": 0.5}}, "llama.attention.scale is not supported"),
    "shared": ({"changes": {"expert_shared_count": 1}}, "llama.expert_shared_count is '1', and this program does not"),
    "encoder": ({"changes": {"attention.causal": False}}, "llama.attention.causal is 'False', and this program"),
    "value length": ({"changes": {"attention.value_length": 64}}, "attention.value_length is 64 and a head has 32"),
    "part of a head": ({"changes": {"rope.dimension_count": 16}}, "rope.dimension_count is 16 and a head has 32"),
    "by layer": ({"changes": {"attention.head_count_kv": [2, 4]}}, "head_count_kv differs by layer, which is not"),
    "heads": ({"changes": {"attention.head_count_kv": 3}}, "n_heads 4 is not a multiple of n_kv_heads 3"),
    "zero": ({"changes": {"embedding_length": 0}}, "llama.embedding_length must be a positive number, not '0'"),
    "huge": (
        {"changes": {"block_count": 1 << 31}},
        "llama.block_count must be a whole number of at most 4096, not '2147483648'",
    ),
    "absent": ({"changes": {"feed_forward_length": None}}, "llama.feed_forward_length is missing"),
    "text": ({"changes": {"block_count": "many"}}, "llama.block_count must be a positive number, not 'many'"),
    "experts": (
        {"changes": {"expert_count": 4, "expert_used_count": 5}},
        "num_experts_per_tok 5 must be from 1 to num_experts 4",
    ),
    "heads of other layers": (
        {"changes": {"attention.head_count": [4]}},
        "llama.attention.head_count has 1 entries for 2 layers",
    ),
    "windows": ({"changes": {"attention.sliding_window": [3, 3]}}, "sliding_window must be a positive number, not '[3"),
    "scales": ({"changes": {"attention.scale": [1.0]}}, "llama.attention.scale must be a positive number, not '[1.0]'"),
    "scalings": ({"changes": {"rope.scaling.type": [1, 2]}}, "llama.rope.scaling.type '[1, 2]' is not supported"),
    "counts of experts": (
        {"changes": {"expert_count": [2, 2]}},
        "expert_count must be a positive number, not '[2, 2]'",
    ),
    "long list": (
        {"changes": {"attention.scale": [1] * 99999}},
        "llama.attention.scale must be a positive number, not",
    ),
    "pattern": (
        {"changes": {"attention.sliding_window": 3, "attention.sliding_window_pattern": [True]}},
        "attention.sliding_window_pattern has 1 entries for 2 layers",
    ),
    "vocabulary": ({"changes": {"vocab_size": 41}}, "llama.vocab_size is 41 and the embedding has 40 rows"),
    "tokens": (
        {"spoil": value("tokenizer.ggml.tokens", ["a", "b"])},
        "tokenizer.ggml.tokens has 2 tokens and the embedding 40",
    ),
    "factors": ({"spoil": factors(*([0.0] * 16))}, "has factors that are not positive numbers"),
    "NaN factors": ({"spoil": factors(*([float("nan")] * 16))}, "has factors that are not positive numbers"),
    "few factors": ({"spoil": factors(1.0, 2.0)}, "is F32 of shape (2,) and must be F32 of shape (16,)"),
    "two scalings": (
        {"spoil": factors(*FACTORS), "changes": {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}},
        "are both there; one must go",
    ),
}


def test_an_expert_is_in_one_place(tmp_path: Path) -> None:
    path, arrays = tmp_path / "m.gguf", random_tensors(SPARSE)
    own = "blk.1.ffn_up.2.weight"

    def refusal(merged: bool, spoil: Spoil = lambda writer: None) -> str:
        write_gguf(path, SPARSE, arrays, merged=merged, spoil=spoil)
        if not merged:
            path.write_bytes(path.read_bytes().replace(own.encode(), b"blk.1.ffn_ax.2.weight"))
        with pytest.raises(InputError) as error:
            open_checkpoint(path)
        return str(error.value).removeprefix(f"{path}: ")

    twice = refusal(True, lambda writer: writer.add_tensor(own, arrays["layers.1.feed_forward.experts.2.w3.weight"]))
    said = f"tensors '{own}' and 'blk.1.ffn_up_exps.weight' hold the same expert; download the file again"
    assert twice == said
    assert refusal(False) == f"tensor '{own}' is missing; download the file again"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_of_ours_is_refused_by_name(name: str, tmp_path: Path) -> None:
    given, message = REFUSED[name]
    path = tmp_path / "m.gguf"
    write_gguf(path, DENSE, random_tensors(DENSE), **given)
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "IQ2_XXS", "MXFP4", "TQ1_0", "I32", "F64"])
def test_types_that_are_not_read_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    """A file whose last tensor is said to be of another type, which is not longer."""
    path = tmp_path / "m.gguf"
    write_gguf(path, DENSE, random_tensors(DENSE))
    number = next(number for number, each in KINDS.items() if each.name == kind)
    data = bytearray(path.read_bytes())
    entry = struct.pack("<Q", len(HEAD)) + HEAD.encode()
    at = data.index(entry) + len(entry) + 4 + 2 * 8  # behind the number of axes, and two axes
    data[at : at + 4] = struct.pack("<I", number)
    path.write_bytes(data + bytes(1 << 17))
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    assert f"tensor 'output.weight' is of type {kind}, which is not read (F32, F16, BF16, Q8_0," in str(error.value)


def test_keys_that_are_not_known_are_named_once(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, DENSE, random_tensors(DENSE), changes={"new_thing": 1}, spoil=value("other.key", "x"))
    assert open_checkpoint(path).warnings == ("m.gguf: keys not known, ignored: 'llama.new_thing'",)


@pytest.mark.parametrize(("kind", "offset"), [("Q8_0", 0), ("Q4_1", 2), ("Q6_K", 208)])
@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_scale_that_is_no_number_is_refused_as_it_is_loaded(
    kind: str, offset: int, scale: float, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, DENSE, random_tensors(DENSE), kind)
    place = read_gguf(path).tensors["blk.1.ffn_down.weight"]
    data = bytearray(path.read_bytes())
    at = place.start + 5 * place.kind.nbytes + offset
    data[at : at + 2] = np.float16(scale).tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        load_model(path, device="CPU", threads=1)
    said = "tensor 'layers.1.feed_forward.w2.weight': 1 of its blocks have a scale that is NaN or infinite; download"
    assert str(error.value) == f"{path}: {said} the file again"


def test_two_files_of_one_architecture_have_different_fingerprints(tmp_path: Path) -> None:
    found = set()
    for name, kind, seed in (("a", "Q8_0", 0), ("b", "Q8_0", 1), ("c", "Q5_0", 0), ("d", "F16", 0)):
        write_gguf(tmp_path / f"{name}.gguf", DENSE, random_tensors(DENSE, seed), kind)
        checkpoint = open_checkpoint(tmp_path / f"{name}.gguf")
        found.add(fingerprint(checkpoint))
    assert len(found) == 4


def test_a_folder_with_one_gguf_file_stands_for_it(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, DENSE, random_tensors(DENSE))
    (tmp_path / "mmproj-m.gguf").write_bytes(b"GGUF")
    assert find_checkpoint(tmp_path) == path
    (tmp_path / "blob").write_bytes(path.read_bytes())
    assert find_checkpoint(tmp_path / "blob") == tmp_path / "blob"  # whatever it is called
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"holds several GGUF files; name one of them: m.gguf, other.gguf"):
        find_checkpoint(tmp_path)
    (tmp_path / "consolidated.safetensors").touch()
    assert find_checkpoint(tmp_path) == tmp_path
    with pytest.raises(InputError, match="is a GGUF file, which holds a model; name a folder"):
        find_checkpoint(path, option="lora")
