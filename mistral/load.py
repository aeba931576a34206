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
from mistral.ops import check_backend, load_backend

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
    # float32 that can stays in the mapped file; all else is copied or widened into memory
    mapped = {name for name in checkpoint.shapes if checkpoint.dtype(name) == np.float32 and checkpoint.in_place(name)}
    widened = sum(4 * math.prod(shape) for name, shape in checkpoint.shapes.items() if name not in mapped)
    purpose = f"{checkpoint.folder}: this model in float32"
    require_memory(widened, available_memory(), purpose, "use a machine with more, or a smaller model")
    start_device(device, threads)
    ops = load_backend(backend)
    total = sum(checkpoint.nbytes(name) for name in checkpoint.shapes)
    done = 0

    def get(name: str) -> Weight:
        nonlocal done
        weight = ops.weight(checkpoint.get(name))
        done += checkpoint.nbytes(name)
        if progress:
            progress(done, total)
        return weight

    return Transformer(checkpoint.args, get, ops)
