"""Which keys the new tokens of a row attend to in one step, and which slots their own keys are written to.

This file computes positions and masks, and no tensors. A layer keeps a row's keys in slots, position p in slot
p % slots: at least as many slots as the window is long, or one for each token of a shorter row (Mistral 7B,
arXiv:2310.06825, section 2; mistral/model/kv_cache.py says how many). Three cases:

- No cache: the new tokens attend to each other.
- A chunk: the new tokens attend to the keys in the slots, followed by their own. Their own keys are written afterwards,
  because these overwrite keys that the first tokens of the chunk still see.
- One token: its key is written first, to an empty slot or over a key that the token does not see any more. So it can
  attend to the slots as they are, without a copy.

A worked example of a chunk, with window 3 and 3 slots. The row has seen 5 tokens, so its slots hold positions
[3, 4, 2]. Two new tokens have positions 5 and 6. The concatenated keys are [3, 4, 2, 5, 6], and a query sees those less
than 3 positions before it:

    query 5:  [x, x, ., x, .]
    query 6:  [., x, ., x, x]

Then the new keys are written, to slots 5 % 3 = 2 and 6 % 3 = 0: the slots hold [6, 4, 5].
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

QUERY_BLOCK = 512  # most queries scored at once, so that a long chunk never needs a square score matrix
SCORES = 1 << 21  # most scores of one head at once, unless one query has more


def slot_positions(kv_seqlen: int, slots: int) -> NDArray[np.int64]:
    """The absolute position in each slot, (slots,), after `kv_seqlen` tokens; -1 for a slot that is still empty."""
    last = kv_seqlen - 1
    return np.maximum(last - (last - np.arange(slots)) % slots, -1)


def visible(queries: NDArray[np.int64], keys: NDArray[np.int64], window: int | None) -> NDArray[np.bool_]:
    """Which keys at positions (S,) each query at positions (T,) sees -> (T, S): 0 <= query - key < window, key >= 0."""
    behind = queries[:, None] - keys[None, :]
    seen = (behind >= 0) & (keys >= 0)[None, :]
    return seen if window is None else seen & (behind < window)


@dataclass(frozen=True)
class Block:
    """Queries that are scored together, as a slice of the row's new tokens, and the slice of its keys that they need.

    mask (queries, keys): which of these keys each query sees; None: all of them.
    """

    queries: slice
    keys: slice
    mask: NDArray[np.bool_] | None


class Source(Enum):
    """Where the keys that a row's new tokens are scored against come from."""

    NEW = "the new tokens"
    SLOTS_THEN_NEW = "the slots before the step, then the new tokens"
    SLOTS = "the slots, after the new token has been written"


@dataclass(frozen=True)
class RowPlan:
    """What one step does to one row in layers of one window.

    keys: the absolute positions (S,) of the keys to score against, in order; -1 for a slot that is still empty.
    writes: (slots, new tokens) for each run of new keys that is contiguous in the slots.
    """

    source: Source
    keys: NDArray[np.int64]
    blocks: tuple[Block, ...]
    writes: tuple[tuple[slice, slice], ...]


def plan_row(seqlen: int, before: int, window: int | None, slots: int | None) -> RowPlan:
    """The plan for `seqlen` new tokens of a row that has seen `before` tokens; `slots` is None without a cache."""
    if slots is None:
        return plan_uncached(seqlen, before, window)
    return plan_token(before, window, slots) if seqlen == 1 else plan_chunk(seqlen, before, window, slots)


def plan_uncached(seqlen: int, before: int, window: int | None) -> RowPlan:
    """New tokens that attend to each other and are not stored."""
    new = np.arange(before, before + seqlen)
    return RowPlan(Source.NEW, new, plan_blocks(new, new, window), ())


def plan_chunk(seqlen: int, before: int, window: int | None, slots: int) -> RowPlan:
    """New tokens that attend to the keys in the slots and to each other; their keys are written afterwards."""
    new, filled = np.arange(before, before + seqlen), min(before, slots)  # slots are filled in order
    keys = np.concatenate([slot_positions(before, slots)[:filled], new])
    source = Source.SLOTS_THEN_NEW if filled else Source.NEW
    return RowPlan(source, keys, plan_blocks(new, keys, window), plan_writes(before, seqlen, slots))


def plan_token(before: int, window: int | None, slots: int) -> RowPlan:
    """One new token, whose key is written first and which then attends to all slots."""
    keys = slot_positions(before + 1, slots)
    return RowPlan(Source.SLOTS, keys, plan_blocks(np.array([before]), keys, window), plan_writes(before, 1, slots))


def plan_blocks(queries: NDArray[np.int64], keys: NDArray[np.int64], window: int | None) -> tuple[Block, ...]:
    """Queries at positions (T,) in blocks, each with a contiguous slice of the keys (S,) that has all its queries see.

    If there are several queries, the last T keys are their own, in order. A block's slice leaves out the keys of later
    blocks at the end, and at the start those that are before the window of the block's first query.
    """
    blocks = []
    size = max(1, min(QUERY_BLOCK, SCORES // len(keys)))
    for low in range(0, len(queries), size):
        high = min(len(queries), low + size)
        first = 0 if window is None else int(np.argmax(keys > queries[low] - window))
        span = slice(first, len(keys) - (len(queries) - high))
        mask = visible(queries[low:high], keys[span], window)
        blocks.append(Block(slice(low, high), span, None if mask.all() else mask))
    return tuple(blocks)


def plan_writes(before: int, seqlen: int, slots: int) -> tuple[tuple[slice, slice], ...]:
    """(slots, new tokens) for the last `slots` of `seqlen` new tokens after `before` earlier ones: at most two runs."""
    start = max(0, seqlen - slots)
    runs = []
    while start < seqlen:
        slot = (before + start) % slots
        length = min(slots - slot, seqlen - start)
        runs.append((slice(slot, slot + length), slice(start, start + length)))
        start += length
    return tuple(runs)
