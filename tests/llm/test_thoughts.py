"""Thoughts in answers to conversations, for plain Python code."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator

import pytest

from mistral import LLM, AsyncLLM, Completion, InputError, Message
from tests.support.scripted_model import write_scripted
from tests.support.tool_cases import TOOLS, file, load

THOUGHT, ANSWER = "I need the clock.", "It's **noon**!"
ASKED: list[dict[str, object]] = [{"role": "user", "content": "When?"}]


def plain(text: str) -> list[int]:
    return load("v15 tekken").encode(text, bos=False)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Thinks, then answers."""
    chain = [4, 34, *plain(THOUGHT), 35, *plain(ANSWER), 2]
    folder = write_scripted(tmp_path_factory.mktemp("thinking") / "model", file("v15 tekken"), chain)
    with LLM(folder, backend="native", threads=1) as llm:
        yield llm


def test_an_answer_has_its_thoughts_beside_it(llm: LLM) -> None:
    found = llm.chat(ASKED)
    assert isinstance(found, Completion)
    assert (found, found.thoughts, found.finish_reason) == (ANSWER, THOUGHT, "stop")
    assert list(found.ids) == [34, *plain(THOUGHT), 35, *plain(ANSWER)]
    assert pickle.loads(pickle.dumps(found)).thoughts == THOUGHT
    with_tools = llm.chat(ASKED, TOOLS)
    assert isinstance(with_tools, Completion) and (with_tools, with_tools.thoughts) == (ANSWER, THOUGHT)
    stopped = llm.chat(ASKED, stop="*")
    assert isinstance(stopped, Completion) and (stopped, stopped.thoughts) == ("It's ", THOUGHT)
    cut = llm.chat(ASKED, max_tokens=3)
    assert isinstance(cut, Completion) and (cut, cut.finish_reason) == ("", "length")
    rest = llm.chat([Message("user", "When?"), Message("assistant", "", thoughts=cut.thoughts, prefix=True)])
    assert isinstance(rest, Completion) and (cut.thoughts + rest.thoughts, rest) == (THOUGHT, ANSWER)


def test_a_stream_has_the_answer_alone(llm: LLM) -> None:
    assert "".join(llm.stream(ASKED)) == ANSWER

    async def streamed() -> str:
        return "".join([piece async for piece in AsyncLLM(llm).stream(ASKED)])

    assert asyncio.run(streamed()) == ANSWER


def test_a_text_that_is_continued_has_no_thoughts(llm: LLM) -> None:
    prompt = llm.tokenizer.decode(plain("clock"))
    found = llm.generate(prompt, max_tokens=2)
    assert isinstance(found, Completion) and found.thoughts == ""


def test_reasoning_effort_is_for_conversations_that_have_it(llm: LLM) -> None:
    found = llm.chat(ASKED, reasoning_effort="high")
    assert isinstance(found, Completion)
    turns = [Message("user", "When?")]
    assert found.prompt_tokens == len(llm.tokenizer.encode_chat(turns, reasoning_effort="high"))
    for call in (
        lambda: llm.generate("x", reasoning_effort="high"), lambda: next(llm.stream("x", reasoning_effort="high"))
    ):  # fmt: skip
        with pytest.raises(InputError, match="reasoning_effort high: only a conversation has that; use chat"):
            call()
    with pytest.raises(InputError, match="reasoning_effort low: must be one of none, high"):
        llm.chat(ASKED, reasoning_effort="low")


def test_an_image_is_refused_by_name(llm: LLM) -> None:
    for content in ([{"type": "image_url", "image_url": {"url": "data:,"}}], {"type": "image_url"}):
        with pytest.raises(InputError, match="part 1 is 'image_url', not a text; images are not read"):
            llm.chat([{"role": "user", "content": content}])
