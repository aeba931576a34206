"""The scheduler: requests come and go at any time, and what goes wrong with one touches no other."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mistral.engine.active_row
import mistral.engine.engine
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.requests import Event, Generated, Prefilled, Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import Handle, Scheduler
from mistral.errors import InputError
from mistral.generate import generate
from mistral.load import Transformer
from mistral.model.kv_cache import cache_nbytes
from mistral.ops.interface import Ops
from mistral.tokenizer.streaming import TextStream
from tests.support.generation import PROMPTS, Spy, lettered
from tests.support.pieces import PieceDecoder
from tests.support.small_models import DENSE, WINDOWED, SmallModel, build


class Log:
    """The events of each request, by its index."""

    def __init__(self) -> None:
        self.events: dict[int, list[Event]] = {}

    def add(self, events: list[Event]) -> None:
        for event in events:
            self.events.setdefault(event.index, []).append(event)

    def run(self, scheduler: Scheduler) -> Log:
        """Step until the scheduler is idle."""
        while not scheduler.idle:
            self.add(scheduler.step())
        return self

    def ids(self, handle: Handle) -> list[int]:
        found = [e.id for e in self.events.get(handle.index, []) if isinstance(e, Generated)]
        return [token for token in found if token is not None]

    def logprobs(self, handle: Handle) -> list[float | None]:
        return [e.logprob for e in self.events[handle.index] if isinstance(e, Generated) and e.id is not None]

    def end(self, handle: Handle) -> Generated:
        """The last event, which alone ends the request."""
        events = self.events[handle.index]
        ends = [event for event in events if isinstance(event, Generated) and event.finish_reason]
        assert len(ends) == 1
        assert events[-1] is ends[0]
        return ends[0]


def rows_of(scheduler: Scheduler) -> Mapping[int, object]:
    """The rows that the engine has."""
    assert isinstance(scheduler.engine, Engine)
    return scheduler.engine.cache.rows


def alone(model: Transformer, prompt: list[int], tokens: int) -> list[int]:
    return generate([prompt], model, tokens)[0][0]


def test_requests_join_and_leave_between_steps(model: Transformer, spy: Spy) -> None:
    scheduler, log = Scheduler(Engine(model)), Log()
    first = scheduler.submit(Request(PROMPTS[0], 6))
    log.add(scheduler.step())
    log.add(scheduler.step())
    second = scheduler.submit(Request(PROMPTS[1], 2))
    log.run(scheduler)
    assert [len(rows) for rows in spy.rows] == [1, 1, 2, 2, 1, 1]
    third = scheduler.submit(Request(PROMPTS[3], 3))  # after it had been idle
    log.run(scheduler)
    assert log.ids(first) == alone(model, PROMPTS[0], 6)
    assert log.ids(second) == alone(model, PROMPTS[1], 2)
    assert log.ids(third) == alone(model, PROMPTS[3], 3)
    assert rows_of(scheduler) == {}


def test_an_idle_scheduler_gives_nothing(model: Transformer, spy: Spy) -> None:
    scheduler = Scheduler(Engine(model))
    assert (scheduler.idle, scheduler.step(), spy.rows) == (True, [], [])


def test_a_request_that_waits_is_not_idle(model: Transformer) -> None:
    scheduler = Scheduler(Engine(model), max_rows=1)
    scheduler.submit(Request([1], 3))
    assert not scheduler.idle


def test_a_request_that_cannot_be_served_is_refused_when_it_is_submitted(model: Transformer) -> None:
    scheduler = Scheduler(Engine(model))
    with pytest.raises(InputError, match="request 7 has an id outside the vocabulary of 40"):
        scheduler.submit(Request([DENSE.vocab_size]), "request 7")
    assert scheduler.idle


def test_closing_gives_all_rows_back(model: Transformer) -> None:
    scheduler = Scheduler(Engine(model), max_rows=2)
    for _ in range(3):
        scheduler.submit(Request([1, 2], 5))
    scheduler.step()
    scheduler.close()
    assert (scheduler.idle, rows_of(scheduler)) == (True, {})


# Cancellation


def test_a_cancelled_row_ends_and_its_neighbour_goes_on(model: Transformer, spy: Spy) -> None:
    scheduler, log = Scheduler(Engine(model)), Log()
    gone, stays = scheduler.submit(Request(PROMPTS[1], 50)), scheduler.submit(Request(PROMPTS[0], 5))
    log.add(scheduler.step())
    scheduler.cancel(gone)
    assert len(rows_of(scheduler)) == 2
    log.add(scheduler.step())
    assert len(rows_of(scheduler)) == 1, "its memory is free within one step"
    log.run(scheduler)
    assert log.end(gone).finish_reason == "cancelled"
    assert log.ids(stays) == alone(model, PROMPTS[0], 5)
    assert [len(rows) for rows in spy.rows][:5] == [2, 1, 1, 1, 1]


def test_a_request_is_cancelled_while_it_waits_or_is_read(model: Transformer, spy: Spy) -> None:
    scheduler, log = Scheduler(Engine(model), chunk_size=4, max_rows=1), Log()
    read, waits = scheduler.submit(Request(PROMPTS[1], 5)), scheduler.submit(Request([1], 5))
    log.add(scheduler.step())
    scheduler.cancel(waits)
    scheduler.cancel(read)
    log.run(scheduler)
    assert log.end(read).finish_reason == log.end(waits).finish_reason == "cancelled"
    assert [event.done for event in log.events[read.index] if isinstance(event, Prefilled)] == [4]
    assert spy.tokens == [4]


def test_cancelling_what_has_ended_does_nothing(model: Transformer) -> None:
    scheduler, log = Scheduler(Engine(model)), Log()
    handle = scheduler.submit(Request([1], 1))
    log.run(scheduler)
    scheduler.cancel(handle)
    other = scheduler.submit(Request([1], 2))
    log.run(scheduler)
    assert log.end(handle).finish_reason == log.end(other).finish_reason == "length"


def test_a_prefix_slot_outlives_a_cancelled_request(model: Transformer) -> None:
    engine = Engine(model)
    slot, scheduler, log = PrefixSlot(engine), Scheduler(engine), Log()
    first = scheduler.submit(Request(PROMPTS[0], 50, slot=slot))
    log.add(scheduler.step())
    scheduler.cancel(first)
    log.run(scheduler)
    assert slot.cached_ids() == PROMPTS[0]
    prompt = [*PROMPTS[0], 5, 6]
    second = scheduler.submit(Request(prompt, 3, slot=slot))
    log.run(scheduler)
    assert (log.ids(second), slot.reused) == (alone(model, prompt, 3), len(PROMPTS[0]))


# What goes wrong with one request


def test_an_id_without_a_text_ends_its_request_alone(model: Transformer) -> None:
    """As that of a padded embedding, which a tokenizer knows nothing of."""

    class Short(PieceDecoder):
        def push(self, token_id: int) -> str:
            raise InputError(f"has 3 ids, not id {token_id}")

    scheduler, log = Scheduler(Engine(model)), Log()
    bad = scheduler.submit(Request(PROMPTS[1], 4, text=TextStream(Short([]))))
    good = scheduler.submit(Request(PROMPTS[0], 4, text=lettered()))
    log.run(scheduler)
    assert log.end(bad).finish_reason == "error"
    assert "has 3 ids, not id" in str(log.end(bad).error)
    assert log.ids(good) == alone(model, PROMPTS[0], 4)
    assert rows_of(scheduler) == {}


def test_a_full_disk_when_a_prompt_has_been_read_ends_its_request_alone(model: Transformer) -> None:
    def fail() -> None:
        raise InputError("cache.bin: cannot be written (No space left on device)")

    scheduler, log = Scheduler(Engine(model)), Log()
    bad, good = (scheduler.submit(Request(PROMPTS[0], 4, on_prompt_read=hook)) for hook in (fail, None))
    log.run(scheduler)
    assert "No space left" in str(log.end(bad).error)
    assert log.ids(good) == alone(model, PROMPTS[0], 4)


@pytest.mark.parametrize("scored", [False, True])
def test_logits_that_are_not_numbers_end_their_request_alone(ops: Ops, scored: bool) -> None:
    """One token's embedding is damaged; no other row meets it."""
    model = build(WINDOWED, ops)
    model.tensors["tok_embeddings.weight"][7] = np.nan
    damaged = build_again(model, ops)
    scheduler, log = Scheduler(Engine(damaged), chunk_size=2), Log()
    bad = scheduler.submit(Request([1, 2, 3, 7, 4], 4, prompt_logprobs=scored))
    good = scheduler.submit(Request([1, 2, 3, 4], 4, prompt_logprobs=scored))
    log.run(scheduler)
    assert log.end(bad).finish_reason == "error"
    assert "logits hold NaN: the checkpoint's weights are damaged or overflow" in str(log.end(bad).error)
    assert log.ids(good) == alone(damaged, [1, 2, 3, 4], 4)
    assert rows_of(scheduler) == {}
    with pytest.raises(InputError, match="NaN"):
        generate([[1, 7]], damaged)


def build_again(model: SmallModel, ops: Ops) -> Transformer:
    return Transformer(model.args, lambda name: ops.weight(model.tensors[name]), ops)


def test_requests_wait_for_memory_and_what_never_fits_is_refused_at_once(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = build(DENSE, model.ops).transformer
    room = Engine(dense).cache.nbytes(12)
    monkeypatch.setattr("mistral.memory.psutil.virtual_memory", lambda: type("Memory", (), {"available": room})())
    scheduler, log = Scheduler(Engine(dense)), Log()
    small, after = (scheduler.submit(Request([1, 2], tokens)) for tokens in (6, 7))
    log.add(scheduler.step())
    assert len(rows_of(scheduler)) == 1
    with pytest.raises(InputError, match="the cache of 62 tokens needs"):
        scheduler.submit(Request([1, 2], 60))
    log.run(scheduler)
    assert [log.end(handle).finish_reason for handle in (small, after)] == ["length", "length"]


def test_a_mistake_in_the_program_is_not_hidden(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "run_blocks", lambda *_: 1 / 0)
    scheduler = Scheduler(Engine(model))
    scheduler.submit(Request([1]))
    with pytest.raises(ZeroDivisionError):
        scheduler.step()


# Threads


def test_other_threads_submit_and_cancel_while_the_owner_steps(model: Transformer) -> None:
    scheduler, log = Scheduler(Engine(model), max_rows=3), Log()
    handles: list[list[Handle]] = [[], [], []]

    def ask(number: int) -> None:
        for count in range(8):
            handle = scheduler.submit(Request(PROMPTS[number], 3))
            handles[number].append(handle)
            if count % 4 == 3:
                scheduler.cancel(handle)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or not scheduler.idle:
        log.add(scheduler.step())
    wanted = [alone(model, prompt, 3) for prompt in PROMPTS[:3]]
    assert sorted(handle.index for found in handles for handle in found) == list(range(24))
    for number, found in enumerate(handles):
        for handle in found:
            end = log.end(handle)
            assert log.ids(handle) == wanted[number] if end.finish_reason == "length" else end.finish_reason


# Company


REQUESTS = (
    Request(PROMPTS[0], 5), Request(PROMPTS[1], 4, SamplingSettings(1.0, 0.9, seed=3)),
    Request(PROMPTS[2], 6, SamplingSettings(0.7, top_k=5, seed=3), eos_id=9), Request(PROMPTS[3], 3),
    Request(PROMPTS[3], 5, SamplingSettings(2.0, seed=1, repetition_penalty=1.3)),
)  # fmt: skip
Step = tuple[str, int]


@functools.cache
def given_alone(model: Transformer, kind: int) -> tuple[list[int], list[float | None]]:
    """Ids and log-probabilities of one of REQUESTS that has no company."""
    scheduler = Scheduler(Engine(model))
    handle = scheduler.submit(REQUESTS[kind])
    log = Log().run(scheduler)
    return log.ids(handle), log.logprobs(handle)


MOVES = st.lists(
    st.one_of(st.tuples(st.just("submit"), st.integers(0, len(REQUESTS) - 1)),
              st.tuples(st.just("cancel"), st.integers(0, 9)), st.tuples(st.just("step"), st.integers(1, 3))),
    min_size=3, max_size=20,
)  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(moves=MOVES, max_rows=st.integers(1, 4), chunk_size=st.integers(1, 7))
def test_an_answer_is_the_same_in_any_company(
    models: dict[str, SmallModel], moves: list[Step], max_rows: int, chunk_size: int
) -> None:
    """Requests that come at any time, others that are cancelled, any chunks: each answer is the one given alone."""
    model = models["interleaved"].transformer
    scheduler, log = Scheduler(Engine(model), chunk_size, max_rows), Log()
    handles: list[tuple[Handle, int]] = []
    cancelled: set[Handle] = set()

    def submit(kind: int) -> None:
        handles.append((scheduler.submit(REQUESTS[kind]), kind))

    def cancel(place: int) -> None:
        if place < len(handles):
            cancelled.add(handles[place][0])
            scheduler.cancel(handles[place][0])

    def step(count: int) -> None:
        for _ in range(count):
            log.add(scheduler.step())

    act: dict[str, Callable[[int], None]] = {"submit": submit, "cancel": cancel, "step": step}
    for move, number in moves:
        act[move](number)
    log.run(scheduler)
    for handle, kind in handles:
        ids, logprobs = given_alone(model, kind)
        if log.end(handle).finish_reason == "cancelled":
            assert handle in cancelled
            assert log.ids(handle) == ids[: len(log.ids(handle))]
        else:
            assert log.ids(handle) == ids
            np.testing.assert_allclose(log.logprobs(handle), logprobs, rtol=0, atol=1e-4)  # type: ignore[arg-type]
    assert rows_of(scheduler) == {}


# Requests with the same prompt


def samples(count: int, prompt: list[int] = PROMPTS[1]) -> list[Request]:
    return [Request(prompt, 5, SamplingSettings(temperature=1.0, seed=3, sample=n)) for n in range(count)]


@pytest.mark.parametrize("max_rows", [1, 3, 64])
def test_requests_with_one_prompt_read_it_once(model: Transformer, max_rows: int) -> None:
    scheduler, log = Scheduler(Engine(model), chunk_size=3, max_rows=max_rows), Log()
    handles = [scheduler.submit(request) for request in [*samples(5), Request(PROMPTS[0], 5), *samples(2)]]
    log.run(scheduler)
    others = [handle for handle in handles if handle.request.prompt == PROMPTS[1]]
    read = sorted(sum(isinstance(e, Prefilled) for e in log.events[handle.index]) for handle in others)
    assert read == [1] * 6 + [-(-len(PROMPTS[1]) // 3)], "chunks of three, and the last token alone"
    for handle in others:
        request = handle.request
        ids, logprobs = generate([request.prompt], model, 5, 1.0, seed=3, sample=request.settings.sample)
        assert log.ids(handle) == ids[0]
        np.testing.assert_allclose(log.logprobs(handle), logprobs[0][-5:], rtol=0, atol=1e-4)  # type: ignore[arg-type]
    assert len({tuple(log.ids(handle)) for handle in others}) > 1
    assert rows_of(scheduler) == {}
    prompts = scheduler._queue.prompts
    assert not prompts._prompts and not prompts._of, "nothing is kept"


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_another_request_reads_the_prompt_where_its_reader_is_cancelled(model: Transformer, steps: int) -> None:
    scheduler, log = Scheduler(Engine(model), chunk_size=2), Log()
    handles = [scheduler.submit(request) for request in samples(3)]
    for _ in range(steps):
        log.add(scheduler.step())
    scheduler.cancel(handles[0])
    log.run(scheduler)
    assert log.end(handles[0]).finish_reason == "cancelled"
    for handle in handles[1:]:
        expected = generate([PROMPTS[1]], model, 5, 1.0, seed=3, sample=handle.index)[0][0]
        assert log.ids(handle) == expected
    assert rows_of(scheduler) == {}


def test_each_reads_the_prompt_where_memory_for_a_copy_is_short(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(engine: Engine, row: int, ids: object, copy: bool = True) -> None:
        raise InputError("no memory")

    expected = generate([PROMPTS[1]], model, 5)[0][0]
    monkeypatch.setattr(Engine, "export", export)
    scheduler, log = Scheduler(Engine(model)), Log()
    handles = [scheduler.submit(Request(PROMPTS[1], 5)) for _ in range(3)]
    log.run(scheduler)
    assert [log.ids(handle) for handle in handles] == [expected] * 3


# Memory that grows with the answers


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Let the cache hold so many tokens of the small models, and count rows two tokens ahead -> the rows parked."""
    parked: list[int] = []
    park = Engine.park

    def noted(engine: Engine, row: int, kept: int = 0) -> None:
        parked.append(row)
        park(engine, row, kept)

    def limit(tokens: int) -> list[int]:
        parked.clear()
        nbytes = cache_nbytes(DENSE, range(DENSE.n_layers), tokens, 4)
        monkeypatch.setattr(mistral.engine.engine, "available_memory", lambda: nbytes)
        monkeypatch.setattr(mistral.engine.active_row, "ANSWER_ROOM", 2)
        monkeypatch.setattr(Engine, "park", noted)
        return parked

    return limit


def test_rows_that_outgrow_the_memory_go_on_as_if_nothing_had_been(
    models: dict[str, SmallModel], little_memory: Callable[[int], list[int]]
) -> None:
    model = models["dense"].transformer
    drawn = SamplingSettings(temperature=1.0, repetition_penalty=1.3, seed=5)
    expected = [generate([p], model, 14, 1.0, repetition_penalty=1.3, seed=5) for p in PROMPTS]
    parked = little_memory(max(map(len, PROMPTS)) + 14)
    scheduler, log = Scheduler(Engine(model), chunk_size=5), Log()
    handles = [scheduler.submit(Request(prompt, 14, drawn)) for prompt in PROMPTS]
    log.run(scheduler)
    assert parked
    for handle, (ids, logprobs) in zip(handles, expected, strict=True):
        assert log.ids(handle) == ids[0]
        np.testing.assert_allclose(log.logprobs(handle), logprobs[0][-14:], rtol=0, atol=1e-4)  # type: ignore[arg-type]
        read = [e.done for e in log.events[handle.index] if isinstance(e, Prefilled)]
        assert read == sorted(set(read)), "what is read again is not told"
    assert rows_of(scheduler) == {}


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    memory=st.integers(0, 40),
    asked=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=6),
    cancelled=st.integers(0, 5),
    after=st.integers(0, 12),
)
def test_any_memory_gives_the_same_answers(
    models: dict[str, SmallModel],
    little_memory: Callable[[int], list[int]],
    memory: int,
    asked: list[tuple[int, int]],
    cancelled: int,
    after: int,
) -> None:
    model = models["dense"].transformer
    little_memory(1000)
    expected = [alone(model, PROMPTS[place], tokens) for place, tokens in asked]
    little_memory(max(len(PROMPTS[place]) + tokens for place, tokens in asked) + memory)
    scheduler, log = Scheduler(Engine(model), chunk_size=4), Log()
    handles = [scheduler.submit(Request(PROMPTS[place], tokens)) for place, tokens in asked]
    for _ in range(after):
        log.add(scheduler.step())
    if cancelled < len(handles):
        scheduler.cancel(handles[cancelled])
    log.run(scheduler)
    for handle, ids in zip(handles, expected, strict=True):
        if log.end(handle).finish_reason == "cancelled":
            assert log.ids(handle) == ids[: len(log.ids(handle))]
        else:
            assert log.ids(handle) == ids
    assert rows_of(scheduler) == {}


def test_an_answer_that_has_the_memory_to_itself_ends_where_it_is_full(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(engine: Engine, row: int, tokens: int) -> None:
        raise InputError("no memory")

    monkeypatch.setattr(mistral.engine.active_row, "ANSWER_ROOM", 4)
    monkeypatch.setattr(Engine, "grow", grow)
    scheduler, log = Scheduler(Engine(model)), Log()
    handle = scheduler.submit(Request(PROMPTS[0], 20, text=lettered()))
    log.run(scheduler)
    assert log.end(handle).finish_reason == "length"
    assert log.ids(handle) == alone(model, PROMPTS[0], 20)[:5]
    assert rows_of(scheduler) == {}


def test_logprobs_are_computed_where_they_were_asked_for(model: Transformer) -> None:
    scheduler, log = Scheduler(Engine(model)), Log()
    with_, without = (scheduler.submit(Request(PROMPTS[0], 3, logprobs=logprobs)) for logprobs in (True, False))
    log.run(scheduler)
    assert log.logprobs(without) == [None] * 3
    assert None not in log.logprobs(with_)
    assert log.ids(with_) == log.ids(without)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("Hello", "must be one flat sequence of integers from 0 to 39, not text: encode it first"),
        (["Hello"], "must be .* not text: encode it first"),
        ([[1, 2], [3, 4]], r"must be .* not an array of shape \(2, 2\)"),
        ([[1], [2, 3]], "must be .* not sequences of different lengths"),
        (np.ones((2, 2), int), r"must be .* not an array of shape \(2, 2\)"),
        ([1.5], "must be .* not one of float64"),
        ([True], "must be .* not one of bool"),
        (5, "must be .* not a single number"),
        (None, "must be .* not one with NoneType in it"),
        ([], "is empty"),
        ([40], "has an id outside the vocabulary of 40"),
        ([-1], "has an id outside the vocabulary of 40"),
        ([1 << 80], "must be .* not one of numbers so large"),
    ],
)
def test_what_is_no_prompt_is_refused_with_a_word_about_what_is_one(
    model: Transformer, prompt: object, message: str
) -> None:
    with pytest.raises(InputError, match=f"the prompt {message}"):
        Scheduler(Engine(model)).submit(Request(prompt))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="prompt"):
        generate(prompt if prompt is None else [prompt], model)  # type: ignore[arg-type, list-item]


def test_arrays_of_ids_are_prompts(model: Transformer) -> None:
    assert generate([np.array(PROMPTS[0])], model, 4)[0] == [alone(model, PROMPTS[0], 4)]  # type: ignore[list-item]
