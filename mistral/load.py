"""A checkpoint folder, a backend and a device -> a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mistral.checkpoint import Checkpoint, open_checkpoint
from mistral.device import check_device, start_device
from mistral.errors import InputError
from mistral.memory import available_memory, require_memory
from mistral.model import Transformer
from mistral.ops import check_backend, choose_backend, load_backend

if TYPE_CHECKING:
    from mistral.ops.weight import Weight

Progress = Callable[[int, int], None]  # bytes of the checkpoint read so far, bytes to read


def check_options(num_pipeline_ranks: int = 1, backend: str = "auto", bits: int = 16, device: str = "auto") -> None:
    """Refuse, by name, what this program does not do. Needs nothing loaded."""
    if num_pipeline_ranks != 1:
        raise InputError(f"--num_pipeline_ranks {num_pipeline_ranks}: pipelines are not available yet; leave it at 1")
    if bits != 16:
        raise InputError(f"--bits {bits}: quantized weights are not available yet; leave it at 16")
    check_device(device)
    check_backend(backend)


def copied_nbytes(checkpoint: Checkpoint, backend: str) -> int:
    """Bytes of the weights that cannot stay in the mapped file: not in one piece there, or widened to float32."""
    sizes = {name: math.prod(shape) for name, shape in checkpoint.shapes.items()}
    if backend == "native":
        return sum(checkpoint.nbytes(name) for name in sizes if not checkpoint.in_place(name))
    stays = {name for name in sizes if checkpoint.dtype(name) == np.float32 and checkpoint.in_place(name)}
    return sum(4 * size for name, size in sizes.items() if name not in stays)


def load_model(
    folder: str | Path | Checkpoint,
    num_pipeline_ranks: int = 1,
    backend: str = "auto",
    bits: int = 16,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """The whole model of a checkpoint, or of a folder that holds one.

    Raises InputError for a folder that is no sound checkpoint, an option that is not available, or too little memory;
    then nothing stays loaded.
    """
    check_options(num_pipeline_ranks, backend, bits, device)
    checkpoint = folder if isinstance(folder, Checkpoint) else open_checkpoint(folder)
    total = sum(checkpoint.nbytes(name) for name in checkpoint.shapes)
    backend = choose_backend(backend, start_device(device, threads), total)
    require_memory(
        copied_nbytes(checkpoint, backend),
        available_memory(),
        f"{checkpoint.folder}: this model{' in float32' if backend == 'portable' else ''}",
        "use a machine with more, or a smaller model",
    )
    ops = load_backend(backend)
    done = 0

    def get(name: str) -> Weight:
        nonlocal done
        weight = ops.weight(checkpoint.get(name))
        done += checkpoint.nbytes(name)
        if progress:
            progress(done, total)
        return weight

    return Transformer(checkpoint.args, get, ops)
