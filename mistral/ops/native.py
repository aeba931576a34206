"""CPU kernels for the functions of `mistral/ops/portable.py`, compiled for the machine on first use.

Weights are used in the mapped file, in its own type. For products with bfloat16 and FP8 weights, activations are
rounded to bfloat16; with block-quantized weights, to 8-bit integers with one scale per block of 32 or 256. With float32
and float16 weights they stay float32. With `precise` they stay float32 for all weights, and the cache is float32.

Keys and values are rounded to the type of the cache before they are used, and every sum has a fixed order, so that a
result is the same bit for bit in any batch and with any chunk size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mistral.ops import build, portable
from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.device import device_lock
from mistral.ops.float8 import Float8
from mistral.ops.interface import AttentionView, FusedOps, Norm, Rotation, Weight

NO_WINDOW = 1 << 40  # positions, more than there are
TYPES = {
    "float32": 0, "bfloat16": 1, "float16": 2, "float8": 3, "Q8_0": 4, "Q4_0": 5, "Q4_1": 6, "Q5_0": 7, "Q5_1": 8,
    "IQ4_NL": 9, "Q4_K": 10, "Q5_K": 11, "Q6_K": 12, "IQ4_XS": 13,
}  # the numbers in kernels.h  # fmt: skip


@dataclass(frozen=True)
class InPlace:
    """A weight in memory that is not copied: shape, dtype, the kernels' handle, and the arrays that own the memory."""

    shape: tuple[int, ...]
    dtype: str
    handle: Any
    arrays: tuple[NDArray[Any], ...]


class Native:
    """The native backend. Raises InputError if its kernels cannot be built."""

    name = "native"

    def __init__(self, precise: bool = False, machine: Sequence[str] = build.NATIVE) -> None:
        """`precise` keeps activations and cache float32; `machine`: compiler flags that choose the processor."""
        glue, kernels = build.glue(), build.kernels(machine)
        build.build_all([glue, kernels])
        self.extension = glue.load(load_extension)
        self.library = kernels.load(lambda path: self.extension.Library(str(path), precise))
        self.fused: FusedOps | None = FusedKernels(self.extension, self.library)
        self.precise = precise
        self.instructions: str = self.library.instructions
        self.SLOT_BYTES = 4 if precise else 2

    def weight(self, array: NDArray[Any] | Float8 | BlockQuantized) -> Weight:
        """A weight of the array's own type, used in place if it is contiguous (a memory map stays one)."""
        parts: list[NDArray[Any]]
        if isinstance(array, BlockQuantized):
            parts, dtype = [array.values], array.kind.name
        elif isinstance(array, Float8):
            parts, dtype = [array.values.view(np.uint8), np.array([array.scale], np.float32)], "float8"
        else:
            parts, dtype = [array], array.dtype.name
        arrays = tuple(np.require(part, requirements=("C", "A")) for part in parts)
        addresses = [part.ctypes.data for part in arrays] + [0] * (2 - len(arrays))
        out, inner = array.shape if len(array.shape) == 2 else (1, *array.shape)
        handle = self.extension.Weight(*addresses, TYPES[dtype], out, inner)
        return Weight(InPlace(tuple(array.shape), dtype, handle, arrays))

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """A host array as a tensor."""
        return portable.tensor(array)

    def embed(self, table: Weight, ids: NDArray[np.int64]) -> Tensor:
        """Rows `ids` (T,) of a (V, D) table -> (T, D)."""
        return self.library.embed(table.data.handle, portable.tensor(ids))

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x (T, in) times the transpose of weight (out, in) -> (T, out)."""
        return self.library.linear(x, weight.data.handle, False)

    def rms_norm(self, x: Tensor, weight: Weight, eps: float) -> Tensor:
        """x (T, D) over its root mean square, times weight (D,)."""
        return self.library.rms_norm(x, weight.data.handle, eps)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, view: AttentionView) -> Tensor:
        """Attention of a step: q (T, H * d), k and v (T, KV * d), before rotation -> (T, H * d).

        The new keys and values are stored in the cache of `view`.
        """
        widths = int(q.shape[1]), int(k.shape[1])
        return self.library.attention(q, k, v, angles(rotation), *cache_arguments(view), *widths)

    def new_slots(self, shape: tuple[int, ...]) -> Tensor:
        """Empty slots (KV, slots, d): float32, or the bits of bfloat16 as a dtype whose slices MindSpore can copy."""
        return portable.tensor(np.zeros(shape, np.float32 if self.precise else np.uint16))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, of one shape, by NumPy: MindSpore's operators would wake its threads, which then spin for 0.1 s."""
        return portable.tensor(x.asnumpy() + y.asnumpy())

    def feed_forward(self, x: Tensor, w1: Weight, w2: Weight, w3: Weight) -> Tensor:
        """w2(silu(w1 x) * w3 x), x (T, D)."""
        return self.library.feed_forward(x, handles((w1, w2, w3)))

    def score(self, x: Tensor, gate: Weight) -> Tensor:
        """x (T, D) times the transpose of a router (E, D) -> (T, E); rounding x could change the chosen experts."""
        return self.library.linear(x, gate.data.handle, True)

    def route(self, logits: Tensor, experts_per_token: int) -> tuple[Tensor, NDArray[np.int64]]:
        """Softmax over the K largest of logits (T, E) -> weights (T, K) and, on the host, their indices (T, K)."""
        return portable.route(logits, experts_per_token)

    def take(self, x: Tensor, indices: NDArray[np.int64]) -> Tensor:
        """Rows `indices` (n,) of x (T, D) -> (n, D)."""
        if len(indices) == x.shape[0] and np.array_equal(indices, np.arange(len(indices))):
            return x
        return portable.tensor(x.asnumpy()[indices])

    def weighted_sum(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum over K of x (T, K, D) times weights (T, K) -> (T, D)."""
        return portable.weighted_sum(x, weights)

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
        """x cut along an axis into parts of these sizes."""
        return portable.split(x, sizes, axis)

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors joined along an axis."""
        return portable.concat(tensors, axis)


class FusedKernels:
    """Whole blocks in one operator; composed, each block takes about ten. See `FusedOps`.

    The handle of a block holds the handles of its weights; the weights themselves must live as long as it is used.
    """

    def __init__(self, extension: Any, library: Any) -> None:
        """`extension`: the Python module with the class of handles; `library`: the kernels as operators."""
        self.extension, self.library = extension, library

    def block(
        self,
        attention_norm: Norm,
        projections: Sequence[Weight],
        window: int | None,
        ffn_norm: Norm,
        gate: Weight | None,
        experts: Sequence[Sequence[Weight]],
        experts_per_token: int,
    ) -> Any:
        """A handle of a block. projections: wq, wk, wv, wo; experts: w1, w2, w3 of each."""
        return self.extension.Block(
            attention_norm.weight.data.handle, attention_norm.eps, handles(projections),
            NO_WINDOW if window is None else window, ffn_norm.weight.data.handle, ffn_norm.eps,
            gate.data.handle if gate else None, [handles(weights) for weights in experts], experts_per_token,
        )  # fmt: skip

    def run(self, blocks: Sequence[Any], x: Tensor, rotation: Rotation, views: Sequence[AttentionView]) -> Tensor:
        """The blocks one after the other, each with its own view: x (T, D) -> (T, D)."""
        caches: list[Tensor] = []
        sizes: list[list[int]] = []
        for view in views:
            own, own_sizes, _ = cache_arguments(view)
            caches += own
            sizes.append(own_sizes)
        return self.library.transformer_blocks(x, blocks, angles(rotation), caches, sizes)

    def feed_forward_half(self, block: Any, x: Tensor) -> Tensor:
        """The part of a block after attention, (T, D) -> (T, D)."""
        return self.library.feed_forward_half(x, block)


def handles(weights: Sequence[Weight]) -> list[Any]:
    """The kernels' handles of weights."""
    return [weight.data.handle for weight in weights]


def angles(rotation: Rotation) -> list[Tensor]:
    """The kernels' arguments for a rotation: cosines and sines, and the factors of queries if there are any."""
    factors = rotation.query_factors
    return [rotation.cos, rotation.sin] if factors is None else [rotation.cos, rotation.sin, factors]


def cache_arguments(view: AttentionView) -> tuple[list[Tensor], list[int], int]:
    """The kernels' arguments: each row's keys and values; its new tokens, tokens before and slots; the window."""
    caches: list[Tensor] = []
    sizes: list[int] = []
    for seqlen, before, stored in zip(view.seqlens, view.before, view.stored, strict=True):
        caches += stored or ()
        sizes += [seqlen, before, int(stored[0].shape[1]) if stored else 0]
    return caches, sizes, NO_WINDOW if view.window is None else view.window


def load_extension(path: Path) -> Any:
    """The Python module in a compiled library."""
    loader = ExtensionFileLoader("mistral_glue", str(path))
    spec = spec_from_loader("mistral_glue", loader)
    assert spec is not None
    with device_lock:
        module = module_from_spec(spec)
        loader.exec_module(module)
    return module
