"""Importances of each matrix's inputs: their mean squares over a text, in the format of llama.cpp's imatrix.

For each tensor NAME the file has NAME.in_sum2 (matrices, in), sums of squares over all tokens, and NAME.counts
(matrices, 1), the numbers of tokens; a tensor of all experts of a layer has one matrix per expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mistral.atomic_files import exists, replaced
from mistral.checkpoint.gguf.names import gguf_name, merged_name
from mistral.errors import InputError
from mistral.gguf.header import GgufFile, read_gguf
from mistral.gguf.write import Plain, PlannedTensor, header, padding
from mistral.mapped_file import quoted
from mistral.model.args import ModelArgs
from mistral.model.parameters import Parameter, parameters
from mistral.ops.blocks.kind import BY_NAME

SUMS, COUNTS = ".in_sum2", ".counts"
KIND, DATASETS, CHUNKS, CHUNK_SIZE = "general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
IMATRIX = "imatrix"


@dataclass(frozen=True)
class Importances:
    """Sums of squares (matrices, in) and numbers of tokens (matrices,), by tensor name in GGUF files.

    dataset: the name of the text; it was read in `chunks` chunks of chunk_size tokens.
    """

    sums: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, NDArray[np.float32]]
    dataset: str = ""
    chunks: int = 0
    chunk_size: int = 0

    def of(self, parameter: Parameter) -> NDArray[np.float32] | None:
        """Mean squares of a matrix's inputs (in,); None if it has seen no token."""
        name, row = gguf_name(parameter), 0
        if name not in self.sums and parameter.expert is not None:
            name, row = merged_name(parameter) or name, parameter.expert
        if name not in self.sums or not self.counts[name][row] > 0:
            return None
        mean: NDArray[np.float32] = self.sums[name][row] / self.counts[name][row]
        # an input that is always 0 counts a little still, so that its weights are not thrown away
        return np.maximum(mean, mean.max() * np.float32(1e-9)) if mean.any() else None

    def require_fit(self, path: Path, args: ModelArgs) -> None:
        """Raise InputError, naming the file, if they belong to another model."""
        matched = 0
        for parameter in parameters(args).values():
            for name in (merged_name(parameter), gguf_name(parameter)):
                if name is None or name not in self.sums:
                    continue
                matched += 1
                shape, experts = self.sums[name].shape, args.moe.num_experts if args.moe else 1
                wanted = (experts if name == merged_name(parameter) else 1, parameter.shape[-1])
                if shape != wanted:
                    raise InputError(
                        f"{path}: {quoted(name)} has {shape[0]} x {shape[1]} importances and the model"
                        f" {wanted[0]} x {wanted[1]} inputs; they are another model's"
                    )
        if not matched:
            raise InputError(f"{path}: has importances of none of the model's tensors; they are another model's")

    def write(self, path: Path) -> None:
        """Write them to a file atomically."""
        values: dict[str, Plain] = {
            KIND: IMATRIX, DATASETS: [self.dataset], CHUNKS: self.chunks, CHUNK_SIZE: self.chunk_size,
        }  # fmt: skip
        arrays = dict[str, NDArray[np.float32]]()
        for name in sorted(self.sums):
            arrays[name + SUMS] = self.sums[name]
            arrays[name + COUNTS] = self.counts[name][:, None]
        planned = [PlannedTensor(name, BY_NAME["F32"], array.shape) for name, array in arrays.items()]
        with replaced(path) as file:
            file.write(header(values, planned))
            for array in arrays.values():
                data = array.astype("<f4").tobytes()
                file.write(data + padding(len(data)))


def read_importances(path: Path) -> Importances:
    """Importances in a file, as this program or llama.cpp wrote them. Raises InputError for a file of another kind."""
    if not exists(path) or not path.is_file():
        raise InputError(f"{path}: no such file; name one with importances")
    file = read_gguf(path)
    kind = file.metadata.text(KIND)
    if kind != IMATRIX:
        raise InputError(f"{path}: holds no importances ({KIND} is {quoted(kind or 'absent')}); name an imatrix file")
    names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
    sums = {name: _array(file, name + SUMS) for name in names}
    counts = {name: _array(file, name + COUNTS).reshape(-1) for name in names}
    for name in names:
        if sums[name].ndim != 2 or len(sums[name]) != len(counts[name]):
            raise InputError(f"{path}: tensor {quoted(name + SUMS)} does not have a row for each of its counts")
        if not (np.isfinite(sums[name]).all() and (sums[name] >= 0).all() and np.isfinite(counts[name]).all()):
            raise InputError(
                f"{path}: tensor {quoted(name + SUMS)} has values that are no sums of squares; make it again"
            )
    datasets = file.metadata.texts(DATASETS) or [""]
    chunks, size = (file.metadata.number(key) for key in (CHUNKS, CHUNK_SIZE))
    return Importances(
        sums, counts, datasets[0], *(number if isinstance(number, int) else 0 for number in (chunks, size))
    )


def _array(file: GgufFile, name: str) -> NDArray[np.float32]:
    place = file.tensors.get(name)
    if place is None or place.kind.name != "F32":
        raise InputError(f"{file.path}: tensor {quoted(name)} is missing or not F32; make the importances again")
    count = place.nbytes // 4
    shape = place.shape if len(place.shape) > 1 else (1, *place.shape)
    return np.frombuffer(file.buffer, "<f4", count, place.start).reshape(shape)
