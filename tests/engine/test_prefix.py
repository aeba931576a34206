"""What is not computed again: rows that outlive their request, and rows that begin with a snapshot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral.engine.engine
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.requests import Generated, Prefilled, Request
from mistral.engine.scheduler import generate_stream
from mistral.errors import InputError
from mistral.generate import generate
from mistral.load import Transformer
from mistral.model.attention_plan import slot_positions
from mistral.model.kv_cache import can_rewind
from tests.support.small_models import SHAPES, WINDOW, SmallModel

pytestmark = pytest.mark.usefixtures("no_spare_slots")  # so that short texts go round

RANDOM = np.random.default_rng(4)
TEXT = RANDOM.integers(0, 40, 60).tolist()


def answer(engine: Engine, request: Request, chunk_size: int = 4) -> tuple[list[int], list[float]]:
    """Ids and logprobs of one request."""
    events = [e for e in generate_stream(engine, [request], chunk_size) if isinstance(e, Generated)]
    ids = [event.id for event in events if event.id is not None]
    return ids, [event.logprob for event in events if event.logprob is not None]


def require_fresh(model: Transformer, prompt: list[int], tokens: int, found: tuple[list[int], list[float]]) -> None:
    """The answer is that of a row that has seen nothing before."""
    ids, logprobs = generate([prompt], model, tokens, chunk_size=7, prompt_logprobs=False)
    assert found[0] == ids[0]
    np.testing.assert_allclose(found[1], logprobs[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_conversation_computes_only_what_is_new(models: dict[str, SmallModel], shape: str) -> None:
    """Each prompt is the one before with its answer and a few more ids, far past the end of every window."""
    model = models[shape].transformer
    engine, prompt = Engine(model), TEXT[:3]
    slot = PrefixSlot(engine)
    for turn in range(6):
        known = len(slot.cached_ids())
        found = answer(engine, Request(prompt, 4, slot=slot))
        require_fresh(model, prompt, 4, found)
        assert slot.reused == slot.shared == known
        assert slot.cached_ids() == prompt + found[0][:-1]
        prompt = prompt + found[0] + TEXT[9 * turn : 9 * turn + 1 + turn % 2]
    assert len(engine.cache.rows) == 1
    slot.leave()
    assert not engine.cache.rows


@pytest.mark.parametrize("shape", ["dense", "interleaved", "moe_windowed"])
@settings(max_examples=5, deadline=None)
@given(turns=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(0, 4)), min_size=2, max_size=6))
def test_any_prompt_after_any_other_is_answered_as_if_it_were_the_first(
    models: dict[str, SmallModel], shape: str, turns: list[tuple[int, int, int]]
) -> None:
    """Prompts that keep the beginning of what is held, however short, and go on differently."""
    model = models[shape].transformer
    engine = Engine(model)
    slot = PrefixSlot(engine)
    for number, (keep, new, tokens) in enumerate(turns):
        prompt = slot.cached_ids()[:keep] + TEXT[number : number + new]
        written = engine.cache.rows[slot.row].written if slot.row >= 0 else 0
        found = answer(engine, Request(prompt, tokens, slot=slot))
        require_fresh(model, prompt, tokens, found)
        assert slot.reused == (slot.shared if can_rewind(model.args.sliding_windows, written, slot.shared) else 0)


@given(
    st.integers(1, 40), st.integers(0, 40), st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=1, max_size=3)
)
def test_rewinding_is_possible_where_the_slots_are_still_there(
    written: int, back: int, windows: list[int | None]
) -> None:
    kv_seqlen = max(0, written - back)
    gone = False
    for window in windows:
        held = slot_positions(written, written if window is None else min(window, written))
        first = 0 if window is None else max(0, kv_seqlen - window + 1)
        gone |= bool(set(range(first, kv_seqlen)) - set(held.tolist()))
    assert can_rewind(windows, written, kv_seqlen) == (not gone)


def test_a_row_that_cannot_be_rewound_is_read_again(models: dict[str, SmallModel]) -> None:
    model = models["windowed"].transformer
    engine = Engine(model)
    slot = PrefixSlot(engine)
    answer(engine, Request(TEXT[:20], 3, slot=slot))
    for prompt, shared, reused in ((TEXT[:15], 14, 0), (TEXT[:15], 14, 0), (TEXT[:30], 15, 15)):
        require_fresh(model, prompt, 2, answer(engine, Request(prompt, 2, slot=slot)))
        assert (slot.shared, slot.reused) == (shared, reused)


def test_an_abandoned_answer_leaves_what_was_computed(models: dict[str, SmallModel]) -> None:
    model = models["interleaved"].transformer
    engine = Engine(model)
    slot = PrefixSlot(engine)
    events = generate_stream(engine, [Request(TEXT[:20], 9, slot=slot)], 4)
    for event in events:
        if isinstance(event, Prefilled) and event.done == 12:
            break
    events.close()
    assert slot.cached_ids() == TEXT[:12]
    require_fresh(model, TEXT[:30], 2, answer(engine, Request(TEXT[:30], 2, slot=slot)))
    assert slot.reused == 12


@pytest.mark.parametrize("shape", ["dense", "windowed", "interleaved"])
def test_a_step_that_is_interrupted_halfway_spoils_nothing(
    models: dict[str, SmallModel], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a second Ctrl-C: the first layer has written, and the others have not."""
    model = models[shape].transformer
    engine = Engine(model)
    slot = PrefixSlot(engine)
    answer(engine, Request(TEXT[:20], 3, slot=slot))
    before, block = list(slot.cached_ids()), model.blocks[1]

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(model.blocks, 1, broken)
    with pytest.raises(KeyboardInterrupt):
        answer(engine, Request([*before, *TEXT[30:36]], 3, slot=slot), chunk_size=6)
    monkeypatch.setitem(model.blocks, 1, block)
    assert slot.cached_ids() == before
    prompt = [*before, *TEXT[40:45]]
    require_fresh(model, prompt, 4, answer(engine, Request(prompt, 4, slot=slot)))
    assert slot.reused == (len(before) if shape == "dense" else 0)


def test_layers_are_told_of_while_a_prompt_is_read_and_change_nothing(models: dict[str, SmallModel]) -> None:
    model = models["interleaved"].transformer
    engine, told = Engine(model), list[tuple[int, float]]()
    engine.on_layer = lambda tokens, share: told.append((tokens, share))
    require_fresh(model, TEXT[:10], 5, answer(engine, Request(TEXT[:10], 5), chunk_size=6))
    shares = [layer / 3 for layer in (1, 2, 3)]
    assert told == [*((6, share) for share in shares), *((4, share) for share in shares)], "none while it is answered"


def test_a_row_grows_with_its_conversation_and_not_before(models: dict[str, SmallModel]) -> None:
    engine = Engine(models["interleaved"].transformer)
    slot = PrefixSlot(engine)
    for prompt, slots in ((TEXT[:2], [4, 3, 4]), (TEXT[:9], [11, 3, 5]), (TEXT[:4], [11, 3, 5])):
        answer(engine, Request(prompt, 2, slot=slot))
        held = engine.cache.rows[slot.row].layers
        assert [held[layer][0].shape[1] for layer in range(3)] == slots


def test_where_memory_is_short_the_row_keeps_what_it_has(
    models: dict[str, SmallModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["dense"].transformer
    room = Engine(model).cache.nbytes(20)
    monkeypatch.setattr("mistral.memory.psutil.virtual_memory", lambda: type("Memory", (), {"available": room})())
    engine = Engine(model)
    slot = PrefixSlot(engine)
    answer(engine, Request(TEXT[:10], 5, slot=slot))
    held = list(slot.cached_ids())
    with pytest.raises(InputError, match="the cache of 25 tokens needs"):
        answer(engine, Request(TEXT[:20], 5, slot=slot))
    assert slot.cached_ids() == held
    answer(engine, Request(TEXT[:15], 5, slot=slot))
    assert slot.reused == 10


# Snapshots


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [3, 23])
def test_a_row_that_begins_with_a_snapshot_goes_on_as_the_one_it_was_taken_of(
    models: dict[str, SmallModel], shape: str, length: int
) -> None:
    model = models[shape].transformer
    engine = Engine(model)
    slot = PrefixSlot(engine)
    first = answer(engine, Request(TEXT[:length], 4, slot=slot))
    snapshot = slot.export()
    assert snapshot
    prompt = TEXT[:length] + first[0] + TEXT[50:55]
    other = Engine(model)
    require_fresh(model, prompt, 5, answer(other, Request(prompt, 5, start=snapshot)))
    assert not other.cache.rows
    resumed = PrefixSlot(other)
    resumed.restore(snapshot)
    assert resumed.cached_ids() == slot.cached_ids()
    require_fresh(model, prompt, 5, answer(other, Request(prompt, 5, slot=resumed)))
    assert resumed.reused == length + 3
    require_fresh(model, TEXT[:length], 5, answer(other, Request(TEXT[:length], 5, start=snapshot)))


@pytest.mark.parametrize("shape", SHAPES)
def test_later_steps_do_not_change_a_snapshot(models: dict[str, SmallModel], shape: str) -> None:
    engine = Engine(models[shape].transformer)
    slot = PrefixSlot(engine)
    answer(engine, Request(TEXT[:6], 4, slot=slot))
    snapshot, view = slot.export(), slot.export(copy=False)
    assert snapshot and view
    before = {layer: [part.copy() for part in held] for layer, held in snapshot.layers.items()}
    assert all((a == b).all() for k in before for a, b in zip(before[k], view.layers[k], strict=True))
    answer(engine, Request(TEXT[30:45], 4, slot=slot))  # other tokens in the same slots
    assert all((a == b).all() for k in before for a, b in zip(before[k], snapshot.layers[k], strict=True))


def test_a_copy_that_does_not_fit_is_refused(models: dict[str, SmallModel], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(models["dense"].transformer)
    slot = PrefixSlot(engine)
    answer(engine, Request(TEXT[:6], 4, slot=slot))
    monkeypatch.setattr(mistral.engine.engine, "available_memory", lambda: 100)
    with pytest.raises(InputError, match=r"a copy of 9 tokens needs .* and 0\.0 MB are free: shorten the text"):
        slot.export()


def test_a_snapshot_holds_no_empty_slots(models: dict[str, SmallModel]) -> None:
    engine = Engine(models["interleaved"].transformer)
    slot = PrefixSlot(engine)
    assert slot.export() is None
    answer(engine, Request(TEXT[:3], 9, slot=slot))
    snapshot = slot.export()
    assert snapshot and [keys.shape[1] for keys, _ in snapshot.layers.values()] == [11, 3, 5]


def test_rows_of_a_batch_begin_with_one_snapshot(models: dict[str, SmallModel]) -> None:
    model = models["windowed"].transformer
    engine = Engine(model)
    slot = PrefixSlot(engine)
    answer(engine, Request(TEXT[: WINDOW - 1], 1, slot=slot))
    start = slot.export()
    prompts = [TEXT[: WINDOW - 1] + TEXT[20 : 20 + n] for n in range(4)] + [TEXT[7:9], TEXT[:2]]
    found: list[list[int]] = [[] for _ in prompts]
    read = [0] * len(prompts)
    for event in generate_stream(engine, [Request(prompt, 3, start=start) for prompt in prompts], 2):
        if isinstance(event, Prefilled):
            read[event.index] += 1
        elif event.id is not None:
            found[event.index].append(event.id)
    assert found == generate(prompts, model, 3)[0]
    assert read == [1, 1, 1, 2, 1, 1], "chunks of two"
