"""A checkpoint whose files are distributed over the machines of an MPI job, and checks that all ranks have the same."""

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
from mistral.places import find_checkpoint
from mistral.version import __version__

SAMPLED_TENSORS, SAMPLED_BYTES = 16, 512  # tensors per file, and bytes of each, that are compared


def open_shared(named: str | Path, lora: str | Path | None, world: World | None) -> Checkpoint:
    """Open a checkpoint, named as `find_checkpoint` allows.

    With several ranks, a rank gets the header of a file that it lacks from the others. Every rank needs the settings,
    the tokenizer, a whole GGUF file and a whole adapter (`lora`). Raises InputError on all ranks if one of them cannot
    open its files.
    """
    if world is None:
        return open_checkpoint(named, lora)
    folder = world.agreed(lambda: find_checkpoint(named))
    if any(world.gather(folder.is_file())):  # a GGUF file, which every rank needs
        return world.agreed(lambda: open_checkpoint(folder, lora))
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
    """Name and tensors, without values, of each file of the model that is here and missing on another rank."""
    files = [file for file in find_form(folder, lacking).files if file.name in lacking & here]
    return {file.name: {name: tensor.described() for name, tensor in read_file(file).items()} for file in files}


def moved(tensor: StoredTensor, folder: Path) -> StoredTensor:
    """A tensor of another rank's file with the path that it would have in this folder; it has no values here."""
    return replace(tensor, path=folder / tensor.path.name, buffer=None)


def require_files(checkpoint: Checkpoint, layers: range) -> None:
    """Raise InputError if a file with weights of the stage that holds `layers` is missing here."""
    for name, parameter in parameters(checkpoint.args).items():
        missing = checkpoint.missing(name) if owns(layers, parameter, checkpoint.args) else None
        if missing:
            raise InputError(
                f"{missing}: is not here, and weights of this rank's layers {layers.start} to {layers.stop - 1} are in"
                " it; copy it there"
            )


def identity(checkpoint: Checkpoint) -> dict[str, str]:
    """Values that must be the same on all ranks that have them, by their description in error messages.

    They are the versions, a digest of the settings and of the location of all tensors, and for each file that is here a
    digest of a sample of its weights.
    """
    digest = hashlib.sha256(repr(checkpoint.args).encode())
    for name in sorted(checkpoint.shapes):
        file, place = checkpoint.file_of(name), checkpoint.place(name)
        digest.update(repr((name, checkpoint.shapes[name], checkpoint.type_name(name), file.name, place)).encode())
    if checkpoint.adapter:
        digest.update(checkpoint.adapter.identity().encode())
    found = {"a checkpoint with the digest": digest.hexdigest()[:12], "mistral-mindspore": __version__}
    found |= {package: version(package) for package in ("mindspore", "numpy", "mpi4py")}
    return found | {f"in {file.name} weights with the digest": sample(checkpoint, file) for file in present(checkpoint)}


def present(checkpoint: Checkpoint) -> list[Path]:
    """The weight files of the checkpoint that are on this machine."""
    return [file for file in checkpoint.files if file.exists()]


def sample(checkpoint: Checkpoint, file: Path) -> str:
    """A digest, 12 hexadecimal digits, of a file's size and of SAMPLED_BYTES out of SAMPLED_TENSORS of its tensors."""
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
    """Raise InputError, on every rank, if two ranks have different values for one name; `remedy` ends the message.

    `mine` are this rank's values; a name that only some ranks have is compared among them.
    """
    first: dict[str, tuple[int, str]] = {}
    for rank, found in enumerate(world.gather(mine)):
        for name, value in found.items():
            known, expected = first.setdefault(name, (rank, value))
            if expected != value:
                raise InputError(f"rank {rank} has {name} {value}, rank {known} {expected}: {remedy}")
