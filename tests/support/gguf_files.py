"""GGUF files of random models, written by the gguf package; what the package makes of their blocks is the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from gguf import GGMLQuantizationType, GGUFWriter, quants
from numpy.typing import NDArray

from mistral.checkpoint.gguf.names import gguf_name, merged_name
from mistral.model.args import ModelArgs
from mistral.model.parameters import parameters
from mistral.ops.blocks.block_quantized import SCALES
from mistral.ops.blocks.kind import BY_NAME

Arrays = Mapping[str, NDArray[Any]]
SCALES_OF_RANDOM = {32: np.float16(5e-4), 256: np.float16(3e-5)}  # by weights of a block, so that these are ordinary
Spoil = Callable[[GGUFWriter], None]


def blocks_of(array: NDArray[Any], kind: str, seed: int = 0) -> NDArray[np.uint8]:
    """Bytes of a matrix in blocks: the package's own quantization or, where it has none, random numbers."""
    try:
        return quants.quantize(array.astype(np.float32), GGMLQuantizationType[kind]).view(np.uint8)
    except NotImplementedError:
        form = BY_NAME[kind]
        count = array.size // form.weights
        values = np.random.default_rng(seed).integers(0, 256, (count, form.nbytes), dtype=np.uint8)
        for at in SCALES[kind]:
            values[:, at : at + 2] = np.frombuffer(SCALES_OF_RANDOM[form.weights].tobytes(), np.uint8)
        return values.reshape(array.shape[0], -1)


def widened(values: NDArray[Any], kind: str) -> NDArray[np.float32]:
    """What the package makes of blocks: (out, in)."""
    return quants.dequantize(values, GGMLQuantizationType[kind])


def write_values(writer: GGUFWriter, args: ModelArgs, changes: Mapping[str, Any] | None = None) -> None:
    """The values of an architecture; `changes` by key without its prefix, None leaves one out."""
    values: dict[str, Any] = {
        "block_count": args.n_layers, "context_length": args.max_seq_len or 4096, "embedding_length": args.dim,
        "feed_forward_length": args.hidden_dim, "attention.head_count": args.n_heads,
        "attention.head_count_kv": args.n_kv_heads, "attention.key_length": args.head_dim,
        "attention.value_length": args.head_dim, "rope.dimension_count": args.head_dim,
        "rope.freq_base": float(args.rope_theta), "attention.layer_norm_rms_epsilon": float(args.norm_eps),
    }  # fmt: skip
    if args.moe:
        values |= {"expert_count": args.moe.num_experts, "expert_used_count": args.moe.num_experts_per_tok}
    for key, value in (values | dict(changes or {})).items():
        add(writer, f"{writer.arch}.{key}", value)


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    """One value, by its Python type; None adds nothing."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def write_gguf(
    path: Path,
    args: ModelArgs,
    tensors: Arrays,
    kind: str = "F32",
    merged: bool = True,
    architecture: str = "llama",
    changes: Mapping[str, Any] | None = None,
    spoil: Spoil = lambda writer: None,
    size: int = 0,
) -> dict[str, NDArray[Any]]:
    """Write a model, its matrices of `kind` -> the tensors as the package reads them back.

    merged: the experts of a layer are one tensor. `spoil` adds to the file; `size`: tensors of each file of a set.
    """
    writer = GGUFWriter(path, architecture, split_max_tensors=size)
    write_values(writer, args, changes)
    spoil(writer)
    expected, stacks = dict[str, NDArray[Any]](), dict[str, list[NDArray[Any]]]()
    for name, parameter in parameters(args).items():
        array = np.ascontiguousarray(tensors[name], np.float32)
        plain = not parameter.is_matrix or parameter.part == "router" or array.shape[1] % BY_NAME[kind].weights
        values, raw = (array, None) if plain or kind == "F32" else (blocks_of(array, kind, len(expected)), kind)
        expected[name] = array if raw is None else widened(values, kind)
        stack = merged_name(parameter) if merged else None
        if stack is None:
            add_tensor(writer, gguf_name(parameter), values, raw)
        else:
            assert args.moe
            stacks.setdefault(stack, []).append(values)
            if len(stacks[stack]) == args.moe.num_experts:
                add_tensor(writer, stack, np.stack(stacks[stack]), raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def add_tensor(writer: GGUFWriter, name: str, values: NDArray[Any], kind: str | None) -> None:
    """One tensor; `kind` is that of values which are blocks."""
    if kind == "F16":
        writer.add_tensor(name, values.view(np.float16))
    else:
        writer.add_tensor(name, values, raw_dtype=None if kind is None else GGMLQuantizationType[kind])


def tokenizer_values(model: Path) -> dict[str, Any]:
    """What a GGUF file says of a SentencePiece model, by keys without "tokenizer.ggml."."""
    raw = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = range(raw.get_piece_size())
    kinds = ((raw.is_unknown, 2), (raw.is_control, 3), (raw.is_unused, 5), (raw.is_byte, 6))
    return {
        "model": "llama", "tokens": [raw.id_to_piece(i) for i in ids], "scores": [raw.get_score(i) for i in ids],
        "token_type": [next((kind for test, kind in kinds if test(i)), 1) for i in ids],
        "bos_token_id": raw.bos_id(), "eos_token_id": raw.eos_id(), "unknown_token_id": raw.unk_id(),
    }  # fmt: skip


def scored(model: Path) -> Spoil:
    """Adds the tokenizer of a SentencePiece model."""

    def write(writer: GGUFWriter) -> None:
        for key, value in tokenizer_values(model).items():
            add(writer, f"tokenizer.ggml.{key}", value)

    return write
