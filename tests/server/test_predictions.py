"""Drafts on the server: answers stay what they are, whatever is predicted, and usage and metrics tell of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.speculation import Speculation
from tests.support.local_server import LocalServer, local_server

PATH = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tom got a green bell. What colour was the bell?"}], "max_tokens": 24,
    "logprobs": True, "top_logprobs": 2,
}  # fmt: skip
PERSON = {
    "type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"], "additionalProperties": False,
}  # fmt: skip
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}


@pytest.fixture(scope="module")
def guessing() -> Iterator[LocalServer]:
    """A server that always tries what it can guess."""
    with local_server(shipped_checkpoint(), speculation=Speculation(always=True)) as local:
        yield local
        local.wait_until_idle()


def prediction(text: str) -> dict[str, str]:
    return {"type": "content", "content": text}


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0, "ignore_eos": True},
        {"temperature": 1.2, "seed": 4, "n": 3, "frequency_penalty": 0.5},
        {"temperature": 1, "seed": 1, "response_format": FORM, "max_tokens": 40},
        {"temperature": 0, "response_format": FORM, "max_tokens": 40, "repetition_penalty": 1.3},
        {"temperature": 0, "ignore_eos": True, "stop": ["e"]},
    ],
)
def test_an_answer_is_the_same_whatever_is_predicted(
    server: LocalServer, guessing: LocalServer, changed: dict[str, Any]
) -> None:
    body = ASKED | changed
    plain = server.answer(PATH, **body)["choices"]
    text = plain[0]["message"]["content"]
    for predicted in (text, text[:9] + "?" + text[9:], "nothing of the kind", ""):
        found = guessing.answer(PATH, **body, prediction=prediction(predicted))
        assert found["choices"] == plain
    parts = [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]
    assert guessing.answer(PATH, **body, prediction={"type": "content", "content": parts})["choices"] == plain


def test_usage_and_metrics_tell_what_was_right(server: LocalServer, guessing: LocalServer) -> None:
    body = ASKED | {"temperature": 0, "ignore_eos": True, "max_tokens": 20}
    plain = server.answer(PATH, **body)
    details = plain["usage"]["completion_tokens_details"]
    assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (0, 0)
    before = [guessing.figure(f"mistral_{name}_tokens") for name in ("accepted", "drafted")]
    found = guessing.answer(PATH, **body, prediction=prediction(plain["choices"][0]["message"]["content"]))
    details = found["usage"]["completion_tokens_details"]
    assert 0 < details["accepted_prediction_tokens"] < 20
    after = [guessing.figure(f"mistral_{name}_tokens") for name in ("accepted", "drafted")]
    assert after[0] - before[0] == details["accepted_prediction_tokens"]
    assert after[1] - before[1] == details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("text", "prediction"),
        ({"type": "other", "content": "a"}, "prediction.type"),
        ({"type": "content", "content": 3}, "prediction.content"),
        ({"type": "content", "content": ["a"]}, "prediction.content[0]"),
        ({"type": "content", "content": [{"type": "text", "text": 3}]}, "prediction.content[0].text"),
    ],
)
def test_a_prediction_that_is_none_is_refused_by_name(server: LocalServer, given: object, field: str) -> None:
    response = server.post(PATH, **ASKED, prediction=given)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
