"""A model in one object, for plain Python code and for asyncio."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from mistral import LLM, AsyncLLM, Completion, InputError, Message, Tokenizer, Tool, Transformer, generate
from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.engine import Engine
from mistral.engine.work import Outcome, Work

FOLDER = shipped_checkpoint()
STORY = "Tom was a little boy. That day, Tom got a green bell. What colour was the bell?"
ASKED: list[dict[str, object]] = [{"role": "user", "content": STORY}]
TEXTS = ["This is a test", "Tom had a red ball. The ball was", "Anna went to the lake."]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(FOLDER, backend="native") as llm:
        yield llm


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[list[int], str, list[float]]]:
    """Ids, texts and logprobs of ten greedy tokens, by the functions for whoever drives a model himself."""
    tokenizer, model = Tokenizer.from_folder(FOLDER), Transformer.from_folder(FOLDER, backend="native")
    found = {}
    for text in TEXTS:
        ids = tokenizer.encode(text)
        tokens, logprobs = generate([ids], model, 10, eos_id=tokenizer.eos_id, prompt_logprobs=False)
        found[text] = tokens[0], tokenizer.decode(ids + tokens[0])[len(text) :], logprobs[0]
    return found


def test_a_text_is_continued_and_so_is_each_of_several(
    llm: LLM, expected: dict[str, tuple[list[int], str, list[float]]]
) -> None:
    one = llm.generate(TEXTS[0], max_tokens=10)
    assert isinstance(one, Completion)
    found = llm.generate(TEXTS, max_tokens=10, logprobs=2)
    assert found[0] == one == expected[TEXTS[0]][1] == one.text
    for text, completion in zip(TEXTS, found, strict=True):
        assert isinstance(completion, Completion)
        ids, written, logprobs = expected[text]
        assert (completion, list(completion.ids), completion.finish_reason) == (written, ids, "length")
        assert [token.id for token in completion.logprobs] == ids
        assert [token.logprob for token in completion.logprobs] == pytest.approx(logprobs, abs=1e-4)
        assert all(token.top[0] == (token.id, token.logprob) and len(token.top) == 2 for token in completion.logprobs)
        assert completion.prompt_tokens == len(llm.tokenizer.encode(text))
    assert one.logprobs == ()
    assert pickle.loads(pickle.dumps(found)) == found and pickle.loads(pickle.dumps(one)).ids == one.ids


def test_n_answers_to_one_prompt_that_is_read_once(llm: LLM) -> None:
    read = llm._engine.submit
    tokens: list[int] = []

    def counted(work: Sequence[Work]) -> int:
        tokens.extend(len(piece.ids) for piece in work)
        return read(work)

    prompt = " ".join(TEXTS * 4)
    llm._engine.submit = counted  # type: ignore[method-assign]
    try:
        found = llm.generate(prompt, n=4, temperature=1.0, seed=7, max_tokens=6)
    finally:
        del llm._engine.submit
    assert isinstance(found, list) and len(set(found)) > 1
    length = len(llm.tokenizer.encode(prompt))
    assert [count for count in tokens if count > 1] == [length]
    assert tokens.count(1) <= 3 + 4 * 6, "each of the others reads the last token again"
    assert found == llm.generate(prompt, n=4, temperature=1.0, seed=7, max_tokens=6)
    several = llm.generate([prompt, TEXTS[0]], n=4, temperature=1.0, seed=7, max_tokens=6)
    assert several[0] == found and len(several[1]) == 4


def test_an_answer_ends_at_a_stop_text_or_by_itself(llm: LLM) -> None:
    whole = llm.generate(TEXTS[1], max_tokens=30)
    assert isinstance(whole, Completion)
    word = whole.split()[3]
    cut = llm.generate(TEXTS[1], max_tokens=30, stop=word)
    assert isinstance(cut, Completion)
    assert (cut, cut.finish_reason) == (whole[: whole.index(word)], "stop")
    assert llm.generate(TEXTS[1], max_tokens=30, stop=["?!", word]) == cut
    by_itself = llm.generate(TEXTS[0])  # no limit
    assert isinstance(by_itself, Completion)
    assert by_itself.finish_reason == "stop" and len(by_itself.ids) > 10
    nothing = llm.generate(TEXTS[0], max_tokens=0)
    assert isinstance(nothing, Completion) and (nothing, nothing.finish_reason) == ("", "length")


def test_a_conversation_is_answered(llm: LLM) -> None:
    answer = llm.chat(ASKED, max_tokens=20)
    assert isinstance(answer, Completion)
    assert (answer, answer.finish_reason) == ("The bell was green.", "stop")
    assert llm.chat([Message("user", STORY)], max_tokens=20) == answer
    parts: list[dict[str, object]] = [{"role": "user", "content": [{"type": "text", "text": STORY}]}]
    assert llm.chat(parts, max_tokens=20) == answer
    begun = [*ASKED, {"role": "assistant", "content": "The bell", "prefix": True}]
    assert llm.chat(begun, max_tokens=20) == " was green."
    several = llm.chat(ASKED, max_tokens=20, n=2)
    assert several == [answer, answer]


def test_tools_are_offered_and_calls_are_taken_out(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = Tool("add", "Adds.", {"type": "object", "properties": {}})
    offered = llm.chat_prompt(ASKED, [tool])
    assert offered.ids == llm.tokenizer.encode_chat([Message("user", STORY)], [tool])
    tokens = llm.tokenizer.tool_tokens
    assert tokens
    written = [
        tokens.calls,
        *llm.tokenizer.encode('[{"name": "add", "arguments": {"a": 1}, "id": "abcdefghi"}]', bos=False),
    ]
    answers = iter([*written, llm.tokenizer.eos_id])
    choose = llm._engine.stage.samplers.choose

    def one(outcome: Outcome) -> Outcome:
        if outcome.id is None:
            return outcome
        token = next(answers)
        return replace(outcome, id=token, finished=token == llm.tokenizer.eos_id)

    def scripted(work: Sequence[Work], logits: Sequence[NDArray[np.float32]]) -> list[Outcome]:
        return [one(outcome) for outcome in choose(work, logits)]

    monkeypatch.setattr(llm._engine.stage.samplers, "choose", scripted)
    answer = llm.chat(ASKED, [tool], max_tokens=50)
    assert isinstance(answer, Completion)
    assert [(call.name, call.arguments, call.id) for call in answer.tool_calls] == [("add", '{"a": 1}', "abcdefghi")]
    assert answer == ""


def test_a_stream_is_the_same_text_in_pieces_and_may_be_left(llm: LLM) -> None:
    pieces = list(llm.stream(TEXTS[1], max_tokens=12))
    assert len(pieces) > 6
    assert "".join(pieces) == llm.generate(TEXTS[1], max_tokens=12)
    assert "".join(llm.stream(ASKED, max_tokens=20)) == "The bell was green."
    left = llm.stream(TEXTS[1], max_tokens=10_000)
    assert next(left)
    left.close()
    assert llm.generate(TEXTS[1], max_tokens=3)
    assert not llm._engine.cache.rows, "the row was given back"


def test_a_seed_repeats_an_answer_and_none_draws_another(llm: LLM) -> None:
    drawn = [llm.generate(TEXTS[2], temperature=1.5, max_tokens=12, seed=seed) for seed in (None, None, -1, -1)]
    assert len(set(map(str, drawn))) > 1
    assert isinstance(drawn[0], Completion)
    assert llm.generate(TEXTS[2], temperature=1.5, max_tokens=12, seed=drawn[0].seed) == drawn[0]


def test_threads_share_a_model(llm: LLM, expected: dict[str, tuple[list[int], str, list[float]]]) -> None:
    found: dict[int, object] = {}

    def ask(number: int) -> None:
        found[number] = llm.generate(TEXTS[number % 3], max_tokens=10)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert found == {number: expected[TEXTS[number % 3]][1] for number in range(9)}


def test_tasks_share_a_model_and_do_not_block_the_loop(
    llm: LLM, expected: dict[str, tuple[list[int], str, list[float]]]
) -> None:
    async def main() -> None:
        twin, ticks = AsyncLLM(llm), 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(*(twin.generate(text, max_tokens=10) for text in TEXTS))
        assert list(found) == [expected[text][1] for text in TEXTS]
        assert await twin.generate(TEXTS, max_tokens=10) == list(found)
        assert await twin.chat(ASKED, max_tokens=20) == "The bell was green."
        assert "".join([piece async for piece in twin.stream(ASKED, max_tokens=20)]) == "The bell was green."
        assert ticks > 3
        ticking.cancel()
        task = asyncio.create_task(twin.generate(TEXTS[0], max_tokens=100_000))
        while not llm._engine.cache.rows:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while llm._engine.cache.rows:
            await asyncio.sleep(0.001)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": -1}, "max_tokens -1: must be a whole number of at least 0"),
        ({"max_tokens": "5"}, "max_tokens 5: must be a whole number"),
        ({"n": 0}, "n 0: must be a whole number of at least 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"stop": [1]}, "stop: must be a text or a list of texts"),
        ({"max_length": 3}, "max_length: no such option; max_tokens, temperature,"),
    ],
)
def test_options_that_cannot_be_are_refused(llm: LLM, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        llm.generate("x", **options)  # type: ignore[call-overload]


def test_what_cannot_be_answered_is_refused_by_name(llm: LLM) -> None:
    with pytest.raises(InputError, match="prompt 1: the text is of type int; pass it as str"):
        llm.generate(["a", 1])  # type: ignore[list-item]
    with pytest.raises(InputError, match="n 2: a stream has one answer"):
        next(llm.stream("a", n=2))
    with pytest.raises(InputError, match="message 1 needs a role"):
        llm.chat([{"content": "x"}])
    assert not llm._engine.cache.rows


def test_a_failing_answer_ends_its_call(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(engine: Engine, work: object) -> int:
        raise InputError("logits hold NaN")

    monkeypatch.setattr(Engine, "submit", fails)
    with pytest.raises(InputError, match="prompt 0: logits hold NaN"):
        llm.generate(["a", "b"], max_tokens=3)


def test_a_closed_model_says_so() -> None:
    llm = LLM(FOLDER, backend="native")
    llm.close()
    llm.close()
    with pytest.raises(InputError, match="the engine is closed; open the model again"):
        llm.generate("a")


def test_a_conversation_that_goes_on_is_not_read_again(llm: LLM) -> None:
    """With a store of prefixes; the answers are those without one."""
    asked, said = list(ASKED), list[tuple[Completion, Completion]]()
    with LLM(FOLDER, backend="native", prefix_bytes=10**8) as keeping:
        for _ in range(3):
            found, plain = (each.chat(asked, max_tokens=6, seed=1, temperature=0.8) for each in (keeping, llm))
            assert isinstance(found, Completion) and isinstance(plain, Completion)
            assert (found, found.ids, plain.cached_tokens) == (plain, plain.ids, 0)
            said.append((found, plain))
            asked += [{"role": "assistant", "content": found.text}, {"role": "user", "content": "And then?"}]
        drawn = keeping.chat(asked[:-2], max_tokens=4, n=3, temperature=1.0)
        assert isinstance(drawn, list)
        assert all(each.cached_tokens == each.prompt_tokens - 1 for each in drawn), "all but the last token"
    first, second, third = (found for found, _ in said)
    assert first.cached_tokens == 0
    assert second.cached_tokens >= first.prompt_tokens - 1 and third.cached_tokens >= second.prompt_tokens - 1
    with pytest.raises(InputError, match="prefix_bytes"):
        LLM(FOLDER, backend="native", prefix_bytes=-1)
