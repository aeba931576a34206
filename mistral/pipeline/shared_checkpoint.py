"""A checkpoint whose files are spread over the machines of an MPI job, and what all ranks must have alike."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mistral.checkpoint.file_sets import find_form, weight_files
from mistral.checkpoint.formats.stored_tensor import StoredTensor
from mistral.checkpoint.matching import read_file
from mistral.errors import InputError
from mistral.model.parameters import owns, parameters
from mistral.pipeline.world import World
from mistral.version import __version__

SAMPLED_TENSORS, SAMPLED_BYTES = 16, 512  # of each file


def open_shared(folder: str | Path, lora: str | Path | None, world: World | None) -> Checkpoint:
    """Open a checkpoint; under several ranks, files that a rank lacks are known to it by what others say is in them.

    Every rank needs the settings, the tokenizer, and all of an adapter (`lora`). Raises InputError, on all ranks, for
    what cannot be opened on one.
    """
    if world is None:
        return open_checkpoint(folder, lora)
    folder = Path(folder)
    everyone = world.gather(world.agreed(lambda: {file.name for file in weight_files(folder)}))
    lacking = set().union(*everyone) - everyone[0].intersection(*everyone)
    if not lacking:
        return world.agreed(lambda: open_checkpoint(folder, lora))
    known = world.gather(world.agreed(lambda: described(folder, lacking, everyone[world.rank])))
    elsewhere = {
        name: {tensor: moved(stored, folder) for tensor, stored in tensors.items()}
        for found in reversed(known)
        for name, tensors in found.items()
        if name not in everyone[world.rank]
    }
    return world.agreed(lambda: open_checkpoint(folder, lora, elsewhere))


def described(folder: Path, lacking: set[str], here: set[str]) -> dict[str, dict[str, StoredTensor]]:
    """What is in those files of the model that are here and not everywhere."""
    files = [file for file in find_form(folder, lacking).files if file.name in lacking & here]
    return {file.name: {name: tensor.described() for name, tensor in read_file(file).items()} for file in files}


def moved(tensor: StoredTensor, folder: Path) -> StoredTensor:
    """The same tensor, if its file were in this folder."""
    return replace(tensor, path=folder / tensor.path.name, buffer=None)


def require_files(checkpoint: Checkpoint, layers: range) -> None:
    """Raise InputError where a file with weights of these layers is not here."""
    for name, parameter in parameters(checkpoint.args).items():
        missing = checkpoint.missing(name) if owns(layers, parameter, checkpoint.args) else None
        if missing:
            raise InputError(
                f"{missing}: is not here, and weights of this rank's layers {layers.start} to {layers.stop - 1} are in"
                " it; copy it there"
            )


def identity(checkpoint: Checkpoint) -> dict[str, str]:
    """What must be the same on all ranks that have it, each with a name to show.

    The versions, the settings, where all tensors lie; and of each file that is here, a sample of its weights.
    """
    digest = hashlib.sha256(repr(checkpoint.args).encode())
    for name in sorted(checkpoint.shapes):
        file, place = checkpoint.file_of(name), checkpoint.place(name)
        digest.update(repr((name, checkpoint.shapes[name], checkpoint.dtype(name).name, file.name, place)).encode())
    if checkpoint.adapter:
        digest.update(checkpoint.adapter.identity().encode())
    found = {"a checkpoint with the digest": digest.hexdigest()[:12], "mistral-mindspore": __version__}
    found |= {package: version(package) for package in ("mindspore", "numpy", "mpi4py")}
    return found | {f"in {file.name} weights with the digest": sample(checkpoint, file) for file in present(checkpoint)}


def present(checkpoint: Checkpoint) -> list[Path]:
    """The files that are here."""
    return [file for file in checkpoint.files if file.exists()]


def sample(checkpoint: Checkpoint, file: Path) -> str:
    """A digest of the size of a file and of some bytes of some of its tensors."""
    digest = hashlib.sha256(str(file.stat().st_size).encode())
    names = sorted(name for name in checkpoint.shapes if checkpoint.file_of(name) == file)
    for place in np.linspace(0, len(names) - 1, min(SAMPLED_TENSORS, len(names))).astype(int):
        start = checkpoint.place(names[place])[0][0]
        middle = start + checkpoint.nbytes(names[place]) // 2
        with file.open("rb") as stream:
            stream.seek(middle)
            digest.update(stream.read(SAMPLED_BYTES))
    return digest.hexdigest()[:12]


def require_same(world: World, mine: dict[str, str], remedy: str) -> None:
    """Raise InputError, on every rank, where two ranks differ in something that both have."""
    first: dict[str, tuple[int, str]] = {}
    for rank, found in enumerate(world.gather(mine)):
        for name, value in found.items():
            known, expected = first.setdefault(name, (rank, value))
            if expected != value:
                raise InputError(f"rank {rank} has {name} {value}, rank {known} {expected}: {remedy}")
