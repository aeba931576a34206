"""Tokens that a grammar forces are drafts: the answer is the same, and takes fewer steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.engine import Engine
from mistral.engine.requests import Generated, Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import Scheduler
from mistral.engine.speculation import Speculation, forced
from mistral.engine.timings import Timings
from mistral.grammar.constraint import Constraint
from mistral.grammar.grammars import Grammars
from mistral.load import Transformer, load_model
from mistral.tokenizer.tokenizer import Tokenizer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"temperature": {"type": "integer", "maximum": 99}, "description": {"enum": ["sunny", "rainy"]}},
    "required": ["temperature", "description"],
    "additionalProperties": False,
}
TEXT = "Tom had a red ball. The ball was"


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[Transformer, Tokenizer, Grammars]]:
    tokenizer = Tokenizer.from_folder(shipped_checkpoint())
    yield load_model(shipped_checkpoint(), backend="native"), tokenizer, Grammars(tokenizer)


Answers = tuple[list[Any], Timings]


def answered(
    opened: tuple[Transformer, Tokenizer, Grammars],
    constraint: Constraint,
    temperature: float,
    speculation: Speculation | None,
) -> Answers:
    """All that is told of two answers, and what they took."""
    model, tokenizer, grammars = opened
    scheduler, events = Scheduler(Engine(model), speculation=speculation), list[Any]()
    grammar = grammars.grammar(constraint, begins=False)
    for number in range(2):
        settings = SamplingSettings(temperature=temperature, seed=number, presence_penalty=0.5)
        scheduler.submit(Request(tokenizer.encode(TEXT), 60, settings, tokenizer.end_ids, top=2, constraint=grammar))
    while not scheduler.idle:
        events += [event for event in scheduler.step() if isinstance(event, Generated)]
    steps = [(e.index, e.id, e.logprob, e.top, e.finish_reason) for e in events]
    return sorted(steps, key=lambda step: int(step[0])), scheduler.timings


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_forced_tokens_are_drafts(opened: tuple[Transformer, Tokenizer, Grammars], temperature: float) -> None:
    """A small model that was never taught JSON writes its names in small pieces: many guesses are wrong."""
    constraint = Constraint.json_schema(SCHEMA)
    before, _ = answered(opened, constraint, temperature, None)
    found, timings = answered(opened, constraint, temperature, Speculation([forced], always=True))
    assert found == before
    assert timings.drafted_tokens > timings.accepted_tokens >= 8
    assert timings.row_steps == timings.decode_steps - timings.accepted_tokens


def test_a_text_that_is_all_forced_takes_few_steps(opened: tuple[Transformer, Tokenizer, Grammars]) -> None:
    constraint = Constraint.choice([" red. Tom and Anna play with the red ball."])
    before, _ = answered(opened, constraint, 0.0, None)
    found, timings = answered(opened, constraint, 0.0, Speculation([forced], always=True))
    assert found == before
    assert timings.row_steps < timings.decode_steps / 2


def test_a_row_without_a_grammar_has_no_such_drafts(opened: tuple[Transformer, Tokenizer, Grammars]) -> None:
    model, tokenizer, _ = opened
    scheduler = Scheduler(Engine(model), speculation=Speculation([forced], always=True))
    scheduler.submit(Request(tokenizer.encode(TEXT), 9))
    while not scheduler.idle:
        scheduler.step()
    assert (scheduler.timings.decode_tokens, scheduler.timings.drafted_tokens) == (9, 0)
