"""The quantize command: a checkpoint's matrices in 8 or 4 bits, as a folder that loads like any other."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mistral.args import ModelArgs, Quantization
from mistral.checkpoint import Checkpoint, open_checkpoint
from mistral.checkpoint.names import quantized_bits, tensor_shapes
from mistral.checkpoint.quantized_tensor import part_forms, part_names
from mistral.errors import InputError
from mistral.memory import gigabytes
from mistral.ops import build
from mistral.options import operand, option
from mistral.progress import Progress
from mistral.quantized import Quantized, stored_shapes
from mistral.tokenizer import Tokenizer

TYPES = {"float32": 0, "bfloat16": 1, "float16": 2}  # as the kernels number them
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8", "uint8": "U8"}  # in safetensors
SHARD = 4 * 10**9  # bytes of tensors in a file, at most, as long as one tensor is not larger


def check_bits(name: str, bits: int) -> None:
    """Raise InputError for a number of bits that there is no format for."""
    if bits not in (8, 4):
        raise InputError(f"--{name} {bits}: must be 8 or 4")


def quantize_array(array: Any, bits: int, name: str = "a weight") -> Quantized:
    """A matrix (out, in) of float32, float16 or bfloat16 in 8 or 4 bits.

    Raises InputError, with `name`, for NaN and infinity, and where there is no compiler for the kernels that do it.
    """
    library = ctypes.CDLL(str(build.kernels().build()))
    library.quantize_rows.restype = ctypes.c_int64
    array = np.require(array, requirements=("C", "A"))
    out, inner = array.shape
    values, scales, exponents = (np.empty(shape, dtype) for dtype, shape in part_forms(bits, array.shape))
    found = Quantized(bits, (out, inner), values, scales, exponents)
    pointers = [part.ctypes.data for part in (values, scales, exponents)]
    lost = library.quantize_rows(
        ctypes.c_void_p(array.ctypes.data), TYPES[array.dtype.name], ctypes.c_int64(out), ctypes.c_int64(inner), bits,
        *map(ctypes.c_void_p, pointers),
    )  # fmt: skip
    if lost:
        raise InputError(f"{name}: {lost} of its values are NaN or infinite; download the weights again")
    return found


def quantized_nbytes(bits: int, shape: tuple[int, ...]) -> int:
    """Bytes of a matrix in so many bits."""
    values, scales = stored_shapes(bits, *shape)
    return int(np.prod(values) + np.prod(scales)) + shape[0]


def quantized_args(args: ModelArgs, bits: int, output_bits: int = 8) -> ModelArgs:
    """The model with quantized matrices: a tied head becomes a matrix of its own."""
    return replace(args, tied_embeddings=False, quantization=Quantization(bits, output_bits))


def source_of(name: str, checkpoint: Checkpoint) -> str:
    """The tensor of an unquantized checkpoint that `name` of the quantized model is made of."""
    return "tok_embeddings.weight" if name == "output.weight" and checkpoint.args.tied_embeddings else name


@dataclass(frozen=True)
class Quantize:
    """Write a checkpoint's matrices in 8 or 4 bits, as a folder that every command takes.

    Embeddings, norms and routers stay as they are.
    """

    ckpt: str | None = operand("The checkpoint folder; its files stay as they are.")
    out: str | None = operand("The folder to write; it must not exist yet, or be empty.")
    bits: int = option(8, "8 (nothing to be seen of it) or 4 (a little over half the size of 8).")
    lora: str | None = option(None, "A folder with a LoRA adapter, Mistral's or PEFT's, merged before.")
    output_bits: int = option(8, "Bits of the output matrix, whose errors reach every word: 8 or 4.")

    def check(self) -> None:
        """Raise InputError for what cannot be, before anything is read."""
        if self.ckpt is None or self.out is None:
            raise InputError("quantize: name a checkpoint folder and a folder to write")
        check_bits("bits", self.bits)
        check_bits("output_bits", self.output_bits)
        build.require_compiler()

    def run(self) -> None:
        """Quantize, tensor by tensor; what is not finished never has the name that was asked for."""
        assert self.ckpt is not None and self.out is not None
        checkpoint, out = open_checkpoint(self.ckpt, self.lora), Path(self.out)
        if checkpoint.args.quantization:
            raise InputError(f"{checkpoint.folder}: is quantized already; name the original weights")
        if checkpoint.adapter:
            print(f"note: {checkpoint.adapter}", file=sys.stderr)
        tokenizer = Tokenizer.from_folder(checkpoint.folder)
        args = quantized_args(checkpoint.args, self.bits, self.output_bits)
        with unfinished(out) as work:
            total = write_model(checkpoint, args, work)
            (work / "params.json").write_text(json.dumps(args.to_params(), indent=2) + "\n")
            shutil.copyfile(tokenizer.file, work / tokenizer.file.name)
            work.rename(out)
        before = sum(checkpoint.nbytes(name) for name in checkpoint.shapes)
        print(f"{out}: {gigabytes(total)} of weights, {gigabytes(before)} before")


class unfinished:  # noqa: N801  a context manager, named as it reads
    """A folder beside `out` to write into, which goes away unless it is renamed. InputError where it cannot be."""

    def __init__(self, out: Path) -> None:
        self.out, self.work = out, out.with_name(f".{out.name}.unfinished")

    def __enter__(self) -> Path:
        try:
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise InputError(f"{self.out}: is there already; name another folder, or remove it")
            shutil.rmtree(self.work, ignore_errors=True)  # of a run that was killed
            self.work.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{self.out}: cannot be written ({error.strerror}); name another folder") from None
        return self.work

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        if isinstance(error, OSError):
            full = "; free some space, or name a folder elsewhere" if error.errno in (errno.ENOSPC, errno.EFBIG) else ""
            raise InputError(f"{self.out}: cannot be written ({error.strerror}){full}") from None


@dataclass(frozen=True)
class Planned:
    """A tensor to write: its name in the model, and dtype, shape and bytes of each of its parts by their names."""

    name: str
    parts: dict[str, tuple[str, tuple[int, ...], int]]

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(size for _, _, size in self.parts.values())


def planned(checkpoint: Checkpoint, args: ModelArgs) -> Iterator[Planned]:
    """Every tensor of the quantized model."""
    for name, shape in tensor_shapes(args).items():
        bits = quantized_bits(name, args)
        forms = (
            ((str(checkpoint.dtype(source_of(name, checkpoint))), shape),) if bits is None else part_forms(bits, shape)
        )
        names = (name,) if bits is None else part_names(name)
        yield Planned(
            name,
            {
                part: (
                    NAMES[dtype],
                    stored,
                    int(np.prod(stored)) * {"F32": 4, "BF16": 2, "F16": 2}.get(NAMES[dtype], 1),
                )
                for part, (dtype, stored) in zip(names, forms, strict=True)
            },
        )


def write_model(checkpoint: Checkpoint, args: ModelArgs, folder: Path) -> int:
    """All tensors of the quantized model into safetensors files in the folder -> bytes."""
    shards: list[list[Planned]] = [[]]
    for tensor in planned(checkpoint, args):
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > SHARD:
            shards.append([])
        shards[-1].append(tensor)
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise InputError(f"{folder.parent}: needs {gigabytes(total)} and has {gigabytes(free)} free; free some space")
    progress, done = Progress("quantizing:", "GB", 1e9), 0
    for number, shard in enumerate(shards, 1):
        name = "consolidated.safetensors"
        if len(shards) > 1:
            name = f"consolidated-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb") as out:
            write_header(out, shard)
            for tensor in shard:
                for part in quantized_parts(checkpoint, args, tensor.name):
                    out.write(part)
                checkpoint.release(source_of(tensor.name, checkpoint))
                done += tensor.nbytes
                progress(done, total)
            out.flush()
            os.fsync(out.fileno())
    return total


def write_header(out: BinaryIO, tensors: list[Planned]) -> None:
    """The header of a safetensors file; tensors begin at a multiple of 64 bytes, so that they can be used in place."""
    header, at = dict[str, Any](), 0
    for tensor in tensors:
        for part, (dtype, shape, size) in tensor.parts.items():
            header[part] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    out.write(len(text).to_bytes(8, "little") + text)


def quantized_parts(checkpoint: Checkpoint, args: ModelArgs, name: str) -> Iterator[memoryview]:
    """The bytes of each part of a tensor of the quantized model."""
    source = source_of(name, checkpoint)
    array, bits = checkpoint.get(source), quantized_bits(name, args)
    if bits is None:
        yield np.ascontiguousarray(array).view(np.uint8).data
        return
    found = quantize_array(array, bits, f"{checkpoint.file_of(source)}: tensor {source}")
    yield from (part.data for part in (found.values, found.scales, found.exponents))
