"""Rows that give their place or their memory to others, and what is counted of all that."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest

import mistral.engine.engine
from mistral.engine.engine import Engine
from mistral.engine.engine_thread import EngineThread
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.requests import Event, Generated, Prefilled, Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import Handle, Scheduler
from mistral.errors import InputError
from mistral.generate import generate
from mistral.load import Transformer
from mistral.model.kv_cache import cache_nbytes
from tests.support.generation import PROMPTS, Spy
from tests.support.small_models import DENSE, SmallModel

DRAWN = SamplingSettings(temperature=1.0, repetition_penalty=1.3, seed=5)


def nbytes(tokens: int) -> int:
    return cache_nbytes(DENSE, range(DENSE.n_layers), tokens, 4)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the cache hold so many tokens of the dense model, and count rows two tokens ahead."""

    def limit(tokens: int) -> None:
        monkeypatch.setattr(mistral.engine.engine, "available_memory", lambda: nbytes(tokens))
        monkeypatch.setattr("mistral.engine.active_row.ANSWER_ROOM", 2)

    return limit


def run(scheduler: Scheduler, found: list[Event] | None = None) -> list[Event]:
    """Step until the scheduler is idle."""
    events = [] if found is None else found
    while not scheduler.idle:
        events += scheduler.step()
    return events


def answer(events: list[Event], handle: Handle) -> tuple[list[int], list[float]]:
    steps = [e for e in events if isinstance(e, Generated) and e.index == handle.index and e.id is not None]
    return [e.id for e in steps if e.id is not None], [e.logprob for e in steps if e.logprob is not None]


def require_alone(model: Transformer, events: list[Event], handle: Handle) -> None:
    """The answer is the one that the request gets alone."""
    prompt, tokens = list(handle.request.prompt), handle.request.max_tokens
    ids, logprobs = generate([prompt], model, tokens, 1.0, repetition_penalty=1.3, seed=5)
    assert answer(events, handle)[0] == ids[0]
    np.testing.assert_allclose(answer(events, handle)[1], logprobs[0][-tokens:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", ["windowed", "interleaved", "moe_windowed"])
def test_a_row_that_is_parked_for_another_key_goes_on_without_reading_again(
    models: dict[str, SmallModel], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models[shape].transformer
    with monkeypatch.context() as patch:
        spy = Spy(model, patch)
        scheduler, events = Scheduler(Engine(model), max_rows=2), list[Event]()
        many = [scheduler.submit(Request(PROMPTS[i], 12, DRAWN), key="many") for i in (0, 1, 3)]
        for _ in range(4):
            events += scheduler.step()
        one = scheduler.submit(Request(PROMPTS[2], 5, DRAWN), key="one")
        events += scheduler.step()
        assert isinstance(events[-1], Generated) and events[-1].index == one.index, "it begins at once"
        figures = scheduler.figures
        assert (figures.parked, figures.answering, figures.waiting) == (1, 2, 1)
        assert len(cast(Engine, scheduler.engine).cache.rows) == 2
        run(scheduler, events)
        prompts = sum(len(handle.request.prompt) for handle in (*many, one))
        assert sum(spy.tokens) == prompts + 3 * 11 + 4, "nothing twice"
    for handle in (*many, one):
        require_alone(model, events, handle)
    assert scheduler.figures.row_bytes == 0


def test_without_memory_for_a_copy_no_row_gives_its_place(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(engine: Engine, row: int, ids: object, copy: bool = True) -> None:
        raise InputError("no memory")

    monkeypatch.setattr(Engine, "export", export)
    scheduler, events = Scheduler(Engine(model), max_rows=2), list[Event]()
    many = [scheduler.submit(Request(PROMPTS[i], 6, DRAWN), key="many") for i in (0, 1)]
    events += scheduler.step()
    one = scheduler.submit(Request(PROMPTS[2], 5, DRAWN), key="one")
    events += scheduler.step()
    assert scheduler.figures.parked == 0
    run(scheduler, events)
    for handle in (*many, one):
        require_alone(model, events, handle)


def test_where_memory_is_short_a_key_with_many_rows_parks_one_for_another(
    models: dict[str, SmallModel], memory: Callable[[int], None]
) -> None:
    model = models["dense"].transformer
    memory(40)
    scheduler, events = Scheduler(Engine(model)), list[Event]()
    many = [scheduler.submit(Request([number, *PROMPTS[3]], 3 + 2 * number, DRAWN), key="many") for number in range(4)]
    events += scheduler.step()
    assert scheduler.figures.waiting == 1
    one = scheduler.submit(Request(PROMPTS[3], 6, DRAWN), key="one")
    events += scheduler.step()
    assert any(isinstance(e, Prefilled) and e.index == one.index for e in events), "it begins at once"
    run(scheduler, events)
    memory(1000)
    for handle in (*many, one):
        require_alone(model, events, handle)


def test_a_copy_is_kept_until_its_memory_is_needed(
    models: dict[str, SmallModel], memory: Callable[[int], None]
) -> None:
    """Two rows outgrow the memory: the second is parked with a copy, whose memory is counted, and then without."""
    model = models["dense"].transformer
    memory(31)
    scheduler, events, seen = Scheduler(Engine(model)), list[Event](), list[tuple[int, int]]()
    handles = [scheduler.submit(Request([number, *PROMPTS[3]], 20, DRAWN)) for number in range(2)]
    while not scheduler.idle:
        events += scheduler.step()
        figures = scheduler.figures
        assert figures.row_bytes <= nbytes(31)
        if figures.parked:
            seen.append((figures.parked, figures.row_bytes // nbytes(1)))
    copies = [tokens - 12 for _, tokens in seen]
    assert len(set(copies)) > 2, "first there was a copy, later there was none"
    kept = [row.kept for row in scheduler._parked.values()]
    assert not any(kept)
    memory(1000)
    for handle in handles:
        require_alone(model, events, handle)


@pytest.mark.parametrize("state", ["waiting", "reading", "answering", "parked", "parked with a copy"])
def test_whatever_a_request_does_it_is_cancelled_within_a_step_and_its_memory_is_free(
    models: dict[str, SmallModel], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise InputError("no memory")

    model = models["dense"].transformer
    engine = Engine(model)
    scheduler = Scheduler(engine, chunk_size=4, max_rows=2)
    stays = scheduler.submit(Request(PROMPTS[0], 40, DRAWN), key="many")
    gone = scheduler.submit(Request(PROMPTS[1], 40, DRAWN), key="many")
    events = list(scheduler.step())
    if state == "waiting":
        gone = scheduler.submit(Request(PROMPTS[3], 40, DRAWN), key="many")
    elif state != "reading":
        for _ in range(6):
            events += scheduler.step()
    if state == "parked with a copy":
        scheduler.submit(Request([1], 30), key="one")
    elif state == "parked":  # as for its memory, of which there is none yet to go on
        monkeypatch.setattr(engine, "unpark", refuse)
        scheduler._parked[gone] = scheduler._active.pop(gone)
        scheduler._parked[gone].park(engine)
    if state.startswith("parked"):
        events += scheduler.step()
        assert scheduler.figures.parked == 1 and gone in scheduler._parked
        assert bool(scheduler._parked[gone].kept) == (state == "parked with a copy")
    before = scheduler.figures.row_bytes
    scheduler.cancel(gone)
    last = scheduler.step()
    assert [e.finish_reason for e in last if isinstance(e, Generated) and e.index == gone.index] == ["cancelled"]
    freed = before - scheduler.figures.row_bytes
    wanted = {"waiting": 0, "parked": 0}.get(state, 1)
    assert (freed > 0) == bool(wanted), "at once"
    run(scheduler, events + last)
    assert (scheduler.figures.row_bytes, engine.reserved, engine.cache.rows) == (0, (0, 0), {})
    assert scheduler._rows.shares._requests == {}
    assert stays.index not in [e.index for e in last if isinstance(e, Generated) and e.finish_reason]


def test_what_is_done_is_counted(model: Transformer) -> None:
    times = iter(range(10**6))
    store = PrefixStore(model.args, 10**6)
    scheduler = Scheduler(Engine(model), chunk_size=5, prefix_store=store, clock=lambda: float(next(times)))
    assert (scheduler.figures.steps, scheduler.figures.prefix_bytes) == (0, 0)
    scheduler.submit(Request(PROMPTS[1], 4))
    assert scheduler.figures.waiting == 1
    scheduler.step()
    figures = scheduler.figures
    assert (figures.waiting, figures.reading, figures.answering) == (0, 1, 0)
    assert (figures.prompt_tokens, figures.row_bytes) == (5, cache_nbytes(model.args, range(2), 22, 4))
    run(scheduler)
    scheduler.submit(Request(PROMPTS[1], 2))
    run(scheduler)
    figures = scheduler.figures
    assert (figures.prompt_tokens, figures.cached_tokens, figures.generated_tokens) == (19, 17, 6)
    assert figures.prefix_bytes == store.nbytes > 0
    assert (figures.steps, figures.longest_seconds, figures.last_seconds) == (9, 3.0, 3.0)
    assert figures.seconds == 27.0


def test_figures_are_read_while_the_engine_works(model: Transformer) -> None:
    """And a request's key and space go with it."""
    thread = EngineThread(Scheduler(Engine(model), prefix_store=PrefixStore(model.args, 10**6)))
    try:
        handle = thread.submit(Request(PROMPTS[0], 100_000), lambda event: None, key="one", space="shared")
        assert (handle.key, handle.space) == ("one", "shared")
        assert thread.submit(Request(PROMPTS[0], 100_000), lambda event: None, key="one").space == "one"
        while thread.figures.generated_tokens < 20:
            figures = thread.figures
            assert figures.reading + figures.answering <= 2
    finally:
        thread.close()
    assert (thread.figures.row_bytes, thread.figures.answering) == (0, 0)
