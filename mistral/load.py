"""A checkpoint folder, a backend and a device -> a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.formats.stored_tensor import Array
from mistral.checkpoint.quantization import model_args, quantized_args, source_of
from mistral.checkpoint.weight_memory import copied_nbytes, stage_nbytes
from mistral.errors import InputError
from mistral.memory import available_memory, gigabytes, require_memory
from mistral.model.args import ModelArgs
from mistral.model.parameters import owns, parameters
from mistral.model.transformer import Transformer
from mistral.ops.backend import WORTH_BUILDING, check_backend, choose_backend, load_backend
from mistral.ops.device import check_device, start_device
from mistral.ops.interface import Ops
from mistral.ops.quantize import quantize_array
from mistral.ops.quantized import Quantized
from mistral.pipeline.launch import check_ranks
from mistral.pipeline.shared_checkpoint import identity, open_shared, require_files, require_same
from mistral.pipeline.split import choose_layers
from mistral.pipeline.world import World, connect

if TYPE_CHECKING:
    from mistral.ops.interface import Weight

Progress = Callable[[int, int], None]  # bytes of the checkpoint read so far, bytes to read


def check_options(num_pipeline_ranks: int = 1, backend: str = "auto", bits: int = 16, device: str = "auto") -> None:
    """Refuse, by name, what this program does not do. Needs nothing loaded."""
    check_ranks(num_pipeline_ranks)
    if bits not in (16, 8, 4):
        raise InputError(f"--bits {bits}: must be 16 (as in the file), 8 or 4")
    check_device(device)
    check_backend(backend)


def backend_for(checkpoint: Checkpoint, args: ModelArgs, backend: str, device: str) -> str:
    """The backend behind "auto" for this model; see `choose_backend`."""
    total = sum(checkpoint.nbytes(name) for name in checkpoint.shapes)
    return choose_backend(backend, device, WORTH_BUILDING if args.quantization else total)


def check_memory(checkpoint: Checkpoint, args: ModelArgs, backend: str, stages: Iterable[range]) -> None:
    """Raise InputError where the weights of this machine's stages need more memory than is free.

    A note where the mapped file does.
    """
    stages, free = list(stages), available_memory()

    def needed(args: ModelArgs, backend: str) -> int:
        return sum(copied_nbytes(checkpoint, args, backend, layers) for layers in stages)

    sizes = {bits: needed(quantized_args(checkpoint.args, bits), "native") for bits in (8, 4)}
    smaller = [f"--bits {bits} needs {gigabytes(size)}" for bits, size in sizes.items() if size <= free]
    remedy = (
        " and ".join(smaller) if smaller and not args.quantization else "use a machine with more, or a smaller model"
    )
    form = " in float32" if backend == "portable" else ""
    if checkpoint.adapter:
        merged = [parameters(args)[name] for name in checkpoint.adapter.deltas]
        here = {each.name for each in merged for layers in stages if owns(layers, each, args)}
        copied = gigabytes(sum(map(checkpoint.nbytes, here)))
        extra = f"; merged copies take {copied}" if backend == "native" and not args.quantization else ""
        print(f"note: {checkpoint.adapter}{extra}", file=sys.stderr)
    require_memory(needed(args, backend), free, f"{checkpoint.folder}: this model{form}", remedy)
    mapped = sum(stage_nbytes(checkpoint, layers) for layers in stages) - needed(args, backend)
    if backend == "native" and not needed(args, backend) and mapped > free:
        print(
            f"note: the weights take {gigabytes(mapped)} and {gigabytes(free)} are free: every token will wait for the"
            f" disk; {remedy}",
            file=sys.stderr,
        )


def load_model(
    folder: str | Path | Checkpoint,
    num_pipeline_ranks: int = 1,
    backend: str = "auto",
    bits: int = 16,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    precise: bool = False,
    pipeline_split: str = "auto",
    world: World | None = None,
    lora: str | Path | None = None,
) -> Transformer:
    """The model of a checkpoint, or of a folder that holds one; with several ranks, the stage of this one.

    `lora` is the folder of an adapter to merge into a folder's weights. `bits` 8 or 4 quantizes the matrices while
    loading; `precise` keeps activations and cache float32; `world` is the job, where it has been joined. Raises
    InputError for a folder that is no sound checkpoint, an option that is not available, or too little memory; then
    nothing stays loaded. What cannot be on one rank is raised on all.
    """
    check_options(num_pipeline_ranks, backend, bits, device)

    if num_pipeline_ranks > 1:
        world = world or connect(num_pipeline_ranks)
    checkpoint = folder if isinstance(folder, Checkpoint) else open_shared(folder, lora, world)

    def planned() -> tuple[ModelArgs, list[range]]:
        return model_args(checkpoint, bits), choose_layers(checkpoint, num_pipeline_ranks, pipeline_split)

    if world is None:
        args, layers = planned()
        backend = start_backend(checkpoint, args, backend, device, threads)
        check_memory(checkpoint, args, backend, layers)
        return build(checkpoint, args, load_backend(backend, precise), layers[0], progress)
    args, layers = world.agreed(planned)
    chosen = {"--bits": str(bits), "--precise": str(precise), "--pipeline_split": str([len(part) for part in layers])}
    same = "start all ranks with the same files, versions and options"
    require_same(world, identity(checkpoint) | chosen, same)
    world.agreed(lambda: require_files(checkpoint, layers[world.rank]))
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = world.share_of_cores()
    backend = world.agreed(lambda: start_backend(checkpoint, args, backend, device, threads))
    require_same(world, {"--backend": backend}, "name the backend, or install a compiler everywhere")
    here = [part for part, host in zip(layers, world.gather(world.host), strict=True) if host == world.host]
    world.agreed(lambda: check_memory(checkpoint, args, backend, here))
    mine = layers[world.rank]
    return world.agreed(lambda: build(checkpoint, args, load_backend(backend, precise), mine, progress, world))


def start_backend(checkpoint: Checkpoint, args: ModelArgs, backend: str, device: str, threads: int | None) -> str:
    """Start the device -> the backend to use."""
    return backend_for(checkpoint, args, backend, start_device(device, threads))


def build(
    checkpoint: Checkpoint,
    args: ModelArgs,
    ops: Ops,
    layers: range,
    progress: Progress | None = None,
    world: World | None = None,
) -> Transformer:
    """Read the weights of some layers."""
    done, total = 0, stage_nbytes(checkpoint, layers)

    def get(name: str) -> Weight:
        nonlocal done
        source, bits = source_of(name, checkpoint), parameters(args)[name].bits
        array: Array | Quantized | None = checkpoint.quantized(source)
        if array is None:
            array = checkpoint.get(source)
            if bits is not None:
                array = quantize_array(array, bits, f"{checkpoint.file_of(source)}: tensor {source}")
                checkpoint.release(source)
            elif checkpoint.is_merged(source):
                checkpoint.release(source)
        done += checkpoint.nbytes(source)
        if progress:
            progress(min(done, total), total)
        return ops.weight(array)

    return Transformer(args, get, ops, layers, world)
