"""Prompts that begin with what was computed for others: the same answers, less work, and nobody sees another's."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest

import mistral.engine.engine
import mistral.engine.prefix_store
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.requests import Generated, Prefilled, Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import Handle, Scheduler
from mistral.load import Transformer
from mistral.model.kv_cache import cache_nbytes
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from tests.support.generation import PROMPTS, Spy
from tests.support.small_models import DENSE, SHAPES, SmallModel, build

pytestmark = pytest.mark.usefixtures("no_spare_slots")  # so that short texts go round

RANDOM = np.random.default_rng(11)
TEXT = RANDOM.integers(0, 40, 60).tolist()
DRAWN = SamplingSettings(temperature=1.0, seed=3)
Found = tuple[list[int], list[float | None], str]


class Answers:
    """A scheduler with a store, and what came of the requests that it was given."""

    def __init__(
        self, model: Transformer, limit: int = 10**8, chunk_size: int | None = None, max_rows: int = 64, times: int = 0
    ) -> None:
        """`times`: a seed of random times that steps take, by which chunks are chosen; 0: chunks are whole."""
        self.store, random, now = PrefixStore(model.args, limit), np.random.default_rng(times), [0.0]

        def clock() -> float:
            now[0] += random.exponential(0.05)
            return now[0]

        step_ms = 200 if times else None
        self.scheduler = Scheduler(
            Engine(model), chunk_size, max_rows, step_ms=step_ms, prefix_store=self.store, clock=clock
        )
        self.cached: dict[int, int] = {}
        self.found: dict[int, Found] = {}

    def step(self) -> None:
        for event in self.scheduler.step():
            ids, logprobs, _ = self.found.setdefault(event.index, ([], [], ""))
            if isinstance(event, Prefilled):
                self.cached[event.index] = event.cached
                continue
            if event.id is not None:
                ids.append(event.id)
                logprobs.append(event.logprob)
            self.found[event.index] = ids, logprobs, event.finish_reason or ""
        assert self.store.nbytes <= self.store.limit

    def run(self) -> None:
        while not self.scheduler.idle:
            self.step()

    def ask(self, request: Request, key: str = "", space: str | None = None) -> tuple[Found, int]:
        """One request alone -> its answer, and how many tokens of its prompt were not read."""
        handle = self.scheduler.submit(request, key=key, space=space)
        self.run()
        return self.found[handle.index], self.cached.get(handle.index, 0)


def alone(model: Transformer, request: Request) -> Found:
    """The answer without a store, on an engine of its own."""
    scheduler, ids, logprobs, end = Scheduler(Engine(model)), list[int](), list[float | None](), ""
    scheduler.submit(request)
    while not scheduler.idle:
        for event in scheduler.step():
            if isinstance(event, Generated):
                ids += [] if event.id is None else [event.id]
                logprobs += [] if event.id is None else [event.logprob]
                end = event.finish_reason or ""
    return ids, logprobs, end


def require_same(found: Found, wanted: Found) -> None:
    assert (found[0], found[2]) == (wanted[0], wanted[2])
    np.testing.assert_allclose(found[1], wanted[1], rtol=0, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_conversation_reads_only_what_is_new(models: dict[str, SmallModel], shape: str) -> None:
    """Every turn begins with the prompt and the answer before it, and with nothing of another key's."""
    model = models[shape].transformer
    answers, prompt, known = Answers(model), TEXT[:7], 0
    for turn in range(5):
        request = Request(prompt, 5, DRAWN)
        found, cached = answers.ask(request, key="mine")
        require_same(found, alone(model, request))
        assert cached == known
        known = len(prompt) + 4  # the last token of the answer has not been through the model
        prompt = prompt + found[0] + TEXT[7 * turn : 7 * turn + 3]
    other, cached = answers.ask(request, key="other")
    assert cached == 0
    require_same(other, found)
    again, cached = answers.ask(request, key="third", space="mine")
    assert cached == len(request.prompt) - 1
    require_same(again, found)
    assert answers.scheduler.figures.row_bytes == 0


@pytest.mark.parametrize(
    ("shape", "cached"),
    [
        ("dense", [1, 2, 3, 4, 17, 28, 29, 30]),
        ("interleaved", [0, 0, 0, 0, 0, 0, 29, 30]),
        ("windowed", [0, 1, 2, 3, 4, 4, 29, 30]),  # short prompts are stored within the window, one after the other
    ],
)
def test_prompts_that_part_in_the_middle(models: dict[str, SmallModel], shape: str, cached: list[int]) -> None:
    """Without windows all that they have in common is reused; with windows what lies within, or at a stored point."""
    model, found = models[shape].transformer, list[int]()
    answers = Answers(model)
    answers.ask(Request(TEXT[:30], 2))
    for keep in (1, 2, 3, 4, 17, 28, 29, 30):
        request = Request([*TEXT[:keep], 7, 8, 9], 4, DRAWN)
        answer, reused = answers.ask(request)
        require_same(answer, alone(model, request))
        found.append(reused)
    assert found == cached


def test_chunks_of_a_prompt_are_kept_while_it_is_read(
    models: dict[str, SmallModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a request that is cancelled, and asked again, goes on where it was."""
    monkeypatch.setattr("mistral.engine.row_table.BLOCK", 8)
    answers = Answers(models["dense"].transformer, chunk_size=8)
    first = answers.scheduler.submit(Request(TEXT, 5))
    for _ in range(4):
        answers.step()
    assert answers.store.tokens == 32
    answers.scheduler.cancel(first)
    answers.step()
    assert answers.scheduler.figures.row_bytes == 0
    found, cached = answers.ask(Request(TEXT, 5))
    assert cached == 32
    require_same(found, alone(models["dense"].transformer, Request(TEXT, 5)))


def test_a_prompt_that_is_scored_is_read_from_where_scores_are_wanted(models: dict[str, SmallModel]) -> None:
    model = models["dense"].transformer
    answers = Answers(model)
    answers.ask(Request(TEXT[:20], 1))
    scores: dict[int, list[float]] = {}
    for scored_from, wanted in ((1, 0), (12, 11)):
        handle = answers.scheduler.submit(Request(TEXT[:20], 1, prompt_logprobs=True, scored_from=scored_from))
        while not answers.scheduler.idle:
            for event in answers.scheduler.step():
                if isinstance(event, Prefilled):
                    scores.setdefault(scored_from, []).extend(event.logprobs)
                    assert event.cached == wanted, handle
    assert (len(scores[1]), len(scores[12])) == (19, 8)
    np.testing.assert_allclose(scores[12], scores[1][-8:], rtol=0, atol=1e-4)


def test_many_samples_of_one_prompt(model: Transformer, spy: Spy) -> None:
    """The prompt is read once, and the next to ask reads its last token only."""
    answers = Answers(model)
    requests = [Request(PROMPTS[1], 4, replace(DRAWN, sample=sample)) for sample in range(4)]
    handles = [answers.scheduler.submit(request) for request in requests]
    answers.run()
    assert sum(spy.tokens) == len(PROMPTS[1]) + 3 + 4 * 3, "the prompt, a token of three others, and the answers"
    assert [answers.cached[handle.index] for handle in handles] == [0, 17, 17, 17]
    for handle, request in zip(handles, requests, strict=True):
        require_same(answers.found[handle.index], alone(model, request))
    assert answers.ask(replace(requests[0], max_tokens=1))[1] == 17


def test_equal_prompts_of_different_spaces_are_read_for_each(model: Transformer) -> None:
    """Also while both are under way."""
    answers = Answers(model)
    handles = [answers.scheduler.submit(Request(PROMPTS[1], 4), key=key) for key in "aabb"]
    answers.run()
    assert [answers.cached[handle.index] for handle in handles] == [0, 17, 0, 17]


def test_rows_that_have_a_slot_or_a_start_are_left_alone(models: dict[str, SmallModel]) -> None:
    model = models["dense"].transformer
    answers = Answers(model)
    slot = PrefixSlot(answers.scheduler.engine)
    answers.ask(Request(TEXT[:20], 3, slot=slot))
    assert answers.store.tokens == 0
    start = slot.export()
    assert start
    found, cached = answers.ask(Request(TEXT[:25], 3, start=start))
    require_same(found, alone(model, Request(TEXT[:25], 3)))
    assert (cached, answers.store.tokens) == (20, 27)


def test_what_failed_is_not_kept(ops: Ops) -> None:
    model = build(DENSE, ops)
    model.tensors["tok_embeddings.weight"][7] = np.nan
    damaged = Transformer(model.args, lambda name: ops.weight(model.tensors[name]), ops)
    answers = Answers(damaged)
    assert answers.ask(Request([1, 2, 7], 3))[0][2] == "error"
    kept = answers.store.tokens
    assert answers.ask(Request([1, 2, 7], 3))[0][2] == "error"
    assert answers.store.tokens == kept


# Memory


def test_rows_come_before_the_store(models: dict[str, SmallModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is what rows leave, and it gives back what they need."""
    model = models["dense"].transformer
    answers, memory = Answers(model), cache_nbytes(DENSE, range(DENSE.n_layers), 60, 4)
    store = answers.store
    monkeypatch.setattr(mistral.engine.engine, "available_memory", lambda: memory - store.nbytes)
    monkeypatch.setattr("mistral.engine.prefix_node.NODE_BYTES", 0)
    engine = cast(Engine, answers.scheduler.engine)
    answers.ask(Request(TEXT[:25], 2))
    assert answers.store.tokens == 26
    held = answers.store.nbytes
    found, cached = answers.ask(Request(TEXT[30:50], 8))
    assert (cached, answers.store.nbytes > held) == (0, True)
    found, cached = answers.ask(Request(TEXT[:50], 10))
    require_same(found, alone(model, Request(TEXT[:50], 10)))
    assert engine.spare_bytes() >= 0
    assert answers.scheduler.figures.prefix_bytes == answers.store.nbytes <= memory


def test_a_small_store_forgets_and_changes_nothing(models: dict[str, SmallModel]) -> None:
    model = models["interleaved"].transformer
    answers = Answers(model, 12_000)
    for number in range(6):
        request = Request(TEXT[number % 2 : number % 2 + 14 + number], 6, DRAWN)
        found, _ = answers.ask(request, key=str(number % 2))
        require_same(found, alone(model, request))


def test_a_row_goes_on_when_what_it_began_with_is_forgotten(models: dict[str, SmallModel]) -> None:
    model = models["interleaved"].transformer
    answers = Answers(model)
    answers.ask(Request(TEXT[:20], 2))
    handle = answers.scheduler.submit(Request(TEXT[:24], 8))
    answers.step()
    answers.store.clear()
    answers.run()
    assert answers.cached[handle.index] > 0
    require_same(answers.found[handle.index], alone(model, Request(TEXT[:24], 8)))


# The strongest promise


def company(random: np.random.Generator, count: int) -> list[Request]:
    """Requests of all kinds, many of which begin alike."""
    found = []
    for _ in range(count):
        begins, middle = (
            TEXT[: int(random.integers(0, 40))],
            random.integers(0, 4, int(random.integers(1, 12))).tolist(),
        )
        drawn = SamplingSettings(
            temperature=float(random.choice([0.0, 0.7, 1.5])), top_p=float(random.choice([1.0, 0.8])),
            repetition_penalty=float(random.choice([1.0, 1.3])), seed=int(random.integers(9)),
        )  # fmt: skip
        found.append(
            Request(begins + middle, int(random.integers(0, 14)), drawn, eos_id=[None, 5][int(random.integers(2))])
        )
    return found


@pytest.fixture(scope="module")
def natives(ops: Ops) -> dict[str, Transformer]:
    """Small models on the native backend, where sums do not depend on the number of rows."""
    native = cast(Ops, Native())
    return {name: build(SHAPES[name], native).transformer for name in ("dense", "interleaved", "moe_windowed")}


@pytest.mark.parametrize("shape", ["dense", "interleaved", "moe_windowed"])
@pytest.mark.parametrize("limit", [0, 20_000, 10**8])
def test_random_company_changes_no_bit(
    natives: dict[str, Transformer], shape: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 requests of four keys at random times, some cancelled, rows and memory short, with and without hits, twice."""
    model, random = natives[shape], np.random.default_rng(limit + len(shape))
    requests = company(random, 64)
    wanted = [alone(model, request) for request in requests]
    tokens = {"dense": 150, "interleaved": 70, "moe_windowed": 18}[shape] if limit < 10**8 else 100_000
    memory = tokens * cache_nbytes(model.args, range(model.args.n_layers), 1, model.ops.SLOT_BYTES)
    monkeypatch.setattr(mistral.engine.engine, "available_memory", lambda: memory)
    monkeypatch.setattr("mistral.engine.active_row.ANSWER_ROOM", 4)
    monkeypatch.setattr(mistral.engine.prefix_store, "BLOCK", 16)
    monkeypatch.setattr("mistral.engine.row_table.BLOCK", 16)
    answers, hits = Answers(model, limit, 9 if limit else None, max_rows=5, times=7), 0
    for _ in range(2):
        handles = list[Handle]()
        for request in requests:
            handles.append(
                answers.scheduler.submit(request, key=str(random.integers(4)), space=str(random.integers(2)))
            )
            for _ in range(int(random.integers(0, 4))):
                answers.step()
            if random.random() < 0.15:
                answers.scheduler.cancel(handles[int(random.integers(len(handles)))])
        answers.run()
        for handle, whole in zip(handles, wanted, strict=True):
            ids, logprobs, end = answers.found[handle.index]
            if end == "cancelled":
                whole = whole[0][: len(ids)], whole[1][: len(ids)], end
            assert (ids, logprobs, end) == whole, "the same bits"
            hits += answers.cached.get(handle.index, 0)
    figures = answers.scheduler.figures
    assert (figures.row_bytes, figures.waiting, figures.parked) == (0, 0, 0)
    assert cast(Engine, answers.scheduler.engine).cache.rows == {}
    assert limit < 10**8 or hits > 500
