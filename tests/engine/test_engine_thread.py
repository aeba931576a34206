"""The thread that owns an engine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from mistral.engine.engine import Engine
from mistral.engine.engine_thread import EngineThread
from mistral.engine.requests import Event, Generated, Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import Scheduler
from mistral.errors import InputError
from mistral.generate import generate
from mistral.load import Transformer
from tests.support.generation import PROMPTS


@pytest.fixture
def scheduler(model: Transformer) -> Scheduler:
    return Scheduler(Engine(model), chunk_size=2)


@pytest.fixture
def thread(scheduler: Scheduler) -> Iterator[EngineThread]:
    thread = EngineThread(scheduler)
    yield thread
    thread.close()


def ended(events: queue.Queue[Event]) -> tuple[list[int], Generated]:
    """The ids of an answer, and its last event."""
    ids = []
    while True:
        event = events.get(timeout=60)
        if isinstance(event, Generated):
            ids.extend([] if event.id is None else [event.id])
            if event.finish_reason:
                return ids, event


def test_requests_of_many_threads_are_answered_as_each_alone(model: Transformer, thread: EngineThread) -> None:
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        events = queue.Queue[Event]()
        settings = SamplingSettings(temperature=1.0, sample=number)
        thread.submit(Request(PROMPTS[number % len(PROMPTS)], 6, settings), events.put)
        found[number] = ended(events)[0]

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(timeout=120)
    for number in range(12):
        prompt = PROMPTS[number % len(PROMPTS)]
        assert found[number] == generate([prompt], model, 6, 1.0, sample=number)[0][0]


def test_a_request_is_cancelled_from_outside(model: Transformer, thread: EngineThread, scheduler: Scheduler) -> None:
    events, other = queue.Queue[Event](), queue.Queue[Event]()
    handle = thread.submit(Request(PROMPTS[0], 100_000), events.put)
    thread.submit(Request(PROMPTS[1], 5), other.put)
    while not isinstance(events.get(timeout=60), Generated):
        pass
    thread.cancel(handle)
    assert ended(events)[1].finish_reason == "cancelled"
    assert ended(other)[0] == generate([PROMPTS[1]], model, 5)[0][0]
    thread.cancel(handle)  # which has ended: nothing happens
    thread.submit(Request(PROMPTS[1], 1), other.put)
    assert ended(other)[1].finish_reason == "length"


def test_requests_that_come_together_are_read_together(thread: EngineThread, scheduler: Scheduler) -> None:
    """An engine that has nothing to do waits until it is told that they are all there."""
    events = [queue.Queue[Event]() for _ in range(3)]
    for each in events:
        thread.submit(Request(PROMPTS[0], max_tokens=1), each.put, begin=False)
    assert scheduler.figures.steps == 0 and all(each.empty() for each in events)
    thread.begin()
    assert len({tuple(ended(each)[0]) for each in events}) == 1


def test_whoever_waits_when_it_closes_is_told(thread: EngineThread, scheduler: Scheduler) -> None:
    events = queue.Queue[Event]()
    thread.submit(Request(PROMPTS[0], 100_000), events.put)
    thread.close()
    assert ended(events)[1].finish_reason == "cancelled"
    assert isinstance(scheduler.engine, Engine) and not scheduler.engine.cache.rows
    with pytest.raises(InputError, match="the engine is closed; open the model again"):
        thread.submit(Request(PROMPTS[0]), events.put)
    thread.close()


def test_a_failure_of_the_engine_ends_the_requests_and_not_the_thread(
    model: Transformer, thread: EngineThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(engine: Engine, work: object) -> int:
        raise RuntimeError("no such operator\nin two lines")

    events = queue.Queue[Event]()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "submit", fails)
        thread.submit(Request(PROMPTS[0], 5), events.put)
        end = ended(events)[1]
    assert end.finish_reason == "error"
    assert str(end.error) == "the engine failed: no such operator in two lines"
    thread.submit(Request(PROMPTS[0], 5), events.put)
    assert ended(events)[0] == generate([PROMPTS[0]], model, 5)[0][0]


def test_a_prompt_that_cannot_be_served_is_refused_to_whoever_asks(thread: EngineThread) -> None:
    with pytest.raises(InputError, match="message 3 is empty"):
        thread.submit(Request([]), lambda event: None, "message 3")
