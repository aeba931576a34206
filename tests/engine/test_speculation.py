"""Drafts change nothing but time: whatever is guessed, ids and log-probabilities are those of a run without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mistral.engine.active_row import ActiveRow
from mistral.engine.drafter import Drafter
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import Scheduler, generate_stream
from mistral.engine.speculation import Speculation
from mistral.load import Transformer
from mistral.model import kv_cache
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from tests.support.drafting import HOW, TEXT, Found, Oracle, asked, guessing, ids_of, told
from tests.support.generation import lettered
from tests.support.small_models import SHAPES, build


@pytest.fixture(scope="module")
def native(ops: Ops) -> Ops:
    return cast(Ops, Native())


@pytest.fixture(scope="module")
def native_models(native: Ops) -> dict[str, Transformer]:
    names = ("dense", "interleaved", "moe_windowed")
    return {name: build(SHAPES[name], native, seed).transformer for seed, name in enumerate(names)}


@pytest.fixture(autouse=True)
def few_spare_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short texts go round, and drafts reach as far back as a row can go."""
    monkeypatch.setattr(kv_cache, "SPARE", 4)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shape", ["dense", "interleaved", "moe_windowed"])
def test_answers_are_the_same_whatever_is_guessed(native_models: dict[str, Transformer], shape: str, how: str) -> None:
    """Bit for bit, alone and in company, with right, wrong and mixed drafts of all lengths, around the window."""
    model = native_models[shape]
    alone = {n: told(generate_stream(Engine(model), [asked(how, n)], 5))[0] for n in range(3)}
    for right in (1.0, 0.7, 0.0):
        company = [asked(how, n) for n in range(3)]
        assert told(generate_stream(Engine(model), company, 5, speculation=guessing(alone, right))) == alone
    assert told(generate_stream(Engine(model), [asked(how)], 64, speculation=guessing(alone, 0.9))) == {0: alone[0]}


@pytest.mark.parametrize("shape", ["windowed", "ministral3"])
def test_portable_answers_are_the_same_within_rounding(models: dict[str, Any], shape: str) -> None:
    model = models[shape].transformer
    before = told(generate_stream(Engine(model), [asked("sampled")]))
    found = told(generate_stream(Engine(model), [asked("sampled")], speculation=guessing(before, 0.6)))
    assert ids_of(found[0]) == ids_of(before[0])
    np.testing.assert_allclose([s[1] for s in found[0]], [s[1] for s in before[0]], rtol=0, atol=1e-4)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    right=st.floats(0, 1), seed=st.integers(0, 99), tokens=st.integers(1, 30), chunk=st.integers(1, 9),
    how=st.sampled_from(sorted(HOW)), spare=st.sampled_from([1, 4, 32]),
)  # fmt: skip
def test_any_pattern_of_right_and_wrong_drafts(
    native_models: dict[str, Transformer], right: float, seed: int, tokens: int, chunk: int, how: str, spare: int
) -> None:
    """With limits on the answer and any number of slots to go back."""
    model, request = native_models["interleaved"], replace(asked(how, 1), max_tokens=tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "SPARE", spare)
        before = told(generate_stream(Engine(model), [replace(request, text=lettered())], chunk))
        guesses = guessing(before, right, seed)
        assert (
            told(generate_stream(Engine(model), [replace(request, text=lettered())], chunk, speculation=guesses))
            == before
        )


@pytest.mark.parametrize("right", [1.0, 0.5])
def test_ends_within_drafts_are_where_they_would_be(native_models: dict[str, Transformer], right: float) -> None:
    """An end id, a stop text, and neither before min_tokens; what follows in the same step is not told of."""
    model = native_models["interleaved"]
    free = ids_of(told(generate_stream(Engine(model), [asked("greedy penalties")]))[0])
    ends: list[tuple[list[str], dict[str, Any]]] = [
        ([], {"eos_id": free[5]}),
        ([], {"eos_id": free[5], "min_tokens": free.index(free[5]) + 2}),
        ([], {"eos_id": free[3], "ignore_eos": True}),
        ([f"{free[6]:02},"], {}),
        ([f"{free[4]:02},{free[5]:02}"], {"min_tokens": 3}),
        ([], {"max_tokens": 1}),
        ([], {"max_tokens": 2}),
    ]
    for number, (stops, changed) in enumerate(ends):
        request = replace(asked("greedy penalties"), **changed)
        before = told(generate_stream(Engine(model), [replace(request, text=lettered(stops))]))
        known = {0: [(token,) for token in free]}  # goes on where the answer ends
        guesses = guessing(cast(Any, known), right, number)
        stream = generate_stream(Engine(model), [replace(request, text=lettered(stops))], speculation=guesses)
        assert told(stream) == before


def test_right_drafts_make_fewer_steps_and_are_counted(native_models: dict[str, Transformer]) -> None:
    class All(Oracle):
        def draft(self, answer: Sequence[int], most: int) -> list[int]:
            return list(self.answer[len(answer) : len(answer) + most])

    model = native_models["dense"]
    before = told(generate_stream(Engine(model), [asked("greedy")]))
    scheduler = Scheduler(
        Engine(model), speculation=Speculation([lambda row: All(ids_of(before[0]), 1, None)], always=True)  # type: ignore[arg-type]
    )  # fmt: skip
    scheduler.submit(asked("greedy"))
    events = [event for _ in range(99) if not scheduler.idle for event in scheduler.step()]
    assert told(iter(events)) == before
    timings, drafts = (
        scheduler.timings,
        23 - 5,
    )  # the first token comes with the prompt, and each step has one of its own
    assert (timings.decode_tokens, timings.decode_steps, timings.row_steps) == (24, 23, 5)
    assert timings.drafted_tokens == timings.accepted_tokens == scheduler.figures.accepted_tokens == drafts
    assert (timings.acceptance, timings.tokens_per_step) == (1.0, 23 / 5)
    assert sum(event.accepted for event in events if isinstance(event, Generated)) == drafts


@pytest.mark.parametrize("right", [1.0, 0.6, 0.0])
def test_rows_that_are_saved_and_restored_and_slots(native_models: dict[str, Transformer], right: float) -> None:
    """A conversation in one row, and one through the prefix store: what drafts leave there is the row's own."""
    model = native_models["interleaved"]
    prompts, answers = list[list[int]](), dict[int, Found]()
    prompt = TEXT[:20]
    for turn in range(4):
        found = told(generate_stream(Engine(model), [Request(prompt, 9, HOW["sampled"], top=1)]))[0]
        prompts, answers[turn] = [*prompts, prompt], found
        prompt = [*prompt, *ids_of(found)[: 9 - turn], *TEXT[turn : turn + 3]]
    engine, stored = Engine(model), Engine(model)
    slot = PrefixSlot(engine)
    scheduler = Scheduler(
        stored, prefix_store=PrefixStore(model.args, 10**7), speculation=guessing(answers, right)
    )  # fmt: skip
    for turn, asked_prompt in enumerate(prompts):
        guesses = guessing({0: answers[turn]}, right, turn)
        request = Request(asked_prompt, 9, HOW["sampled"], top=1)
        again = told(generate_stream(engine, [replace(request, slot=slot)], 4, speculation=guesses))
        assert again == {0: answers[turn]}
        assert slot.cached_ids() == [*asked_prompt, *ids_of(answers[turn])][: engine.kv_seqlen(slot.row)]
        assert turn == 0 or slot.reused > 0
        scheduler.submit(request)
        events = [event for _ in range(99) if not scheduler.idle for event in scheduler.step()]
        assert told(iter(events)) == {turn: answers[turn]}


def test_parked_rows_go_on_as_they_would_have(native_models: dict[str, Transformer]) -> None:
    model = native_models["moe_windowed"]
    before = told(generate_stream(Engine(model), [asked("sampled", n) for n in range(2)]))
    scheduler = Scheduler(Engine(model), speculation=guessing(before, 0.7))
    for n in range(2):
        scheduler.submit(asked("sampled", n))
    events = list[Any]()
    for step in range(99):
        if scheduler.idle:
            break
        for handle, row in list(scheduler._active.items()):
            if row.can_park and step % 3 == 2:
                scheduler._parked[handle] = scheduler._active.pop(handle)
                row.park(scheduler.engine, keep=bool(step % 2))
        events += scheduler.step()
    assert told(iter(events)) == before


def failing(when: int) -> Callable[[ActiveRow], Drafter]:
    class Failing(Drafter):
        def draft(self, answer: Sequence[int], most: int) -> list[int]:
            if len(answer) >= when:
                raise ValueError("broken half-way")
            return [1] * (most + 50)

    def new(row: ActiveRow) -> Drafter:
        if when < 0:
            raise OSError("no drafter")
        return Failing()

    return new


class Strange(Drafter):
    """Ids that no model has, among others."""

    def __init__(self, first: int) -> None:
        self.first = first

    def draft(self, answer: Sequence[int], most: int) -> list[int]:
        return [5, self.first, 6]


@pytest.mark.parametrize(
    "new",
    [failing(-1), failing(0), failing(7), *(lambda row, first=first: Strange(first) for first in (-1, 40, 10**9))],
)
def test_a_drafter_that_fails_or_is_of_another_vocabulary_has_no_effect(
    native_models: dict[str, Transformer], new: Callable[[ActiveRow], Drafter]
) -> None:
    model = native_models["interleaved"]
    before = told(generate_stream(Engine(model), [asked("filtered")]))
    assert (
        told(generate_stream(Engine(model), [asked("filtered")], speculation=Speculation([new], always=True))) == before
    )


def test_suffixes_are_guessed_and_answers_stay_what_they_are(native_models: dict[str, Transformer]) -> None:
    """With the depth that steps' times say: no drafter of the test's own."""
    model, speculation = native_models["dense"], Speculation()
    request = Request(TEXT[:12] * 4, 60, HOW["greedy"], top=1)
    before = told(generate_stream(Engine(model), [request]))
    for prediction in ((), ids_of(before[0]), [*ids_of(before[0])[:20], 1, *ids_of(before[0])[30:]]):
        found = told(generate_stream(Engine(model), [replace(request, prediction=prediction)], speculation=speculation))
        assert found == before
