"""The whole model: embedding, blocks, final norm and output matrix, or the part of them that a pipeline stage owns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.block import GetWeight, TransformerBlock, build_block
from mistral.model.fused_block import FusedBlock, run_fused, wants_all
from mistral.model.inputs import flat_integers, row_numbers, token_ids, tokens_per_row
from mistral.model.kv_cache import CacheMetadata, CacheView, RollingCache, uncached
from mistral.model.layers import RMSNorm, Wanted
from mistral.model.rope import rope_angles
from mistral.ops.device import device_lock
from mistral.ops.interface import Ops, Rotation, Weight

if TYPE_CHECKING:
    from mindspore import Tensor


TOKENS_AT_ONCE = 64  # most tokens of a step whose layers run as one operator: between layers, a step can be interrupted


class Transformer:
    """A Mistral or Mixtral model, or the pipeline stage of one that holds `layers`.

    Several threads may use it: methods that compute take turns (`mistral.ops.device.device_lock`), as do those of its
    caches. Each thread gets the results that it would get alone, if it has a cache of its own. Results are MindSpore
    tensors, and MindSpore is safe on one thread at a time only: hold that lock for any further computation with them;
    `asnumpy()` needs no lock.
    """

    def __init__(self, args: ModelArgs, get: GetWeight, ops: Ops, layers: range | None = None) -> None:
        """`get` is called once with the name of each weight that these layers need."""
        self.args, self.ops = args, ops
        self.layers = range(args.n_layers) if layers is None else layers
        self.is_first, self.is_last = self.layers.start == 0, self.layers.stop == args.n_layers
        self._parameters = Counter[str]()  # by dtype
        get = self._counted(get)
        tied = self.is_last and args.tied_embeddings
        self.tok_embeddings = get("tok_embeddings.weight") if self.is_first or tied else None
        self.blocks: dict[int, TransformerBlock | FusedBlock] = {}
        for layer in self.layers:
            block = build_block(args, layer, get, ops)
            self.blocks[layer] = FusedBlock(block, ops.fused, args.sliding_windows[layer]) if ops.fused else block
        self.norm = RMSNorm(get("norm.weight"), args.norm_eps, ops) if self.is_last else None
        self.output = None
        if self.is_last:
            self.output = self.tok_embeddings if tied else get("output.weight")

    def _counted(self, get: GetWeight) -> GetWeight:
        def counted(name: str) -> Weight:
            weight = get(name)
            self._parameters[weight.dtype] += math.prod(weight.shape)
            return weight

        return counted

    def __repr__(self) -> str:
        """Such as Transformer(32 layers of 4096, native, bfloat16 weights, 7.24 B parameters)."""
        whole, count = self.is_first and self.is_last, self.args.n_layers
        layers = (
            f"{count} layers" if whole else f"layers {self.layers.start} to {self.layers.stop - 1} of {count}, each"
        )
        dtype = max(self._parameters, key=lambda each: self._parameters[each])
        size = f"{in_millions(self._parameters.total())} parameters"
        return f"{type(self).__name__}({layers} of {self.args.dim}, {self.ops.name}, {dtype} weights, {size})"

    def new_cache(self) -> RollingCache:
        """An empty cache for the layers of this stage."""
        return RollingCache(self.args, self.layers, self.ops)

    def forward(
        self,
        input_ids: Sequence[int] | NDArray[np.int64],
        seqlens: Sequence[int],
        cache: RollingCache | None = None,
        rows: Sequence[int] | None = None,
        wanted: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> Tensor:
        """The logits after each token.

        input_ids (T,): the new tokens of all rows, concatenated; seqlens (B,): the number of new tokens of each row, at
        least 1, with sum T. With a `cache` they continue its `rows` (default 0, 1, ...) and are stored there; without,
        each row starts at position 0. Either way attention is causal, windowed, and within a row. `wanted` (n,) are the
        indices, among the T tokens, of those whose logits are needed (default: all). Returns (T, V) or (n, V) float32.

        Raises InputError, and changes nothing, if an argument is not as described, or a row is not in the cache or
        would exceed its capacity.
        """
        if not (self.is_first and self.is_last):
            raise InputError(f"{self!r} is a stage of a pipeline and has no logits: call generate on every rank")
        ids = token_ids("input_ids", input_ids, self.args.vocab_size)
        counts = tokens_per_row(seqlens, len(ids))
        numbers = row_numbers(rows, len(counts))
        picked = None if wanted is None else flat_integers("wanted", wanted, len(ids))
        with device_lock:
            metadata = uncached(counts, self.ops) if cache is None else cache.begin(counts, numbers)
            x = self.run_blocks(self.embed(ids), metadata, cache, wanted=picked)
            if cache is not None:
                cache.end(metadata)
            return self.ops.tensor(np.empty((0, self.args.vocab_size), np.float32)) if x is None else self.head(x)

    def embed(self, ids: NDArray[np.int64]) -> Tensor:
        """ids (T,) -> (T, D). Raises InputError on a stage without embeddings."""
        if self.tok_embeddings is None:
            raise InputError(f"{self!r} has no embeddings: the first stage has them")
        with device_lock:
            return self.ops.embed(self.tok_embeddings, ids)

    def run_blocks(
        self,
        x: Tensor,
        metadata: CacheMetadata,
        cache: RollingCache | None,
        after_layer: Callable[[], None] | None = None,
        wanted: Wanted = None,
    ) -> Tensor | None:
        """This stage's layers on x (T, D) -> (T, D); `after_layer` is called after each.

        The model's last layer writes the keys and values of all tokens, and computes the rest only for those at the n
        indices `wanted`: on the last stage the result is (n, D), or None if n is 0.
        """
        args = self.args
        angles: tuple[NDArray[np.float32], ...]
        angles = rope_angles(metadata.positions, args.head_dim, args.rope_theta, args.rope_scaling)
        if args.llama_4_scaling:
            angles = (*angles, args.llama_4_scaling.factors(metadata.positions))
        with device_lock:
            rotation = Rotation(*map(self.ops.tensor, angles))
            views = {layer: CacheView(metadata, cache, layer, args.sliding_windows[layer]) for layer in self.layers}
            fused = [block for block in self.blocks.values() if isinstance(block, FusedBlock)]
            if fused and not after_layer and x.shape[0] <= TOKENS_AT_ONCE and wants_all(wanted, x):
                return run_fused(fused, x, rotation, list(views.values()))
            for layer, block in self.blocks.items():
                ends = layer == args.n_layers - 1
                found = block(x, rotation, views[layer], wanted if ends else None)
                if after_layer:
                    after_layer()
                if found is None:
                    return None
                x = found
        return x

    def head(self, x: Tensor) -> Tensor:
        """x (n, D) -> logits (n, V). Raises InputError on a stage that is not the last."""
        if self.norm is None or self.output is None:
            raise InputError(f"{self!r} has no head: the last stage has it")
        with device_lock:
            return self.ops.linear(self.norm(x), self.output)


def in_millions(count: int) -> str:
    """A number of parameters in readable form: 7.24 B, 2.13 M, or in full."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M" if count >= 1e6 else str(count)
