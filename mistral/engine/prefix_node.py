"""A node of the prefix cache: consecutive tokens with their keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mistral.model.kv_cache import Snapshot, Stored, full_slots, wraps

Window = int | None
NODE_BYTES = 1024  # of a node without its arrays, about
Ids = NDArray[np.int32]


@dataclass(eq=False)
class Node:
    """Tokens from position `start` on; no other child of the parent starts with the same token.

    ids (n,): their ids. parts: by window, the keys and values of all layers with that window, (2 * layers, KV, h, d),
    for each layer the keys and then the values of the node's last h tokens. Without a window h is n.
    """

    start: int
    ids: Ids
    parts: dict[Window, Stored]
    parent: Node | None
    children: dict[int, Node] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of the node."""
        return NODE_BYTES + self.ids.nbytes + sum(part.nbytes for part in self.parts.values())

    def held(self, window: Window) -> int:
        """The first position with keys and values in the layers of a window; `end` if there is none."""
        return self.end - int(self.parts[window].shape[2])

    def common(self, ids: Ids) -> int:
        """The length of the common prefix of the node's tokens and `ids`."""
        count = min(len(ids), len(self.ids))
        differ = np.flatnonzero(self.ids[:count] != ids[:count])
        return int(differ[0]) if differ.size else count

    def piece(self, window: Window, start: int, end: int) -> Stored:
        """A view of the keys and values of positions `start` to `end`, which the node must have."""
        first = self.held(window)
        return self.parts[window][:, :, start - first : end - first]

    def split(self, place: int) -> Node:
        """Split the node after its first `place` tokens -> a new parent with these tokens. The arrays are copied."""
        middle = self.start + place
        front = Node(self.start, self.ids[:place].copy(), {}, self.parent, {int(self.ids[place]): self})
        back = {}
        for window, part in self.parts.items():
            cut = max(0, middle - self.held(window))
            front.parts[window], back[window] = part[:, :, :cut].copy(), part[:, :, cut:].copy()
        self.start, self.ids, self.parts, self.parent = middle, self.ids[place:].copy(), back, front
        if front.parent is not None:
            front.parent.children[int(front.ids[0])] = front
        return front


def layers_by_window(windows: Sequence[Window]) -> dict[Window, list[int]]:
    """The layers of each window."""
    found: dict[Window, list[int]] = {}
    for layer, window in enumerate(windows):
        found.setdefault(window, []).append(layer)
    return found


def first_held(snapshot: Snapshot, window: Window) -> int:
    """The first position with keys and values in a snapshot's layers of a window."""
    return 0 if window is None else max(0, snapshot.written - full_slots(window))


def cut_out(snapshot: Snapshot, layers: Sequence[int], window: Window, start: int, end: int) -> Stored:
    """A copy of the keys and values of positions from `start` to `end`, (2 * layers, KV, end - start, d)."""
    first, count = start, end - start
    if window is not None and wraps(snapshot.written, window):
        first %= full_slots(window)
    parts = [part for layer in layers for part in snapshot.layers[layer]]
    (heads, slots, dim), dtype = parts[0].shape, parts[0].dtype
    straight = max(0, min(count, slots - first))  # up to the last slot; the others lie in the first ones
    found: Stored = np.empty((len(parts), heads, count, dim), dtype)
    for target, part in zip(found, parts, strict=True):
        target[:, :straight] = part[:, first : first + straight]
        if straight < count:
            target[:, straight:] = part[:, : count - straight]
    return found


def reusable(path: Sequence[Node], windows: Sequence[Window], most: int) -> int:
    """The largest number of tokens, up to `most`, along a path of nodes that a row can start with.

    All keys that the next token sees must be there: those of the last W - 1 tokens in a layer with window W.
    """
    runs = {window: list(held_runs(path, window)) for window in windows}
    found, before = most, -1
    while found > 0 and found != before:
        before = found
        for window, spans in runs.items():
            found = _longest(spans, window, found)
    return found


def held_runs(path: Sequence[Node], window: Window) -> Iterator[tuple[int, int]]:
    """The contiguous spans of positions, in order, with keys and values in a path's layers of a window."""
    start = end = 0
    for node in path:
        first = node.held(window)
        if first > node.start:  # there is a gap before it
            if end > start:
                yield start, end
            start = first
        end = node.end
    if end > start:
        yield start, end


def _longest(spans: Sequence[tuple[int, int]], window: Window, most: int) -> int:
    """The largest n up to `most` such that a span holds the last window - 1 positions before n (all, without one)."""
    for start, end in reversed(spans):
        found = min(end, most)
        if found > start and (start == 0 or (window is not None and found >= start + window - 1)):
            return found
    return 0


class Gathered(Mapping[int, tuple[Stored, Stored]]):
    """Keys and values by layer of the first `count` tokens along a path of nodes; each layer is concatenated on access.

    Nodes replace their arrays and never change them, so the contents stay the same when nodes are split or evicted.
    """

    def __init__(self, path: Sequence[Node], layers: Mapping[Window, Sequence[int]], count: int, written: int) -> None:
        """`written` is that of the snapshot with these layers."""
        self._count, self._written = count, written
        self._windows = {layer: (window, i) for window, members in layers.items() for i, layer in enumerate(members)}
        self._pieces = {window: list(_pieces(path, window, count)) for window in layers}

    def __getitem__(self, layer: int) -> tuple[Stored, Stored]:
        """Keys and values (KV, n, d) of a layer, in the order of a `Snapshot`."""
        window, place = self._windows[layer]
        keys, values = (self._joined(window, 2 * place + which) for which in (0, 1))
        return keys, values

    def __iter__(self) -> Iterator[int]:
        """The layers."""
        return iter(sorted(self._windows))

    def __len__(self) -> int:
        """The number of layers."""
        return len(self._windows)

    def _joined(self, window: Window, place: int) -> Stored:
        held: Stored = np.concatenate([piece[place] for piece in self._pieces[window]], axis=1)
        if window is None or not wraps(self._written, window):
            return held
        # the last positions before `count`, each in its slot; slots of older positions may be empty
        count = full_slots(window)
        slots: Stored = np.zeros((held.shape[0], count, held.shape[2]), held.dtype)
        slots[:, np.arange(self._count - held.shape[1], self._count) % count] = held
        return slots


def _pieces(path: Sequence[Node], window: Window, count: int) -> Iterator[Stored]:
    """The keys and values of a row of `count` tokens in the layers of a window, by node: (2 * layers, KV, n, d)."""
    first = oldest(path, window, count)
    for node in path:
        start, end = max(first, node.held(window)), min(node.end, count)
        if start < end:
            yield node.piece(window, start, end)


def oldest(path: Sequence[Node], window: Window, count: int) -> int:
    """The first position from which a path has all positions before `count`, in slots of the layers of a window."""
    start = max((start for start, _ in held_runs(path, window) if start < count), default=0)
    return start if window is None else max(start, count - full_slots(window))


def gather(path: Sequence[Node], layers: Mapping[Window, Sequence[int]], count: int) -> Snapshot:
    """A snapshot of the first `count` tokens along a path, which `reusable` must allow."""
    ids = np.concatenate([node.ids for node in path])[:count]
    written = count  # more, if slots of older positions are empty: as if they had been overwritten
    for window in layers:
        first = oldest(path, window, count)
        if window is not None and first:
            written = max(written, first + full_slots(window))
    return Snapshot(tuple(ids.tolist()), written, Gathered(path, layers, count, written))
