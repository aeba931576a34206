"""The prefix cache: keys and values of earlier prompts and answers, which later prompts reuse.

The tokens are a radix tree: a path from a root spells a prefix, and each node holds the keys and values of its own
tokens, so that a prefix shared by two sequences is held once. Sequences of different spaces, such as those of different
API keys, share nothing, so timing reveals nothing of another space either.

Layers without a window can be reused at any length. Those with a window of W can be reused at a length where the last
W - 1 positions are held: at any length up to W, and beyond it at the lengths that were stored, and up to SPARE + 1 less
(mistral/model/kv_cache.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from mistral.engine.prefix_node import (
    NODE_BYTES,
    Ids,
    Node,
    cut_out,
    first_held,
    gather,
    layers_by_window,
    reusable,
)
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import Snapshot

BLOCK = 128  # most tokens of a node: the unit of eviction, and of the copy when a node is split


class PrefixStore:
    """The prefix cache of one model, with least-recently-used eviction.

    It belongs to one thread; `nbytes` and `tokens` may be read from any.
    """

    def __init__(self, args: ModelArgs, limit: int) -> None:
        """`limit`: the most bytes. Raises InputError for a negative number."""
        if limit < 0:
            raise InputError("must be 0 or more", option="prefix_bytes", value=limit)
        self.limit, self.nbytes, self.tokens = limit, 0, 0
        self._layers = layers_by_window(args.sliding_windows)
        self._roots: dict[str, Node] = {}
        # Every node with its space, the least recently used first. A use of a node counts for its parents after it, so
        # that the first node never has children.
        self._order = OrderedDict[Node, str]()

    @property
    def windowed(self) -> bool:
        """Whether some layers have windows, so that not every length can be reused."""
        return set(self._layers) != {None}

    def find(self, space: str, ids: Sequence[int], most: int) -> Snapshot | None:
        """A snapshot of the longest stored prefix of `ids`, of at most `most` tokens; None if there is none.

        Its layers are concatenated on access, and do not change with the prefix cache.
        """
        path, matched = self._walk(space, np.asarray(ids, np.int32))
        count = reusable(path, list(self._layers), min(matched, most))
        if count < 1:
            return None
        path = [node for node in path if node.start < count]
        self._use(path)
        return gather(path, self._layers, count)

    def add(self, space: str, snapshot: Snapshot, room: Callable[[], int] | None = None) -> None:
        """Store a snapshot, as much of it as there is room for.

        `room`: returns the bytes of memory that are free now, which may be less than the limit allows.
        """
        ids = np.asarray(snapshot.ids, np.int32)
        path, matched = self._walk(space, ids)
        if path and matched < path[-1].end and (matched < len(ids) or self.windowed):
            path[-1] = self._split(path[-1], matched, space)
        self._use(path)
        spare = self.limit if room is None else min(self.limit, self.nbytes + room())
        if self._complete(path, snapshot, spare):
            self._extend(space, path, snapshot, ids, spare)
        self._use(path)
        self._forget_root(space)
        self.shrink(self.nbytes - self.limit)  # a split node takes more memory

    def _extend(self, space: str, path: list[Node], snapshot: Snapshot, ids: Ids, spare: int) -> None:
        """Add nodes to a path for the rest of `ids`, as long as there is room."""
        start = path[-1].end if path else 0
        while start < len(ids):
            end = min(start + BLOCK, len(ids))
            parts = {
                window: cut_out(snapshot, layers, window, min(end, max(start, first_held(snapshot, window))), end)
                for window, layers in self._layers.items()
            }
            node = Node(start, ids[start:end].copy(), parts, None)
            if not self._make_room(node.nbytes, path, spare):
                return
            node.parent = parent = path[-1] if path else self._root(space)
            parent.children[int(node.ids[0])] = node
            path.append(node)
            self._order[node] = space
            self.nbytes, self.tokens, start = self.nbytes + node.nbytes, self.tokens + len(node.ids), end

    def shrink(self, nbytes: int) -> None:
        """Evict nodes of at least `nbytes` in all, or all nodes."""
        wanted = max(0, self.nbytes - nbytes)
        while self.nbytes > wanted:
            self._drop(next(iter(self._order)))

    def clear(self) -> None:
        """Evict all nodes."""
        self._roots.clear()
        self._order.clear()
        self.nbytes = self.tokens = 0

    def _root(self, space: str) -> Node:
        return self._roots.setdefault(space, Node(0, np.zeros(0, np.int32), {}, None))

    def _forget_root(self, space: str) -> None:
        if space in self._roots and not self._roots[space].children:
            del self._roots[space]

    def _walk(self, space: str, ids: Ids) -> tuple[list[Node], int]:
        """The path of nodes that matches a prefix of `ids` (the last one perhaps in part), and the matched length."""
        path, matched, node = list[Node](), 0, self._roots.get(space)
        while node is not None and matched < len(ids):
            node = node.children.get(int(ids[matched]))
            if node is not None:
                path.append(node)
                common = node.common(ids[matched:])
                matched += common
                if common < len(node.ids):
                    break
        return path, matched

    def _use(self, path: Sequence[Node]) -> None:
        for node in reversed(path):
            self._order.move_to_end(node)

    def _split(self, node: Node, place: int, space: str) -> Node:
        """Split a node at a position -> the node that ends there."""
        front = node.split(place - node.start)
        self.nbytes += NODE_BYTES
        self._order[front] = space
        return front

    def _complete(self, path: Sequence[Node], snapshot: Snapshot, spare: int) -> bool:
        """Add a snapshot's positions of windowed layers to the nodes of a path -> whether there was room."""
        for node in path:
            for window, layers in self._layers.items():
                first, held = max(node.start, first_held(snapshot, window)), node.held(window)
                if first < held:
                    more = cut_out(snapshot, layers, window, first, held)
                    if not self._make_room(more.nbytes, path, spare):
                        return False
                    node.parts[window] = np.concatenate([more, node.parts[window]], axis=2)
                    self.nbytes += more.nbytes
        return True

    def _make_room(self, nbytes: int, path: Sequence[Node], spare: int) -> bool:
        """Evict the least recently used nodes until `nbytes` fit -> whether they do.

        The nodes of `path` were used last and are not evicted.
        """
        kept = sum(node.nbytes for node in path)
        if kept + nbytes > spare:
            return False
        while self.nbytes + nbytes > spare:
            self._drop(next(iter(self._order)))
        return True

    def _drop(self, node: Node) -> None:
        space = self._order.pop(node)
        assert node.parent is not None and not node.children
        del node.parent.children[int(node.ids[0])]
        self.nbytes, self.tokens = self.nbytes - node.nbytes, self.tokens - len(node.ids)
        if node.parent is self._roots.get(space):
            self._forget_root(space)
