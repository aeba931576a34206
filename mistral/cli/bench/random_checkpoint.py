"""Checkpoints of real dimensions with random weights: what speed and memory can be measured on without a download."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mistral.atomic_files import unfinished
from mistral.checkpoint.args_file import args_from_params, params_of
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.float8_tensor import scale_name
from mistral.checkpoint.formats.safetensors_file import stored_nbytes, write_header
from mistral.checkpoint.gguf.write import write_gguf
from mistral.cli.console import ProgressLine
from mistral.errors import InputError, setting
from mistral.memory import gigabytes
from mistral.model.args import ModelArgs
from mistral.model.parameters import Parameter, parameters
from mistral.ops.float8 import FLOAT8

COMMON = {"head_dim": 128, "n_heads": 32, "n_kv_heads": 8, "norm_eps": 1e-5, "vocab_size": 32000, "rope_theta": 1e6}
MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2}
MINISTRAL_3_8B: dict[str, Any] = {
    **COMMON, "dim": 4096, "n_layers": 34, "hidden_dim": 14336, "vocab_size": 131072, "max_position_embeddings": 262144,
    "yarn": {"original_max_position_embeddings": 16384, "factor": 16, "apply_scale": False, "beta": 32, "alpha": 1},
    "llama_4_scaling": {"original_max_position_embeddings": 16384, "beta": 0.1},
}  # fmt: skip
# As the models' own params.json have it, without their towers.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {**COMMON, "dim": 256, "n_layers": 4, "hidden_dim": 1024, "head_dim": 32, "n_heads": 8, "n_kv_heads": 2},
    "mistral-7b": {**COMMON, "dim": 4096, "n_layers": 32, "hidden_dim": 14336, "sliding_window": 4096,
                   "rope_theta": 1e4},
    "ministral-8b": {**COMMON, "dim": 4096, "n_layers": 36, "hidden_dim": 12288, "vocab_size": 131072,
                     "rope_theta": 1e8, "sliding_window": [None, 32768, 32768, 32768]},
    "nemo-12b": {**COMMON, "dim": 5120, "n_layers": 40, "hidden_dim": 14336, "vocab_size": 131072},
    "codestral-22b": {**COMMON, "dim": 6144, "n_layers": 56, "hidden_dim": 16384, "n_heads": 48, "vocab_size": 32768},
    "large-2": {**COMMON, "dim": 12288, "n_layers": 88, "hidden_dim": 28672, "n_heads": 96, "vocab_size": 32768},
    "mixtral-8x7b": {**COMMON, "dim": 4096, "n_layers": 32, "hidden_dim": 14336, "moe": MIXTURE},
    "mixtral-8x22b": {**COMMON, "dim": 6144, "n_layers": 56, "hidden_dim": 16384, "n_heads": 48, "vocab_size": 32768,
                      "moe": MIXTURE},
    "mistral-small-24b": {**COMMON, "dim": 5120, "n_layers": 40, "hidden_dim": 32768, "vocab_size": 131072,
                          "rope_theta": 1e8},
    "ministral-3-8b": MINISTRAL_3_8B,
    "ministral-3-8b-fp8": {**MINISTRAL_3_8B, "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}},
}  # fmt: skip
DEVIATION, EMBEDDINGS_DEVIATION = 0.02, 1.0  # of normally distributed weights; norms are 1
FLOAT8_SCALE = DEVIATION / 64  # the largest of the weights is then 270 of at most 448
AT_ONCE = 1 << 22  # weights made between two writes


def shape_args(shape: str, layers: int | None = None) -> ModelArgs:
    """The architecture of one of SHAPES, of its first `layers` layers. Raises InputError naming what cannot be."""
    if shape not in SHAPES:
        raise InputError(f"not known; choose one of {', '.join(SHAPES)}", option="shape", value=shape[:40])
    most = SHAPES[shape]["n_layers"]
    if layers is not None and not 1 <= layers <= most:
        raise InputError(f"{shape} has from 1 to {most}", option="layers", value=layers)
    return args_from_params({**SHAPES[shape], "n_layers": layers or most}, shape)


def random_checkpoint(folder: Path, shape: str, layers: int | None = None, mixture: str | None = None) -> Path:
    """The checkpoint of a shape, made in `folder` unless it is there; with a mixture's name, a GGUF file.

    A line on standard error says where it is. Raises InputError where it cannot be written.
    """
    args = shape_args(shape, layers)
    plain = folder / f"{shape}-{args.n_layers}"
    if mixture is None:
        return found_or_made(plain, args, lambda work: write_random(args, work, "quantization" in SHAPES[shape]))
    out = plain.with_name(f"{plain.name}-{mixture}.gguf")
    with locked(out):
        size = weights_nbytes(out, shapes={name: each.shape for name, each in parameters(args).items()})
        if size is None:
            checkpoint = open_checkpoint(random_checkpoint(folder, shape, layers))
            out.unlink(missing_ok=True)
            with unfinished(out) as work:
                progress = ProgressLine("quantizing:", "GB", 1e9)
                size = write_gguf(checkpoint, work / out.name, mixture, {}, progress)
                (work / out.name).rename(out)
    print(f"note: random weights, {gigabytes(size)}, are kept in {out}", file=sys.stderr)
    return out


def found_or_made(out: Path, args: ModelArgs, write: Callable[[Path], int]) -> Path:
    """The folder `out` with a model of these `args`, left by an earlier run or made now.

    `write` fills the folder that it is given, which is then renamed, and returns the bytes of the weights.
    """
    with locked(out):
        size = weights_nbytes(out, args)
        if size is None:
            with unfinished(out) as work:
                size = write(work)
                (work / "params.json").write_text(json.dumps(params_of(args), indent=2) + "\n")
                work.rename(out)
    print(f"note: random weights, {gigabytes(size)}, are kept in {out}", file=sys.stderr)
    return out


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from making `out` meanwhile. Raises InputError where its folder cannot be written to."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = (out.parent / f".{out.name}.lock").open("w")
    except OSError as error:
        remedy = f"name another with {setting('folder')}"
        raise InputError(f"{out.parent}: cannot be written ({error.strerror}); {remedy}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it when its holder dies
        yield


def weights_nbytes(
    out: Path, args: ModelArgs | None = None, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> int | None:
    """Bytes of the weights in a whole checkpoint of these `args` or `shapes`; None in any other case."""
    try:
        checkpoint = open_checkpoint(out)
    except InputError:
        return None
    fits = checkpoint.args == args if args else checkpoint.shapes == shapes
    return sum(map(checkpoint.nbytes, checkpoint.shapes)) if fits else None


def write_random(args: ModelArgs, folder: Path, float8: bool = False) -> int:
    """Write random bfloat16 weights into one safetensors file; returns their bytes.

    `float8`: the matrices of the layers are 8-bit floats. Raises InputError where there is no room for them.
    """
    model = parameters(args).values()
    forms: dict[str, tuple[str, tuple[int, ...]]] = {}
    for parameter in model:
        packed = float8 and has_float8(parameter)
        forms[parameter.name] = (FLOAT8.name if packed else "bfloat16", parameter.shape)
        if packed:
            forms[scale_name(parameter.name, hugging_face=False)] = ("float32", ())
    total, free = sum(stored_nbytes(*form) for form in forms.values()), shutil.disk_usage(folder).free
    if total > free:
        raise InputError(
            f"{folder.parent}: needs {gigabytes(total)} and has {gigabytes(free)} free; lower {setting('layers')}, or"
            f" name another folder with {setting('folder')}"
        )
    progress, done = ProgressLine("making random weights:", "GB", 1e9), 0
    with (folder / "consolidated.safetensors").open("wb") as out:
        write_header(out, forms)
        for number, parameter in enumerate(model):
            for part in random_weights(parameter, number, float8 and has_float8(parameter)):
                out.write(part.data)
                done += part.nbytes
                progress(done, total)
        out.flush()
        os.fsync(out.fileno())  # lest the system still be writing while we measure
    return total


def has_float8(parameter: Parameter) -> bool:
    """Whether a model in 8-bit floats has them for this parameter."""
    return parameter.is_matrix and parameter.part in ("attention", "feed-forward", "experts")


def random_weights(
    parameter: Parameter, seed: int, float8: bool = False
) -> Iterator[NDArray[np.uint16] | NDArray[np.uint8] | NDArray[np.float32]]:
    """The bits of a parameter's bfloat16 values, row after row, in pieces of at most AT_ONCE.

    `float8`: the bytes of 8-bit floats, and then the scale.
    """
    size = parameter.size
    if parameter.part == "norms":
        yield as_bits(np.ones(parameter.shape))
        return
    values: NDArray[np.uint16] | NDArray[np.uint8]
    values = as_bits(quantiles() * (EMBEDDINGS_DEVIATION if parameter.part == "embedding" else DEVIATION))
    if float8:
        values = (quantiles() * (DEVIATION / FLOAT8_SCALE)).astype(np.float32).astype(FLOAT8).view(np.uint8)
    random = np.random.default_rng(seed)
    for at in range(0, size, AT_ONCE):  # looking up 16 random bits takes a quarter of the time that a normal one does
        yield values[random.integers(0, len(values), min(AT_ONCE, size - at), np.uint16)]
    if float8:
        yield np.array(FLOAT8_SCALE, np.float32)


def quantiles() -> NDArray[np.float64]:
    """The 65536 values of a standard normal distribution that are equally likely, in ascending order."""
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)])


def as_bits(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """The bits of values rounded to bfloat16."""
    return values.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
