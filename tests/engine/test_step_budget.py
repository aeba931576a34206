"""The time of a step: how many prompt tokens fit into it, as measured, whatever the machine."""

from __future__ import annotations

import numpy as np
import pytest

from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import Scheduler
from mistral.engine.step_budget import FIRST, LEAST, StepBudget
from mistral.errors import InputError
from tests.support.timed_engine import Cost, TimedEngine

BUDGET = 0.2
LONG = [1] * 8000


def read_beside_answers(cost: Cost, rows: int = 3) -> list[tuple[int, int, float]]:
    """The steps in which a long prompt is read beside rows that are being answered."""
    engine = TimedEngine(cost)
    scheduler = Scheduler(engine, step_ms=1000 * BUDGET, clock=engine.clock)
    for number in range(rows):
        scheduler.submit(Request([number, 2, 3], 10**6))
    for _ in range(6):
        scheduler.step()
    first = len(engine.steps)
    long = scheduler.submit(Request(LONG, 1))
    while not any(event.index == long.index and isinstance(event, Generated) for event in scheduler.step()):
        pass
    steps = engine.steps[first:]
    assert sum(tokens for _, tokens, _ in steps) == len(LONG)
    assert all(answered == rows for answered, _, _ in steps), "every row is in every step"
    return steps


@pytest.mark.parametrize(("answer", "each"), [(0.01, 0.0002), (0.05, 0.001), (0.15, 0.002), (0.001, 0.00001)])
def test_a_long_prompt_holds_answers_up_no_longer_than_the_budget(answer: float, each: float) -> None:
    steps = read_beside_answers(lambda rows, tokens, depth: answer * (rows > 0) + 0.001 * rows + each * tokens)
    assert max(seconds for _, _, seconds in steps) <= BUDGET * 1.01
    least = len(LONG) * each / (BUDGET - answer - 0.003)
    assert len(steps) <= max(1.1 * least, len(LONG) / 512) + 6, "and wastes little of it"


def test_it_follows_a_cost_that_grows_with_what_was_read_before() -> None:
    """At the end of the prompt a token costs five times as much as at its beginning."""
    steps = read_beside_answers(lambda rows, tokens, depth: 0.03 + 0.0005 * tokens * (1 + depth / 2000))
    assert max(seconds for _, _, seconds in steps) <= 1.25 * BUDGET
    sizes = [tokens for _, tokens, _ in steps[4:-1]]
    assert sizes[0] > 200 and sizes[-1] < 100


def test_slow_steps_now_and_then_change_nothing() -> None:
    random = np.random.default_rng(0)

    def cost(rows: int, tokens: int, depth: int) -> float:
        return (0.03 + 0.001 * tokens) * (6.0 if random.random() < 0.1 else random.uniform(0.95, 1.05))

    steps = read_beside_answers(cost)
    usual = [seconds for _, _, seconds in steps if seconds < 2 * BUDGET]
    assert max(usual) <= 1.25 * BUDGET and len(usual) >= 0.8 * len(steps)
    assert np.median([tokens for _, tokens, _ in steps]) > 120


def test_where_answers_take_all_the_time_prompts_still_go_on() -> None:
    steps = read_beside_answers(lambda rows, tokens, depth: 0.5 + 0.001 * tokens)
    assert {tokens for _, tokens, _ in steps[3:-1]} <= {39, 40}, "a fifth of the time"
    slow = read_beside_answers(lambda rows, tokens, depth: 0.5 + 0.01 * tokens)
    assert {tokens for _, tokens, _ in slow[3:]} == {LEAST}
    assert steps[0][1] <= FIRST and slow[0][1] <= FIRST


def test_answers_that_were_slow_for_a_while_are_thought_fast_again() -> None:
    """Also where every step reads: a step with a prompt cannot be shorter than one without."""
    slow = [True]

    def cost(rows: int, tokens: int, depth: int) -> float:
        slow[0] &= depth < 500
        return (1.0 if slow[0] else 0.02) + 0.0005 * tokens

    steps = read_beside_answers(cost)
    assert steps[-2][1] > 300


def test_without_answers_a_whole_chunk_is_read() -> None:
    engine = TimedEngine(lambda rows, tokens, depth: 0.01 * tokens)
    scheduler = Scheduler(engine, step_ms=1000 * BUDGET, clock=engine.clock)
    scheduler.submit(Request(LONG, 1))
    while not scheduler.idle:
        scheduler.step()
    assert [tokens for _, tokens, _ in engine.steps[:-1]] == [512] * 15


def test_without_a_budget_nothing_is_measured() -> None:
    engine = TimedEngine(lambda rows, tokens, depth: float(tokens))
    scheduler = Scheduler(engine, clock=engine.clock)
    scheduler.submit(Request([1], 10**6))
    scheduler.step()
    scheduler.submit(Request(LONG, 1))
    scheduler.step()
    assert engine.steps[1][1] == 512


def test_estimates_are_those_of_steps_of_about_the_size() -> None:
    budget = StepBudget(1.0)
    assert (budget.answer_seconds(4), budget.token_seconds(4), budget.tokens(4, 99)) == (0.0, 0.0, FIRST)
    for rows, seconds in ((4, 0.1), (64, 0.4), (4, 0.1), (4, 9.0), (64, 0.4)):
        budget.add(rows, 0, seconds)
    assert budget.answer_seconds(4) == 0.1
    assert budget.answer_seconds(50) == 0.4
    budget.add(4, 100, 0.3)
    assert budget.token_seconds(100) == pytest.approx(0.002)
    assert budget.tokens(4, 4096) == 200, "at most twice what was tried"
    for _ in range(3):
        budget.add(4, 400, 0.9)
    assert budget.tokens(4, 4096) == 448
    assert budget.tokens(64, 4096) == 288
    assert budget.tokens(4, 50) == 50
    budget.add(4, 400, 0.05)  # less than the answers alone: no time at all
    assert budget.token_seconds(400) == pytest.approx(0.002)


@pytest.mark.parametrize("step_ms", [0, -1, float("nan")])
def test_a_step_takes_time(step_ms: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        Scheduler(TimedEngine(lambda *_: 0.0), step_ms=step_ms)
