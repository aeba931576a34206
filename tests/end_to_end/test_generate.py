"""Generation against the oracle: any chunk size, any batch, any settings."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from mistral.engine.engine import Engine
from mistral.engine.requests import Generated, Prefilled, Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import generate_stream
from mistral.engine.timings import Timings
from mistral.errors import InputError
from mistral.generate import generate
from mistral.load import Transformer
from tests.support.generation import LENGTHS, MAX_TOKENS, PROMPTS, Found, Spy, answers, close, ids_in
from tests.support.oracle import oracle_logprobs
from tests.support.small_models import DENSE, SHAPES, WINDOW, SmallModel

pytestmark = pytest.mark.usefixtures("no_spare_slots")  # so that short texts go round

generate_module = sys.modules["mistral.engine.scheduler"]  # the package gives the function this name
RANDOM = SamplingSettings(temperature=1.0, seed=5)


# What is computed


@pytest.mark.parametrize("name", ["windowed", "interleaved", "moe_windowed"])
@pytest.mark.parametrize("chunk_size", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 100, None])
def test_trap_3_ragged_prompts_in_chunks_equal_the_oracle(
    models: dict[str, SmallModel], expected: dict[str, Found], name: str, chunk_size: int | None
) -> None:
    """Also where a short prompt runs out, and is being answered, while a long one is still read."""
    tokens, logprobs = generate(PROMPTS, models[name].transformer, MAX_TOKENS, chunk_size=chunk_size)
    assert tokens == expected[name][0]
    close(logprobs, expected[name][1], 1e-3)


@pytest.mark.parametrize("name", sorted({*SHAPES} - {"windowed", "interleaved", "moe_windowed"}))
def test_every_shape_of_model_equals_the_oracle(
    models: dict[str, SmallModel], expected: dict[str, Found], name: str
) -> None:
    tokens, logprobs = generate(PROMPTS, models[name].transformer, MAX_TOKENS, chunk_size=4)
    assert tokens == expected[name][0]
    close(logprobs, expected[name][1], 1e-3)


def test_generated_tokens_fed_again_have_the_same_logprobs(models: dict[str, SmallModel]) -> None:
    """Whole and in chunks, with a window: what was computed one token at a time is what a prompt computes."""
    model = models["windowed"].transformer
    tokens, logprobs = generate(PROMPTS, model, 9, temperature=1.0, seed=3)
    whole = [prompt + added for prompt, added in zip(PROMPTS, tokens, strict=True)]
    for chunk_size in (1, 3, WINDOW + 2, 100):
        nothing, again = generate(whole, model, 0, chunk_size=chunk_size)
        assert nothing == [[], [], [], []]
        close(again, logprobs, 1e-4)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 7, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_a_prompt_alone_and_in_a_batch_give_the_same(model: Transformer, settings: dict[str, float]) -> None:
    tokens, logprobs = generate(PROMPTS, model, MAX_TOKENS, chunk_size=4, **settings)  # type: ignore[arg-type]
    for i, prompt in enumerate(PROMPTS):
        alone, alone_logprobs = generate([prompt], model, MAX_TOKENS, chunk_size=4, **settings)  # type: ignore[arg-type]
        assert alone == [tokens[i]]
        close(alone_logprobs, [logprobs[i]], 1e-4)


def test_trap_16_more_than_three_prompts_at_once_and_more_than_fit(model: Transformer, spy: Spy) -> None:
    requests = [Request([*PROMPTS[0], token], 3) for token in range(7)]
    found = answers(generate_stream(Engine(model), requests))
    assert {len(rows) for rows in spy.rows} == {7}
    assert [ids_in(found[i]) for i in range(7)] == [generate([r.prompt], model, 3)[0][0] for r in requests]
    spy.rows.clear()
    limited = answers(generate_stream(Engine(model), requests, max_rows=3))
    assert max(len(rows) for rows in spy.rows) == 3
    assert {i: ids_in(steps) for i, steps in limited.items()} == {i: ids_in(steps) for i, steps in found.items()}


def test_a_chunk_of_many_rows_is_spread_over_steps(
    model: Transformer, spy: Spy, expected: dict[str, Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "STEP_TOKENS", 7)
    found = answers(generate_stream(Engine(model), [Request(prompt, MAX_TOKENS) for prompt in PROMPTS], chunk_size=5))
    assert [ids_in(found[i]) for i in range(len(PROMPTS))] == expected["windowed"][0]
    assert max(spy.tokens) <= 7 + len(PROMPTS)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_row_being_answered_does_not_wait_for_prompts_being_read(
    model: Transformer, spy: Spy, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    """Once begun, it gives one token at every step, though other rows' prompts use up the room of a step."""
    monkeypatch.setattr(generate_module, "STEP_TOKENS", 5)
    requests = [[Request([3], 9), Request([2] * 12, 1), Request([1] * 30, 1)][i] for i in order]
    given_at = []
    for event in generate_stream(Engine(model), requests, chunk_size=4):
        if isinstance(event, Generated) and order[event.index] == 0:
            given_at.append(len(spy.rows))
    assert given_at == list(range(given_at[0], given_at[0] + 9))


# What is sampled


def test_sampling_depends_on_seed_and_sample_never_on_the_place(models: dict[str, SmallModel]) -> None:
    model = models["windowed"].transformer
    prompt = PROMPTS[1]
    kinds = [replace(RANDOM, seed=seed, sample=sample) for seed, sample in ((5, 0), (5, 1), (6, 0))]
    orders = ([0, 1, 2], [2, 0, 1, 0], [1])
    by_kind: dict[int, set[tuple[int, ...]]] = {0: set(), 1: set(), 2: set()}
    for order in orders:
        found = answers(generate_stream(Engine(model), [Request(prompt, 8, kinds[kind]) for kind in order], max_rows=2))
        for place, kind in enumerate(order):
            by_kind[kind].add(tuple(ids_in(found[place])))
    assert [len(texts) for texts in by_kind.values()] == [1, 1, 1]
    assert len(set.union(*by_kind.values())) == 3


def test_temperature_zero_ignores_the_seed(model: Transformer) -> None:
    assert generate(PROMPTS, model, MAX_TOKENS, seed=1) == generate(PROMPTS, model, MAX_TOKENS, seed=2)


def test_logprobs_are_those_of_the_raw_logits(models: dict[str, SmallModel]) -> None:
    """Before temperature, filters and penalty, for each token that was drawn."""
    model = models["windowed"]
    tokens, logprobs = generate(
        PROMPTS, model.transformer, MAX_TOKENS, temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.5, seed=1
    )
    for prompt, added, found in zip(PROMPTS, tokens, logprobs, strict=True):
        close([found], [oracle_logprobs(model.tensors, model.args, prompt + added)], 1e-3)


def test_trap_15_top_p_is_obeyed_and_ids_stay_in_the_vocabulary(models: dict[str, SmallModel]) -> None:
    """A nucleus of almost nothing is greedy; one of everything draws ids that exist, and not one id only."""
    model = models["dense"]
    narrow, _ = generate(PROMPTS, model.transformer, 4, temperature=1.0, top_p=1e-9)
    assert narrow == generate(PROMPTS, model.transformer, 4)[0]
    wide, _ = generate([[1]] * 4, model.transformer, 10, temperature=50.0)
    assert all(0 <= token < DENSE.vocab_size for tokens in wide for token in tokens)
    assert len(set(wide[0])) > 4


# Progress and scores


def test_prefill_is_reported_chunk_by_chunk_with_its_logprobs(models: dict[str, SmallModel]) -> None:
    model = models["dense"]
    requests = [Request(PROMPTS[3], 2, prompt_logprobs=True), Request(PROMPTS[0], 2)]
    events = [e for e in generate_stream(Engine(model.transformer), requests, chunk_size=4) if isinstance(e, Prefilled)]
    assert [(e.done, e.total) for e in events if e.index == 0] == [(4, 9), (8, 9), (9, 9)]
    assert [len(e.logprobs) for e in events if e.index == 0] == [4, 4, 0]
    scores = [logprob for e in events if e.index == 0 for logprob in e.logprobs]
    close([scores], [oracle_logprobs(model.tensors, model.args, PROMPTS[3])], 1e-3)
    assert [(e.done, e.total, e.logprobs) for e in events if e.index == 1] == [(3, 3, ())]


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_trap_10_without_prompt_logprobs_the_head_runs_on_sampled_rows_only(
    model: Transformer, spy: Spy, expected: dict[str, Found], chunk_size: int
) -> None:
    tokens, logprobs = generate(PROMPTS, model, MAX_TOKENS, chunk_size=chunk_size, prompt_logprobs=False)
    assert tokens == expected["windowed"][0]
    close(logprobs, [scores[-MAX_TOKENS:] for scores in expected["windowed"][1]], 1e-3)
    assert sum(spy.head) == len(PROMPTS) * MAX_TOKENS
    assert sum(spy.tokens) == sum(LENGTHS) + len(PROMPTS) * (MAX_TOKENS - 1)


def test_timings_count_prompt_tokens_and_answer_tokens(model: Transformer) -> None:
    timings = Timings()
    list(generate_stream(Engine(model), [Request(PROMPTS[1], 4), Request(PROMPTS[3], 4)], 100, timings=timings))
    assert (timings.prefill_tokens, timings.decode_tokens, timings.decode_steps) == (27, 8, 6)
    assert timings.prefill_seconds > 0
    assert timings.decode_seconds > 0


# What is refused, before anything is computed


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([]), r"prompt 1 is empty"),
        (Request([3, DENSE.vocab_size]), r"prompt 1 has an id outside the vocabulary of 40"),
        (Request([-1]), r"prompt 1 has an id outside the vocabulary"),
        (Request([1], -1), r"^max_tokens -1: must be 0 or more"),
    ],
)
def test_a_bad_request_is_refused_before_any_work(
    model: Transformer, spy: Spy, request_: Request, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        generate_stream(Engine(model), [Request([1]), request_])
    assert "\n" not in str(caught.value)
    assert spy.tokens == []


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_a_chunk_size_below_one_is_refused(model: Transformer, chunk_size: int) -> None:
    with pytest.raises(InputError, match=f"^chunk_size {chunk_size}: must be at least 1"):
        generate_stream(Engine(model), [Request([1])], chunk_size)
