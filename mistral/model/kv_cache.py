"""The rolling key and value cache (Mistral 7B, arXiv:2310.06825, section 2): position p lives in slot p % slots.

A worked example, window 3. A row has seen 5 tokens, so its 3 slots hold positions [3, 4, 2]; a chunk of 2 tokens comes,
positions 5 and 6. The keys laid end to end are then [3, 4, 2, 5, 6], and a query sees those less than 3 behind it:

    query 5:  [x, x, ., x, .]
    query 6:  [., x, ., x, x]

Only after the scores are taken are the new keys written, to slots 5 % 3 = 2 and 6 % 3 = 0: the slots hold [6, 4, 5].
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mistral.model.args import ModelArgs
from mistral.ops.interface import Ops

if TYPE_CHECKING:
    from mindspore import Tensor

Stored = NDArray[Any]  # float32, or the bits of bfloat16 as uint16
QUERY_BLOCK = 512  # queries scored at once, at most, so that a long chunk never makes a square score matrix
SCORES = 1 << 21  # scores of one head at once, at most, as long as that allows one query


def slot_positions(kv_seqlen: int, slots: int) -> NDArray[np.int64]:
    """The absolute position that each slot (slots,) holds after `kv_seqlen` tokens; -1 where none has been written."""
    last = kv_seqlen - 1
    return np.maximum(last - (last - np.arange(slots)) % slots, -1)


def visible(queries: NDArray[np.int64], keys: NDArray[np.int64], window: int | None) -> NDArray[np.bool_]:
    """Which key positions (S,) each query position (T,) attends to -> (T, S): 0 <= query - key < window, key >= 0."""
    behind = queries[:, None] - keys[None, :]
    seen = (behind >= 0) & (keys >= 0)[None, :]
    return seen if window is None else seen & (behind < window)


def slots_needed(tokens: int, window: int | None) -> int:
    """Slots a layer keeps for a row of at most `tokens` tokens."""
    return tokens if window is None else min(window, tokens)


def cache_nbytes(args: ModelArgs, layers: Iterable[int], capacity: int, slot_bytes: int) -> int:
    """Bytes of the keys and values that these layers keep for a row of at most `capacity` tokens."""
    slots = sum(slots_needed(capacity, args.sliding_windows[layer]) for layer in layers)
    return 2 * slot_bytes * slots * args.n_kv_heads * args.head_dim


def can_rewind(windows: Sequence[int | None], written: int, kv_seqlen: int) -> bool:
    """Whether a row of `written` tokens can go back to its first `kv_seqlen`.

    It cannot where the ring of a layer has overwritten a key that the next token would see: once full, a ring of W
    slots lets its row go back by one token, or to nothing.
    """
    for window in set(windows) - {None}:
        assert window is not None
        oldest_needed = max(0, kv_seqlen - window + 1)
        if kv_seqlen > oldest_needed and written - window > oldest_needed:
            return False
    return True


@dataclass(frozen=True)
class Snapshot:
    """What the cache holds of one row, on the host: keys and values (KV, n, d) by layer, and the ids they are of.

    `written` is that of `CacheRow`; n is `written`, or the layer's window where that is less.
    """

    ids: tuple[int, ...]
    written: int
    layers: Mapping[int, tuple[Stored, Stored]]


@dataclass(frozen=True)
class Block:
    """Queries scored together: slices of the row's new tokens and of its keys, and where they may look (T, S)."""

    queries: slice
    keys: slice
    mask: NDArray[np.bool_] | None  # None: every query sees every key


@dataclass(frozen=True)
class RowPlan:
    """What one step does to one row in layers of one window.

    join: how many slots' keys come before the new ones; with 0 the keys are the new ones alone, or, for a single token,
    all slots after it was written. writes: (slots, new tokens).
    """

    join: int
    blocks: tuple[Block, ...]
    writes: tuple[tuple[slice, slice], ...]


def plan_writes(before: int, seqlen: int, slots: int) -> tuple[tuple[slice, slice], ...]:
    """Where the last `slots` of `seqlen` new tokens go after `before` earlier ones: at most two runs."""
    start = max(0, seqlen - slots)
    runs = []
    while start < seqlen:
        slot = (before + start) % slots
        length = min(slots - slot, seqlen - start)
        runs.append((slice(slot, slot + length), slice(start, start + length)))
        start += length
    return tuple(runs)


def plan_row(seqlen: int, before: int, window: int | None, slots: int | None) -> RowPlan:
    """Plan `seqlen` new tokens of a row that has seen `before`; `slots` None means that no cache keeps them."""
    queries = np.arange(before, before + seqlen)
    single = slots is not None and seqlen == 1
    join = 0 if slots is None or single else min(before, slots)  # slots fill in order, so the first ones are filled
    old = slot_positions(before, slots)[:join] if slots is not None else np.arange(0)
    keys = slot_positions(before + 1, slots) if slots is not None and single else np.concatenate([old, queries])
    blocks = []
    size = max(1, min(QUERY_BLOCK, SCORES // len(keys)))
    for low in range(0, seqlen, size):
        high = min(seqlen, low + size)
        first = 0 if join or single or window is None else max(0, low - window + 1)
        span = slice(first, len(keys) if single else len(old) + high)
        mask = visible(queries[low:high], keys[span], window)
        blocks.append(Block(slice(low, high), span, None if mask.all() else mask))
    writes = () if slots is None else plan_writes(before, seqlen, slots)
    return RowPlan(join, tuple(blocks), writes)


@dataclass
class CacheRow:
    """One sequence: the most tokens it may hold, keys and values (KV, slots, d) by layer, and the tokens it has seen.

    `written` is one past the newest position that any slot has held: after a truncation, more than `kv_seqlen`.
    """

    capacity: int
    layers: dict[int, tuple[Tensor, Tensor]]
    kv_seqlen: int = 0
    written: int = 0


class RollingCache:
    """Keys and values of any number of rows, for the layers of one stage. Each row has its own capacity."""

    def __init__(self, args: ModelArgs, layers: range, ops: Ops) -> None:
        self.args, self.layers, self.ops = args, layers, ops
        self.rows: dict[int, CacheRow] = {}

    def nbytes(self, capacity: int) -> int:
        """Memory that a row of `capacity` tokens takes."""
        return cache_nbytes(self.args, self.layers, capacity, self.ops.SLOT_BYTES)

    def add(self, row: int, capacity: int) -> None:
        """A new, empty row that will see at most `capacity` tokens."""
        assert row not in self.rows and capacity > 0
        self.rows[row] = CacheRow(capacity, {layer: self._slots(layer, capacity) for layer in self.layers})

    def drop(self, row: int) -> None:
        """Forget a row and free its memory."""
        del self.rows[row]

    def reset(self, row: int) -> None:
        """Empty a row and keep its memory."""
        held = self.rows[row]
        held.kv_seqlen = held.written = 0

    def reserve(self, row: int, capacity: int) -> None:
        """Let a row grow to `capacity` tokens; what it holds stays."""
        held = self.rows[row]
        if capacity <= held.capacity:
            return
        for layer, old in held.layers.items():
            if old[0].shape[1] < slots_needed(capacity, self.args.sliding_windows[layer]):
                # fewer slots than the window: nothing has wrapped yet, so slot numbers are positions
                new = self._slots(layer, capacity)
                for target, source in zip(new, old, strict=True):
                    target[:, : source.shape[1]] = source
                held.layers[layer] = new
        held.capacity = capacity

    def truncate(self, row: int, kv_seqlen: int) -> bool:
        """Forget all but the first `kv_seqlen` tokens of a row.

        False, and nothing done, when a ring has already overwritten a key that the next token would need.
        """
        held = self.rows[row]
        assert 0 <= kv_seqlen <= held.kv_seqlen
        if not can_rewind([self.args.sliding_windows[layer] for layer in self.layers], held.written, kv_seqlen):
            return False
        held.kv_seqlen = kv_seqlen
        held.written = held.written if kv_seqlen else 0
        return True

    def resume(self, row: int, kv_seqlen: int, capacity: int) -> None:
        """Forget all but the first `kv_seqlen` tokens, which must be possible, and let the row grow to `capacity`."""
        possible = self.truncate(row, kv_seqlen)
        assert possible
        self.reserve(row, capacity)

    def export(self, row: int, ids: Sequence[int]) -> Snapshot:
        """What a row holds; `ids` are those of its tokens."""
        held, windows = self.rows[row], self.args.sliding_windows
        assert len(ids) == held.kv_seqlen
        wrapped = any(held.written > window for window in windows if window is not None)
        written = held.written if wrapped else held.kv_seqlen
        layers = {
            layer: (keys.asnumpy()[:, :written], values.asnumpy()[:, :written])
            for layer, (keys, values) in held.layers.items()
        }
        return Snapshot(tuple(ids), written, layers)

    def restore(self, row: int, capacity: int, snapshot: Snapshot, kv_seqlen: int) -> None:
        """A new row with the first `kv_seqlen` tokens of a snapshot, which `can_rewind` must allow."""
        assert row not in self.rows and 0 < kv_seqlen <= min(capacity, len(snapshot.ids))
        self.rows[row] = held = CacheRow(capacity, {}, kv_seqlen, kv_seqlen)
        for layer in self.layers:
            window = self.args.sliding_windows[layer]
            filled = kv_seqlen
            if window is not None and snapshot.written > window:
                filled, held.written = window, snapshot.written
            keys, values = (self._filled(layer, capacity, part[:, :filled]) for part in snapshot.layers[layer])
            held.layers[layer] = keys, values

    def _filled(self, layer: int, capacity: int, part: Stored) -> Tensor:
        slots = np.zeros(
            (part.shape[0], slots_needed(capacity, self.args.sliding_windows[layer]), part.shape[2]), part.dtype
        )
        slots[:, : part.shape[1]] = part
        return self.ops.tensor(slots)

    def kv_seqlen(self, row: int) -> int:
        """Tokens that a row has seen."""
        return self.rows[row].kv_seqlen

    def begin(self, seqlens: Sequence[int], rows: Sequence[int]) -> CacheMetadata:
        """SHIM"""
        return CacheMetadata.build(seqlens, self, rows, self.ops)

    def end(self, metadata: CacheMetadata) -> None:
        """SHIM"""
        self.advance(metadata)

    def advance(self, metadata: CacheMetadata) -> None:
        """Count a step's tokens, after every layer has written them."""
        for row, seqlen in zip(metadata.rows, metadata.seqlens, strict=True):
            self.rows[row].kv_seqlen += seqlen

    def _slots(self, layer: int, capacity: int) -> tuple[Tensor, Tensor]:
        slots = slots_needed(capacity, self.args.sliding_windows[layer])
        shape = (self.args.n_kv_heads, slots, self.args.head_dim)
        return self.ops.new_slots(shape), self.ops.new_slots(shape)


@dataclass
class CacheMetadata:
    """What all layers of one step share: built once, with one set of plans for each distinct window."""

    seqlens: tuple[int, ...]
    before: tuple[int, ...]
    rows: tuple[int, ...]
    ops: Ops
    _plans: dict[tuple[int | None, tuple[int | None, ...]], list[RowPlan]] = field(default_factory=dict)
    _masks: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def build(cls, seqlens: Sequence[int], cache: RollingCache | None, rows: Sequence[int], ops: Ops) -> CacheMetadata:
        """For `seqlens` new tokens of `rows`. A row that would outgrow its capacity is a mistake of the caller."""
        before = tuple(cache.kv_seqlen(row) for row in rows) if cache else (0,) * len(seqlens)
        if cache:
            for row, seen, new in zip(rows, before, seqlens, strict=True):
                held = cache.rows[row]
                assert seen + new <= held.capacity, f"row {row}: {seen + new} tokens exceed its capacity"
                held.written = max(held.written, seen + new)  # now: a step that is interrupted may have overwritten
        return cls(tuple(seqlens), before, tuple(rows), ops)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Absolute position of every flat token (T,)."""
        return np.concatenate([np.arange(b, b + n) for b, n in zip(self.before, self.seqlens, strict=True)])

    def plans(self, window: int | None, slots: tuple[int | None, ...]) -> list[RowPlan]:
        """One plan per row, for layers of this window and these slots per row."""
        if (window, slots) not in self._plans:
            per_row = zip(self.seqlens, self.before, slots, strict=True)
            self._plans[window, slots] = [plan_row(seqlen, before, window, size) for seqlen, before, size in per_row]
        return self._plans[window, slots]

    def mask(self, block: Block) -> Tensor | None:
        """A block's mask as an addend to its scores (T, S): 0 where visible, a large negative number elsewhere."""
        if block.mask is None:
            return None
        if id(block) not in self._masks:  # the plans keep their blocks alive
            self._masks[id(block)] = self.ops.tensor(np.where(block.mask, 0, -1e30).astype(np.float32))
        return self._masks[id(block)]


class CacheView:
    """One layer of the cache during one step; with no cache, the new tokens alone."""

    def __init__(self, metadata: CacheMetadata, cache: RollingCache | None, layer: int, window: int | None) -> None:
        self.metadata, self.ops = metadata, metadata.ops
        self.stored = [cache.rows[row].layers[layer] if cache else None for row in metadata.rows]
        self.window = window

    @functools.cached_property
    def plans(self) -> list[RowPlan]:
        """A plan of each row of the step."""
        slots = tuple(None if held is None else int(held[0].shape[1]) for held in self.stored)
        return self.metadata.plans(self.window, slots)

    def mask(self, block: Block) -> Tensor | None:
        """A block's mask as an addend to its scores."""
        return self.metadata.mask(block)

    def extend(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values (KV, T, d) of the step's row `index`; return all that its queries may see."""
        held, plan = self.stored[index], self.plans[index]
        if held is None:
            return keys, values
        seen = (keys, values)
        if plan.join:
            old = slice(0, plan.join)
            seen = (self.ops.concat([held[0][:, old], keys], 1), self.ops.concat([held[1][:, old], values], 1))
        for slots, tokens in plan.writes:
            held[0][:, slots] = keys[:, tokens]
            held[1][:, slots] = values[:, tokens]
        single = keys.shape[1] == 1
        return held if single else seen
