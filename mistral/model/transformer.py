"""The transformer: embed, blocks, norm, output, each where this stage owns it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mistral.model.args import ModelArgs
from mistral.model.block import GetWeight, TransformerBlock, build_block
from mistral.model.fused_block import FusedBlock
from mistral.model.kv_cache import CacheMetadata, CacheView, RollingCache, uncached
from mistral.model.layers import RMSNorm
from mistral.model.rope import rope_angles
from mistral.ops.interface import Ops

if TYPE_CHECKING:
    from mindspore import Tensor


class Transformer:
    """A Mistral or Mixtral model, or the stage of one that holds `layers`."""

    def __init__(self, args: ModelArgs, get: GetWeight, ops: Ops, layers: range | None = None) -> None:
        """`get` is called once for the name of each weight that these layers need, and for no other."""
        self.args, self.ops = args, ops
        self.layers = range(args.n_layers) if layers is None else layers
        self.is_first, self.is_last = self.layers.start == 0, self.layers.stop == args.n_layers
        tied = self.is_last and args.tied_embeddings
        self.tok_embeddings = get("tok_embeddings.weight") if self.is_first or tied else None
        self.blocks: dict[int, TransformerBlock | FusedBlock] = {}
        for layer in self.layers:
            block = build_block(args, layer, get, ops)
            self.blocks[layer] = FusedBlock(block, ops.fused) if ops.fused else block
        self.norm = RMSNorm(get("norm.weight"), args.norm_eps, ops) if self.is_last else None
        self.output = None
        if self.is_last:
            self.output = self.tok_embeddings if tied else get("output.weight")

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
        """Logits of the tokens that follow.

        input_ids (T,): the new tokens of all rows, end to end; seqlens (B,): how many each row has, at least 1, with
        sum T. With `cache`, they continue its `rows` (0, 1, ... when left out) and are kept there; without, each row
        starts at position 0. Either way attention is causal, windowed, and within a row. `wanted` are the flat tokens
        whose logits are needed (all when left out). Returns (T or len(wanted), V) float32.
        """
        assert self.is_first and self.is_last, "a stage of a pipeline has no logits of its own"
        ids = np.asarray(input_ids, np.int64)
        rows = range(len(seqlens)) if rows is None else rows
        assert ids.shape == (sum(seqlens),) and min(seqlens) > 0 and len(rows) == len(seqlens)
        assert ids.min() >= 0 and ids.max() < self.args.vocab_size, "a token id outside the vocabulary"
        metadata = uncached(seqlens, self.ops) if cache is None else cache.begin(seqlens, rows)
        x = self.run_blocks(self.embed(ids), metadata, cache)
        if cache is not None:
            cache.end(metadata)
        return self.head(x if wanted is None else self.ops.take(x, np.asarray(wanted, np.int64)))

    def embed(self, ids: NDArray[np.int64]) -> Tensor:
        """ids (T,) -> (T, D); on the first stage."""
        assert self.tok_embeddings is not None
        return self.ops.embed(self.tok_embeddings, ids)

    def run_blocks(
        self,
        x: Tensor,
        metadata: CacheMetadata,
        cache: RollingCache | None,
        after_layer: Callable[[], None] | None = None,
    ) -> Tensor:
        """This stage's layers on x (T, D) -> (T, D); `after_layer` is called after each."""
        cos, sin = map(self.ops.tensor, rope_angles(metadata.positions, self.args.head_dim, self.args.rope_theta))
        for layer, block in self.blocks.items():
            view = CacheView(metadata, cache, layer, self.args.sliding_windows[layer])
            x = block(x, cos, sin, view)
            if after_layer:
                after_layer()
        return x

    def head(self, x: Tensor) -> Tensor:
        """x (N, D) -> logits (N, V); on the last stage."""
        assert self.norm is not None and self.output is not None
        return self.ops.linear(self.norm(x), self.output)
