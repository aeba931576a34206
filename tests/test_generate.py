"""Generation against the oracle: any chunk size, any batch, any order of coming and going."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from mistral.engine import Engine, Work
from mistral.errors import InputError
from mistral.generate import Generated, Prefilled, Request, Timings, default_chunk_size, generate, generate_stream
from mistral.model import Transformer
from mistral.ops import Ops
from mistral.sampling import SamplingSettings, log_softmax
from mistral.textstream import TextStream
from tests.oracle import oracle_greedy, oracle_logits, oracle_logprobs
from tests.pieces import PieceDecoder
from tests.small_models import DENSE, SHAPES, WINDOW, SmallModel, build

generate_module = sys.modules["mistral.generate"]  # the package gives the function this name
MAX_TOKENS = 6
LENGTHS = (3, 18, 1, 9)  # the second wraps around the window several times; the third runs out at once
PROMPTS = [np.random.default_rng(length).integers(0, DENSE.vocab_size, length).tolist() for length in LENGTHS]
RANDOM = SamplingSettings(temperature=1.0, seed=5)
Found = tuple[list[list[int]], list[list[float]]]


@pytest.fixture(scope="module")
def expected(models: dict[str, SmallModel]) -> dict[str, Found]:
    """What the oracle generates greedily with each model: tokens and logprobs per prompt."""
    found = {}
    for name, model in models.items():
        pairs = [oracle_greedy(model.tensors, model.args, prompt, MAX_TOKENS) for prompt in PROMPTS]
        found[name] = ([tokens for tokens, _ in pairs], [logprobs for _, logprobs in pairs])
    return found


@pytest.fixture
def model(models: dict[str, SmallModel]) -> Transformer:
    return models["windowed"].transformer


class Spy:
    """Counts what a model is asked to compute: the rows of each step, and the tokens that its head serves."""

    def __init__(self, model: Transformer, patch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[int]] = []
        self.tokens: list[int] = []
        self.head: list[int] = []
        forward, head = model.forward, model.head

        def spied_forward(ids, seqlens, cache, rows, wanted):  # type: ignore[no-untyped-def]
            self.rows.append(list(rows))
            self.tokens.append(len(ids))
            return forward(ids, seqlens, cache, rows, wanted)

        def spied_head(x):  # type: ignore[no-untyped-def]
            self.head.append(x.shape[0])
            return head(x)

        patch.setattr(model, "forward", spied_forward)
        patch.setattr(model, "head", spied_head)


@pytest.fixture
def spy(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(model, monkeypatch)


def close(found: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]], within: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=within)


def answers(events: Iterator[Prefilled | Generated]) -> dict[int, list[Generated]]:
    """The Generated events of each request, in order; asserts that each request ends exactly once, and is then silent."""
    found: dict[int, list[Generated]] = {}
    for event in events:
        if isinstance(event, Generated):
            found.setdefault(event.index, []).append(event)
    for steps in found.values():
        assert [step.finish_reason is not None for step in steps] == [False] * (len(steps) - 1) + [True]
    return found


def ids_in(steps: list[Generated]) -> list[int]:
    return [step.id for step in steps if step.id is not None]


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
    requests = [Request(PROMPTS[0], 3) for _ in range(7)]
    found = answers(generate_stream(Engine(model), requests))
    assert {len(rows) for rows in spy.rows} == {7}
    assert len({tuple(ids_in(steps)) for steps in found.values()}) == 1
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


def test_generate_leaves_eos_out_of_tokens_and_logprobs(models: dict[str, SmallModel], expected: dict[str, Found]) -> None:
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


def lettered(stop: Sequence[str] = (), rest: str = "") -> TextStream:
    """Each id as three characters of its own: 07 and a comma."""
    return TextStream(PieceDecoder([f"{i:02}," for i in range(DENSE.vocab_size)], rest), stop)


@pytest.mark.parametrize("cut", [slice(0, 3), slice(0, 1), slice(1, 5), slice(2, 6)])
def test_a_stop_string_ends_a_row_even_if_tokens_split_it(model: Transformer, expected: dict[str, Found], cut: slice) -> None:
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
    held = []
    for event in generate_stream(engine, [Request([1], 2), Request([2], 4)]):
        if isinstance(event, Generated):
            held.append((event.index, sorted(engine.cache.rows)))
    assert held[-1] == (1, [1])
    assert held[-2] == (1, [1])


def test_closing_the_iterator_frees_the_rows(model: Transformer) -> None:
    engine = Engine(model)
    events = generate_stream(engine, [Request(prompt, 5) for prompt in PROMPTS])
    next(events)
    assert sorted(engine.cache.rows) == [0, 1, 2, 3]
    events.close()  # type: ignore[attr-defined]
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


def test_a_failing_step_frees_the_rows(ops: Ops) -> None:
    """Weights that overflow give one line, not a token out of NaN."""
    broken = build(DENSE, ops)
    broken.tensors["norm.weight"][:] = np.nan
    engine = Engine(broken.transformer)
    with pytest.raises(InputError, match="NaN"):
        list(generate_stream(engine, [Request([1, 2], 3)]))
    assert engine.cache.rows == {}


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
    assert (timings.prefill_tokens, timings.decode_tokens) == (27, 6)
    assert timings.prefill_seconds > 0
    assert timings.decode_seconds > 0


def test_the_default_chunk_is_the_shortest_window_but_at_most_512(models: dict[str, SmallModel], ops: Ops) -> None:
    assert default_chunk_size(models["dense"].transformer) == 512
    assert default_chunk_size(models["windowed"].transformer) == WINDOW
    assert default_chunk_size(models["interleaved"].transformer) == 3
    assert default_chunk_size(build(replace(DENSE, sliding_windows=(4096, None)), ops).transformer) == 512


# The engine itself


def test_a_step_gives_the_logits_that_its_work_asks_for(models: dict[str, SmallModel]) -> None:
    model = models["windowed"]
    engine = Engine(model.transformer)
    rows = [engine.join(10) for _ in range(4)]
    wants = ("none", "all", "last", "none")
    work = [Work(row, PROMPTS[0], logits) for row, logits in zip(rows, wants, strict=True)]  # type: ignore[arg-type]
    logits = engine.step(work)
    wanted = oracle_logits(model.tensors, model.args, PROMPTS[0])
    assert [part.shape[0] for part in logits] == [0, 3, 1, 0]
    np.testing.assert_allclose(logits[1], wanted, rtol=0, atol=2e-4)
    np.testing.assert_allclose(logits[2], wanted[-1:], rtol=0, atol=2e-4)
    assert engine.step([Work(rows[0], [1, 2], "none")])[0].shape == (0, DENSE.vocab_size)
    after = oracle_logits(model.tensors, model.args, [*PROMPTS[0], 1, 2, 3])[-1:]
    np.testing.assert_allclose(log_softmax(engine.step([Work(rows[0], [3])])[0]), log_softmax(after), rtol=0, atol=1e-3)


def test_trap_5_a_row_has_as_many_slots_as_its_prompt_and_answer_need(model: Transformer) -> None:
    engine = Engine(model)
    events = generate_stream(engine, [Request([1], 2), Request([1] * 9, 3)])
    next(events)
    slots = {row: held.layers[0][0].shape[1] for row, held in engine.cache.rows.items()}
    assert slots == {0: 3, 1: WINDOW}
    assert [engine.cache.rows[row].capacity for row in (0, 1)] == [3, 12]


@pytest.fixture
def limited(ops: Ops) -> Transformer:
    """A model whose file limits the context to 12."""
    return build(replace(DENSE, max_seq_len=12), ops).transformer


@pytest.mark.parametrize(("max_context", "limit"), [(None, 12), (8, 8), (40, 12)])
def test_the_context_limit_caps_max_tokens(limited: Transformer, max_context: int | None, limit: int) -> None:
    tokens, _ = generate([[1] * 5, [2] * (limit - 1)], limited, 100, max_context=max_context)
    assert [len(found) for found in tokens] == [limit - 5, 1]


@pytest.mark.parametrize("max_tokens", [1, 5])
def test_a_prompt_that_fills_the_context_is_refused(limited: Transformer, max_tokens: int) -> None:
    with pytest.raises(InputError, match=r"prompt 1 has 12 tokens and the context limit is 12"):
        generate([[1], [1] * 12], limited, max_tokens)
    assert generate([[1] * 12], limited, 0)[0] == [[]]
    with pytest.raises(InputError, match="13 tokens"):
        generate([[1] * 13], limited, 0)


def test_without_a_limit_the_context_may_be_any_length(models: dict[str, SmallModel]) -> None:
    assert Engine(models["dense"].transformer).context_limit is None
    assert Engine(models["dense"].transformer, 9).context_limit == 9


def test_a_max_context_below_one_is_refused(model: Transformer) -> None:
    with pytest.raises(InputError, match="--max_context 0"):
        Engine(model, 0)


# What is refused, before anything is computed


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([]), r"prompt 1 is empty"),
        (Request([3, DENSE.vocab_size]), r"prompt 1 has an id outside the vocabulary of 40"),
        (Request([-1]), r"prompt 1 has an id outside the vocabulary"),
        (Request([1], -1), r"--max_tokens -1"),
    ],
)
def test_a_bad_request_is_refused_before_any_work(model: Transformer, spy: Spy, request_: Request, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        generate_stream(Engine(model), [Request([1]), request_])
    assert "\n" not in str(caught.value)
    assert spy.tokens == []


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_a_chunk_size_below_one_is_refused(model: Transformer, chunk_size: int) -> None:
    with pytest.raises(InputError, match=f"--chunk_size {chunk_size}"):
        generate_stream(Engine(model), [Request([1])], chunk_size)


def test_a_row_for_which_memory_is_short_is_refused(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mistral.memory.psutil.virtual_memory", lambda: type("Memory", (), {"available": 100})())
    engine = Engine(model)
    with pytest.raises(InputError, match="lower --max_tokens"):
        list(generate_stream(engine, [Request([1], 5)]))
    assert engine.cache.rows == {}
