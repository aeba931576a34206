"""What memory running a model needs, counted from its headers: by backend, bits and rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mistral.args import ModelArgs
from mistral.cache import slots_needed
from mistral.checkpoint.names import tensor_shapes
from mistral.limits import BASE_MEMORY
from mistral.load import auto_split
from mistral.model import needs
from mistral.quantize import quantized_args
from mistral.survey import Survey, stored_nbytes

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


def cache_nbytes(args: ModelArgs, layers: range, batch: int, context: int, slot_bytes: int) -> int:
    """Bytes of keys and values of full rows."""
    slots = sum(slots_needed(context, args.sliding_windows[layer]) for layer in layers)
    return 2 * slot_bytes * batch * slots * args.n_kv_heads * args.head_dim


def all_needs(found: Survey, args: ModelArgs, ranks: int, batch: int, context: int) -> list[Needs]:
    """Of every way to run the model, and every rank. Raises InputError for more ranks than layers."""
    stored, split = found.weights(), auto_split(args, found.weights(), ranks)
    as_stored = f"{NATIVE}, {args.quantization.bits} bits" if args.quantization else f"{NATIVE}, {found.dtype}"
    in_place = found.checkpoint.in_place if found.checkpoint else lambda name: True
    ways: list[tuple[str, Mapping[str, int], set[str], int]] = [
        (as_stored, stored, {name for name in stored if not in_place(name)}, SLOT_BYTES[NATIVE])
    ]
    if not args.quantization:
        size = {"float32": 4}.get(found.dtype, 2)
        for bits in (8, 4):
            smaller = quantized_args(args, bits)
            sizes = {name: stored_nbytes(name, s, smaller, size) for name, s in tensor_shapes(smaller).items()}
            copied = {name for name in sizes if sizes[name] != stored.get(name)}
            ways.append((f"{NATIVE}, {bits} bits", sizes, copied, SLOT_BYTES[NATIVE]))
    wide = {name: 4 * math.prod(shape) for name, shape in tensor_shapes(args).items()}
    copied = set() if found.dtype == "float32" else set(wide)
    ways.append((f"{PORTABLE}, float32", wide, copied, SLOT_BYTES[PORTABLE]))
    return [
        Needs(
            way, rank, layers.start, layers.stop - 1,
            sum(size for name, size in sizes.items() if needs(name, args, layers)),
            sum(size for name, size in sizes.items() if needs(name, args, layers) and name in copied),
            cache_nbytes(args, layers, batch, context, slot), BASE_MEMORY,
        )
        for way, sizes, copied, slot in ways
        for rank, layers in enumerate(split)
    ]  # fmt: skip
