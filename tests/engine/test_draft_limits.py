"""Drafts at the limits of a row: its context, its memory, its company, and its end by someone else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from mistral.engine import active_row
from mistral.engine.engine import Engine
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.prompt_cache import PromptCache
from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import Scheduler, generate_stream
from mistral.load import Transformer
from mistral.model import kv_cache
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from tests.support.drafting import HOW, TEXT, asked, guessing, ids_of, told
from tests.support.small_models import SHAPES, build


@pytest.fixture(scope="module")
def model(ops: Ops) -> Transformer:
    return build(SHAPES["interleaved"], cast(Ops, Native()), 4).transformer


@pytest.fixture(autouse=True)
def few_spare_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "SPARE", 4)


@pytest.mark.parametrize("limit", [19, 20, 25, 30])
def test_the_context_ends_within_drafts_where_it_would(model: Transformer, limit: int) -> None:
    """A drafter that goes on beyond it has no effect."""
    free = told(generate_stream(Engine(model), [asked("sampled")]))
    before = told(generate_stream(Engine(model, limit), [asked("sampled")]))
    found = told(generate_stream(Engine(model, limit), [asked("sampled")], speculation=guessing(free, 1.0)))
    assert found == before and len(ids_of(found[0])) == min(24, limit - 18)
    assert found[0][-1][-1] == "length"


@pytest.mark.parametrize("room", [1, 2, 5])
@pytest.mark.parametrize("right", [1.0, 0.5])
def test_drafts_stay_within_the_memory_that_is_counted(
    model: Transformer, room: int, right: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three rows that memory is too short for at once, some are parked; no step has more tokens than are counted."""
    before = told(generate_stream(Engine(model), [asked("sampled", n) for n in range(3)]))
    monkeypatch.setattr(active_row, "ANSWER_ROOM", room)
    engine = Engine(model)
    rooms = engine._find_rooms()
    monkeypatch.setattr(engine, "_find_rooms", lambda: [replace(rooms[0], available=engine.cache.nbytes(44) * 2)])
    begin = engine.stage.begin

    def counted(work: Any) -> Any:
        for piece in work:
            assert engine.kv_seqlen(piece.row) + len(piece.tokens) <= engine._reserved[piece.row]
        return begin(work)

    monkeypatch.setattr(engine.stage, "begin", counted)
    requests = [asked("sampled", n) for n in range(3)]
    assert told(generate_stream(engine, requests, speculation=guessing(before, right))) == before


@pytest.mark.parametrize("right", [1.0, 0.6])
def test_several_answers_to_one_prompt(model: Transformer, right: float) -> None:
    """One reads it, the others begin with a copy of its row; and what was stored of them is each one's own."""
    requests = [replace(asked("sampled", n), prompt=TEXT[:20], text=None) for n in range(4)]
    before = {n: told(generate_stream(Engine(model), [requests[n]]))[0] for n in range(4)}
    scheduler = Scheduler(
        Engine(model), prefix_store=PrefixStore(model.args, 10**7), speculation=guessing(before, right)
    )  # fmt: skip
    for request in requests:
        scheduler.submit(request)
    events = [event for _ in range(200) if not scheduler.idle for event in scheduler.step()]
    assert told(iter(events)) == before
    again = [replace(request, prompt=[*TEXT[:20], *ids_of(before[n])[:9]]) for n, request in enumerate(requests)]
    expected = {n + 4: told(generate_stream(Engine(model), [again[n]]))[0] for n in range(4)}
    scheduler._speculation = guessing(expected, right)
    for request in again:
        scheduler.submit(request)
    events = [event for _ in range(200) if not scheduler.idle for event in scheduler.step()]
    assert told(iter(events)) == expected


def test_a_request_that_is_cancelled_leaves_nothing_wrong_behind(model: Transformer) -> None:
    """Whatever its last drafts were: its neighbour goes on, and what was stored of it is what it had read."""
    before = told(generate_stream(Engine(model), [asked("sampled", n) for n in range(2)]))
    scheduler = Scheduler(
        Engine(model), prefix_store=PrefixStore(model.args, 10**7), speculation=guessing(before, 0.5)
    )  # fmt: skip
    handles = [scheduler.submit(asked("sampled", n)) for n in range(2)]
    events = [event for _ in range(4) for event in scheduler.step()]
    scheduler.cancel(handles[0])
    events += [event for _ in range(99) if not scheduler.idle for event in scheduler.step()]
    found = told(iter(events))
    assert found[1] == before[1] and found[0][-1][-1] == "cancelled"
    assert found[0][:-1] == before[0][: len(found[0]) - 1]
    got = ids_of(found[0])
    longer = Request([*asked("sampled").prompt, *got, 5], 9, HOW["greedy"])
    expected = told(generate_stream(Engine(model), [longer]))[0]
    scheduler._speculation = guessing({2: expected}, 0.5)
    scheduler.submit(longer)
    events = [event for _ in range(99) if not scheduler.idle for event in scheduler.step()]
    assert told(iter(events))[2] == expected
    assert next(event.cached for event in events if not isinstance(event, Generated)) > 0


def test_prompts_that_come_from_a_file(model: Transformer, tmp_path: Path) -> None:
    """Of --prompt_cache: read first, and found the second time."""
    before = told(generate_stream(Engine(model), [Request(TEXT[:30], 12, HOW["sampled"])]))
    for right in (1.0, 0.5):
        for _ in range(2):
            cache = PromptCache(tmp_path / str(right), "key")
            requests = [Request(TEXT[:30], 12, HOW["sampled"])]
            assert told(cache.stream(Engine(model), requests, speculation=guessing(before, right))) == before
