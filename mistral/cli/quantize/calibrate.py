"""How much each input of each matrix of a model matters on a text: what makes a quantized model better on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.gguf.importances import Importances
from mistral.checkpoint.gguf.names import gguf_name, merged_name
from mistral.errors import InputError
from mistral.load import build, check_memory, start_backend
from mistral.model.parameters import EMBEDDING, HEAD, parameters
from mistral.ops.backend import load_backend
from mistral.ops.calibrating import Calibrating

CHUNK = 512  # tokens that are read with one another, the first of them bos
MOST_CHUNKS = 128  # unless more are asked for: after so many the importances hardly move


def calibrate(
    checkpoint: Checkpoint,
    bos_id: int,
    ids: Sequence[int],
    chunks: int | None,
    backend: str,
    dataset: str,
    progress: Callable[[int, int], None],
) -> Importances:
    """The importances of a model's matrices over the tokens `ids` of a text called `dataset`.

    `chunks`: so many pieces at most, evenly over the text; None for MOST_CHUNKS, 0 for all. `progress`: called with
    the tokens read so far, and in all. Raises InputError for a text shorter than a piece, and a model that cannot be
    loaded.
    """
    size = min(CHUNK, checkpoint.args.max_seq_len or CHUNK) - 1
    count = len(ids) // size
    if not count:
        raise InputError(f"{dataset}: has {len(ids)} tokens, and {size} are needed at least; name a longer text")
    most = min(count, MOST_CHUNKS if chunks is None else chunks or count)
    layers = range(checkpoint.args.n_layers)
    backend = start_backend(checkpoint, 16, backend, "CPU", None)
    check_memory(checkpoint, 16, backend, [layers])
    ops = Calibrating(load_backend(backend))
    model = build(checkpoint, 16, ops, layers, loaded=ops.named)
    for done in range(most):
        first = done * count // most * size
        piece = [bos_id, *ids[first : first + size]]
        model.forward(piece, [len(piece)], wanted=[len(piece) - 1]).asnumpy()
        progress((done + 1) * size, most * size)
    return collected(checkpoint, ops, dataset, most)


def collected(checkpoint: Checkpoint, ops: Calibrating, dataset: str, chunks: int) -> Importances:
    """What a backend has seen, by the names of tensors in GGUF files; experts that saw no token count none."""
    sums, counts = dict[str, list[NDArray[np.float32]]](), dict[str, list[float]]()
    for name, parameter in parameters(checkpoint.args).items():
        if not parameter.is_matrix or parameter.part == "router" or name in (EMBEDDING, HEAD):
            continue
        in_file = merged_name(parameter) or gguf_name(parameter)
        squares = ops.squares.get(name, np.zeros(parameter.shape[-1]))
        sums.setdefault(in_file, []).append(squares.astype(np.float32))
        counts.setdefault(in_file, []).append(float(ops.tokens.get(name, 0)))
    return Importances(
        {name: np.stack(rows) for name, rows in sums.items()},
        {name: np.array(numbers, np.float32) for name, numbers in counts.items()},
        dataset, chunks, CHUNK,
    )  # fmt: skip
