"""Where an answer ends, and rows that come and go."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from mistral.engine.engine import Engine
from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import generate_stream
from mistral.errors import InputError
from mistral.generate import generate
from mistral.load import Transformer
from tests.support.generation import MAX_TOKENS, PROMPTS, Found, Spy, answers, close, ids_in, lettered
from tests.support.oracle import oracle_logprobs
from tests.support.small_models import SmallModel

# Where an answer ends


def test_trap_8_eos_ends_a_row_and_nothing_follows_it(model: Transformer, expected: dict[str, Found], spy: Spy) -> None:
    """EOS is not among the tokens, its row is fed nothing more, and other rows go on as before."""
    plain = expected["windowed"][0]
    eos_id = plain[1][2]
    wanted = [tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens for tokens in plain]
    assert len({len(tokens) for tokens in wanted}) > 1
    requests = [Request(prompt, MAX_TOKENS, eos_id=eos_id) for prompt in PROMPTS]
    found = answers(generate_stream(Engine(model), requests, chunk_size=100))
    assert [ids_in(found[i]) for i in range(len(PROMPTS))] == wanted
    for i, tokens in enumerate(wanted):
        last = found[i][-1]
        stopped = len(tokens) < MAX_TOKENS
        assert last.finish_reason == ("stop" if stopped else "length")
        assert (last.id is None) == stopped
        assert (last.logprob is None) == stopped
        # a step reads the prompt, and then one for every token but the last
        assert sum(i in rows for rows in spy.rows) == (len(tokens) + 1 if stopped else MAX_TOKENS)


def test_generate_leaves_eos_out_of_tokens_and_logprobs(
    models: dict[str, SmallModel], expected: dict[str, Found]
) -> None:
    plain, scores = expected["windowed"]
    tokens, logprobs = generate([PROMPTS[1]], models["windowed"].transformer, MAX_TOKENS, eos_id=plain[1][2])
    end = plain[1].index(plain[1][2])
    assert tokens == [plain[1][:end]]
    close(logprobs, [scores[1][: len(PROMPTS[1]) - 1 + end]], 1e-3)


def test_max_tokens_zero_gives_empty_lists_and_scores_the_prompts(models: dict[str, SmallModel]) -> None:
    model = models["moe_windowed"]
    tokens, logprobs = generate(PROMPTS, model.transformer, 0, chunk_size=4)
    assert tokens == [[], [], [], []]
    close(logprobs, [oracle_logprobs(model.tensors, model.args, prompt) for prompt in PROMPTS], 1e-3)


def test_max_tokens_zero_still_ends_each_request_once(model: Transformer) -> None:
    found = answers(generate_stream(Engine(model), [Request(prompt, 0) for prompt in PROMPTS]))
    assert [(steps[0].id, steps[0].finish_reason) for steps in found.values()] == [(None, "length")] * 4


def test_no_prompts_give_no_answers(model: Transformer) -> None:
    assert generate([], model) == ([], [])


def test_the_last_token_is_not_fed(model: Transformer, spy: Spy) -> None:
    generate([PROMPTS[0]], model, 4, chunk_size=100)
    assert spy.tokens == [3, 1, 1, 1]


def test_one_token_costs_one_step(model: Transformer, spy: Spy) -> None:
    generate([PROMPTS[0]], model, 1, chunk_size=100)
    assert spy.tokens == [3]


@pytest.mark.parametrize("cut", [slice(0, 3), slice(0, 1), slice(1, 5), slice(2, 6)])
def test_a_stop_string_ends_a_row_even_if_tokens_split_it(
    model: Transformer, expected: dict[str, Found], cut: slice
) -> None:
    """From inside the third token on: the text ends before it, and the token that completes it is the last."""
    tokens = expected["windowed"][0][1]
    text = "".join(f"{token:02}," for token in tokens)
    stop = text[6 : 6 + 6][cut]
    at = text.index(stop)
    last = (at + len(stop) - 1) // 3
    steps = answers(generate_stream(Engine(model), [Request(PROMPTS[1], MAX_TOKENS, text=lettered([stop]))]))[0]
    assert "".join(step.text for step in steps) == text[:at]
    assert ids_in(steps) == tokens[: last + 1]
    assert steps[-1].finish_reason == "stop"


def test_text_held_back_is_shown_when_the_length_ends_it(model: Transformer, expected: dict[str, Found]) -> None:
    text = "".join(f"{token:02}," for token in expected["windowed"][0][1])
    requests = [Request(PROMPTS[1], MAX_TOKENS, text=lettered([text[-2:] + "never"], rest="\ufffd"))]
    steps = answers(generate_stream(Engine(model), requests))[0]
    assert "".join(step.text for step in steps) == text + "\ufffd"
    assert steps[-1].text == text[-3:] + "\ufffd"
    assert steps[-1].finish_reason == "length"


def test_text_held_back_is_shown_when_eos_ends_it(model: Transformer, expected: dict[str, Found]) -> None:
    tokens = expected["windowed"][0][1]
    first = f"{tokens[0]:02},"
    request = Request(PROMPTS[1], MAX_TOKENS, eos_id=tokens[1], text=lettered([first + "never"]))
    steps = answers(generate_stream(Engine(model), [request]))[0]
    assert [step.text for step in steps] == ["", first]
    assert steps[-1].finish_reason == "stop"


# Rows that come and go


def test_a_finished_row_costs_nothing_more_and_a_waiting_one_takes_its_place(model: Transformer, spy: Spy) -> None:
    requests = [Request([1, 2], 2), Request([3], 5), Request([4, 5], 1), Request([6], 2)]
    engine = Engine(model)
    found = answers(generate_stream(engine, requests, max_rows=2))
    assert {i: len(ids_in(steps)) for i, steps in found.items()} == {0: 2, 1: 5, 2: 1, 3: 2}
    assert spy.rows == [[0, 1], [0, 1], [1, 2], [1, 3], [1, 3]]
    assert engine.cache.rows == {}


def test_a_row_frees_its_memory_when_it_ends(model: Transformer) -> None:
    engine = Engine(model)
    rows = []
    for event in generate_stream(engine, [Request([1], 2), Request([2], 4)]):
        if isinstance(event, Generated):
            rows.append((event.index, event.finish_reason, sorted(engine.cache.rows)))
    assert rows[:3] == [(0, None, [0, 1]), (1, None, [0, 1]), (0, "length", [1])]
    assert rows[-1] == (1, "length", [])


def test_closing_the_iterator_frees_the_rows(model: Transformer) -> None:
    engine = Engine(model)
    events = generate_stream(engine, [Request(prompt, 5) for prompt in PROMPTS])
    next(events)
    assert sorted(engine.cache.rows) == [0, 1, 2, 3]
    events.close()
    assert engine.cache.rows == {}


def test_an_engine_serves_one_stream_after_another(model: Transformer, expected: dict[str, Found]) -> None:
    engine = Engine(model)
    for _ in range(2):
        found = answers(generate_stream(engine, [Request(prompt, MAX_TOKENS) for prompt in PROMPTS]))
        assert [ids_in(found[i]) for i in range(len(PROMPTS))] == expected["windowed"][0]


def test_two_streams_of_one_engine_may_take_turns(model: Transformer, expected: dict[str, Found]) -> None:
    engine = Engine(model)
    streams = [generate_stream(engine, [Request(prompt, MAX_TOKENS)]) for prompt in PROMPTS[:2]]
    tokens: list[list[int]] = [[], []]
    for _ in range(40):
        for stream, found in zip(streams, tokens, strict=True):
            event = next(stream, None)
            if isinstance(event, Generated) and event.id is not None:
                found.append(event.id)
    assert tokens == expected["windowed"][0][:2]


# Several ids that end an answer, and ids that are never chosen


def test_each_of_several_ids_ends_an_answer(models: dict[str, SmallModel], expected: dict[str, Found]) -> None:
    plain, model = expected["windowed"][0], models["windowed"].transformer
    ends = {plain[0][1], plain[1][2]}
    wanted = [list(itertools.takewhile(lambda token: token not in ends, tokens)) for tokens in plain]
    forms: tuple[Any, ...] = (
        ends,
        tuple(ends),
        [*ends, 10**6, -1],
        np.array(sorted(ends)),
        {np.int32(e) for e in ends},
    )
    for given in forms:
        assert generate(PROMPTS, model, MAX_TOKENS, eos_id=given)[0] == wanted
    assert generate(PROMPTS, model, MAX_TOKENS, eos_id=())[0] == plain
    assert generate(PROMPTS, model, MAX_TOKENS, eos_id=[-5, 1 << 70])[0] == plain


@pytest.mark.parametrize("eos_id", ["2", b"2", True, 2.0, [True], ["</s>"], [None], [[2]], object()])
def test_an_end_that_is_no_id_is_refused(model: Transformer, eos_id: Any) -> None:
    with pytest.raises(InputError, match="eos_id must be an id, a list of ids or None, not"):
        generate(PROMPTS, model, 1, eos_id=eos_id)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_excluded_ids_are_never_generated_and_logprobs_are_the_models(model: Transformer, temperature: float) -> None:
    free = generate(PROMPTS, model, MAX_TOKENS, temperature)
    common = max((token for row in free[0] for token in row), key=[t for row in free[0] for t in row].count)
    excluded = (range(common, common + 1), range(0, 3))
    tokens, logprobs = generate(PROMPTS, model, MAX_TOKENS, temperature, excluded=excluded)
    assert not {token for row in tokens for token in row} & {common, 0, 1, 2}
    again = generate([[*p, *t] for p, t in zip(PROMPTS, tokens, strict=True)], model, 0)[1]
    close(again, logprobs, 1e-4)
