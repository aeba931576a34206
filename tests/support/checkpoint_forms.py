"""Small random models, written in every file form that checkpoints come in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.errors import InputError
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.parameters import parameters
from mistral.model.rope import LinearScaling, YarnScaling, yarn_sharpness
from mistral.ops.float8 import FLOAT8
from tests.support.torch_file import write_torch_file

Array = npt.NDArray[np.generic]
DENSE = ModelArgs(
    dim=16, n_layers=2, head_dim=6, hidden_dim=20, n_heads=4, n_kv_heads=2, vocab_size=30, norm_eps=1e-5,
    rope_theta=1e4, sliding_windows=(None, 7),
)  # fmt: skip
SPARSE = replace(DENSE, moe=MoeArgs(3, 2), sliding_windows=(None, None))
OFFICIAL_FORMS = (
    "consolidated.safetensors",
    "consolidated-sharded",
    "consolidated.pth",
    "consolidated-many.pth",
    "first-mixtral",  # mixtures of experts only
)
HF_FORMS = ("hf", "hf-sharded", "hf-sharded-index", "hf-bin", "hf-bin-sharded-index")
SAFETENSORS_DTYPES = {
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
    np.dtype(np.int64): "I64",
    FLOAT8: "F8_E4M3",
}
HF_NAMES = (
    (r"^tok_embeddings", "model.embed_tokens"),
    (r"^output", "lm_head"),
    (r"^(layers|norm)\.", r"model.\1."),
    (r"attention\.w([qkvo])", r"self_attn.\1_proj"),
    (r"attention_norm", "input_layernorm"),
    (r"ffn_norm", "post_attention_layernorm"),
    (r"feed_forward\.(gate|experts)", r"block_sparse_moe.\1"),
    (r"feed_forward\.w1", "mlp.gate_proj"),
    (r"feed_forward\.w2", "mlp.down_proj"),
    (r"feed_forward\.w3", "mlp.up_proj"),
)


def shapes_of(args: ModelArgs) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model, by its name."""
    return {name: parameter.shape for name, parameter in parameters(args).items()}


def forms_of(args: ModelArgs) -> tuple[str, ...]:
    """The forms in which a model of these args can be written."""
    return tuple(form for form in OFFICIAL_FORMS + HF_FORMS if args.moe or form != "first-mixtral")


def params_of(args: ModelArgs) -> dict[str, Any]:
    """`params.json` of a model."""
    names = "dim n_layers head_dim hidden_dim n_heads n_kv_heads vocab_size norm_eps rope_theta"
    params: dict[str, Any] = {name: getattr(args, name) for name in names.split()}
    windows = list(args.sliding_windows)
    if any(window is not None for window in windows):
        params["sliding_window"] = windows if len(set(windows)) > 1 else windows[0]
    if args.moe:
        params["moe"] = {"num_experts": args.moe.num_experts, "num_experts_per_tok": args.moe.num_experts_per_tok}
    if args.tied_embeddings:
        params["tied_embeddings"] = True
    if args.max_seq_len is not None:
        params["max_seq_len"] = args.max_seq_len
    if isinstance(args.rope_scaling, YarnScaling):
        params["yarn"] = yarn_of(args.rope_scaling)
    elif args.rope_scaling:
        params["rope_scaling"] = rope_of(args)
    if args.llama_4_scaling:
        params["llama_4_scaling"] = vars(args.llama_4_scaling)
    return params


def yarn_of(scaling: YarnScaling) -> dict[str, Any]:
    """The table `yarn` of official files, which says of the attention factor only whether there is one."""
    plain = yarn_sharpness(scaling.factor)
    assert scaling.attention_factor in (1.0, plain) and scaling.truncate
    return {
        "factor": scaling.factor, "original_max_position_embeddings": scaling.original_max_position_embeddings,
        "beta": scaling.beta_fast, "alpha": scaling.beta_slow, "apply_scale": scaling.attention_factor != 1,
    }  # fmt: skip


def rope_of(args: ModelArgs) -> dict[str, Any]:
    """The table of `rope_scaling`."""
    kinds = {LinearScaling: "linear", YarnScaling: "yarn"}
    table = {"rope_type": kinds.get(type(args.rope_scaling), "llama3"), **vars(args.rope_scaling)}
    if args.llama_4_scaling:
        table["llama_4_scaling_beta"] = args.llama_4_scaling.beta
    return table


def write_params(folder: Path, params: Mapping[str, Any]) -> Path:
    """Write `params.json` into a folder; returns the folder."""
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def config_of(args: ModelArgs) -> dict[str, Any]:
    """`config.json` of a model; its windows must be of one size (in some layers or all)."""
    windows = {window for window in args.sliding_windows if window is not None}
    assert len(windows) <= 1, "config.json has one window size"
    mixed = bool(windows) and None in args.sliding_windows
    config: dict[str, Any] = {
        "model_type": "mixtral" if args.moe else "ministral" if mixed else "mistral",
        "hidden_size": args.dim,
        "num_hidden_layers": args.n_layers,
        "head_dim": args.head_dim,
        "intermediate_size": args.hidden_dim,
        "num_attention_heads": args.n_heads,
        "num_key_value_heads": args.n_kv_heads,
        "vocab_size": args.vocab_size,
        "rms_norm_eps": args.norm_eps,
        "rope_theta": args.rope_theta,
        "sliding_window": windows.pop() if windows else None,
        "tie_word_embeddings": args.tied_embeddings,
        "hidden_act": "silu",
        "max_position_embeddings": args.max_seq_len,
    }
    if args.rope_scaling:
        config["rope_scaling"] = rope_of(args)
    if args.moe:
        config["num_local_experts"] = args.moe.num_experts
        config["num_experts_per_tok"] = args.moe.num_experts_per_tok
    if mixed:
        config["layer_types"] = [f"{'sliding' if window else 'full'}_attention" for window in args.sliding_windows]
    return config


def random_tensors(args: ModelArgs, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> dict[str, Array]:
    """Every tensor of a model by its Mistral name: norms near 1, matrices N(0, 1/in)."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for name, each in parameters(args).items():
        values = random.standard_normal(each.shape, dtype=np.float32)
        values = values / np.sqrt(np.float32(each.shape[1])) if each.is_matrix else 1 + values / 10
        tensors[name] = values.astype(dtype)
    return tensors


def hf_tensors(args: ModelArgs, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors under Hugging Face's names, the rows of q and k in its order."""
    renamed = {}
    for name, tensor in tensors.items():
        if re.search(r"attention\.w[qk]", name):
            heads = args.n_heads if "wq" in name else args.n_kv_heads
            pairs = tensor.reshape(heads, args.head_dim // 2, 2, args.dim)
            tensor = pairs.transpose(0, 2, 1, 3).reshape(tensor.shape)
        for pattern, replacement in HF_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def first_mixtral_tensors(args: ModelArgs, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors as the first Mixtral release has them: a layer's experts in one stack, w2 transposed."""
    assert args.moe
    renamed = {}
    for name, each in parameters(args).items():
        if each.expert is None:
            router = f"layers.{each.layer}.block_sparse_moe.gate.weight"
            renamed[router if each.part == "router" else name] = tensors[name]
        elif each.expert == 0:
            parts = [tensors[name.replace("experts.0", f"experts.{e}")] for e in range(args.moe.num_experts)]
            stack = np.concatenate([part.T if each.weight == "w2" else part for part in parts])
            renamed[f"layers.{each.layer}.block_sparse_moe.{each.weight}"] = stack
    return renamed


def float8_tensors(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """A file's tensors with the matrices of the layers in 8-bit floats: values, scales, and scales of activations."""
    found: dict[str, Array] = {}
    for name, tensor in tensors.items():
        found[name] = tensor
        if not re.search(r"layers\..*(attention\.w[qkvo]|_proj|\.w[123])\.weight$", name):
            continue
        stem, wide = name.removesuffix(".weight"), tensor.astype(np.float32)
        scale = np.float32(np.abs(wide).max() / 448)
        found[name] = (wide / scale).astype(FLOAT8)
        if "_proj" in name or "block_sparse_moe" in name:
            found |= {
                f"{stem}.weight_scale_inv": np.array(scale),
                f"{stem}.activation_scale": np.array(0.5, np.float32),
            }
        else:
            found |= {f"{stem}.qscale_weight": np.array(scale), f"{stem}.qscale_act": np.array(0.5, np.float32)}
            found[f"{stem}_fake_quantizer.qscale_act"] = np.array([0.5], np.float32)
    return found


def tower_tensors(hugging_face: bool, prefix: str = "") -> dict[str, Array]:
    """Tensors of a vision tower as files have them beside a decoder: none of them a number."""
    official = ("vision_encoder.patch_conv", "vision_language_adapter.w_in", "patch_merger.merging_layer",
                "pre_mm_projector_norm", "mm_whisper_embeddings.whisper_encoder.norm")  # fmt: skip
    other = ("vision_tower.ln_pre", "multi_modal_projector.linear_1", "audio_tower.layers.0.self_attn.q_proj")
    names = [f"{prefix}{name}.weight" for name in (other if hugging_face else official)]
    return {name: np.full((3, 5), np.nan, ml_dtypes.bfloat16) for name in names}


def wrapped(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a model with a vision tower around a decoder's; its own tie means nothing."""
    tie = not config["tie_word_embeddings"]
    return {"model_type": "mistral3", "text_config": config, "vision_config": {}, "tie_word_embeddings": tie}


def write_checkpoint(
    folder: Path,
    args: ModelArgs,
    tensors: Mapping[str, Array],
    form: str,
    change: Callable[[dict[str, Array]], dict[str, Array]] = dict,
) -> Path:
    """Write a model into a folder (made if need be) in one of the forms of `forms_of`; returns the folder.

    `change`: what is done to the tensors as the files call them, before they are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if form in HF_FORMS:
        (folder / "config.json").write_text(json.dumps(config_of(args)))
        tensors = hf_tensors(args, tensors)
    else:
        write_params(folder, params_of(args))
    if form == "first-mixtral":
        tensors = first_mixtral_tensors(args, tensors)
    files = file_names(form)
    tensors = change(dict(tensors))
    parts = split(tensors, len(files))
    if form == "first-mixtral":  # each of its files has what belongs to no layer
        shared = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.")}
        parts = [shared | part for part in parts]
    for name, part in zip(files, parts, strict=True):
        write = write_safetensors if name.endswith(".safetensors") else write_torch_file
        write(folder / name, part)
    if form.endswith("-index"):
        stem, kind = ("pytorch_model", "bin") if "bin" in form else ("model", "safetensors")
        weight_map = {key: name for name, part in zip(files, parts, strict=True) for key in part}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return folder


def file_names(form: str) -> list[str]:
    """The weight files that `write_checkpoint` writes."""
    match form:
        case "consolidated.safetensors":
            return ["consolidated.safetensors"]
        case "consolidated-sharded":
            return [f"consolidated-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
        case "consolidated.pth":
            return ["consolidated.00.pth"]
        case "consolidated-many.pth":
            return [f"consolidated.0{n}.pth" for n in range(3)]
        case "first-mixtral":
            return [f"consolidated.0{n}.pt" for n in range(8)]
        case "hf":
            return ["model.safetensors"]
        case "hf-sharded" | "hf-sharded-index":
            return [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        case "hf-bin":
            return ["pytorch_model.bin"]
        case "hf-bin-sharded-index":
            return [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    raise AssertionError(form)


def split(tensors: Mapping[str, Array], count: int) -> list[dict[str, Array]]:
    """The tensors in `count` consecutive parts."""
    items = iter(tensors.items())
    sizes = [len(tensors) // count + (n < len(tensors) % count) for n in range(count)]
    return [dict(islice(items, size)) for size in sizes]


def safetensors_header(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """The JSON header of a safetensors file, tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    return header


def write_safetensors(path: Path, tensors: Mapping[str, Array], sparse: bool = False) -> None:
    """A safetensors file; `sparse` leaves the values out and a hole of their size in."""
    raw = json.dumps(safetensors_header(tensors)).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in () if sparse else tensors.values():
            file.write(tensor.tobytes())
        if sparse:
            file.truncate(8 + len(raw) + sum(tensor.nbytes for tensor in tensors.values()))


def refusal(folder: str | Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(folder)
    line = str(caught.value)
    assert "\n" not in line
    return line
