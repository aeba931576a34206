"""Completions of texts: lists, ids, echo with its log-probabilities, the best of several; bodies that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mistral.cli.model_options import shipped_checkpoint
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.command_line import CommandLine
from tests.support.local_server import LocalServer

TEXTS = ["This is a test", "Tom had a red ball. The ball was"]
PATH = "/v1/completions"
SAID = [{"role": "user", "content": "a"}]


def test_echo_with_logprobs_has_the_numbers_of_the_score_command(
    server: LocalServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Tom had a red ball. The ball was big. Émile said: no!"
    (tmp_path / "text").write_text(text)
    scored = CommandLine(capsys, monkeypatch)(
        "score", shipped_checkpoint(), tmp_path / "text", "--json", "--backend=native", "--threads=1"
    )
    records = [json.loads(line) for line in scored.out.splitlines()]
    tokens = [record for record in records if "logprob" in record]
    ids = [1, *(record["id"] for record in tokens)]
    for prompt, most in ((text, 0), (ids, 1)):
        choice = server.answer(PATH, prompt=prompt, echo=True, logprobs=1, max_tokens=most)["choices"][0]
        found = choice["logprobs"]
        count = len(ids)
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        assert [round(value, 6) for value in found["token_logprobs"][1:count]] == [t["logprob"] for t in tokens]
        assert found["tokens"][1:count] == [record["text"] for record in tokens]
        assert choice["text"].startswith(text) and len(found["tokens"]) == count + most
        for logprob, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
            assert logprob in top.values() and len(top) <= 2 and max(top.values()) >= logprob
        for offset, token in zip(found["text_offset"][2:8], found["tokens"][2:8], strict=True):
            assert choice["text"][offset : offset + len(token)] == token


def test_prompts_may_be_texts_or_ids_one_or_several(server: LocalServer) -> None:
    tokenizer = Tokenizer.from_folder(shipped_checkpoint())
    alone = [server.answer(PATH, prompt=text, max_tokens=6)["choices"][0]["text"] for text in TEXTS]
    ids = [tokenizer.encode(text) for text in TEXTS]
    for prompt in (TEXTS, ids):
        found = server.answer(PATH, prompt=prompt, max_tokens=6)
        assert [choice["text"] for choice in found["choices"]] == alone
        assert [choice["index"] for choice in found["choices"]] == [0, 1]
        assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert server.answer(PATH, prompt=ids[0], max_tokens=6)["choices"][0]["text"] == alone[0]
    assert server.answer(PATH, prompt=TEXTS[0], echo=True, max_tokens=6)["choices"][0]["text"] == TEXTS[0] + alone[0]
    assert len(server.answer(PATH, prompt=TEXTS[0], ignore_eos=True)["choices"][0]["text"]) > len(alone[0])


def test_a_stream_has_the_same_text_and_logprobs(server: LocalServer) -> None:
    whole = server.answer(PATH, prompt=TEXTS, max_tokens=6, logprobs=2, echo=True)["choices"]
    texts, logprobs = ["", ""], [list[float](), list[float]()]
    for event in server.events(PATH, prompt=TEXTS, max_tokens=6, logprobs=2, echo=True):
        choice = event["choices"][0]
        texts[choice["index"]] += choice["text"]
        logprobs[choice["index"]] += choice["logprobs"]["token_logprobs"]
    assert texts == [choice["text"] for choice in whole]
    assert logprobs == [choice["logprobs"]["token_logprobs"] for choice in whole]


def test_the_best_of_several(server: LocalServer) -> None:
    drawn = {"prompt": TEXTS[0], "max_tokens": 6, "temperature": 2, "seed": 9, "logprobs": 0}
    all_of_them = server.answer(PATH, n=6, **drawn)["choices"]
    best = server.answer(PATH, n=2, best_of=6, **drawn)["choices"]
    means = {c["text"]: sum(p := c["logprobs"]["token_logprobs"]) / len(p) for c in all_of_them}
    assert [choice["text"] for choice in best] == sorted(means, key=lambda text: -means[text])[:2]
    assert [choice["index"] for choice in best] == [0, 1]


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "prompt", "is required"),
        ({"prompt": []}, "prompt", "must have from 1 to"),
        ({"prompt": [[]]}, "prompt", "must be a text, a list of texts"),
        ({"prompt": [1, "a"]}, "prompt", "must be a text, a list of texts"),
        ({"prompt": [99999]}, "prompt", "99999"),
        ({"prompt": {"a": 1}}, "prompt", "must be a list"),
        ({"prompt": "a", "max_tokens": "3"}, "max_tokens", "must be a whole number"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "must be a whole number"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", "must be at least 0"),
        ({"prompt": "a", "temperature": -1}, "temperature", "must be at least 0"),
        ({"prompt": "a", "top_p": 1.5}, "top_p", "must be at most 1"),
        ({"prompt": "a", "stop": [1]}, "stop", "must be a text or a list of texts"),
        ({"prompt": "a", "stop": ["x"] * 99}, "stop", "64 texts"),
        ({"prompt": "a", "n": 0}, "n", "must be at least 1"),
        ({"prompt": "a", "n": 3, "best_of": 2}, "best_of", "must be at least n, which is 3"),
        ({"prompt": "a", "n": 1, "best_of": 2, "stream": True}, "best_of", "leave out stream"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "must be at most 20"),
        ({"prompt": "a", "seed": 0.5}, "seed", "must be a whole number"),
        ({"prompt": "a", "echo": 1}, "echo", "must be true or false"),
        ({"prompt": "a", "stream": "yes"}, "stream", "must be true or false"),
        ({"prompt": "a", "stream_options": []}, "stream_options", "must be an object"),
        ({"prompt": "a", "logit_bias": {"a": 1}}, "logit_bias", "by token id"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
        ({"prompt": "a", "logit_bias": {" 1": 1}}, "logit_bias", "' 1' is none"),
        ({"prompt": "a", "logit_bias": {"1_0": 1}}, "logit_bias", "'1_0' is none"),
        ({"prompt": "a", "logit_bias": {"\u0663": 1}}, "logit_bias", "is none"),
        ({"prompt": "a", "logit_bias": [[1.5, 1]]}, "logit_bias", "'1.5' is none"),
        ({"prompt": "a", "logit_bias": [1]}, "logit_bias", "by token id"),
        ({"prompt": "a", "logit_bias": {"5000": 1}}, None, "5000"),
        ({"prompt": "a", "presence_penalty": 3}, "presence_penalty", "must be at most 2"),
        ({"prompt": "a", "min_tokens": -1}, "min_tokens", "must be at least 0"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "fill-in-the-middle"),
        ({"prompt": "a", "model": 5}, "model", "must be a text"),
        ({"prompt": "a", "guided_regex": "(("}, "guided_regex", "cannot be used"),
        ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format", "must be one of"),
        ({"prompt": "a", "grammar": 'root ::= "a"'}, "grammar", "guided_grammar"),
        ({"prompt": "a", "json_schema": {"type": "hiccup"}}, "json_schema", "hiccup"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(server: LocalServer, body: dict[str, Any], field: str | None, message: str) -> None:
    response = server.post(PATH, **body)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error"), error
    assert error["param"] == field and message in error["message"], error


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": SAID, "top_logprobs": 2}, "top_logprobs"),
        (
            "/v1/chat/completions", {"messages": SAID, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ("/v1/chat/completions", {"messages": SAID, "tools": [1]}, "tools"),
        ("/v1/chat/completions", {"messages": SAID, "tool_choice": "required"}, "tool_choice"),
        (
            "/v1/chat/completions",
            {"messages": SAID, "response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": {}}}},
            "response_format.json_schema.strict",
        ),
        (
            "/v1/responses", {"input": "a", "text": {"format": {"type": "json_schema", "schema": {}, "name": 1}}},
            "text.format.name",
        ),
        ("/v1/responses", {"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ("/v1/responses", {"input": "a", "background": True}, "background"),
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)  # fmt: skip
def test_what_is_wrong_elsewhere_is_named(server: LocalServer, path: str, body: dict[str, Any], field: str) -> None:
    response = server.post(path, **body)
    assert response.status_code == 400 and response.json()["error"]["param"] == field, response.text


def test_whole_numbers_may_be_written_as_json_has_them(server: LocalServer) -> None:
    """7.0 is 7 to a program that has only one kind of numbers."""
    ids = server.answer("/tokenize", prompt=TEXTS[0])["tokens"]
    wanted = server.answer(PATH, prompt=ids, max_tokens=4, temperature=0)["choices"]
    assert server.answer(PATH, prompt=[float(each) for each in ids], max_tokens=4.0, temperature=0)["choices"] == wanted


def test_fields_that_nobody_knows_are_ignored_and_null_is_as_left_out(server: LocalServer) -> None:
    plain = server.answer(PATH, prompt=TEXTS[0], max_tokens=3)["choices"]
    odd = {"user": "me", "made_up": {"a": [1]}, "stop": None, "n": None, "temperature": None, "logit_bias": None}
    assert server.answer(PATH, prompt=TEXTS[0], max_tokens=3, **odd)["choices"] == plain


def test_texts_to_ids_and_back(server: LocalServer) -> None:
    tokenizer = Tokenizer.from_folder(shipped_checkpoint())
    found = server.answer("/tokenize", prompt=TEXTS[0], return_token_strs=True)
    assert found["tokens"] == tokenizer.encode(TEXTS[0]) and found["count"] == 5
    assert found["token_strs"] == ["<s>", " This", " is", " a", " test"]
    assert server.answer("/tokenize", content=TEXTS[0])["tokens"] == tokenizer.encode(TEXTS[0], bos=False)
    pieces = server.answer("/tokenize", content="The 媽", with_pieces=True)["tokens"]
    assert [each["id"] for each in pieces] == tokenizer.encode("The 媽", bos=False)
    assert [each["piece"] for each in pieces] == [" The", " ", [0xE5], [0xAA], [0xBD]]
    info = server.http.get("/tokenizer_info").json()
    for name in ("bos", "eos"):  # lm-eval asks for ids by the texts that /tokenizer_info has
        ids = server.answer("/tokenize", prompt=info[f"{name}_token"], add_special_tokens=False)["tokens"]
        assert ids == [info[f"{name}_token_id"]]
    assert len(server.answer("/tokenize", prompt="a </s>", add_special_tokens=False)["tokens"]) > 2
    assert server.answer("/tokenize", messages=[{"role": "user", "content": "a"}])["tokens"][:2] == [1, 3]
    assert server.answer("/detokenize", tokens=found["tokens"])["prompt"] == TEXTS[0]
    info = server.http.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token_id"], info["vocab_size"]) == ("<s>", 2, 1024)
