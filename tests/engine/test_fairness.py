"""Whose turn it is: keys are served alike, however much each of them asks for."""

from __future__ import annotations

import numpy as np
import pytest

from mistral.engine.requests import Event, Generated, Prefilled, Request
from mistral.engine.scheduler import Handle, Scheduler
from mistral.engine.shares import Shares
from tests.support.timed_engine import TimedEngine


def timed(max_rows: int = 64, step_ms: float | None = 200.0) -> tuple[TimedEngine, Scheduler]:
    engine = TimedEngine(lambda rows, tokens, depth: 0.01 + 0.001 * tokens)
    return engine, Scheduler(engine, max_rows=max_rows, step_ms=step_ms, clock=engine.clock)


def steps_until(scheduler: Scheduler, handle: Handle, ends: bool = False) -> int:
    """Steps until the first token of an answer, or its end."""
    for count in range(1, 100_000):
        for event in scheduler.step():
            if isinstance(event, Generated) and event.index == handle.index and (event.finish_reason or not ends):
                return count
    raise AssertionError


@pytest.mark.parametrize("max_rows", [4, 64])
@pytest.mark.parametrize("before", [0, 3, 60])
def test_one_request_beside_twenty_of_another_key_begins_within_a_few_steps(max_rows: int, before: int) -> None:
    """Also where the others have all rows, and where their prompts are long."""
    engine, scheduler = timed(max_rows)
    many = [scheduler.submit(Request([i] * 300, 500), key="many") for i in range(20)]
    for _ in range(before):
        scheduler.step()
    one = scheduler.submit(Request([99 % 40] * 100, 20), key="one")
    assert steps_until(scheduler, one) <= 12
    assert steps_until(scheduler, one, ends=True) <= 25
    ends: list[int] = []
    while not scheduler.idle:
        ends += [e.index for e in scheduler.step() if isinstance(e, Generated) and e.finish_reason == "length"]
    assert sorted(ends) == [handle.index for handle in many]
    assert engine.seen == {}


def test_within_a_key_who_came_first_is_first() -> None:
    _, scheduler = timed(max_rows=2)
    handles = [scheduler.submit(Request([i] * 50, 5), key="a") for i in range(6)]
    begun: list[int] = []
    while not scheduler.idle:
        begun += [e.index for e in scheduler.step() if isinstance(e, Prefilled) and e.done == e.total]
    assert begun == [handle.index for handle in handles]


def test_keys_get_the_same_number_of_tokens() -> None:
    """Three keys that always want more, one of them with long prompts and one with many requests at once."""
    _, scheduler = timed(max_rows=6)
    served = {"long": 0, "many": 0, "few": 0}
    keys: dict[int, str] = {}
    open_ = dict.fromkeys(served, 0)
    wants = {"long": (1, 2000, 10), "many": (10, 20, 40), "few": (2, 100, 100)}

    def count(events: list[Event]) -> None:
        for event in events:
            served[keys[event.index]] += (
                event.total if isinstance(event, Prefilled) and event.done == event.total else 0
            )
            if isinstance(event, Generated):
                served[keys[event.index]] += event.id is not None
                open_[keys[event.index]] -= event.finish_reason is not None

    for _ in range(3000):
        for key, (at_once, prompt, answer) in wants.items():
            while open_[key] < at_once:
                keys[scheduler.submit(Request([len(keys) % 40] * prompt, answer), key=key).index] = key
                open_[key] += 1
        count(scheduler.step())
    assert served["many"] > 3000 and served["few"] > 3000, served
    assert max(served["many"], served["few"]) < 2 * min(served["many"], served["few"]), served


def test_a_key_that_comes_has_no_claim_for_the_time_before() -> None:
    shares = Shares()
    shares.come("old")
    shares.add("old", 1000)
    shares.come("new")
    assert shares.served("new") == 1000
    shares.add("new", 500)
    shares.go("new")
    shares.come("new")
    assert shares.served("new") == 1500, "nobody gains by going and coming again"
    shares.go("new")
    shares.go("old")
    shares.come("new")
    assert (shares.served("new"), shares._served) == (0, {"new": 0}), "nothing is kept once all are gone"


def test_keys_that_are_gone_are_forgotten_once_they_do_not_count() -> None:
    shares = Shares()
    shares.come("here")
    for number in range(100):
        shares.come(str(number))
        shares.add("here", 10)
        shares.go(str(number))
    assert len(shares._served) <= 3


def test_random_company_is_served_to_the_end() -> None:
    random = np.random.default_rng(1)
    engine, scheduler = timed(max_rows=3)
    handles, cancelled, ends = list[Handle](), set[int](), dict[int, str]()
    for _ in range(400):
        if random.random() < 0.3:
            prompt = random.integers(0, 3, random.integers(1, 60)).tolist()
            key = str(random.integers(4))
            handles.append(scheduler.submit(Request(prompt, int(random.integers(0, 30))), key=key))
        if handles and random.random() < 0.1:
            gone = handles[int(random.integers(len(handles)))]
            scheduler.cancel(gone)
            cancelled.add(gone.index)
        for event in scheduler.step():
            if isinstance(event, Generated) and event.finish_reason:
                assert event.index not in ends
                ends[event.index] = event.finish_reason
    while not scheduler.idle:
        for event in scheduler.step():
            if isinstance(event, Generated) and event.finish_reason:
                assert event.index not in ends
                ends[event.index] = event.finish_reason
    assert sorted(ends) == [handle.index for handle in handles]
    assert all(reason == "length" or index in cancelled for index, reason in ends.items())
    figures = scheduler.figures
    assert (figures.waiting, figures.reading, figures.answering, figures.parked) == (0, 0, 0, 0)
    assert engine.seen == {} and scheduler._rows.shares._requests == {}
