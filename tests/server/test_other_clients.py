"""The clients of Mistral, Anthropic and LangChain, unmodified, against servers on loopback.

They take seconds to import, so that each is imported by the tests of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel, SecretStr

from mistral import Tokenizer, Transformer, generate
from tests.support.command_line import ARGS, write_model
from tests.support.local_server import LocalServer, local_server
from tests.support.thinking_script import NOON, THOUGHT
from tests.support.tool_cases import DATA, FILES

if TYPE_CHECKING:
    import anthropic
    from anthropic.types import MessageParam, ToolParam
    from mistralai.client import Mistral

QUESTION = "Tom got a green bell. What colour was the bell?"
ANSWER = "The bell was green."
ASKED: Any = [{"role": "user", "content": QUESTION}]
CLOSED: Any = {"type": "object", "properties": {}, "additionalProperties": False}
NOW: Any = {"type": "function", "function": {"name": "now", "description": "", "parameters": CLOSED}}
NOW_TOOL: ToolParam = {"name": "now", "input_schema": CLOSED}


class Colour(BaseModel):
    """What colour something has."""

    colour: Literal["red", "green"]


# Mistral


@pytest.fixture(scope="module")
def mistral(server: LocalServer) -> Iterator[Mistral]:
    from mistralai.client import Mistral

    with Mistral(api_key="any", server_url=server.url) as client:
        yield client


def test_mistral_chat(mistral: Mistral) -> None:
    found = mistral.chat.complete(model="tiny", messages=ASKED, random_seed=1)
    assert found.choices[0].message and found.choices[0].message.content == ANSWER
    assert found.choices[0].finish_reason == "stop" and found.usage.total_tokens == 20
    text = ""
    for event in mistral.chat.stream(model="tiny", messages=ASKED):
        content = event.data.choices[0].delta.content
        text += content if isinstance(content, str) else ""
    assert text == ANSWER
    begun: Any = [*ASKED, {"role": "assistant", "content": "The bell", "prefix": True}]
    assert mistral.chat.complete(model="tiny", messages=begun).choices[0].message.content == " was green."  # type: ignore[union-attr]
    models = mistral.models.list().data
    assert models and getattr(models[0], "id", None) == "tiny"


def test_mistral_chat_with_a_tool(mistral: Mistral) -> None:
    found = mistral.chat.complete(
        model="tiny",
        messages=ASKED,
        tools=[NOW],
        tool_choice="any",
        temperature=1,
        random_seed=1,
        max_tokens=300,
        parallel_tool_calls=False,
    )
    message = found.choices[0].message
    assert message and message.tool_calls and message.tool_calls[0].function.name == "now"
    parsed = mistral.chat.parse(Colour, model="tiny", messages=ASKED, temperature=1, random_seed=2, max_tokens=99)
    assert parsed.choices and parsed.choices[0].message and isinstance(parsed.choices[0].message.parsed, Colour)


def test_mistral_fill_in_the_middle(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model.v3").symlink_to(DATA / FILES["v3"])
    folder = write_model(tmp_path / "filler", replace(ARGS, vocab_size=32768), tmp_path / "tokenizer.model.v3")
    prefix, suffix = "def f(x):\n    ", "\n    return y\n"
    tokenizer, model = Tokenizer.from_folder(folder), Transformer.from_folder(folder, backend="portable", device="CPU")
    ids = generate([tokenizer.encode_fim(prefix, suffix)], model, 5, prompt_logprobs=False)[0][0]
    middle = tokenizer.decode([*tokenizer.encode("x"), *ids]).removeprefix("x")
    from mistralai.client import Mistral

    with local_server(folder, "portable") as filler, Mistral(api_key="any", server_url=filler.url) as client:
        found = client.fim.complete(model="filler", prompt=prefix, suffix=suffix, max_tokens=5)
        assert found.choices[0].message and found.choices[0].message.content == middle
        events = client.fim.stream(model="filler", prompt=prefix, suffix=suffix, max_tokens=5)
        choices = [choice for event in events for choice in event.data.choices]
        assert "".join(str(choice.delta.content or "") for choice in choices) == middle
        legacy = filler.answer("/v1/completions", prompt=prefix, suffix=suffix, max_tokens=5)
        assert legacy["choices"][0]["text"] == middle
        refused = filler.post("/v1/completions", prompt=[1, 2], suffix=suffix).json()["error"]
        assert refused["param"] == "suffix" and refused["message"] == "suffix: needs prompts that are texts"
    assert server.post("/v1/fim/completions", prompt="a").status_code == 501


# Anthropic


@pytest.fixture(scope="module")
def claude(server: LocalServer) -> Iterator[anthropic.Anthropic]:
    import anthropic

    with anthropic.Anthropic(api_key="any", base_url=server.url, max_retries=0) as client:
        yield client


def test_anthropic_messages(claude: anthropic.Anthropic) -> None:
    found = claude.messages.create(model="tiny", messages=ASKED, max_tokens=30)
    block = found.content[0]
    assert block.type == "text" and block.text == ANSWER
    assert (found.stop_reason, found.usage.input_tokens, found.usage.output_tokens) == ("end_turn", 15, 5)
    cut = claude.messages.create(model="tiny", messages=ASKED, max_tokens=2)
    assert cut.stop_reason == "max_tokens"
    stopped = claude.messages.create(model="tiny", messages=ASKED, max_tokens=30, stop_sequences=["x", " was"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " was")
    begun: list[MessageParam] = [*ASKED, {"role": "assistant", "content": "The bell"}]
    after = claude.messages.create(model="tiny", messages=begun, max_tokens=30).content[0]
    assert after.type == "text" and after.text == " was green."
    assert claude.messages.count_tokens(model="tiny", messages=ASKED).input_tokens == 15
    assert claude.messages.count_tokens(model="tiny", messages=ASKED, system="Answer.").input_tokens > 15
    assert [model.id for model in claude.models.list()] == ["tiny"]


def test_anthropic_stream(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="tiny", messages=ASKED, max_tokens=30) as stream:
        kinds = [event.type for event in stream if event.type != "text"]
        whole = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1
    assert whole.content[0].type == "text" and whole.content[0].text == ANSWER
    assert whole.usage.output_tokens == 5 and whole.stop_reason == "end_turn"


def test_anthropic_errors(claude: anthropic.Anthropic) -> None:
    import anthropic

    with pytest.raises(anthropic.NotFoundError, match="'tiny' is"):
        claude.messages.create(model="other", messages=ASKED, max_tokens=1)
    number: Any = [{"role": "user", "content": 5}]
    with pytest.raises(anthropic.BadRequestError) as wrong:
        claude.messages.create(model="tiny", messages=number, max_tokens=1)
    assert "messages.0.content" in str(wrong.value)
    assert isinstance(wrong.value.body, dict) and wrong.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match=r"'image' is not read"):
        image: Any = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
        claude.messages.create(model="tiny", messages=image, max_tokens=1)


def test_anthropic_thoughts_and_calls(thinker: LocalServer) -> None:
    import anthropic

    with anthropic.Anthropic(api_key="any", base_url=thinker.url, max_retries=0) as client:
        asked: Any = [{"role": "user", "content": "Late?"}]
        found = client.messages.create(model="thinker", messages=asked, tools=[NOW_TOOL], max_tokens=50)
        thought, call = found.content
        assert thought.type == "thinking" and thought.thinking == THOUGHT
        assert call.type == "tool_use" and (call.name, call.input) == ("now", {})
        assert found.stop_reason == "tool_use"
        with client.messages.stream(model="thinker", messages=asked, tools=[NOW_TOOL], max_tokens=50) as stream:
            kinds = [event.type for event in stream]
            whole = stream.get_final_message()
        assert [block.type for block in whole.content] == ["thinking", "tool_use"] and "thinking" in kinds
        assert whole.content[0] == thought and whole.content[1] == call
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "12:00"}]}
        after: Any = [*asked, {"role": "assistant", "content": found.content}, {"role": "user", "content": [result]}]
        last = client.messages.create(model="thinker", messages=after, tools=[NOW_TOOL], max_tokens=50)
    assert last.content[0].type == "text" and last.content[0].text == NOON


def test_anthropic_tool_choice(claude: anthropic.Anthropic) -> None:
    choices: Any = ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "now"})
    for choice in choices:
        found = claude.messages.create(
            model="tiny",
            messages=ASKED,
            tools=[NOW_TOOL],
            tool_choice=choice,
            max_tokens=300,
        )
        assert found.stop_reason == "tool_use" and {block.type for block in found.content} == {"tool_use"}


# The same by OpenAI's interface, and LangChain's client of it


def test_thoughts_and_calls_are_told_apart(thinker: LocalServer) -> None:
    asked = [{"role": "user", "content": "Late?"}]
    choice = thinker.answer("/v1/chat/completions", messages=asked, tools=[NOW])["choices"][0]
    assert choice["message"]["reasoning_content"] == THOUGHT and choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    deltas = [
        event["choices"][0]["delta"] for event in thinker.events("/v1/chat/completions", messages=asked, tools=[NOW])
    ]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == THOUGHT
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert {call["index"] for call in calls} == {0} and [call.get("id") is None for call in calls] == [
        False,
        True,
        True,
    ]
    assert "".join(call["function"]["arguments"] for call in calls) == "{}"
    made = thinker.answer("/v1/chat/completions", messages=asked, tools=[NOW], tool_choice="required", max_tokens=50)
    call = made["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call == {"name": "now", "arguments": "{}"} and made["choices"][0]["message"]["reasoning_content"] == THOUGHT
    usage = thinker.answer("/v1/chat/completions", messages=asked, tools=[NOW])["usage"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
    response = thinker.answer("/v1/responses", input="Late?", tools=[{**NOW["function"], "type": "function"}])
    assert [item["type"] for item in response["output"]] == ["reasoning", "function_call"]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": THOUGHT}]


def test_langchain(server: LocalServer) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{server.url}/v1", api_key=SecretStr("any"), model="tiny", max_retries=0)
    assert model.invoke(QUESTION).content == ANSWER
    assert "".join(str(chunk.content) for chunk in model.stream(QUESTION)) == ANSWER
    drawn = ChatOpenAI(
        base_url=f"{server.url}/v1", api_key=SecretStr("any"), model="tiny", temperature=1, seed=4, max_retries=0,
        max_completion_tokens=300,
    )  # fmt: skip
    assert isinstance(drawn.with_structured_output(Colour).invoke(QUESTION), Colour)
    bound = model.bind_tools([Colour], tool_choice="any", parallel_tool_calls=False).invoke(QUESTION)
    assert bound.tool_calls[0]["name"] == "Colour"
