"""What steps take is tried before the first drafts: within a bound, and without a trace in any answer or figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from mistral.engine import speculation
from mistral.engine.active_row import ActiveRow
from mistral.engine.draft_depth import StepCosts
from mistral.engine.drafter import Drafter
from mistral.engine.engine import Engine
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.requests import Generated
from mistral.engine.scheduler import Scheduler, generate_stream
from mistral.engine.speculation import Speculation
from mistral.engine.step_trial import AT_ONCE, FEWEST, LIMIT, ROUNDS, SIZES, StepTrial
from mistral.engine.timings import Timings
from mistral.engine.work import Outcome, Work
from mistral.errors import InputError
from mistral.load import Transformer
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from tests.support.drafting import Found, asked, ids_of, told
from tests.support.small_models import SHAPES, build


@pytest.fixture(scope="module")
def model(ops: Ops) -> Transformer:
    return build(SHAPES["interleaved"], cast(Ops, Native()), 4).transformer


class Clocked(Engine):
    """An engine whose steps take what they are told to, by their tokens; `sizes` says how many each had."""

    def __init__(self, model: Transformer, cost: Callable[[int], float], **more: Any) -> None:
        super().__init__(model, **more)
        self.cost, self.now, self.sizes, self.rows = cost, 0.0, list[int](), list[list[int]]()

    def clock(self) -> float:
        return self.now

    def submit(self, work: Sequence[Work]) -> int:
        tokens = sum(len(piece.tokens) for piece in work)
        self.sizes.append(tokens)
        self.rows.append([piece.row for piece in work])
        self.now += self.cost(tokens)
        return super().submit(work)

    @property
    def tried(self) -> list[int]:
        """Sizes of the steps that no answer had."""
        return [size for size, rows in zip(self.sizes, self.rows, strict=True) if rows[0] not in (0, 1)]


class Right(Drafter):
    """Guesses what the answer is known to be."""

    def __init__(self, answer: Sequence[int]) -> None:
        self.answer, self.drafts = answer, list[int]()

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        return self.answer[len(answer) : len(answer) + most]


def answered(
    engine: Clocked, known: dict[int, Found], store: PrefixStore | None = None
) -> tuple[dict[int, Found], Scheduler, list[int]]:
    """What is told of two answers with right drafts; the scheduler; the tokens of the steps that had drafts."""

    def new(row: ActiveRow) -> Drafter:
        return Right(ids_of(known[row.index]))

    guesses = Speculation([new], clock=engine.clock)
    scheduler = Scheduler(engine, clock=engine.clock, prefix_store=store, speculation=guesses)
    for number in range(2):
        scheduler.submit(replace(asked("sampled", number), max_tokens=60))
    events = list[Any]()
    while not scheduler.idle:
        events += scheduler.step()
    steps = [size for size, rows in zip(engine.sizes, engine.rows, strict=True) if rows == [0, 1] and size > 2]
    return told(iter(events)), scheduler, steps[1:]  # without the prompts


@pytest.fixture(scope="module")
def known(model: Transformer) -> dict[int, Found]:
    requests = [replace(asked("sampled", number), max_tokens=60) for number in range(2)]
    return told(generate_stream(Engine(model), requests))


def stairs(tokens: int) -> float:
    """Up to 8 tokens take what one does, and more of them thirty times as much; nothing of that shows with 1 or 2."""
    return 0.001 if tokens <= 8 else 0.03 + 0.001 * max(0, tokens - 33)


@pytest.mark.parametrize(
    ("cost", "most"),
    [(stairs, 8), (lambda tokens: 0.001 * tokens, 0), (lambda tokens: 0.001 + 1e-6 * tokens, 99)],
    ids=["stairs", "dear", "cheap"],
)
def test_the_first_drafts_are_as_many_as_the_trial_says(
    model: Transformer, known: dict[int, Found], cost: Callable[[int], float], most: int
) -> None:
    engine = Clocked(model, cost)
    found, scheduler, steps = answered(engine, known)
    assert found == known and set(engine.tried) == set(SIZES)
    assert max(steps, default=0) <= most
    assert bool(steps) == bool(scheduler.timings.drafted_tokens) == bool(most)
    if most == 8:
        assert steps[:4] == [8] * 4, "the stair is used to its end"
    if most == 99:
        assert max(steps) > 16


def test_nothing_but_drafts_follows_from_a_trial(model: Transformer, known: dict[int, Found]) -> None:
    """Answers, rows, figures and what is stored are those of a run without."""
    engine, store = Clocked(model, lambda tokens: tokens / 1024), PrefixStore(model.args, 10**7)
    plain, other = Clocked(model, lambda tokens: tokens / 1024), PrefixStore(model.args, 10**7)
    found, scheduler, _ = answered(engine, known, store)
    without = Scheduler(plain, clock=plain.clock, prefix_store=other)
    for number in range(2):
        without.submit(replace(asked("sampled", number), max_tokens=60))
    while not without.idle:
        without.step()
    assert found == known and engine.tried and not plain.tried
    assert scheduler.timings == without.timings and scheduler.timings != Timings()
    assert scheduler.figures == without.figures
    assert not engine.cache.rows and engine.reserved == (0, 0) and not engine.stage.samplers._rows
    assert store.nbytes == other.nbytes > 0


@pytest.mark.parametrize(("seconds", "tries"), [(0.4, FEWEST), (0.03, 5), (0.0001, len(SIZES) * ROUNDS)])
def test_a_trial_is_bounded(model: Transformer, known: dict[int, Found], seconds: float, tries: int) -> None:
    """In all, and between two steps of answers; and no first token waits for it."""
    engine = Clocked(model, lambda tokens: seconds)
    wrong = {number: cast(Found, [((step[0] + 1) % 40,) for step in steps]) for number, steps in known.items()}
    found, _, _ = answered(engine, wrong)
    assert found == known and engine.tried == (list(SIZES) * ROUNDS)[:tries]
    assert seconds * tries < max(LIMIT + seconds, FEWEST * seconds + 1e-9)
    first = next(place for place, rows in enumerate(engine.rows) if rows[0] > 1)
    assert engine.rows[:first] == [[0, 1], [0, 1]], "the prompts, then a step that could have had drafts"
    between = longest = 0
    for rows in engine.rows:
        between = between + 1 if rows[0] > 1 else 0
        longest = max(longest, between)
    assert longest * seconds <= AT_ONCE + seconds


def test_where_there_is_nothing_to_draft_nothing_is_tried(model: Transformer, known: dict[int, Found]) -> None:
    engine = Clocked(model, lambda tokens: 0.001)
    found, _, _ = answered(engine, {number: [] for number in known})
    assert found == known and not engine.tried


def test_a_trial_takes_only_memory_that_nobody_has(
    model: Transformer, known: dict[int, Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts then follow what steps of answers take."""
    engine = Clocked(model, lambda tokens: 0.001)
    monkeypatch.setattr(engine, "spare_bytes", lambda: 100)
    found, scheduler, _ = answered(engine, known)
    assert found == known and not engine.tried
    assert scheduler.timings.drafted_tokens > 0


def test_a_short_context_is_tried_as_far_as_it_goes(model: Transformer) -> None:
    engine, trial = Clocked(model, lambda tokens: 0.001, max_context=10), StepTrial(lambda: 0.0)
    engine.join(3)
    trial.go_on(engine)
    assert trial.done and set(engine.sizes) == {1, 2, 4, 8, 9}


def test_a_step_that_fails_ends_the_trial_and_its_row(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, trial = Engine(model), StepTrial(lambda: 0.0)
    engine.join(3)

    def collect(ticket: int) -> list[Outcome]:
        raise InputError("a file has become shorter")

    monkeypatch.setattr(engine, "collect", collect)
    trial.go_on(engine)
    assert trial.done and not trial.seconds and list(engine.cache.rows) == [0]
    monkeypatch.setattr(engine, "collect", lambda ticket: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        StepTrial(lambda: 0.0).go_on(engine)
    assert list(engine.cache.rows) == [0]


def test_a_trial_beside_something_else_does_not_stand_for_ever(
    model: Transformer, known: dict[int, Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine was busy while steps of several tokens were tried, so that there are no drafts; later there are."""
    monkeypatch.setattr(speculation, "RENEWED", 60)
    slow = [True]
    engine = Clocked(model, lambda tokens: 0.1 * tokens if slow[0] and tokens > 2 else 0.001)
    guesses = Speculation([lambda row: Right(ids_of(known[row.index % 2]))], clock=engine.clock)
    scheduler, drafted = Scheduler(engine, clock=engine.clock, speculation=guesses), list[int]()
    for _ in range(60):
        for number in range(2):
            scheduler.submit(replace(asked("sampled", number), max_tokens=60))
        found = list[Any]()
        while not scheduler.idle:
            found += [event for event in scheduler.step() if isinstance(event, Generated)]
            slow[0] &= not guesses._trial.done
        for place, index in enumerate(sorted({event.index for event in found})):
            steps = [event.id for event in found if event.index == index and event.id is not None]
            assert steps == ids_of(known[place])
        drafted.append(scheduler.timings.drafted_tokens)
        if drafted[-1]:
            break
    assert drafted[0] == 0 < drafted[-1] and len(drafted) > 2


def test_measurements_of_answers_scale_what_was_tried() -> None:
    found = StepCosts()
    found.start({1: 1.0})
    assert found.seconds(4) == 0.0, "one size says nothing"
    found.start({1: 1.0, 9: 3.0, 8: 1.4})
    assert [found.seconds(tokens) for tokens in (1, 8, 9)] == [1.0, 1.4, 3.0]
    assert found.seconds(17) == pytest.approx(3.0 + 8 * 0.25)
    found.add(1, 2.0)  # a long text: all takes twice as long
    assert [found.seconds(tokens) for tokens in (1, 8, 9)] == [2.0, 2.8, 6.0]
    found.add(8, 2.1)
    assert [found.seconds(tokens) for tokens in (1, 8, 9)] == pytest.approx([2.0, 2.1, 4.5])
    assert 2.0 < found.seconds(4) < 2.1
    found.start({1: 1.0, 8: 9.0, 33: 1.5})  # held up
    assert found.seconds(33) / found.seconds(8) == pytest.approx(1.0)
    flat = StepCosts()
    flat.start({1: 1.0, 8: 1.0})
    assert flat.seconds(18) == pytest.approx(1.6), "no stair is known, and there may be one"
    unknown = StepCosts()
    unknown.start({1: 0.0, 8: 0.0})  # a clock that stands still
    assert unknown.seconds(3) == 0.0
