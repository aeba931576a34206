"""Slots to go back: a layer with a window keeps some tokens more than it sees, and a row can go back by as many."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.requests import Request
from mistral.engine.scheduler import generate_stream
from mistral.model import kv_cache
from mistral.model.kv_cache import SPARE, RollingCache, can_rewind, full_slots
from tests.model.test_kv_cache import OPS, Numbered, args_of
from tests.support.oracle import oracle_logits
from tests.support.small_models import DENSE, SmallModel


@pytest.fixture(params=[1, 3, 32])
def spare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many slots beyond those of the window."""
    monkeypatch.setattr(kv_cache, "SPARE", request.param)
    return int(request.param)


@pytest.fixture
def two_spare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few enough for small models to go round."""
    monkeypatch.setattr(kv_cache, "SPARE", 2)
    yield


def test_a_layer_has_its_window_and_the_spare_slots_and_a_short_row_has_fewer() -> None:
    assert (SPARE, full_slots(4096)) == (32, 4128)
    cache = RollingCache(args_of((5, None)), range(2), OPS)
    cache.add(0, 20)
    cache.add(1, 500)
    assert [cache.rows[row].layers[0][0].shape[1] for row in (0, 1)] == [20, 37]
    assert cache.rows[1].layers[1][0].shape[1] == 500


@pytest.mark.parametrize("back", [0, 1, 17, 32])
def test_a_full_row_goes_back_by_the_spare_slots_at_any_time(back: int) -> None:
    numbered = Numbered((5, None))
    numbered.add(0, 400)
    numbered.feed({0: 150})
    for _ in range(3):
        assert numbered.truncate(0, 150 - back)
        if back:
            numbered.feed({0: back})
    assert not numbered.truncate(0, 150 - 34)  # one token more than the slots still hold


ROUNDS = st.lists(st.tuples(st.integers(0, 32), st.integers(0, 32)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40, suppress_health_check=[])
@given(window=st.integers(1, 7), seqlen=st.integers(1, 90), rounds=ROUNDS)
def test_any_pattern_of_kept_and_rejected_drafts_is_possible(
    window: int, seqlen: int, rounds: list[tuple[int, int]]
) -> None:
    """Each round: the last token and some drafts are fed, and the row goes back over those that are rejected.

    `Numbered.feed` asserts that each query sees its window, whatever was written before and taken back.
    """
    numbered = Numbered((window, None, 3))
    numbered.add(0, 1000)
    numbered.feed({0: seqlen})
    for drafts, kept in rounds:
        numbered.feed({0: 1 + drafts})
        seen = len(numbered.history[0])
        assert numbered.truncate(0, seen - drafts + min(kept, drafts))


@settings(deadline=None, max_examples=60)
@given(written=st.integers(1, 90), back=st.integers(0, 60), window=st.integers(1, 9))
def test_rewinding_is_possible_exactly_where_what_the_next_token_sees_is_there(
    written: int, back: int, window: int
) -> None:
    kv_seqlen, held = max(0, written - back), set(range(written)[-full_slots(window) :])
    needed = set(range(max(0, kv_seqlen - window + 1), kv_seqlen))
    assert can_rewind([window, None], written, kv_seqlen) == (needed <= held)


@settings(deadline=None, max_examples=6)
@given(rounds=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=8), seed=st.integers(0, 9))
def test_logits_are_the_oracles_whatever_was_taken_back(
    models: dict[str, SmallModel], rounds: list[tuple[int, int]], seed: int
) -> None:
    """The model itself, past the end of its windows, with wrong drafts written and rewound."""
    found, random = models["interleaved"], np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "SPARE", 2)
        cache = found.transformer.new_cache()
        cache.add(0, 80)
        ids = random.integers(0, 40, 12).tolist()
        found.transformer.forward(ids, [12], cache)
        for drafts, kept in rounds:
            new = random.integers(0, 40, 1 + drafts).tolist()
            logits = found.transformer.forward(new, [len(new)], cache).asnumpy()
            expected = oracle_logits(found.tensors, found.args, [*ids, *new])[len(ids) :]
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
            ids += new[: 1 + min(kept, drafts)]
            assert cache.truncate(0, len(ids))


@pytest.mark.parametrize(("tokens", "back"), [(4, 3), (40, 3), (37, 33), (60, 33), (39, 32)])
@pytest.mark.parametrize("room", [1, 50])
def test_a_snapshot_is_restored_at_any_length_that_the_slots_allow(tokens: int, back: int, room: int) -> None:
    """Into a row of any capacity: its layers have the slots of the snapshot where these went round."""
    numbered = Numbered((4, None, 9))
    numbered.add(0, 100)
    numbered.feed({0: tokens})
    left = tokens - back
    if not can_rewind((4, None, 9), tokens, left):
        pytest.fail("the case is no case")
    held = numbered.cache.export(0, range(tokens))
    numbered.cache.restore(1, left + room, held, left)
    again = numbered.cache.export(1, range(left))
    numbered.cache.restore(2, left + room, again, left)
    for row in (1, 2):
        numbered.history[row] = numbered.history[0][:left]
        numbered.cache.reserve(row, 90)
        numbered.feed({row: 1})
        numbered.feed({row: 20})


def test_what_the_store_gives_back_says_how_far_it_goes_back(spare: int) -> None:
    """A row that begins with what the store found cannot go back to where the store had nothing."""
    args = args_of((5, None))
    numbered = Numbered((5, None))
    for row, length in ((0, 60), (1, 70)):
        numbered.add(row, 100)
        numbered.feed({row: length})
    ids = list(range(60))
    store = PrefixStore(args, 10**7)
    store.add("", numbered.cache.export(0, ids))
    found = store.find("", ids, 59)
    assert found is not None and len(found.ids) == 59
    numbered.cache.restore(2, 100, found, 59)
    numbered.history[2] = numbered.history[0][:59]
    oldest = 60 - full_slots(5)  # that the first row's slots hold
    for kv_seqlen in range(58, 30, -1):
        assert can_rewind((5, None), found.written, kv_seqlen) == (kv_seqlen - 4 >= oldest)
    for back in range(0, spare, 2):
        assert numbered.cache.truncate(2, 58 - back)
        del numbered.history[2][58 - back :]
        numbered.feed({2: 1})


@pytest.mark.usefixtures("two_spare")
def test_a_prompt_that_diverges_near_its_end_is_not_read_again(models: dict[str, SmallModel]) -> None:
    """As after /undo and /retry: up to the spare slots are taken back, though the window has long been full."""
    engine, text = Engine(models["windowed"].transformer), [7 * n % 40 for n in range(30)]
    slot = PrefixSlot(engine)
    list(generate_stream(engine, [Request(text[:20], 1, slot=slot)]))
    for prompt, reused in (([*text[:18], 1, 2], 18), ([*text[:18], 3], 18), ([*text[:15], 3, 5], 0)):
        list(generate_stream(engine, [Request(prompt, 1, slot=slot)]))
        assert slot.reused == reused


def test_memory_is_counted_for_the_spare_slots() -> None:
    numbered = Numbered((4,))
    assert DENSE.head_dim and numbered.cache.nbytes(36) == numbered.cache.nbytes(10**6) == 2 * 4 * 36 * 2
