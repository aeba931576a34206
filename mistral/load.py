"""A checkpoint folder, a backend and a device -> a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.formats.stored_tensor import Array
from mistral.checkpoint.gguf.write import blocks_of
from mistral.checkpoint.quantization import block_kind
from mistral.checkpoint.weight_memory import copied_nbytes, stage_nbytes, used_in_place
from mistral.errors import InputError, setting
from mistral.memory import available_memory, gigabytes, require_memory
from mistral.model import transformer
from mistral.model.args import ModelArgs
from mistral.model.block import GetWeight
from mistral.model.kv_cache import CacheMetadata, RollingCache
from mistral.model.layers import Wanted
from mistral.model.parameters import Parameter, owns, parameters
from mistral.ops.backend import WORTH_BUILDING, check_backend, choose_backend, load_backend
from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.device import check_device, device_lock, start_device
from mistral.ops.float8 import Float8
from mistral.ops.interface import Ops, Weight
from mistral.ops.mapped_files import MappedFiles
from mistral.pipeline.launch import check_ranks
from mistral.pipeline.shared_checkpoint import identity, open_shared, require_files, require_same
from mistral.pipeline.split import choose_layers
from mistral.pipeline.world import World, connect

if TYPE_CHECKING:
    from mindspore import Tensor

Progress = Callable[[int, int], None]  # bytes of the checkpoint read so far, and in all


class Transformer(transformer.Transformer):
    """A model that is loaded from a folder; under mpirun, this rank's stage of it.

    `world`: the ranks of the pipeline; None for a whole model. `files`: the mapped files from which steps read weights.
    """

    def __init__(
        self,
        args: ModelArgs,
        get: GetWeight,
        ops: Ops,
        layers: range | None = None,
        world: World | None = None,
        files: MappedFiles | None = None,
    ) -> None:
        """See `mistral.model.transformer.Transformer`."""
        super().__init__(args, get, ops, layers)
        self.world, self.files = world, files or MappedFiles({})

    def embed(self, ids: NDArray[np.int64]) -> Tensor:
        """ids (T,) -> (T, D). Raises InputError if a weight file has been truncated."""
        self.files.require_whole()
        return super().embed(ids)

    def run_blocks(
        self,
        x: Tensor,
        metadata: CacheMetadata,
        cache: RollingCache | None,
        after_layer: Callable[[], None] | None = None,
        wanted: Wanted = None,
    ) -> Tensor | None:
        """See `model.Transformer.run_blocks`. Raises InputError if a weight file has been truncated."""
        self.files.require_whole()
        return super().run_blocks(x, metadata, cache, after_layer, wanted)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        num_pipeline_ranks: int = 1,
        backend: str = "auto",
        bits: int = 16,
        device: str = "auto",
        precise: bool = False,
        pipeline_split: str = "auto",
        lora: str | Path | None = None,
    ) -> Transformer:
        """The model in a checkpoint folder, with its own weights, or quantized while loading (`bits` 8 or 4).

        `lora`: the folder of an adapter that is merged into the weights. `precise` keeps activations and cache float32.
        With several ranks, each of which calls this under mpirun, it is the stage of this rank; `pipeline_split` sets
        the layers of each, such as 20,12. Raises InputError for what cannot be loaded, on all ranks if one cannot.
        """
        return load_model(
            folder, num_pipeline_ranks, backend, bits, device, precise=precise, pipeline_split=pipeline_split, lora=lora
        )


def check_options(num_pipeline_ranks: int = 1, backend: str = "auto", bits: int = 16, device: str = "auto") -> None:
    """Raise InputError for an unsupported option. Loads nothing."""
    check_ranks(num_pipeline_ranks)
    if bits not in (16, 8, 4):
        raise InputError("must be 16 (as in the file), 8 or 4", option="bits", value=bits)
    check_device(device)
    check_backend(backend)


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
    """The model of a checkpoint, or of a folder that holds one; with several ranks, the stage of this rank.

    `lora` is the folder of an adapter to merge into a folder's weights. `bits` 8 or 4 quantizes the matrices while
    loading; `precise` keeps activations and cache float32; `world` is the job, if it has been joined. Raises InputError
    for an invalid checkpoint, an unavailable option, or too little memory, on all ranks if one fails; then nothing
    stays loaded.
    """
    check_options(num_pipeline_ranks, backend, bits, device)
    if num_pipeline_ranks > 1:
        world = world or connect(num_pipeline_ranks)
    checkpoint = folder if isinstance(folder, Checkpoint) else open_shared(folder, lora, world)

    def planned() -> list[range]:
        return choose_layers(checkpoint, num_pipeline_ranks, pipeline_split)

    if world is None:
        planned()
        return load_whole(checkpoint, backend, bits, device, threads, progress, precise)
    layers = world.agreed(planned)
    chosen = {"bits": str(bits), "precise": str(precise), "pipeline_split": str([len(part) for part in layers])}
    require_same_model(world, checkpoint, chosen, layers)
    backend = agreed_backend(world, checkpoint, bits, backend, device, threads)
    here = [part for part, host in zip(layers, world.gather(world.host), strict=True) if host == world.host]
    world.agreed(lambda: check_memory(checkpoint, bits, backend, here))
    mine = layers[world.rank]
    return world.agreed(lambda: build(checkpoint, bits, load_backend(backend, precise), mine, progress, world))


def load_whole(
    checkpoint: Checkpoint,
    backend: str = "auto",
    bits: int = 16,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    precise: bool = False,
) -> Transformer:
    """All of a model in this process, whatever ranks there are beside it; see `load_model`.

    Raises InputError where a file of the checkpoint is not here, or memory is too short.
    """
    layers = range(checkpoint.args.n_layers)
    require_files(checkpoint, layers)
    backend = start_backend(checkpoint, bits, backend, device, threads)
    check_memory(checkpoint, bits, backend, [layers])
    return build(checkpoint, bits, load_backend(backend, precise), layers, progress)


def backend_for(checkpoint: Checkpoint, bits: int, backend: str, device: str) -> str:
    """The backend that "auto" means for this model; see `choose_backend`. A quantized model is worth the build."""
    total = sum(checkpoint.nbytes(name) for name in checkpoint.shapes)
    return choose_backend(backend, device, WORTH_BUILDING if bits != 16 else total)


def start_backend(checkpoint: Checkpoint, bits: int, backend: str, device: str, threads: int | None) -> str:
    """Start the device -> the backend to use."""
    return backend_for(checkpoint, bits, backend, start_device(device, threads))


def agreed_backend(
    world: World, checkpoint: Checkpoint, bits: int, backend: str, device: str, threads: int | None
) -> str:
    """Start the device of this rank -> the backend to use, which must be the same on all ranks."""
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = world.share_of_cores()
    found = world.agreed(lambda: start_backend(checkpoint, bits, backend, device, threads))
    require_same(world, {setting("backend"): found}, "name the backend, or install a compiler everywhere")
    return found


def require_same_model(world: World, checkpoint: Checkpoint, chosen: dict[str, str], layers: list[range]) -> None:
    """Raise InputError, on every rank, if ranks differ in files or the options `chosen`, or one lacks its weights."""
    options = {setting(name): value for name, value in chosen.items()}
    remedy = "start all ranks with the same files, versions and options"
    require_same(world, identity(checkpoint) | options, remedy)
    world.agreed(lambda: require_files(checkpoint, layers[world.rank]))


def check_memory(checkpoint: Checkpoint, bits: int, backend: str, stages: Iterable[range]) -> None:
    """Raise InputError if the weights of this machine's stages need more memory than is free.

    If only a mapped file does not fit, a note on standard error says so.
    """
    stages, free = list(stages), available_memory()

    def copied(bits: int, backend: str) -> int:
        return sum(copied_nbytes(checkpoint, bits, backend, layers) for layers in stages)

    sizes = {fewer: copied(fewer, "native") for fewer in (8, 4)}
    smaller = {} if bits != 16 else {fewer: size for fewer, size in sizes.items() if size <= free}
    needed, form = copied(bits, backend), " in float32" if backend == "portable" else ""
    if checkpoint.adapter:
        note_adapter(checkpoint, bits, backend, stages)
    require_memory(needed, free, f"{checkpoint.path}: this model{form}", remedy(smaller, setting("bits")))
    mapped = sum(stage_nbytes(checkpoint, layers) for layers in stages) - needed
    if backend == "native" and not needed and mapped > free:
        print(
            f"note: the weights take {gigabytes(mapped)} and {gigabytes(free)} are free: every token will wait for the"
            f" disk; {remedy(smaller, '--bits')}",
            file=sys.stderr,
        )


def remedy(smaller: dict[int, int], option: str) -> str:
    """The remedy for too little memory; `smaller`: numbers of bits that would fit, with the bytes that they need."""
    ways = [f"{option} {bits} needs {gigabytes(size)}" for bits, size in smaller.items()]
    return " and ".join(ways) or "use a machine with more, or a smaller model"


def note_adapter(checkpoint: Checkpoint, bits: int, backend: str, stages: Iterable[range]) -> None:
    """Print a note about the adapter that is merged, and the memory of its merged copies if they need some."""
    assert checkpoint.adapter is not None
    args = checkpoint.args
    changed = [parameters(args)[name] for name in checkpoint.adapter.deltas]
    merged = {each.name for each in changed for layers in stages if owns(layers, each, args)}
    size = gigabytes(sum(map(checkpoint.loaded_nbytes, merged)))
    extra = f"; merged copies take {size}" if backend == "native" and bits == 16 else ""
    print(f"note: {checkpoint.adapter}{extra}", file=sys.stderr)


def build(
    checkpoint: Checkpoint,
    bits: int,
    ops: Ops,
    layers: range,
    progress: Progress | None = None,
    world: World | None = None,
    loaded: Callable[[str, Weight], None] | None = None,
) -> Transformer:
    """Load the weights of some layers; `loaded` is called with the name of each and the backend's weight."""
    done, total = 0, stage_nbytes(checkpoint, layers)
    everything = MappedFiles(checkpoint.mapped(checkpoint.shapes))
    args = checkpoint.args
    if ops.name == "native" or bits != 16:
        everything.guard()
    everything.require_whole()

    def get(name: str) -> Weight:
        nonlocal done
        stored = read_weight(checkpoint, parameters(args)[name], bits, ops.name)
        with device_lock:
            weight = ops.weight(stored)
        if loaded:
            loaded(name, weight)
        done += checkpoint.nbytes(name)
        if progress:
            progress(min(done, total), total)
        return weight

    in_place = used_in_place(checkpoint, bits, ops.name, layers)
    files = MappedFiles(checkpoint.mapped(in_place, adapted=False))
    return Transformer(args, get, ops, layers, world, files)


def read_weight(
    checkpoint: Checkpoint, parameter: Parameter, bits: int, backend: str
) -> Array | Float8 | BlockQuantized:
    """A parameter in the form for a backend: unchanged (16 bits), or quantized to `bits`.

    Block-quantized tensors of a file are checked and widened for portable, and unchanged for native. The pages of a
    tensor that is not used in place are released.
    """
    name, kind = parameter.name, block_kind(parameter, checkpoint.args, bits)
    made: Array | Float8 | BlockQuantized
    if kind is not None:
        made = blocks_of(checkpoint, parameter, kind)
    elif checkpoint.is_merged(name) or (checkpoint.is_in_blocks(name) and backend != "native"):
        made = checkpoint.get(name)
    else:
        return checkpoint.packed(name)
    checkpoint.release(name)
    return made
