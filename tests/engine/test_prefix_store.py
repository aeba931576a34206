"""The prefix store: what it gives back is what was put in, it never outgrows its limit, and spaces share nothing."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral.engine.prefix_store
from mistral.engine.prefix_node import NODE_BYTES
from mistral.engine.prefix_store import BLOCK, PrefixStore
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import Snapshot
from tests.support.small_models import DENSE

pytestmark = pytest.mark.usefixtures("no_spare_slots")  # so that short texts go round

PLAIN, WINDOWED = (None, None), (None, 3, 5)
AMPLE = 10**9


def shaped(windows: Sequence[int | None]) -> ModelArgs:
    return replace(DENSE, n_layers=len(windows), sliding_windows=tuple(windows), n_kv_heads=1, head_dim=2)


def truth(layer: int, ids: Sequence[int], position: int) -> tuple[float, float]:
    """What keys and values stand for here: a number that depends on all tokens up to a position."""
    found = zlib.crc32(bytes([layer, *ids[: position + 1]]))
    return float(found % 100003), float(found // 100003)


def snapshot(windows: Sequence[int | None], ids: Sequence[int], written: int | None = None) -> Snapshot:
    """As a cache exports a row of these ids; `written`: that it has held more tokens before."""
    count, layers = written or len(ids), {}
    for layer, window in enumerate(windows):
        part = np.full((1, count if window is None else min(count, window), 2), -1.0, np.float32)
        for position in range(len(ids)):
            if window is None or position >= count - window:
                part[0, position % part.shape[1]] = truth(layer, ids, position)
        layers[layer] = part, -part
    return Snapshot(tuple(ids), count, layers)


def require_true(windows: Sequence[int | None], found: Snapshot, ids: Sequence[int]) -> None:
    """All that the next token sees is there, in the slot where a row has it."""
    count = len(found.ids)
    assert list(found.ids) == list(ids[:count])
    assert found.written - count in (0, 1)  # 1: the oldest slot of a layer is empty
    for layer, window in enumerate(windows):
        keys, values = found.layers[layer]
        assert keys.shape == (1, count if window is None else min(count, window), 2)
        for position in range(0 if window is None else max(0, count - window + 1), count):
            assert tuple(keys[0, position % keys.shape[1]]) == truth(layer, ids, position)
            assert tuple(-values[0, position % keys.shape[1]]) == truth(layer, ids, position)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def expected(windows: Sequence[int | None], stored: Sequence[Sequence[int]], ids: Sequence[int], most: int) -> int:
    """How many tokens can be reused, by trying every length."""

    def held(window: int | None, position: int) -> bool:
        return any(common(s, ids) > position and (window is None or position >= len(s) - window) for s in stored)

    for count in range(min(most, len(ids)), 0, -1):
        needed = [(w, p) for w in windows for p in range(0 if w is None else max(0, count - w + 1), count)]
        if all(held(*each) for each in needed) and held(None, count - 1):
            return count
    return 0


def audit(store: PrefixStore) -> None:
    """The sums are right, within the limit, and what comes first in order has no children."""
    assert store.nbytes == sum(node.nbytes for node in store._order) <= store.limit
    assert store.tokens == sum(len(node.ids) for node in store._order)
    places = {node: place for place, node in enumerate(store._order)}
    for node, space in store._order.items():
        assert node.parent is not None
        assert node.parent.children[int(node.ids[0])] is node
        assert node.parent is store._roots[space] or places[node.parent] > places[node]


def test_any_length_of_what_was_read_is_found() -> None:
    store = PrefixStore(shaped(PLAIN), AMPLE)
    text = list(range(40))
    store.add("", snapshot(PLAIN, text))
    for asked, most, count in (
        (text, 40, 40),
        (text, 39, 39),
        (text[:7], 7, 7),
        ([*text[:9], 1, 2], 11, 9),
        ([1], 1, 0),
    ):
        found = store.find("", asked, most)
        assert (len(found.ids) if found else 0) == count
        if found:
            require_true(PLAIN, found, asked)


def test_what_two_sequences_begin_with_is_held_once() -> None:
    store = PrefixStore(shaped(PLAIN), AMPLE)
    store.add("", snapshot(PLAIN, [1] * 30))
    store.add("", snapshot(PLAIN, [1] * 20 + [2] * 10))
    assert store.tokens == 40
    assert store.nbytes == 3 * NODE_BYTES + 40 * (4 + 2 * 2 * 2 * 4)  # ids, and 2 layers of keys and values of 2
    for ids in ([1] * 30, [1] * 20 + [2] * 10):
        found = store.find("", ids, 99)
        assert found and len(found.ids) == 30
        require_true(PLAIN, found, ids)
    store.add("", snapshot(PLAIN, [1] * 20))
    assert store.tokens == 40, "what is there already is not stored again"


def test_what_is_found_is_a_copy_that_outlives_its_node() -> None:
    store = PrefixStore(shaped(WINDOWED), AMPLE)
    text = list(range(20))
    store.add("", snapshot(WINDOWED, text))
    found = store.find("", text, 20)
    store.shrink(AMPLE)
    assert (store.nbytes, store.tokens, store.find("", text, 20)) == (0, 0, None)
    assert found
    require_true(WINDOWED, found, text)


def test_layers_with_windows_are_reused_at_stored_points_and_within_the_window() -> None:
    """Windows of 3 and 5: a point at 12 serves 12 and 11; within 3 tokens only what was stored that early does."""
    store = PrefixStore(shaped(WINDOWED), AMPLE)
    text = list(range(20))

    def lengths() -> list[int]:
        found = [store.find("", text, most) for most in range(1, 21)]
        return [len(each.ids) if each else 0 for each in found]

    store.add("", snapshot(WINDOWED, text[:12]))
    assert lengths() == [0] * 10 + [11] + [12] * 9
    store.add("", snapshot(WINDOWED, text[:3]))
    assert lengths() == [1, 2] + [3] * 8 + [11] + [12] * 9
    store.add("", snapshot(WINDOWED, text[:14]))
    assert lengths() == [1, 2] + [3] * 8 + [11, 12, 13] + [14] * 7


def test_a_row_that_went_back_gives_what_it_still_has() -> None:
    store = PrefixStore(shaped(WINDOWED), AMPLE)
    text = list(range(12))
    store.add("", snapshot(WINDOWED, text, written=13))
    found = store.find("", text, 12)
    assert found and len(found.ids) == 12
    require_true(WINDOWED, found, text)
    assert store.find("", text, 11) is None


def test_spaces_share_nothing() -> None:
    store = PrefixStore(shaped(PLAIN), AMPLE)
    store.add("one", snapshot(PLAIN, [1, 2, 3]))
    assert store.find("other", [1, 2, 3], 3) is None
    store.add("other", snapshot(PLAIN, [1, 2, 4]))
    assert store.tokens == 6
    found = store.find("one", [1, 2, 4], 3)
    assert found and found.ids == (1, 2)


def test_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    each = NODE_BYTES + 10 * (4 + 32)
    store = PrefixStore(shaped(PLAIN), 3 * each)
    texts = [[number] * 10 for number in range(4)]
    for text in texts[:3]:
        store.add(str(text[0]), snapshot(PLAIN, text))
    assert store.find("0", texts[0], 10)
    store.add("3", snapshot(PLAIN, texts[3]))
    assert [store.find(str(i), texts[i], 10) is not None for i in range(4)] == [True, False, True, True]
    audit(store)


def test_the_end_of_a_sequence_goes_before_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistral.engine.prefix_store, "BLOCK", 4)
    each = NODE_BYTES + 4 * (4 + 32)
    store = PrefixStore(shaped(PLAIN), 5 * each)
    store.add("", snapshot(PLAIN, list(range(16))))
    store.add("", snapshot(PLAIN, [99] * 12))
    found = store.find("", list(range(16)), 16)
    assert found and len(found.ids) == 8


def test_of_what_is_longer_than_the_store_the_beginning_is_kept() -> None:
    store = PrefixStore(shaped(PLAIN), 2 * (NODE_BYTES + BLOCK * 36))
    store.add("", snapshot(PLAIN, [1] * 10))
    store.add("", snapshot(PLAIN, [2] * 4 * BLOCK))
    audit(store)
    found = store.find("", [2] * 600, 600)
    assert found and len(found.ids) == 2 * BLOCK, "what there is room for: the beginning"


def test_no_room_beside_rows_is_no_room() -> None:
    store = PrefixStore(shaped(PLAIN), AMPLE)
    store.add("", snapshot(PLAIN, [1] * 10), lambda: 0)
    assert store.nbytes == 0 and not store._roots
    with pytest.raises(InputError, match="prefix_bytes"):
        PrefixStore(shaped(PLAIN), -1)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "find", "find", "shrink"]),
        st.sampled_from(["", "key"]),
        st.lists(st.integers(0, 1), min_size=1, max_size=24),
    ),
    max_size=30,
)


@pytest.mark.parametrize("windows", [PLAIN, WINDOWED, (4,), (2, 2, 7)])
@settings(max_examples=40, deadline=None)
@given(moves=MOVES, room=st.one_of(st.none(), st.integers(0, 12)))
def test_any_moves_give_back_what_reading_would_give(
    windows: tuple[int | None, ...], moves: list[tuple[str, str, list[int]]], room: int | None
) -> None:
    """Sequences of two tokens, so that they branch everywhere; nodes of 4; with and without eviction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mistral.engine.prefix_store, "BLOCK", 4)
        store = PrefixStore(shaped(windows), AMPLE if room is None else room * 1500)
        stored: dict[str, list[list[int]]] = {"": [], "key": []}
        for move, space, ids in moves:
            if move == "add":
                store.add(space, snapshot(windows, ids))
                stored[space].append(ids)
            elif move == "shrink" and room is not None:
                store.shrink(len(ids) * 200)
            else:
                most = max(1, len(ids) - 1)
                found = store.find(space, ids, most)
                count, wanted = len(found.ids) if found else 0, expected(windows, stored[space], ids, most)
                assert count == wanted if room is None else count <= wanted
                if found:
                    require_true(windows, found, ids)
            audit(store)
