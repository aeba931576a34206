"""Estimates of the memory that running a model needs, from its headers: by backend, bits and rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mistral.checkpoint.quantization import block_kind
from mistral.checkpoint.weight_memory import copied_of, used_nbytes
from mistral.cli.info.summary import Summary, stored_nbytes
from mistral.memory import BASE_MEMORY
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import cache_nbytes
from mistral.model.parameters import Parameter, owns, parameters
from mistral.ops.float8 import FLOAT8
from mistral.pipeline.split import auto_split

NATIVE, PORTABLE = "native", "portable"
CACHE_ITEMSIZE = {NATIVE: 2, PORTABLE: 4}  # bytes of an element of the cache


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of memory that one rank needs for one way of running a model; `first` and `last` are its layers.

    `weights` are those bytes that the backend reads, of which `copied` are not pages of a mapped file. `other` is for
    Python, MindSpore and working memory, at most.
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
        """Bytes of weights, cache and all else together."""
        return self.weights + self.cache + self.other

    def fits(self, free: int) -> str:
        """Whether it runs with `free` bytes: "yes", "no", or slowly where weights are read from the disk each time."""
        if self.total <= free:
            return "yes"
        return "slowly, from disk" if self.copied + self.cache + self.other <= free else "no"


def weights_of(summary: Summary, args: ModelArgs, bits: int, backend: str) -> tuple[dict[str, int], dict[str, int]]:
    """Two sizes of each weight, by its name: bytes as the backend reads it, and those of them that are copied.

    `bits` of the model as it is used. Weights of a folder that is not whole are taken to be of one dtype and in place.
    """
    model, checkpoint = parameters(args), summary.checkpoint
    if checkpoint:
        copied = {name: copied_of(parameter, checkpoint, bits, backend) for name, parameter in model.items()}
        return used_nbytes(checkpoint, bits, backend), copied
    if backend == PORTABLE:
        sizes = {name: 4 * parameter.size for name, parameter in model.items()}
        return sizes, dict.fromkeys(sizes, 0) if summary.dtype == "float32" else sizes
    sizes = {name: stored_nbytes(parameter, summary.dtype) for name, parameter in model.items()}
    for name, parameter in model.items():
        if kind := block_kind(parameter, args, bits):
            sizes[name] = parameter.size // kind.weights * kind.nbytes
    stored = summary.weights()
    return sizes, {name: 0 if stored.get(name) == size else size for name, size in sizes.items()}


def memory_estimates(summary: Summary, args: ModelArgs, ranks: int, batch: int, context: int) -> list[MemoryEstimate]:
    """An estimate for every way to run the model and every rank, with `batch` rows of `context` tokens each.

    Raises InputError for more ranks than layers.
    """
    split = auto_split(args, summary.weights(), ranks)
    stored = "float8" if summary.dtype == FLOAT8.name else summary.dtype
    ways = [(f"{NATIVE}, {stored}", 16)]
    ways += [(f"{NATIVE}, {bits} bits", bits) for bits in (8, 4)]
    ways.append((f"{PORTABLE}, float32", 16))
    estimates = []
    for way, bits in ways:
        backend = way.partition(",")[0]
        sizes, copied = weights_of(summary, args, bits, backend)
        weights, copies = shares(sizes, args, split), shares(copied, args, split)
        for rank, layers in enumerate(split):
            estimate = MemoryEstimate(
                way, rank, layers.start, layers.stop - 1, weights[rank], copies[rank],
                cache=batch * cache_nbytes(args, layers, context, CACHE_ITEMSIZE[backend]),
                other=BASE_MEMORY,
            )  # fmt: skip
            estimates.append(estimate)
    return estimates


def shares(sizes: Mapping[str, int], args: ModelArgs, split: Sequence[range]) -> list[int]:
    """Bytes of each stage's weights, of their `sizes` by name; each weight is looked at once."""
    by_layer, outside = [0] * args.n_layers, list[Parameter]()
    for name, parameter in parameters(args).items():
        if parameter.layer is None:
            outside.append(parameter)
        else:
            by_layer[parameter.layer] += sizes[name]
    return [
        sum(by_layer[layers.start : layers.stop])
        + sum(sizes[each.name] for each in outside if owns(layers, each, args))
        for layers in split
    ]
