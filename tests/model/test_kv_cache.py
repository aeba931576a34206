"""The rolling cache's bookkeeping, driven as attention drives it, on tokens that carry a number instead of a key.

The cache runs on NumPy here: every token is given the next whole number as its key, so what a query sees can be read
off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral.errors import InputError
from mistral.model import attention_plan
from mistral.model.args import ModelArgs
from mistral.model.attention_plan import Source, plan_row, plan_writes, slot_positions, visible
from mistral.model.kv_cache import CacheView, RollingCache, slots_needed, uncached
from mistral.ops.interface import Ops
from tests.support.small_models import DENSE

pytestmark = pytest.mark.usefixtures("no_spare_slots")  # so that short texts go round

Array = npt.NDArray[np.float32]
Windows = tuple[int | None, ...]


class Held(np.ndarray[Any, Any]):
    """An array that can be asked for as a tensor is."""

    def asnumpy(self) -> npt.NDArray[Any]:
        return np.asarray(self)


class NumpyOps:
    """The operators that a cache needs."""

    SLOT_BYTES = 4

    def new_slots(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return np.zeros(shape, np.float32).view(Held)

    def tensor(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array.view(Held)

    def concat(self, tensors: list[npt.NDArray[Any]], axis: int) -> npt.NDArray[Any]:
        return np.concatenate(tensors, axis)


OPS = cast(Ops, NumpyOps())


def args_of(windows: Windows) -> ModelArgs:
    return replace(DENSE, n_layers=len(windows), sliding_windows=windows, n_heads=1, n_kv_heads=1, head_dim=2)


def first_seen(query: int, window: int | None) -> int:
    """The oldest position that a query sees."""
    return 0 if window is None else max(0, query - window + 1)


class Numbered:
    """A cache, and what each of its rows should hold: the numbers of its tokens, oldest first."""

    def __init__(self, windows: Windows) -> None:
        self.args = args_of(windows)
        self.cache = RollingCache(self.args, range(len(windows)), OPS)
        self.history: dict[int, list[int]] = {}
        self.numbers: Iterator[int] = count(1)

    def add(self, row: int, capacity: int) -> None:
        self.cache.add(row, capacity)
        self.history[row] = []

    def feed(self, seqlens: dict[int, int]) -> None:
        """One step. Asserts that each query sees exactly the last `window` tokens up to itself, each once."""
        metadata = self.cache.begin(list(seqlens.values()), list(seqlens))
        new = {row: [next(self.numbers) for _ in range(seqlen)] for row, seqlen in seqlens.items()}
        starts = {row: len(self.history[row]) for row in seqlens}
        assert metadata.positions.tolist() == [starts[row] + i for row in seqlens for i in range(seqlens[row])]
        for row in seqlens:
            self.history[row] += new[row]
        for layer, window in enumerate(self.args.sliding_windows):
            view = CacheView(metadata, self.cache, layer, window)
            for index, row in enumerate(seqlens):
                positions = range(starts[row], starts[row] + seqlens[row])
                expected = [self.history[row][first_seen(p, window) : p + 1] for p in positions]
                assert seen_by_queries(view, index, new[row]) == expected
        self.cache.end(metadata)

    def held(self, row: int, layer: int) -> list[int]:
        """The number in each slot; 0 where nothing was ever written."""
        return [int(number) for number in np.asarray(self.cache.rows[row].layers[layer][0])[0, :, 0]]

    def can_truncate(self, row: int, kv_seqlen: int) -> bool:
        """Whether every layer still holds all that the token at position `kv_seqlen` would look back on."""
        for layer, window in enumerate(self.args.sliding_windows):
            needed = self.history[row][first_seen(kv_seqlen, window) : kv_seqlen]
            if not set(needed) <= set(self.held(row, layer)):
                return False
        return True

    def truncate(self, row: int, kv_seqlen: int) -> bool:
        possible = self.can_truncate(row, kv_seqlen)
        assert self.cache.truncate(row, kv_seqlen) == possible, (self.history[row], kv_seqlen, self.held(row, 0))
        if possible:
            del self.history[row][kv_seqlen:]
        assert self.cache.kv_seqlen(row) == len(self.history[row])
        return possible


def seen_by_queries(view: CacheView, index: int, new: list[int]) -> list[list[int]]:
    """Put the new tokens into a row and list the tokens that each of them sees, in ascending order."""
    tokens = np.repeat(np.array(new, np.float32), 2).reshape(1, -1, 2)
    keys, values = cast(tuple[Array, Array], view.extend(index, cast(Any, tokens), cast(Any, -tokens)))
    assert np.array_equal(keys, -values)
    seen = []
    for queries, met, mask in view.blocks(index):
        numbers, shape = keys[0, met, 0], (queries.stop - queries.start, met.stop - met.start)
        addend = np.zeros(shape) if mask is None else cast(Any, mask)
        assert addend.shape == shape
        seen += [sorted(int(number) for number in numbers[row == 0]) for row in addend]
    return seen


WINDOWS = st.one_of(st.none(), st.integers(1, 7))
SEQLENS = st.lists(st.integers(1, 10), min_size=1, max_size=8)


def test_the_worked_example_row_by_row() -> None:
    assert slot_positions(5, 3).tolist() == [3, 4, 2]
    plan = plan_row(2, 5, 3, 3)
    assert (plan.source, plan.keys.tolist()) == (Source.SLOTS_THEN_NEW, [3, 4, 2, 5, 6])
    (block,) = plan.blocks
    assert (block.queries, block.keys) == (slice(0, 2), slice(0, 5))
    assert block.mask is not None
    assert block.mask.tolist() == [[True, True, False, True, False], [False, True, False, True, True]]
    assert plan.writes == ((slice(2, 3), slice(0, 1)), (slice(0, 1), slice(1, 2)))
    assert slot_positions(7, 3).tolist() == [6, 4, 5]


def test_trap_1_a_window_of_w_sees_w_keys() -> None:
    """The query itself and the W - 1 before it, not W before it."""
    positions = np.arange(6)
    assert visible(positions, positions, 3).astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    assert visible(positions, positions, None).tolist() == np.tri(6, dtype=bool).tolist()
    assert visible(np.array([4]), np.array([-1, 3]), None).tolist() == [[False, True]]  # -1: an empty slot


@given(kv_seqlen=st.integers(0, 60), slots=st.integers(1, 12))
def test_slot_positions_are_those_of_a_rolling_buffer(kv_seqlen: int, slots: int) -> None:
    held = [-1] * slots
    for position in range(kv_seqlen):
        held[position % slots] = position
    assert slot_positions(kv_seqlen, slots).tolist() == held


@given(before=st.integers(0, 40), seqlen=st.integers(1, 40), slots=st.integers(1, 12))
def test_writes_leave_the_last_tokens_each_in_its_slot(before: int, seqlen: int, slots: int) -> None:
    held = slot_positions(before, slots)
    new = np.arange(before, before + seqlen)
    writes = plan_writes(before, seqlen, slots)
    assert len(writes) <= 2
    for to, tokens in writes:
        held[to] = new[tokens]
    assert held.tolist() == slot_positions(before + seqlen, slots).tolist()
    assert sum(to.stop - to.start for to, _ in writes) == min(seqlen, slots)  # nothing is written twice


@settings(deadline=None)
@given(window=WINDOWS, seqlens=SEQLENS, spare=st.integers(0, 5), block=st.integers(1, 12))
def test_trap_2_every_query_sees_its_window_before_it_is_overwritten(
    window: int | None, seqlens: list[int], spare: int, block: int
) -> None:
    """Chunks of any lengths, past the last slot, in score blocks of any size: old keys are read, then replaced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_plan, "QUERY_BLOCK", block)
        numbered = Numbered((window,))
        numbered.add(0, sum(seqlens) + spare)
        for seqlen in seqlens:
            numbered.feed({0: seqlen})
            written = [number for number in numbered.held(0, 0) if number]
            slots = slots_needed(sum(seqlens) + spare, window)
            assert sorted(written) == numbered.history[0][-slots:]


@settings(deadline=None)
@given(window=WINDOWS, steps=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=6))
def test_ragged_rows_keep_apart_and_some_wait(window: int | None, steps: list[list[int]]) -> None:
    numbered = Numbered((window, 4))
    for row in range(3):
        numbered.add(row, max(1, sum(step[row] for step in steps)))
    for step in steps:
        seqlens = {row: step[row] for row in (2, 0, 1) if step[row]}
        if seqlens:
            numbered.feed(seqlens)


@given(window=WINDOWS, seqlen=st.integers(1, 20), block=st.integers(1, 8))
def test_without_a_cache_the_window_holds_too(window: int | None, seqlen: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_plan, "QUERY_BLOCK", block)
        metadata = uncached([seqlen], OPS)
        seen = seen_by_queries(CacheView(metadata, None, 0, window), 0, list(range(seqlen)))
        assert seen == [list(range(first_seen(query, window), query + 1)) for query in range(seqlen)]


ACTION = st.one_of(
    st.tuples(st.just("feed"), st.integers(1, 12)),
    st.tuples(st.just("truncate"), st.one_of(st.integers(0, 2), st.integers(0, 30))),
    st.tuples(st.sampled_from(["reserve", "reset"]), st.integers(0, 12)),
)


@settings(deadline=None, max_examples=300)
@given(
    windows=st.lists(WINDOWS, min_size=1, max_size=3),
    capacity=st.integers(1, 50),
    actions=st.lists(ACTION, min_size=3, max_size=14),
)
def test_feed_truncate_reserve_and_reset_in_any_order(
    windows: list[int | None], capacity: int, actions: list[tuple[str, int]]
) -> None:
    """`truncate` gives False exactly where a needed key is gone; whatever comes next sees what it should."""
    numbered = Numbered(tuple(windows))
    numbered.add(0, capacity)
    for action, number in actions:
        seen = len(numbered.history[0])
        if action == "feed" and seen < capacity:
            numbered.feed({0: min(number, capacity - seen)})
        elif action == "truncate":
            numbered.truncate(0, max(0, seen - number))
        elif action == "reserve":
            capacity = max(capacity, seen + number)
            numbered.cache.reserve(0, capacity)
        elif action == "reset":
            numbered.cache.reset(0)
            numbered.history[0] = []
        slots = [len(numbered.held(0, layer)) for layer in range(len(windows))]
        assert slots == [slots_needed(capacity, window) for window in windows]


def test_two_truncations_in_a_row_do_not_forget_what_the_slots_lost() -> None:
    """Of 10 tokens 4 slots hold 6 to 9. Going back to 9 is possible; then to 8 is not, for token 5 is gone."""
    numbered = Numbered((4,))
    numbered.add(0, 20)
    numbered.feed({0: 10})
    assert numbered.truncate(0, 9)
    assert not numbered.cache.truncate(0, 8)


@settings(deadline=None)
@given(window=st.integers(1, 5), seqlen=st.integers(4, 16), steps=st.lists(st.integers(-2, 2), min_size=2, max_size=8))
def test_small_steps_back_and_forth_over_full_slots(window: int, seqlen: int, steps: list[int]) -> None:
    numbered = Numbered((window,))
    numbered.add(0, 100)
    numbered.feed({0: seqlen})
    for step in steps:
        if step > 0:
            numbered.feed({0: step})
        else:
            numbered.truncate(0, max(0, len(numbered.history[0]) + step))


def test_trap_5_a_short_row_has_few_slots_whatever_the_window_or_its_neighbours() -> None:
    cache = RollingCache(args_of((4096, None, 3)), range(3), OPS)
    cache.add(0, 10)
    cache.add(7, 5000)
    assert [cache.rows[0].layers[layer][0].shape for layer in range(3)] == [(1, 10, 2), (1, 10, 2), (1, 3, 2)]
    assert [cache.rows[7].layers[layer][0].shape for layer in range(3)] == [(1, 4096, 2), (1, 5000, 2), (1, 3, 2)]


def test_nbytes_is_the_memory_a_row_takes() -> None:
    cache = RollingCache(args_of((4, None, 30)), range(3), OPS)
    for row, capacity in enumerate((1, 4, 17, 100)):
        cache.add(row, capacity)
        taken = sum(cast(Any, tensor).nbytes for held in cache.rows[row].layers.values() for tensor in held)
        assert cache.nbytes(capacity) == taken


def test_memory_does_not_grow_once_the_window_is_full() -> None:
    numbered = Numbered((4,))
    assert numbered.cache.nbytes(4) == numbered.cache.nbytes(5) == numbered.cache.nbytes(1_000_000)
    numbered.add(0, 1_000_000)
    before = numbered.cache.rows[0].layers[0]
    for seqlen in (3, 1, 9, 1, 1, 40):
        numbered.feed({0: seqlen})
    assert numbered.cache.rows[0].layers[0] is before
    assert cast(Any, before[0]).nbytes + cast(Any, before[1]).nbytes == numbered.cache.nbytes(4)


def test_trap_21_a_decoding_row_scores_its_own_slots_once_and_no_others() -> None:
    """Keys scored per query: never more than the row's slots, though a neighbour has many more."""
    numbered = Numbered((6,))
    for row, capacity in enumerate((3, 500)):
        numbered.add(row, capacity)
    numbered.feed({0: 2, 1: 40})
    metadata = numbered.cache.begin([1, 1], [0, 1])
    plans = CacheView(metadata, numbered.cache, 0, 6).plans
    assert [plan.blocks[0].keys for plan in plans] == [slice(0, 3), slice(0, 6)]
    assert [len(plan.blocks) for plan in plans] == [1, 1]
    assert plans[1].blocks[0].mask is None  # where all slots are filled, none is needed


def test_score_blocks_bound_the_mask_of_a_long_chunk() -> None:
    plan = plan_row(2000, 0, 300, 300)
    assert [block.queries.stop - block.queries.start for block in plan.blocks] == [512, 512, 512, 464]
    assert all(block.keys.stop - block.keys.start <= 512 + 300 for block in plan.blocks)


def test_layers_of_one_window_share_plans_and_masks() -> None:
    numbered = Numbered((4, None, 4))
    numbered.add(0, 20)
    numbered.feed({0: 6})
    metadata = numbered.cache.begin([3], [0])
    views = [CacheView(metadata, numbered.cache, layer, window) for layer, window in enumerate((4, None, 4))]
    assert views[0].plans is views[2].plans
    assert views[0].plans is not views[1].plans
    assert next(views[0].blocks(0))[2] is next(views[2].blocks(0))[2] is not None


def test_a_dropped_row_makes_room_for_another_of_its_number() -> None:
    numbered = Numbered((4,))
    numbered.add(3, 9)
    numbered.feed({3: 9})
    numbered.cache.drop(3)
    assert numbered.cache.rows == {}
    numbered.add(3, 2)
    numbered.feed({3: 2})


def test_a_row_beyond_its_capacity_is_a_mistake() -> None:
    numbered = Numbered((4,))
    numbered.add(0, 5)
    with pytest.raises(InputError, match="row 0 has seen 0 tokens, and 6 more would exceed its capacity of 5"):
        numbered.feed({0: 6})


def test_a_row_that_there_is_not_or_is_already_is_refused() -> None:
    cache = RollingCache(args_of((4,)), range(1), OPS)
    cache.add(0, 5)
    for call in (
        cache.drop,
        cache.reset,
        cache.kv_seqlen,
        lambda row: cache.reserve(row, 9),
        lambda row: cache.truncate(row, 0),
    ):
        with pytest.raises(InputError, match=r"^the cache has no row 3: call cache.add\(3, capacity\) first$"):
            call(3)
    with pytest.raises(InputError, match="has a row 0 already"):
        cache.add(0, 5)
    with pytest.raises(InputError, match="at least 1 token, not 0"):
        cache.add(1, 0)
    with pytest.raises(InputError, match="has seen 0 tokens and cannot go back to 1"):
        cache.truncate(0, 1)
    assert list(cache.rows) == [0]


def test_a_step_that_is_not_ended_counts_as_written_alone() -> None:
    """What an interrupted step may have overwritten is not relied on, though none of its tokens has been seen."""
    numbered = Numbered((4,))
    numbered.add(0, 20)
    numbered.feed({0: 6})
    numbered.cache.begin([3], [0])
    assert numbered.cache.kv_seqlen(0) == 6
    assert not numbered.cache.truncate(0, 5)
