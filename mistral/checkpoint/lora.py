"""Low-rank adapters (LoRA, arXiv:2106.09685): W + scale * B A, for some of a model's matrices W (out, in).

Two layouts are read. Mistral's own: lora.safetensors, whose tensors are called X.lora_A.weight (r, in) and
X.lora_B.weight (out, r) for the model's X.weight, and params.json, whose `lora` holds the scale. And that of Hugging
Face's PEFT; see `mistral/checkpoint/peft.py`. There the rows of q and k are in Hugging Face's order, and so are those
of B, which are put into Mistral's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mistral.checkpoint.foreign_names import hugging_face_name, neighbouring_pairs, wrapped_names
from mistral.checkpoint.formats.safetensors_file import read_safetensors
from mistral.checkpoint.formats.stored_tensor import NOT_GATHERED, Array, StoredTensor, quoted
from mistral.checkpoint.formats.torch_zip import read_torch_zip
from mistral.checkpoint.peft import PREFIX, read_scales
from mistral.errors import InputError, setting
from mistral.model.args import ModelArgs
from mistral.model.parameters import Parameter, parameters
from mistral.places import find_checkpoint
from mistral.text import read_json, shown

OFFICIAL = "lora.safetensors"
PEFT = ("adapter_model.safetensors", "adapter_model.bin")
PARTS = (".lora_A.weight", ".lora_B.weight")
BASE = ".base_layer.weight"  # PEFT saves W with an adapter of the head
QUOTES = "'\""
AT_ONCE = 1 << 18  # weights merged at once: their float32 values stay in the processor's cache
DTYPES = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32))


def widened(array: Array) -> NDArray[np.float32]:
    """A float32 copy of an array. bfloat16 is widened by its bits: NumPy shifts faster than ml_dtypes casts."""
    if array.dtype != DTYPES[0]:
        return array.astype(np.float32)
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def narrowed(array: NDArray[np.float32], dtype: np.dtype[np.generic]) -> Array:
    """The array rounded to `dtype`, to nearest with ties to even. The array itself is overwritten.

    Finite values become bfloat16 by their bits, which is faster than a cast.
    """
    if dtype != DTYPES[0] or not np.isfinite(array).all():
        with np.errstate(over="ignore"):
            return array.astype(dtype)
    bits = array.view(np.uint32)
    bits += (bits >> np.uint32(16) & np.uint32(1)) + np.uint32(0x7FFF)
    return (bits >> np.uint32(16)).astype(np.uint16).view(dtype)


@dataclass(frozen=True)
class LoraDelta:
    """The change that an adapter makes to one matrix (out, in): scale * B A is added to it.

    `a` (r, in) and `b` (out, r) are tensors of the file, called `names` there. `heads` is the number of heads where the
    rows of `b` are in Hugging Face's order, else None. `base` (out, in), if any, takes the place of the model's matrix.
    """

    a: StoredTensor
    b: StoredTensor
    names: tuple[str, str]
    scale: float
    heads: int | None = None
    base: StoredTensor | None = None

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors of the file that make it up."""
        return (self.a, self.b) if self.base is None else (self.a, self.b, self.base)

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Copies in float32 of A (r, in) and B (out, r), B's rows in Mistral's order.

        Raises InputError for NaN and infinity.
        """
        a, b = (tensor.array().astype(np.float32) for tensor in (self.a, self.b))
        for tensor, name, array in zip((self.a, self.b), self.names, (a, b), strict=True):
            if not np.isfinite(array).all():
                raise InputError(f"{tensor.path}: tensor {quoted(name)} has values that are NaN or infinite")
        return a, b if self.heads is None else neighbouring_pairs(b, self.heads).astype(np.float32, copy=False)

    def added_to(self, weight: Array, dtype: np.dtype[np.generic] | None = None) -> Array:
        """A copy of weight + scale * B A, computed in float32 and rounded once to `dtype`, or to the weight's own.

        Raises InputError for factors that are not finite, and for a sum that is not finite although the weight was.
        """
        a, b = self.factors()
        with np.errstate(over="ignore"):
            b *= np.float32(self.scale)
        source = weight if self.base is None else self.base.array()
        dtype = dtype or weight.dtype
        merged, most = np.empty(weight.shape, dtype), float(ml_dtypes.finfo(dtype).max)
        step = max(1, AT_ONCE // weight.shape[1])
        for first in range(0, len(weight), step):
            rows = slice(first, first + step)
            before = widened(source[rows])
            with np.errstate(over="ignore", invalid="ignore"):
                after = b[rows] @ a
                after += before
                largest = max(after.max(), -after.min())
            if not largest <= most and np.isfinite(before).all():  # no comparison holds for NaN
                raise InputError(
                    f"{self.b.path}: tensor {quoted(self.names[1])} makes weights too large for {dtype}; it is"
                    " the adapter of another model, or damaged"
                )
            merged[rows] = narrowed(after, dtype)
        merged.flags.writeable = False
        return merged


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits the model: the change to each matrix, by the name of the model's parameter."""

    file: Path
    deltas: Mapping[str, LoraDelta]

    def identity(self) -> str:
        """A text that differs between adapters: settings, shapes and dtypes, and the first row of each tensor."""
        tensors = [pair for delta in self.deltas.values() for pair in zip(delta.names, (delta.a, delta.b), strict=True)]
        rows = [(name, tensor.shape, tensor.dtype.name, tensor.array()[0].tobytes()) for name, tensor in tensors]
        return repr((self.file.name, [delta.scale for delta in self.deltas.values()], rows))

    def __str__(self) -> str:
        ranks = sorted({delta.a.shape[0] for delta in self.deltas.values()})
        rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        return f"{self.file}: adapter of rank {rank} for {len(self.deltas)} matrices"


def open_adapter(folder: str | Path, args: ModelArgs) -> Adapter:
    """Read an adapter's headers and settings, and check all names and shapes against the model.

    Raises InputError, one line that names the file and the tensor or setting, for an adapter that does not fit.
    """
    folder = find_checkpoint(folder, option="lora")
    file = find_adapter(folder)
    tensors = read_safetensors(file) if file.suffix == ".safetensors" else read_torch_zip(file)
    scale: Callable[[str, int], float]
    matrices = [each for each in parameters(args).values() if each.is_matrix and each.part != "embedding"]
    if file.name == OFFICIAL:
        scale, called = official_scale(folder / "params.json"), {each.name: each for each in matrices}
    else:
        scale = read_scales(folder / "adapter_config.json")
        called = {PREFIX + name: each for each in matrices for name in wrapped_names(hugging_face_name(each))}
    modules = pairs(file, tensors, called)
    if not modules:
        raise InputError(f"{file}: holds no adapter; name another folder with {setting('lora')}")
    deltas = {}
    for module, parameter in modules.items():
        names = (module + PARTS[0], module + PARTS[1])
        a, b = (tensors[part] for part in names)
        check_shapes(file, names, (a, b), parameter.shape)
        heads = None if file.name == OFFICIAL else parameter.heads
        base = tensors.get(module + BASE)
        if base and (heads or base.shape != parameter.shape or base.dtype not in DTYPES):
            raise InputError(f"{file}: tensor {quoted(module + BASE)} is not this model's; name its own adapter")
        deltas[parameter.name] = LoraDelta(a, b, names, scale(module.removeprefix(PREFIX), a.shape[0]), heads, base)
    return Adapter(file, deltas)


def find_adapter(folder: Path) -> Path:
    """The weight file of the adapter in a folder. Raises InputError unless there is exactly one."""
    found = [folder / name for name in (OFFICIAL, *PEFT) if (folder / name).exists()]
    if len(found) == 3 or (len(found) == 2 and found[0].name == OFFICIAL):
        raise InputError(f"{found[0]}: {found[1].name} is an adapter too; move one of them away")
    if not found:
        raise InputError(f"no adapter in it ({', '.join((OFFICIAL, *PEFT))})", option="lora", value=folder)
    return found[0]


def official_scale(params: Path) -> Callable[[str, int], float]:
    """The function (module, rank of its tensors) -> scale for an adapter of mistral-finetune.

    Its params.json has one scale for all matrices. Raises InputError without one; the function raises it for a tensor
    of another rank than the file's.
    """
    if not params.is_file():
        raise InputError(f"{params}: missing; it has the adapter's scale, copy it from where the adapter was trained")
    table = read_json(params).get("lora")
    scale = table.get("scaling") if isinstance(table, dict) else None
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
        raise InputError(f"{params}: lora.scaling must be a number; copy the file from where the adapter was trained")
    rank = table.get("rank") if isinstance(table, dict) else None

    def scale_of(module: str, tensor_rank: int) -> float:
        if rank not in (None, tensor_rank):
            said = shown(rank).strip(QUOTES)
            raise InputError(
                f"{params}: lora.rank is {said}, and {quoted(module)} has rank {tensor_rank}; copy both files from one"
                " place"
            )
        return float(scale)

    return scale_of


def pairs(file: Path, tensors: Mapping[str, StoredTensor], called: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The model's parameter by module of the adapter, for each pair of A and B.

    `called`: the parameters that an adapter can change, by their names in this layout. Raises InputError for any other
    tensor in the file.
    """
    found: dict[str, Parameter] = {}
    modules: dict[str, str] = {}  # by the parameters' names
    for name in tensors:
        if name.endswith(BASE) and name.removesuffix(BASE) + PARTS[0] in tensors:
            continue
        part = next((part for part in PARTS if name.endswith(part)), None)
        if part is None:
            raise InputError(f"{file}: tensor {quoted(name)} is not {PARTS[0]} or {PARTS[1]} of a matrix{reason(name)}")
        module = name.removesuffix(part)
        other = module + PARTS[part == PARTS[0]]
        if other not in tensors:
            raise InputError(f"{file}: tensor {quoted(name)} is there without {quoted(other)}; the file is damaged")
        parameter = called.get(module + ".weight")
        if parameter is None:
            raise InputError(f"{file}: tensor {quoted(name)} belongs to no matrix of this model; name its own adapter")
        if modules.setdefault(parameter.name, module) != module:
            raise InputError(f"{file}: tensor {quoted(name)} is there under another name too; keep one of them")
        found[module] = parameter
    return found


def reason(name: str) -> str:
    """The end of an error about a tensor that is not part of a plain LoRA adapter: what its name means."""
    if "magnitude" in name:
        return ": DoRA is not supported"
    if name.endswith(".bias"):
        return ": biases are not supported"
    return ": embeddings are not supported" if "embed" in name else ": it is not supported"


def check_shapes(
    file: Path, names: tuple[str, str], tensors: tuple[StoredTensor, StoredTensor], shape: tuple[int, ...]
) -> None:
    """Raise InputError unless the tensors are (r, in) and (out, r) of floating-point numbers."""
    rank = tensors[0].shape[0] if tensors[0].shape else 0
    for name, tensor, wanted in zip(names, tensors, ((rank, shape[1]), (shape[0], rank)), strict=True):
        if tensor.is_empty:
            raise InputError(f"{file}: tensor {quoted(name)} is empty: {NOT_GATHERED}")
        if tensor.shape != wanted or not rank:
            raise InputError(
                f"{file}: tensor {quoted(name)} has shape {tensor.shape} and the model, of matrices {shape}, needs"
                f" {wanted}; it is another model's adapter"
            )
        if tensor.dtype not in DTYPES:
            raise InputError(
                f"{file}: tensor {quoted(name)} has dtype {tensor.dtype}; bfloat16, float16 and float32 do"
            )
