"""OpenAI's own client, unmodified, against a server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx2 as httpx
import openai
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from pydantic import BaseModel

from tests.support.local_server import LocalServer

QUESTION = "Tom got a green bell. What colour was the bell?"
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
ANSWER = "The bell was green."
TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "find_ball",
        "description": "Find a ball",
        "parameters": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "maximum": 9}},
            "required": ["colour", "count"],
            "additionalProperties": False,
        },
    },
}


class Ball(BaseModel):
    colour: Literal["red", "blue"]
    round: bool


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_a_conversation(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=ASKED, max_completion_tokens=30)
    choice = found.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert choice.message.tool_calls is None and choice.logprobs is None and choice.message.refusal is None
    assert found.object == "chat.completion" and found.model == "tiny" and found.id.startswith("chatcmpl-")
    usage = found.usage
    assert usage and (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (15, 5, 20)


def test_a_stream_has_the_role_first_and_the_reason_last(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=ASKED, stream=True))
    first, *middle, last = [chunk.choices[0] for chunk in chunks]
    assert first.delta.role == "assistant" and first.delta.content == ""
    assert "".join(choice.delta.content or "" for choice in middle) == ANSWER and middle
    assert all(choice.delta.role is None and choice.finish_reason is None for choice in middle)
    assert last.finish_reason == "stop" and last.delta.content is None
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1


def test_one_chunk_of_usage_comes_last_where_it_is_asked_for(server: LocalServer) -> None:
    *chunks, last = server.events(
        "/v1/chat/completions", messages=ASKED, max_tokens=2, stream_options={"include_usage": True}
    )
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 17
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_the_helper_for_streams_puts_an_answer_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=ASKED) as stream:
        kinds = [event.type for event in stream]
        found = stream.get_final_completion()
    assert found.choices[0].message.content == ANSWER
    assert kinds.count("content.delta") == kinds.count("chunk") - 1 and kinds[-1] == "content.done"


def test_logprobs(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=ASKED, logprobs=True, top_logprobs=20)
    logprobs = found.choices[0].logprobs
    assert logprobs and logprobs.content
    assert "".join(token.token for token in logprobs.content) == ANSWER
    for token in logprobs.content:
        assert token.bytes and bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 20 and token.top_logprobs[0].token == token.token
        assert token.logprob == token.top_logprobs[0].logprob <= 0
    streamed = []
    for chunk in client.chat.completions.create(model="tiny", messages=ASKED, logprobs=True, stream=True):
        if part := chunk.choices[0].logprobs:
            streamed += part.content or []
    assert [token.logprob for token in streamed] == [token.logprob for token in logprobs.content]
    assert [token.token for token in streamed] == [token.token for token in logprobs.content]


def test_several_answers_read_the_prompt_once(client: openai.OpenAI, server: LocalServer) -> None:
    many = client.chat.completions.create(model="tiny", messages=ASKED, n=3, seed=5, temperature=3, max_tokens=8)
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in many.choices}) == 3
    assert many.usage and many.usage.prompt_tokens == 15
    one = client.chat.completions.create(model="tiny", messages=ASKED, seed=5, temperature=3, max_tokens=8)
    assert one.choices[0].message.content == many.choices[0].message.content
    chunks = client.chat.completions.create(
        model="tiny", messages=ASKED, n=3, seed=5, temperature=3, max_tokens=8, stream=True
    )
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in many.choices]


@pytest.mark.parametrize("stop", ["green", ["nothing", " gr"]])
def test_stop(client: openai.OpenAI, stop: Any) -> None:
    found = client.chat.completions.create(model="tiny", messages=ASKED, stop=stop)
    assert found.choices[0].message.content == ANSWER.partition("green" if stop == "green" else " gr")[0]
    assert found.choices[0].finish_reason == "stop"


def test_what_shapes_the_choice_of_tokens(client: openai.OpenAI, server: LocalServer) -> None:
    ids = server.answer("/tokenize", prompt="The green", add_special_tokens=False)["tokens"]
    never = {str(ids[0]): -100}
    found = client.chat.completions.create(
        model="tiny", messages=ASKED, logit_bias=never, max_tokens=5, extra_body={"min_tokens": 1}
    )
    assert found.choices[0].message.content and not found.choices[0].message.content.startswith("The")
    longer = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12, extra_body={"min_tokens": 12})
    assert longer.usage and longer.usage.completion_tokens == 12 and longer.choices[0].finish_reason == "length"
    endless = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=9, extra_body={"ignore_eos": True}
    )
    assert endless.usage and endless.usage.completion_tokens == 9
    other = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=30, frequency_penalty=2, presence_penalty=2,
        extra_body={"min_tokens": 30},
    )  # fmt: skip
    plain = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=30, extra_body={"min_tokens": 30})
    assert other.choices[0].message.content != plain.choices[0].message.content


def test_an_answer_can_be_made_to_call(client: openai.OpenAI) -> None:
    choices: list[Any] = ["required", {"type": "function", "function": {"name": "find_ball"}}]
    for choice in choices:
        found = client.chat.completions.create(
            model="tiny", messages=ASKED, tools=[TOOL], tool_choice=choice, temperature=1, seed=3, max_tokens=300,
            parallel_tool_calls=False,
        )  # fmt: skip
        calls = found.choices[0].message.tool_calls
        assert calls and found.choices[0].finish_reason == "tool_calls" and found.choices[0].message.content is None
        for call in calls:
            assert call.type == "function" and call.function.name == "find_ball" and len(call.id) == 9
            arguments = json.loads(call.function.arguments)
            assert arguments["colour"] in ("red", "blue") and arguments["count"] <= 9
    assert calls
    result: list[Any] = [
        *ASKED, found.choices[0].message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call.id, "content": "1"} for call in calls),
    ]  # fmt: skip
    after = client.chat.completions.create(model="tiny", messages=result, tools=[TOOL], max_tokens=3)
    assert after.usage and after.usage.prompt_tokens > 15


def test_calls_come_in_pieces_by_their_index(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="tiny", messages=ASKED, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, seed=3,
        temperature=1, max_tokens=300, stream=True,
    )  # fmt: skip
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert {delta.index for delta in deltas} == {0} and deltas[0].id and deltas[0].type == "function"
    assert deltas[0].function and deltas[0].function.name == "find_ball" and deltas[0].function.arguments == ""
    assert all(delta.id is None and delta.function and delta.function.name is None for delta in deltas[1:])
    assert json.loads("".join(delta.function.arguments or "" for delta in deltas if delta.function))["colour"]


def test_parse_gives_an_object(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model="tiny", messages=ASKED, response_format=Ball, temperature=1, seed=1, max_tokens=200
    )
    assert isinstance(found.choices[0].message.parsed, Ball)
    plain = client.chat.completions.create(
        model="tiny", messages=ASKED, response_format={"type": "json_object"}, temperature=1, seed=4, max_tokens=400
    )
    content = plain.choices[0].message.content
    assert content and content.startswith("{")
    assert plain.choices[0].finish_reason == "length" or isinstance(json.loads(content), dict)


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({"guided_choice": ["red", "blue"]}, {"red", "blue"}),
        ({"guided_regex": "(red|blue) ball"}, {"red ball", "blue ball"}),
        ({"regex": "ab{3}"}, {"abbb"}),
        ({"json_schema": {"const": "42"}}, {'"42"'}),
        ({"response_format": {"type": "json_object", "schema": {"const": 42}}}, {"42"}),
        ({"guided_grammar": 'start: "a" "b" | "c"'}, {"ab", "c"}),
    ],
)
def test_other_forms(client: openai.OpenAI, body: dict[str, Any], texts: set[str]) -> None:
    found = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=50, extra_body=body)
    assert found.choices[0].message.content in texts and found.choices[0].finish_reason == "stop"


def test_responses(client: openai.OpenAI) -> None:
    found = client.responses.create(model="tiny", input=QUESTION, instructions="Answer.")
    assert found.output_text and found.status == "completed" and found.usage
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    cut = client.responses.create(model="tiny", input=[{"role": "user", "content": QUESTION}], max_output_tokens=2)
    assert cut.status == "incomplete" and cut.incomplete_details
    assert cut.incomplete_details.reason == "max_output_tokens"
    with client.responses.stream(model="tiny", input=QUESTION) as stream:
        events = list(stream)
        whole = stream.get_final_response()
    assert whole.output_text == ANSWER
    assert [event.sequence_number for event in events] == list(range(len(events)))
    parsed = client.responses.parse(model="tiny", input=QUESTION, text_format=Ball, temperature=1, max_output_tokens=99)
    assert isinstance(parsed.output_parsed, Ball)
    with pytest.raises(openai.BadRequestError, match="nothing is kept"):
        client.responses.create(model="tiny", input="a", previous_response_id="resp_1")


def test_a_response_that_calls(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **TOOL["function"], "strict": True}
    asked: dict[str, Any] = {"model": "tiny", "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    found = client.responses.create(input=QUESTION, max_output_tokens=300, **asked)
    call = found.output[0]
    assert call.type == "function_call" and call.name == "find_ball" and json.loads(call.arguments)["colour"]
    conversation: Any = [
        {"role": "user", "content": QUESTION}, call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "one"},
    ]  # fmt: skip
    assert client.responses.create(model="tiny", input=conversation, max_output_tokens=4).output
    with client.responses.stream(input=QUESTION, max_output_tokens=300, **asked) as stream:
        assert any(event.type == "response.function_call_arguments.delta" for event in stream)
        assert stream.get_final_response().output[0].type == "function_call"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    assert missing.value.code == "model_not_found" and "'tiny' is" in missing.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=ASKED, temperature="warm")  # type: ignore[call-overload]
    assert wrong.value.param == "temperature" and "must be a number" in wrong.value.message
    with pytest.raises(openai.APIStatusError) as absent:
        client.embeddings.create(model="tiny", input="a")
    assert absent.value.status_code == 501 and "no embeddings" in absent.value.message


def test_the_client_tries_again_when_the_queue_is_full(server: LocalServer) -> None:
    statuses = list[tuple[int, str | None]]()

    class Full(httpx.HTTPTransport):
        """The server's queue is full until it has said so."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            server.service.open += 10**6 if not statuses else 0
            try:
                response = super().handle_request(request)
            finally:
                server.service.open -= 10**6 if not statuses else 0
            statuses.append((response.status_code, response.headers.get("retry-after")))
            return response

    http = httpx.Client(transport=Full())
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=1, http_client=http) as client:
        found = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=2)
    assert found.choices[0].message.content == "The bell"
    assert statuses == [(429, "1"), (200, None)]


def test_a_prompt_that_does_not_fit_has_the_code_that_clients_know(
    client: openai.OpenAI, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service.engine, "context_limit", 15)
    with pytest.raises(openai.BadRequestError, match="has 15 tokens and the context limit is 15") as caught:
        client.chat.completions.create(model="tiny", messages=ASKED)
    assert caught.value.code == "context_length_exceeded"
    scored = client.completions.create(model="tiny", prompt=[300] * 15, max_tokens=0, echo=True, logprobs=0)
    assert scored.usage and scored.usage.prompt_tokens == 15
