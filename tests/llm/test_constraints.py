"""Answers of a given form from a model in one object, and the options that bias and bound an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from mistral import LLM, AsyncLLM, Completion, InputError
from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.scheduler import Scheduler

TEXT = "Tom had a red ball. The ball was"
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LISTS = {"type": "array", "items": {"enum": ["red", "green", None]}, "minItems": 1, "maxItems": 3}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(shipped_checkpoint(), backend="native") as llm:
        yield llm


def one(llm: LLM, **options: Any) -> Completion:
    found = llm.generate(TEXT, **options)
    assert isinstance(found, Completion)
    return found


def test_texts_and_conversations_are_answered_by_a_schema(llm: LLM) -> None:
    found = llm.generate([TEXT, "Anna"], json_schema=PERSON, max_tokens=60)
    chat = llm.chat([{"role": "user", "content": TEXT}], json_schema=json.dumps(PERSON), max_tokens=60, n=3, seed=1)
    assert isinstance(chat, list)
    for answer in (*found, *chat):
        assert isinstance(answer, Completion) and answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer), PERSON)
    cut = one(llm, json_schema=PERSON, max_tokens=7)
    assert cut.finish_reason == "length" and str(found[0]).startswith(cut)
    whole = one(llm, json_schema=PERSON, max_tokens=len(found[0].ids))  # type: ignore[union-attr]
    assert (whole, whole.finish_reason) == (found[0], "stop"), "the last token that was allowed ends it"


def test_an_answer_in_company_is_the_one_it_gets_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is computed beside it, forked from the same prompt, or parked in between."""
    asked: list[dict[str, Any]] = [
        {"json_schema": PERSON, "temperature": 1.0, "seed": 1},
        {"json_schema": LISTS, "temperature": 2.0, "seed": 2, "presence_penalty": 1.0},
        {"regex": "[a-z]{4,8}( [a-z]{4,8}){3}", "temperature": 1.5, "seed": 3, "top_p": 0.8},
        {"choices": ["green", " red", "it was"], "seed": 4},
        {"temperature": 1.0, "seed": 5, "frequency_penalty": 0.7},
        {"temperature": 1.0, "seed": 6, "logit_bias": {5: 3.0, 300: -100.0}, "min_tokens": 12},
    ]
    alone = [one(llm, max_tokens=20, logprobs=2, **options) for options in asked]

    async def together() -> list[Any]:
        many = AsyncLLM(llm)
        return await asyncio.gather(*(many.generate(TEXT, max_tokens=20, logprobs=2, **each) for each in asked))

    parks = list[int]()
    step = Scheduler.step

    def stepping(self: Scheduler) -> Any:
        for handle, row in list(self._active.items()):
            if row.can_park and len(row.answer) in (3, 7) and len(row.answer) * 100 + row.index not in parks:
                parks.append(len(row.answer) * 100 + row.index)
                self._parked[handle] = self._active.pop(handle)
                row.park(self.engine)
        return step(self)

    monkeypatch.setattr(Scheduler, "step", stepping)
    found = asyncio.run(together())
    assert parks
    for mine, other in zip(found, alone, strict=True):
        assert (mine, mine.ids, mine.finish_reason) == (other, other.ids, other.finish_reason)
        close = pytest.approx([each.logprob for each in other.logprobs], abs=1e-4)
        assert [each.logprob for each in mine.logprobs] == close
    assert alone[0].startswith("{") and alone[3] in ("green", " red", "it was")
    jsonschema.validate(json.loads(alone[1]), LISTS)
    assert len(alone[5].ids) >= 12 and 300 not in alone[5].ids


def test_stop_texts_and_least_tokens_beside_a_schema(llm: LLM) -> None:
    whole = one(llm, json_schema=PERSON, max_tokens=60)
    at = whole.index("age")
    cut = one(llm, json_schema=PERSON, max_tokens=60, stop="age")
    assert (cut, cut.finish_reason) == (whole[:at], "stop")
    late = one(llm, json_schema=PERSON, max_tokens=60, stop="age", min_tokens=len(cut.ids) + 1)
    assert late == whole, "the stop text came before so many tokens"
    over = one(llm, json_schema=PERSON, max_tokens=60, min_tokens=55)
    assert (over, over.finish_reason) == (whole, "stop"), "where a grammar ends, nothing more can be said"


def test_the_end_of_an_answer_comes_not_before_so_many_tokens(llm: LLM) -> None:
    end = llm.tokenizer.eos_id
    biased: dict[str, Any] = {"max_tokens": 12, "logit_bias": {end: 100}}
    assert one(llm, **biased).ids == ()
    least = one(llm, **biased, min_tokens=5)
    plain = one(llm, max_tokens=12)
    assert (least.ids, least.finish_reason) == (plain.ids[:5], "stop")
    ignored = one(llm, **biased, ignore_eos=True)
    assert ignored.ids == (end,) * 12 and (ignored, ignored.finish_reason) == ("", "length")
    short = one(llm, max_tokens=3, min_tokens=9, logit_bias={end: 100})
    assert (short.ids, short.finish_reason) == (plain.ids[:3], "length")


def test_ignore_eos_with_a_grammar_goes_on_where_it_can(llm: LLM) -> None:
    greedy = one(llm, regex="a{2,20}", max_tokens=30, logit_bias={llm.tokenizer.eos_id: 100})
    assert greedy == "aa"
    assert one(llm, regex="a{2,20}", max_tokens=30, ignore_eos=True, logit_bias={llm.tokenizer.eos_id: 100}) == "a" * 20


def test_bias_and_penalties_change_what_is_chosen(llm: LLM) -> None:
    plain = one(llm, max_tokens=8)
    banned = one(llm, max_tokens=8, logit_bias={plain.ids[0]: -100})
    assert banned.ids[0] != plain.ids[0]
    forced = one(llm, max_tokens=8, logit_bias={700: 100})
    assert forced.ids == (700,) * 8
    frequent = one(llm, max_tokens=60, logit_bias={700: 100}, frequency_penalty=2.0)
    assert 30 < frequent.ids.count(700) < 60, "two less each time"
    assert one(llm, max_tokens=8, logit_bias={700: 100, 701: 99}, presence_penalty=2.0).ids[:3] == (700, 701, 700)
    assert one(llm, max_tokens=8, presence_penalty=0.0, frequency_penalty=0, logit_bias={}).ids == plain.ids


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"json_schema": 3}, "json_schema: no JSON schema: it must be an object"),
        ({"json_schema": {"type": "strange"}}, "json_schema: cannot be used"),
        ({"regex": "("}, "regex: cannot be used"),
        ({"choices": []}, "choices: must be a list of 1 to"),
        ({"grammar": "nothing"}, "grammar: cannot be used"),
        ({"json_schema": PERSON, "regex": "a"}, "regex: cannot be together with json_schema; leave one out"),
        ({"logit_bias": {"a": 1}}, "logit_bias must have ids as its keys"),
        ({"logit_bias": {1: 101}}, "logit_bias must have numbers from -100 to 100"),
        ({"logit_bias": {99999: 1}}, "logit_bias has the id 99999, and the model has 1024 ids"),
        ({"logit_bias": [1]}, "logit_bias must be a table"),
        ({"presence_penalty": 2.1}, "presence_penalty must be a number from -2 to 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty must be a number from -2 to 2"),
        ({"min_tokens": -1}, "min_tokens -1: must be a whole number of at least 0"),
    ],
)
def test_what_cannot_be_is_refused(llm: LLM, options: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        llm.generate(TEXT, **options)


def test_a_hostile_schema_among_others_is_refused_alone(llm: LLM) -> None:
    async def run() -> Any:
        many = AsyncLLM(llm)
        hostile = many.generate(TEXT, json_schema={"type": "integer", "multipleOf": 99999989})
        return await asyncio.gather(many.generate(TEXT, max_tokens=5), hostile, return_exceptions=True)

    good, refused = asyncio.run(run())
    assert good == one(llm, max_tokens=5)
    assert isinstance(refused, InputError) and "it takes too much time" in str(refused)


def test_a_grammar_whose_tokens_the_bias_cannot_ban_away(llm: LLM) -> None:
    """The mask comes last: a bias makes nothing possible that the grammar does not allow."""
    found = one(llm, choices=["green"], logit_bias={700: 100, llm.tokenizer.eos_id: 100}, max_tokens=20)
    assert (found, found.finish_reason) == ("green", "stop")
