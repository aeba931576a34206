"""The rolling KV cache (Mistral 7B, arXiv:2310.06825, section 2): position p is in slot p % slots.

This file stores keys and values. mistral/model/attention_plan.py says which keys a token attends to, with a worked
example.

A layer with a window of W has W + SPARE slots. A token sees W of them; the others hold earlier positions, so that a row
can always be rewound by SPARE tokens: for rejected draft tokens, or a text that is changed near its end.

A step of a model is: `metadata = cache.begin(seqlens, rows)`; in each layer, attention over its `CacheView`, which
stores the new keys and values; `cache.end(metadata)`, which counts the new tokens. With 3 slots, a row that has seen 5
tokens and gets 2 more:

    begin       kv_seqlen 5   written 7   slots [3, 4, 2]   positions 5 and 6 are planned
    attention   kv_seqlen 5   written 7   slots [6, 4, 5]   in each layer, after the old slots were read
    end         kv_seqlen 7   written 7   slots [6, 4, 5]

If a step is interrupted before its end, kv_seqlen stays 5, and `written` says that positions up to 6 may have been
written over older ones.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.attention_plan import Block, RowPlan, Source, plan_row
from mistral.ops.device import device_lock
from mistral.ops.interface import Ops

if TYPE_CHECKING:
    from mindspore import Tensor

Stored = NDArray[Any]  # float32, or the bits of bfloat16 as uint16
SPARE = 32  # tokens by which a row can always be rewound


def full_slots(window: int) -> int:
    """The most slots that a layer of this window has."""
    return window + SPARE


def slots_needed(tokens: int, window: int | None) -> int:
    """Slots of a layer for a row of at most `tokens` tokens."""
    return tokens if window is None else min(full_slots(window), tokens)


def wraps(written: int, window: int | None) -> bool:
    """Whether a layer has overwritten slots in a row of `written` tokens."""
    return window is not None and written > full_slots(window)


def cache_nbytes(args: ModelArgs, layers: Iterable[int], capacity: int | Sequence[int], slot_bytes: int) -> int:
    """Bytes of the keys and values that these layers keep for a row of at most `capacity` tokens, or several rows."""
    counts = Counter(args.sliding_windows[layer] for layer in layers).items()
    rows = (capacity,) if isinstance(capacity, int) else capacity
    slots = sum(count * slots_needed(tokens, window) for tokens in rows for window, count in counts)
    return 2 * slot_bytes * slots * args.n_kv_heads * args.head_dim


def can_rewind(windows: Sequence[int | None], written: int, kv_seqlen: int) -> bool:
    """Whether a row of `written` tokens can be rewound to its first `kv_seqlen`.

    It cannot if a layer has overwritten a key that the next token would see: once W + SPARE slots are full, a row can
    be rewound by up to SPARE + 1 tokens, or to 0.
    """
    for window in set(windows) - {None}:
        assert window is not None
        oldest_needed = max(0, kv_seqlen - window + 1)
        if kv_seqlen > oldest_needed and written - full_slots(window) > oldest_needed:
            return False
    return True


@dataclass(frozen=True)
class Snapshot:
    """A copy of one row on the host: keys and values (KV, n, d) by layer, and the ids of their tokens.

    `written` is that of `CacheRow`. n is the number of ids, or of all slots in a layer that has overwritten some.
    """

    ids: tuple[int, ...]
    written: int
    layers: Mapping[int, tuple[Stored, Stored]]


@dataclass
class CacheRow:
    """One sequence: `capacity` is the most tokens it may have; `layers` are keys and values (KV, slots, d) by layer.

    `kv_seqlen` is the number of tokens seen. `written` is one past the newest position that any slot has held: more
    than `kv_seqlen` after a truncation.
    """

    capacity: int
    layers: dict[int, tuple[Tensor, Tensor]]
    kv_seqlen: int = 0
    written: int = 0


class RollingCache:
    """Keys and values of any number of rows, for the layers of one stage. Each row has its own capacity.

    Rows are numbered by the caller. Methods raise InputError for a row that is not in the cache (or, to add one, is),
    and for numbers of tokens that do not fit.
    """

    def __init__(self, args: ModelArgs, layers: range, ops: Ops) -> None:
        self.args, self.layers, self.ops = args, layers, ops
        self.rows: dict[int, CacheRow] = {}

    def begin(self, seqlens: Sequence[int], rows: Sequence[int]) -> CacheMetadata:
        """Begin a step of `seqlens` (B,) new tokens of `rows` (B,) -> what all layers share. `end` completes the step.

        Raises InputError, and changes nothing, for a row that is not in the cache, is named twice, or would exceed its
        capacity.
        """
        cached = [self._row(row) for row in rows]
        if len(set(rows)) < len(rows):
            raise InputError(f"rows must be different rows of the cache, not {list(rows)}")
        before = tuple(row.kv_seqlen for row in cached)
        for number, row, new in zip(rows, cached, seqlens, strict=True):
            if row.kv_seqlen + new > row.capacity:
                raise InputError(
                    f"row {number} has seen {row.kv_seqlen} tokens, and {new} more would exceed its capacity of"
                    f" {row.capacity}: call cache.reserve first"
                )
        for row, new in zip(cached, seqlens, strict=True):
            row.written = max(row.written, row.kv_seqlen + new)  # now: the step may be interrupted
        return CacheMetadata(tuple(seqlens), before, tuple(rows), self.ops)

    def end(self, metadata: CacheMetadata) -> None:
        """Count a step's tokens, after every layer has stored their keys and values."""
        for row, seqlen in zip(metadata.rows, metadata.seqlens, strict=True):
            self.rows[row].kv_seqlen += seqlen

    def nbytes(self, capacity: int) -> int:
        """Bytes of a row of `capacity` tokens."""
        return cache_nbytes(self.args, self.layers, capacity, self.ops.SLOT_BYTES)

    def kv_seqlen(self, row: int) -> int:
        """Tokens that a row has seen."""
        return self._row(row).kv_seqlen

    def add(self, row: int, capacity: int) -> None:
        """Add an empty row for at most `capacity` tokens."""
        self._require_new(row)
        if capacity < 1:
            raise InputError(f"row {row}: its capacity must be at least 1 token, not {capacity}")
        self.rows[row] = CacheRow(capacity, {layer: self._slots(layer, capacity) for layer in self.layers})

    def drop(self, row: int) -> None:
        """Forget a row and free its memory."""
        self._row(row)
        with device_lock:
            del self.rows[row]

    def reset(self, row: int) -> None:
        """Empty a row and keep its memory."""
        cached = self._row(row)
        cached.kv_seqlen = cached.written = 0

    def reserve(self, row: int, capacity: int) -> None:
        """Let a row grow to `capacity` tokens; its contents are kept."""
        cached = self._row(row)
        if capacity <= cached.capacity:
            return
        for layer, old in cached.layers.items():
            if old[0].shape[1] < slots_needed(capacity, self.args.sliding_windows[layer]):
                # fewer than all slots: nothing has been overwritten yet, so slot numbers are positions
                new = self._slots(layer, capacity)
                with device_lock:
                    for target, source in zip(new, old, strict=True):
                        target[:, : source.shape[1]] = source
                cached.layers[layer] = new
        cached.capacity = capacity

    def truncate(self, row: int, kv_seqlen: int) -> bool:
        """Rewind a row to its first `kv_seqlen` tokens -> whether that was possible.

        It is not, and nothing is changed, if a key that the next token would see has been overwritten. Raises
        InputError for more tokens than the row has seen.
        """
        cached = self._row(row)
        if not 0 <= kv_seqlen <= cached.kv_seqlen:
            raise InputError(f"row {row} has seen {cached.kv_seqlen} tokens and cannot go back to {kv_seqlen}")
        if not can_rewind([self.args.sliding_windows[layer] for layer in self.layers], cached.written, kv_seqlen):
            return False
        cached.kv_seqlen = kv_seqlen
        cached.written = cached.written if kv_seqlen else 0
        return True

    def clear(self, row: int) -> None:
        """Set to 0 the slots of positions over which a row was rewound.

        No query sees them, but a backend may multiply them by 0, which is NaN for infinite values.
        """
        cached = self._row(row)
        with device_lock:
            for slots in (part for held in cached.layers.values() for part in held):
                for position in range(cached.kv_seqlen, cached.written):
                    slots[:, position % slots.shape[1]] = 0

    def resume(self, row: int, kv_seqlen: int, capacity: int) -> None:
        """Rewind to the first `kv_seqlen` tokens, which must be possible, and let the row grow to `capacity`."""
        possible = self.truncate(row, kv_seqlen)
        assert possible
        self.reserve(row, capacity)

    def export(self, row: int, ids: Sequence[int], copy: bool = True) -> Snapshot:
        """A snapshot of a row, whose tokens have these `ids`. Without `copy` it is valid until the row's next step."""
        cached, windows = self._row(row), self.args.sliding_windows
        if len(ids) != cached.kv_seqlen:
            raise InputError(f"row {row} has {cached.kv_seqlen} tokens: give their ids, not {len(ids)} ids")
        wrapped = any(wraps(cached.written, window) for window in windows)
        written = cached.written if wrapped else cached.kv_seqlen
        layers = {}
        with device_lock:
            for layer, (keys, values) in cached.layers.items():
                count = keys.shape[1] if wraps(written, windows[layer]) else cached.kv_seqlen
                layers[layer] = _held(keys, count, copy), _held(values, count, copy)
        return Snapshot(tuple(ids), written, layers)

    def restore(self, row: int, capacity: int, snapshot: Snapshot, kv_seqlen: int) -> None:
        """Add a row with the first `kv_seqlen` tokens of a snapshot, which `can_rewind` must allow."""
        self._require_new(row)
        if not 0 < kv_seqlen <= min(capacity, len(snapshot.ids)):
            most = min(capacity, len(snapshot.ids))
            raise InputError(f"a row of this snapshot begins with 1 to {most} of its tokens, not {kv_seqlen}")
        self.rows[row] = cached = CacheRow(capacity, {}, kv_seqlen, kv_seqlen)
        for layer in self.layers:
            filled, slots = kv_seqlen, slots_needed(capacity, self.args.sliding_windows[layer])
            if wraps(snapshot.written, self.args.sliding_windows[layer]):
                filled = slots = snapshot.layers[layer][0].shape[1]
                cached.written = snapshot.written
            keys, values = (self._filled(slots, part[:, :filled]) for part in snapshot.layers[layer])
            cached.layers[layer] = keys, values

    def _row(self, row: int) -> CacheRow:
        try:
            return self.rows[row]
        except KeyError:
            raise InputError(f"the cache has no row {row}: call cache.add({row}, capacity) first") from None

    def _require_new(self, row: int) -> None:
        if row in self.rows:
            raise InputError(f"the cache has a row {row} already: drop or reset that one, or take another number")

    def _slots(self, layer: int, capacity: int) -> tuple[Tensor, Tensor]:
        slots = slots_needed(capacity, self.args.sliding_windows[layer])
        shape = (self.args.n_kv_heads, slots, self.args.head_dim)
        with device_lock:
            return self.ops.new_slots(shape), self.ops.new_slots(shape)

    def _filled(self, slots: int, part: Stored) -> Tensor:
        """New slots (KV, slots, d), of which the first n hold `part` (KV, n, d)."""
        filled = np.zeros((part.shape[0], slots, part.shape[2]), part.dtype)
        filled[:, : part.shape[1]] = part
        with device_lock:
            return self.ops.tensor(filled)


def _held(slots: Tensor, count: int, copy: bool) -> Stored:
    """The first `count` of slots (KV, slots, d) on the host: a copy, or where possible a view of their memory."""
    held: Stored = slots.asnumpy()[:, :count]
    return held.copy() if copy else held


def uncached(seqlens: Sequence[int], ops: Ops) -> CacheMetadata:
    """As `RollingCache.begin`, for B rows that start at position 0 and are not stored. It needs no `end`."""
    return CacheMetadata(tuple(seqlens), (0,) * len(seqlens), tuple(range(len(seqlens))), ops)


@dataclass
class CacheMetadata:
    """What all layers of one step share, built once, with one set of plans for each distinct window.

    For each of B rows: the number of its new tokens, of tokens seen before, and its number in the cache.
    """

    seqlens: tuple[int, ...]
    before: tuple[int, ...]
    rows: tuple[int, ...]
    ops: Ops
    _plans: dict[tuple[int | None, tuple[int | None, ...]], list[RowPlan]] = field(default_factory=dict)
    _masks: dict[int, Tensor] = field(default_factory=dict)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Absolute position of every new token (T,), row after row."""
        return np.concatenate([np.arange(b, b + n) for b, n in zip(self.before, self.seqlens, strict=True)])

    def plans(self, window: int | None, slots: tuple[int | None, ...]) -> list[RowPlan]:
        """One plan per row, for layers with this window and numbers of slots (B,); None for a row without a cache."""
        if (window, slots) not in self._plans:
            per_row = zip(self.seqlens, self.before, slots, strict=True)
            self._plans[window, slots] = [plan_row(seqlen, before, window, size) for seqlen, before, size in per_row]
        return self._plans[window, slots]

    def mask(self, block: Block) -> Tensor | None:
        """A block's mask as an addend to its scores, float32 (T, S): 0 where visible, -1e30 elsewhere."""
        if block.mask is None:
            return None
        if id(block) not in self._masks:  # the plans keep their blocks alive
            self._masks[id(block)] = self.ops.tensor(np.where(block.mask, 0, -1e30).astype(np.float32))
        return self._masks[id(block)]


class CacheView:
    """One layer of the cache during one step; without a cache, the new tokens alone. See `AttentionView`."""

    def __init__(self, metadata: CacheMetadata, cache: RollingCache | None, layer: int, window: int | None) -> None:
        self.metadata, self.window = metadata, window
        self.seqlens: Sequence[int] = metadata.seqlens
        self.before: Sequence[int] = metadata.before
        self.stored: Sequence[tuple[Tensor, Tensor] | None] = [
            cache.rows[row].layers[layer] if cache is not None else None for row in metadata.rows
        ]

    @functools.cached_property
    def plans(self) -> list[RowPlan]:
        """The plan of each row of the step; only a backend that computes row by row needs it."""
        slots = tuple(None if stored is None else int(stored[0].shape[1]) for stored in self.stored)
        return self.metadata.plans(self.window, slots)

    def blocks(self, index: int) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Of row `index`: slices of queries scored together and of the keys they see, and the mask of the scores."""
        for block in self.plans[index].blocks:
            yield block.queries, block.keys, self.metadata.mask(block)

    def extend(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values (KV, t, d) of row `index`; return those to score its queries against."""
        stored, plan = self.stored[index], self.plans[index]
        if stored is None:
            return keys, values
        seen = keys, values
        if plan.source is Source.SLOTS_THEN_NEW:
            slots, concat = slice(0, len(plan.keys) - keys.shape[1]), self.metadata.ops.concat
            seen = concat([stored[0][:, slots], keys], 1), concat([stored[1][:, slots], values], 1)
        for slots, tokens in plan.writes:
            stored[0][:, slots] = keys[:, tokens]
            stored[1][:, slots] = values[:, tokens]
        return stored if plan.source is Source.SLOTS else seen
