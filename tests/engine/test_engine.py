"""The engine: the logits that are asked for, the limit of a row, and its memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mistral.engine.engine import Engine
from mistral.engine.requests import Request
from mistral.engine.sampling import log_softmax
from mistral.engine.scheduler import generate_stream
from mistral.engine.work import Work
from mistral.errors import InputError
from mistral.generate import generate
from mistral.load import Transformer
from mistral.model.kv_cache import SPARE
from mistral.ops.interface import Ops
from tests.support.generation import PROMPTS
from tests.support.oracle import oracle_logits
from tests.support.small_models import DENSE, WINDOW, SmallModel, build


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
    events = generate_stream(engine, [Request([1], 2), Request([1] * 60, 3)])
    next(events)
    slots = {row: held.layers[0][0].shape[1] for row, held in engine.cache.rows.items()}
    assert slots == {0: 3, 1: WINDOW + SPARE}
    assert [engine.cache.rows[row].capacity for row in (0, 1)] == [3, 63]


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


def test_what_an_engine_is_asked_wrongly_is_one_line(limited: Transformer) -> None:
    engine = Engine(limited)
    row = engine.join(12)
    with pytest.raises(InputError, match="a row of 13 tokens is more than the context limit of 12"):
        engine.join(13)
    with pytest.raises(InputError, match=r"ids must be .* from 0 to 39, not one with 40 in it"):
        engine.step([Work(row, [1, 40])])
    with pytest.raises(InputError, match=r"ids must be .* not one with -1 in it"):
        engine.submit([Work(row, [-1])])
    with pytest.raises(InputError, match="would exceed its capacity of 12"):
        engine.step([Work(row, [1] * 13)])
    for call in (
        engine.leave,
        engine.kv_seqlen,
        lambda row: engine.resume(row, 0, 1),
        lambda row: engine.export(row, []),
    ):
        with pytest.raises(InputError, match="has no row 99"):
            call(99)
    with pytest.raises(InputError, match="row 0 has 0 tokens: give their ids, not 2 ids"):
        engine.export(row, [1, 2])
    engine.step([Work(row, [1, 2])])
    assert engine.kv_seqlen(row) == 2


def test_without_a_limit_the_context_may_be_any_length(models: dict[str, SmallModel]) -> None:
    assert Engine(models["dense"].transformer).context_limit is None
    assert Engine(models["dense"].transformer, 9).context_limit == 9


def test_a_max_context_below_one_is_refused(model: Transformer) -> None:
    with pytest.raises(InputError, match="max_context 0: must be at least 1"):
        Engine(model, 0)


def test_a_row_for_which_memory_is_short_is_refused(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mistral.memory.psutil.virtual_memory", lambda: type("Memory", (), {"available": 100})())
    engine = Engine(model)
    with pytest.raises(InputError, match="lower max_tokens or max_context"):
        generate_stream(engine, [Request([1], 5)])
    assert engine.cache.rows == {}


def test_rows_that_have_joined_count_before_they_fill(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untouched slots take no memory yet, so the system still calls theirs free."""
    room = Engine(model).cache.nbytes(6) * 5 // 2
    monkeypatch.setattr("mistral.memory.psutil.virtual_memory", lambda: type("Memory", (), {"available": room})())
    engine = Engine(model)
    first = engine.join(6)
    engine.join(6)
    with pytest.raises(InputError, match="the cache of 6 tokens needs"):
        engine.join(6)
    engine.leave(first)
    engine.join(6)


def test_prompts_wait_for_the_memory_of_others(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    alone = generate(prompts, model, 3)
    room = Engine(model).cache.nbytes(6) * 5 // 2
    monkeypatch.setattr("mistral.memory.psutil.virtual_memory", lambda: type("Memory", (), {"available": room})())
    assert generate(prompts, model, 3)[0] == alone[0]
