"""Answers that must be tool calls, written at random in the form of every template."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from mistral.errors import InputError
from mistral.grammar.grammars import Grammars
from mistral.grammar.response_format import read_response_format
from mistral.grammar.tool_constraint import tool_constraint
from mistral.tokenizer.messages import Tool
from mistral.tokenizer.tool_calls import parse_reply
from tests.support.random_schemas import written
from tests.support.tool_cases import WITH_TOOLS, load

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/name"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string", "maxLength": 6}},
}
TOOLS = (Tool("get_weather", "", CITY), Tool("now", "", {}), Tool("set-2", "", {"properties": {"on": {"enum": [1]}}}))
KINDS = [kind for kind in WITH_TOOLS if kind != "v3 tekken"]  # its form is that of v7 tekken


@pytest.mark.parametrize("kind", KINDS)
def test_calls_parse_and_their_arguments_are_valid(kind: str) -> None:
    tokenizer, grammars = load(kind), Grammars(load(kind))
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    called, counts = set[str](), set[int]()
    for choice, parallel in (("required", True), ("required", False), ("get_weather", False), ("now", True)):
        grammar = grammars.grammar(tool_constraint(tokenizer, TOOLS, choice, parallel))
        for seed in range(6):
            ids, complete = written(grammar, tokenizer.vocab_size, seed, 150, temperature=1.0)
            if not complete:
                continue
            reply = parse_reply(tokenizer, ids, TOOLS)
            assert (reply.warning, reply.text) == (None, "") and reply.calls, reply
            assert parallel or len(reply.calls) == 1
            counts.add(len(reply.calls))
            for call in reply.calls:
                assert choice in ("required", call.name)
                jsonschema.validate(json.loads(call.arguments), schemas[call.name])
                assert call.name != "now" or call.arguments == "{}"
                called.add(call.name)
    assert called >= {"get_weather", "now"} and 1 in counts and max(counts) > 1


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(InputError, match="tool_choice later: is not among the tools"):
        tool_constraint(load("v3"), TOOLS, "later")
    with pytest.raises(InputError, match="tool_choice: this model has no known form of tool calls"):
        tool_constraint(load("v1"), TOOLS)
    with pytest.raises(InputError, match="the parameters of a are not those of an object"):
        tool_constraint(load("v3"), [Tool("a", "", {"type": "string"})])
    with pytest.raises(InputError, match="nothing outside of the schema is read"):
        tool_constraint(load("v3"), [Tool("a", "", {"properties": {"x": {"$ref": "http://example.com"}}})])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json_object"),
        ({"type": "json_object", "schema": None}, "json_object"),
        ({"type": "json_object", "schema": CITY}, "json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": CITY}}, "json_schema"),
        ({"type": "json_schema", "schema": CITY}, "json_schema"),
    ],
)
def test_response_format(value: object, kind: str | None) -> None:
    found = read_response_format(value)
    assert (found.kind if found else None) == kind


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("json", 'must be an object with a "type"'),
        ({}, "its type must be one of text, json_object, json_schema, not 'None'"),
        ({"type": "xml"}, "its type must be one of"),
        ({"type": "json_schema"}, 'has no "schema" in its "json_schema" that is an object'),
        ({"type": "json_object", "schema": 3}, 'has no "schema" that is an object'),
        ({"type": "json_schema", "json_schema": {"schema": 3}}, 'has no "schema"'),
    ],
)
def test_response_formats_that_are_none(value: object, reason: str) -> None:
    with pytest.raises(InputError, match=f"response_format: {reason}"):
        read_response_format(value)
