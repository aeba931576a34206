"""What memory running a model needs, counted from its headers: by backend, bits and rank."""

from __future__ import annotations

from dataclasses import dataclass

from mistral.checkpoint.quantization import quantized_args
from mistral.checkpoint.weight_memory import copied_of, used_nbytes
from mistral.cli.info.summary import Survey, stored_nbytes
from mistral.memory import BASE_MEMORY
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import cache_nbytes
from mistral.model.parameters import owns, parameters
from mistral.pipeline.split import auto_split

SLOT_BYTES = {"native": 2, "portable": 4}  # of an element of the cache
NATIVE, PORTABLE = "native", "portable"


@dataclass(frozen=True)
class Needs:
    """Bytes that one rank needs; `first` and `last` are its layers.

    weights: as the backend reads them, of which `copied` are not pages of a mapped file; other: Python, MindSpore and
    working memory, at most.
    """

    way: str
    rank: int
    first: int
    last: int
    weights: int
    copied: int
    cache: int
    other: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.cache + self.other

    def fits(self, free: int) -> str:
        """Whether it runs with so many bytes: "slowly" where weights have to be read from the disk again and again."""
        if self.total <= free:
            return "yes"
        return "slowly, from disk" if self.copied + self.cache + self.other <= free else "no"


def weights_of(found: Survey, args: ModelArgs, backend: str) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of each weight of `args` as the backend reads it, and those that are copied for it.

    Those of a folder that is not whole are taken to be of one dtype and in place.
    """
    model, checkpoint = parameters(args), found.checkpoint
    if checkpoint:
        copied = {name: copied_of(parameter, checkpoint, backend) for name, parameter in model.items()}
        return used_nbytes(checkpoint, args, backend), copied
    if backend == PORTABLE:
        sizes = {name: 4 * parameter.size for name, parameter in model.items()}
        return sizes, dict.fromkeys(sizes, 0) if found.dtype == "float32" else sizes
    sizes = {name: stored_nbytes(parameter, found.itemsize) for name, parameter in model.items()}
    stored = found.weights()
    return sizes, {name: 0 if stored.get(name) == size else size for name, size in sizes.items()}


def all_needs(found: Survey, args: ModelArgs, ranks: int, batch: int, context: int) -> list[Needs]:
    """Of every way to run the model, and every rank. Raises InputError for more ranks than layers."""
    split = auto_split(args, found.weights(), ranks)
    as_stored = f"{args.quantization.bits} bits" if args.quantization else found.dtype
    ways = [(f"{NATIVE}, {as_stored}", args)]
    if not args.quantization:
        ways += [(f"{NATIVE}, {bits} bits", quantized_args(args, bits)) for bits in (8, 4)]
    ways.append((f"{PORTABLE}, float32", args))
    needed = list[Needs]()
    for way, used in ways:
        backend = way.partition(",")[0]
        sizes, copied = weights_of(found, used, backend)
        for rank, layers in enumerate(split):
            mine = [name for name, parameter in parameters(used).items() if owns(layers, parameter, used)]
            needed.append(
                Needs(
                    way, rank, layers.start, layers.stop - 1, sum(sizes[name] for name in mine),
                    sum(copied[name] for name in mine),
                    batch * cache_nbytes(args, layers, context, SLOT_BYTES[backend]), BASE_MEMORY,
                )
            )  # fmt: skip
    return needed
