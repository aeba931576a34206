"""The description of the interfaces: what it allows is taken, and what it forbids is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mistral.server.openapi import BODIES, below
from tests.support.local_server import LocalServer

SAID = [{"role": "user", "content": "a"}]
TOOL: dict[str, Any] = {"name": "f", "description": None, "parameters": {}}
FORM = {"type": "json_schema", "json_schema": {"schema": {"type": "null"}, "strict": None}}
DESCRIBED: dict[str, tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]] = {
    "/v1/chat/completions": (
        {"messages": SAID, "max_tokens": 1},
        [
            {"top_logprobs": 0}, {"top_logprobs": 2, "logprobs": True}, {"tools": None},
            {"tools": [{"type": "function", "function": TOOL}]}, {"tools": [{"function": TOOL}]},
            {"logit_bias": {"1023": -100, "0": 1}}, {"response_format": FORM}, {"response_format": {"type": "text"}},
            {"messages": [{"role": "user", "content": ["a", {"text": "b"}]}]}, {"stop": ["a"] * 64},
        ],
        [
            {"top_logprobs": 1}, {"tools": [None]}, {"tools": [{"type": "function"}]}, {"logit_bias": {"1024": 1}},
            {"logit_bias": {"07": 1}}, {"response_format": {}}, {"messages": []}, {"stop": ["a"] * 65},
            {"messages": [{"role": "user", "content": []}]}, {"messages": [{"content": "a"}]}, {"n": 0},
            {"stop": [None]}, {"seed": 0.5}, {"max_completion_tokens": 1, "max_tokens": 1 << 80},
        ],
    ),
    "/v1/completions": (
        {"prompt": "a", "max_tokens": 1},
        [{"logprobs": None}, {"prompt": [7, 8]}, {"prompt": [[7], [8]]}, {"echo": None}, {"temperature": 100}],
        [{"prompt": []}, {"prompt": [1024]}, {"prompt": [[]]}, {"logprobs": "1"}, {"logprobs": 21}, {"top_p": 2}],
    ),
    "/v1/messages": (
        {"messages": SAID, "max_tokens": 1},
        [{"tools": [{"name": "f"}]}, {"system": []}, {"stop_sequences": ["a"]}, {"tool_choice": {"type": "none"}}],
        [{"tools": [None]}, {"tools": [{}]}, {"stop_sequences": "a"}, {"tool_choice": {}}, {"max_tokens": 0}],
    ),
    "/v1/responses": (
        {"input": "a", "max_output_tokens": 1},
        [{"tools": [{"type": "function", **TOOL}]}, {"tools": None}, {"input": SAID}, {"text": {"format": None}}],
        [{"tools": [TOOL]}, {"tools": [None]}, {"input": []}, {"text": {"format": {}}}, {"reasoning": {"effort": 1}}],
    ),
}  # fmt: skip


def test_the_description_names_what_there_is(server: LocalServer) -> None:
    document = server.http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0" and set(document["paths"]) == set(BODIES)
    for path in BODIES:
        assert server.http.post(path, json={}).status_code == 400


@pytest.mark.parametrize("path", DESCRIBED)
def test_what_the_description_allows_is_taken_and_nothing_else(server: LocalServer, path: str) -> None:
    document = server.http.get("/openapi.json").json()
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator(schema)
    body, right, wrong = DESCRIBED[path]
    for fields, status in [({}, 200), *((each, 200) for each in right), *((each, 400) for each in wrong)]:
        assert validator.is_valid({**body, **fields}) == (status == 200), fields
        response = server.http.post(path, json={**body, **fields})
        assert response.status_code == status, response.text


def test_ids_are_described_by_how_they_are_written() -> None:
    for limit in (1, 2, 9, 10, 11, 100, 305, 1024, 32000):
        allowed = [number for number in range(3 * limit + 20) if re.search(below(limit), str(number))]
        assert allowed == list(range(limit)), limit
