"""CPU kernels behind the functions of `mistral/ops/portable.py`, compiled for the machine on first use.

Weights stay as they lie in the file. A bfloat16 weight meets activations rounded to bfloat16, whatever their number,
and keys and values are rounded as the cache holds them before they are used, so that a result depends neither on the
batch nor on chunks by more than the order of float32 sums. float32 and float16 weights meet float32 activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mistral.ops import build, portable
from mistral.ops.weight import Weight

if TYPE_CHECKING:
    from mistral.cache import CacheView

NO_WINDOW = 1 << 40  # positions, more than there are


class Native:
    """The backend. Raises InputError where it cannot be built."""

    SLOT_BYTES = 2  # bfloat16

    def __init__(self, machine: Sequence[str] = ("-march=native",)) -> None:
        """`machine`: compiler flags that say for which processor."""
        glue, kernels = build.glue().build(), build.kernels(machine).build()
        self._library = load_extension(glue).Library(str(kernels))
        self.instructions: str = self._library.instructions

    def weight(self, array: NDArray[Any]) -> Weight:
        """A weight of the array's own dtype, in place where its rows lie end to end (a memory map stays one)."""
        array = np.require(array, requirements=("C", "A"))
        if array.dtype.name == "bfloat16":
            return Weight(Tensor.from_numpy(array.view(np.uint16)).view(ms.bfloat16))
        return Weight(Tensor.from_numpy(array))

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """A host array as a tensor."""
        return portable.tensor(array)

    def embed(self, table: Weight, ids: NDArray[np.int64]) -> Tensor:
        """Rows `ids` (T,) of a (V, D) table -> (T, D)."""
        return self._library.embed(table.data, portable.tensor(ids))

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x (T, in) times the transpose of weight (out, in) -> (T, out)."""
        return self._library.linear(x, weight.data, False)

    def rms_norm(self, x: Tensor, weight: Weight, eps: float) -> Tensor:
        """x (T, D) over its root mean square, times weight (D,)."""
        return self._library.rms_norm(x, weight.data, eps)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, view: CacheView) -> Tensor:
        """Attention of a step: q (T, H * d), k and v (T, KV * d), angles (T, d) -> (T, H * d); `view` is written."""
        caches: list[Tensor] = []
        sizes: list[int] = []
        for seqlen, before, held in zip(view.metadata.seqlens, view.metadata.before, view.stored, strict=True):
            caches += held or ()
            sizes += [seqlen, before, int(held[0].shape[1]) if held else 0]
        window = NO_WINDOW if view.window is None else view.window
        return self._library.attention(q, k, v, cos, sin, caches, sizes, window)

    def new_slots(self, shape: tuple[int, ...]) -> Tensor:
        """Empty slots (KV, slots, d): the bits of bfloat16, as a dtype whose slices MindSpore can copy."""
        return portable.tensor(np.zeros(shape, np.uint16))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, of one shape."""
        return self._library.add(x, y)

    def feed_forward(self, x: Tensor, w1: Weight, w2: Weight, w3: Weight) -> Tensor:
        """w2(silu(w1 x) * w3 x), x (T, D)."""
        return self._library.feed_forward(x, w1.data, w2.data, w3.data)

    def score(self, x: Tensor, gate: Weight) -> Tensor:
        """x (T, D) times the transpose of a router (E, D) -> (T, E); x is not rounded, lest it change experts."""
        return self._library.linear(x, gate.data, True)

    def route(self, logits: Tensor, experts_per_token: int) -> tuple[Tensor, NDArray[np.int64]]:
        """Softmax over the K largest of logits (T, E): their weights (T, K) and, on the host, their indices (T, K)."""
        return portable.route(logits, experts_per_token)

    def take(self, x: Tensor, indices: NDArray[np.int64]) -> Tensor:
        """Rows `indices` of x."""
        if len(indices) == x.shape[0] and np.array_equal(indices, np.arange(len(indices))):
            return x
        return portable.take(x, indices)

    def weighted_sum(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum over K of x (T, K, D) times weights (T, K) -> (T, D)."""
        return portable.weighted_sum(x, weights)

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
        """x cut along an axis into parts of these sizes."""
        return portable.split(x, sizes, axis)

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors joined along an axis."""
        return portable.concat(tensors, axis)


def load_extension(path: Path) -> Any:
    """The Python module in a compiled library."""
    loader = ExtensionFileLoader("mistral_glue", str(path))
    spec = spec_from_loader("mistral_glue", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
