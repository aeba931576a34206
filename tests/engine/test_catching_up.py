"""A model that guesses reads a prompt in pieces that fit into the time of a step, and guesses once it has read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from mistral.engine.active_row import ActiveRow
from mistral.engine.draft_model import DraftModel, ModelDrafter
from mistral.engine.drafter import Drafter
from mistral.engine.engine import Engine
from mistral.engine.requests import Generated, Request
from mistral.engine.row_guesses import RowGuesses, Source
from mistral.engine.scheduler import Scheduler, generate_stream
from mistral.engine.speculation import Speculation
from mistral.engine.step_budget import FIRST, LEAST
from mistral.engine.work import Work
from mistral.load import Transformer
from mistral.model import kv_cache
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from tests.support.drafting import HOW, TEXT, told
from tests.support.small_models import SHAPES, build

LONG = [*TEXT, *TEXT[::-1], *TEXT[1::2], *TEXT[::2]] * 3
STEP, TOKEN, DRAFT = 0.01, 0.0002, 0.001  # seconds: of a step, of each token that the draft model reads, of its steps
MUCH = 10**9


@pytest.fixture(scope="module")
def model(ops: Ops) -> Transformer:
    return build(SHAPES["dense"], cast(Ops, Native()), 1).transformer


class Bench:
    """A scheduler with a draft model, on a clock that both move on; `steps` has what each of its steps came to."""

    def __init__(self, model: Transformer, step_ms: float | None, each: float = TOKEN) -> None:
        self.now, self.read, self.each = 0.0, list[int](), each
        engine, self.drafts = Engine(model), DraftModel(model, lambda: MUCH, self.clock)
        submit, step = engine.submit, self.drafts.engine.step

        def submitted(work: Sequence[Work]) -> int:
            self.now += STEP + self.each * sum(len(piece.ids) for piece in work if len(piece.ids) > 1)
            return submit(work)

        def drafted(work: Sequence[Work]) -> Any:
            tokens = sum(len(piece.ids) for piece in work)
            self.read.append(tokens)
            self.now += DRAFT + self.each * tokens
            return step(work)

        engine.submit, self.drafts.engine.step = submitted, drafted  # type: ignore[method-assign]
        guesses = Speculation([self.drafts.drafter], always=True, clock=self.clock)
        self.scheduler = Scheduler(engine, step_ms=step_ms, clock=self.clock, speculation=guesses)
        self.steps = list[tuple[float, list[int], int]]()  # seconds, what the draft model read, drafts
        self.events = list[Any]()

    def clock(self) -> float:
        return self.now

    def step(self) -> None:
        begun, before = self.now, len(self.read)
        found = self.scheduler.step()
        self.events += found
        drafts = sum(event.accepted + event.rejected for event in found if isinstance(event, Generated))
        self.steps.append((self.now - begun, self.read[before:], drafts))

    def run(self) -> None:
        while not self.scheduler.idle:
            self.step()


def plain(model: Transformer, *requests: Request) -> dict[int, Any]:
    return told(generate_stream(Engine(model), requests))


def test_a_prompt_is_read_in_pieces_that_fit_into_a_step(model: Transformer) -> None:
    """Answers are the same; the first drafts come when all is read, and nothing is read twice."""
    request = Request(LONG, 60, HOW["sampled"], top=1)
    bench = Bench(model, step_ms=50)
    bench.scheduler.submit(request)
    bench.run()
    assert told(iter(bench.events)) == plain(model, request)
    pieces = [step for step in bench.steps if step[1] and not step[2]]
    assert len(pieces) > 3, "in pieces"
    assert [len(read) for _, read, _ in pieces] == [1] * len(pieces), "one a step"
    assert pieces[0][1] == [FIRST]
    assert max(seconds for seconds, _, _ in pieces) <= 0.05 * 1.01
    first = next(place for place, step in enumerate(bench.steps) if step[2])
    read = sum(sum(read) for _, read, _ in bench.steps[: first + 1])
    assert len(LONG) <= read <= len(LONG) + first + 1 + kv_cache.SPARE
    assert not any(drafts for _, _, drafts in bench.steps[:first])
    assert bench.scheduler.timings.accepted_tokens > 3


def test_without_a_time_for_steps_all_is_read_at_once(model: Transformer) -> None:
    request = Request(LONG, 20, HOW["greedy"], top=1)
    bench = Bench(model, step_ms=None)
    bench.scheduler.submit(request)
    bench.run()
    assert told(iter(bench.events)) == plain(model, request)
    assert bench.read[:2] == [512, len(LONG) - 512]
    assert [bool(drafts) for _, _, drafts in bench.steps[:3]] == [False, False, True], "after two chunks of the prompt"


def test_prompts_that_are_read_beside_it_share_the_time(model: Transformer) -> None:
    """No step takes longer for both together, and answers are the same."""
    requests = [Request(LONG, 60, HOW["sampled"], top=1), Request(LONG[::-1], 30, HOW["greedy"], top=1)]
    bench = Bench(model, step_ms=50)
    bench.scheduler.submit(requests[0])
    while not any(isinstance(event, Generated) for event in bench.events):
        bench.step()
    bench.scheduler.submit(requests[1])
    before = len(bench.steps)
    bench.run()
    assert told(iter(bench.events)) == plain(model, *requests)
    beside = [step for step in bench.steps[before:] if step[1] and not step[2]]
    assert len(beside) > 6
    assert max(seconds for seconds, _, _ in beside) <= 0.05 * 1.15


def test_however_little_time_there_is_it_comes_to_an_end(model: Transformer) -> None:
    """A step has not even time for what is least."""
    request = Request(LONG, 99, HOW["greedy"], top=1)
    bench = Bench(model, step_ms=1, each=0.01)
    bench.scheduler.submit(request)
    bench.run()
    assert told(iter(bench.events)) == plain(model, request)
    pieces = [read for _, read, drafts in bench.steps if read and not drafts]
    assert pieces[0] == [FIRST] and all(read == [LEAST] for read in pieces[1:-1]) and len(pieces) > 20
    assert bench.scheduler.timings.drafted_tokens > 0


def test_a_row_that_was_long_without_drafts_catches_up_first(model: Transformer) -> None:
    bench = Bench(model, None)
    drafter = ModelDrafter(bench.drafts, LONG[:100], 400)
    assert not drafter.catch_up([1], 0.0) and not bench.read, "no time at all"
    assert not drafter.catch_up([1], 0.005) and bench.read == [FIRST]
    assert drafter.catch_up([1], 0.05) and bench.read == [FIRST, 100 - FIRST]
    assert len(drafter.draft([1], 2)) == 2 and bench.read[2:] == [1, 1]
    del bench.read[:]
    known = [1, *LONG[100:130]]
    assert not drafter.catch_up(known, 0.0)
    assert drafter.catch_up(known[:9], 0.0) and not bench.read, "a few are read with the first draft"
    assert drafter.catch_up(known, 1.0) and bench.read == [29], "but for the last, and the first, which it had"
    assert len(drafter.draft(known, 1)) == 1 and bench.read[1:] == [1]
    assert drafter.catch_up(LONG[:400], 0.0), "there is no room for drafts"


class Slow(Drafter):
    """Has never read all."""

    computes, expected = True, (0.9,)

    def catch_up(self, answer: Sequence[int], seconds: float | None) -> bool:
        return False

    def draft(self, answer: Sequence[int], most: int) -> list[int]:
        raise AssertionError("asked too early")


class Free(Drafter):
    """Says the same at all times."""

    def draft(self, answer: Sequence[int], most: int) -> list[int]:
        return [1, 2]


def test_others_guess_until_then(model: Transformer) -> None:
    guesses = RowGuesses([Source(Free()), Source(Slow())])
    guesses.choose([], 8, 40, 0.0)
    assert guesses.used and guesses.used.drafter.computes and len(guesses.chances) == 8
    guesses.fall_back()
    assert guesses.used and not guesses.used.drafter.computes and len(guesses.chances) == 2
    lone = RowGuesses([Source(Slow())])
    lone.choose([], 8, 40, 0.0)
    lone.fall_back()
    assert lone.used is None and not lone.chances
    request = Request(LONG[:30], 20, HOW["greedy"], top=1)
    made = Speculation([lambda row: Slow(), lambda row: Free()], always=True)
    found = list(generate_stream(Engine(model), [request], speculation=made))
    assert told(iter(found)) == plain(model, request)
    assert sum(event.accepted + event.rejected for event in found if isinstance(event, Generated)) > 20


def test_a_model_that_fails_while_it_reads_has_no_effect(model: Transformer) -> None:
    request = Request(LONG, 20, HOW["sampled"], top=1)
    bench = Bench(model, step_ms=20)

    def failing(work: Sequence[Work]) -> Any:
        bench.read.append(0)
        raise ValueError("half-way")

    bench.drafts.engine.step = failing  # type: ignore[method-assign]
    bench.scheduler.submit(request)
    bench.run()
    assert told(iter(bench.events)) == plain(model, request)
    assert bench.read == [0], "asked no more"


def test_rows_of_another_space_are_not_found(model: Transformer) -> None:
    """Not even by the time that it saves."""
    bench = Bench(model, None)
    for space, new in (("one", 51), ("two", 51), ("one", 1)):
        drafter, before = ModelDrafter(bench.drafts, LONG[:50], 90, space), len(bench.read)
        drafter.draft([1], 1)
        assert bench.read[before:] == [new]
        drafter.close()
    request = replace(Request(LONG[:50], 9, HOW["greedy"], top=1))
    spaces = list[str]()

    def drafter_of(row: ActiveRow) -> Drafter:
        made = cast(ModelDrafter, bench.drafts.drafter(row))
        spaces.append(made._space)
        return made

    bench.scheduler._speculation = Speculation([drafter_of], always=True)
    bench.scheduler.submit(request, key="me")
    bench.scheduler.submit(request, key="me", space="ours")
    bench.run()
    assert sorted(spaces) == ["me", "ours"]
