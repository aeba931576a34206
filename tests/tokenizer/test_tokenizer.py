"""Tokenizers: text, streams and chat, with the real files that mistral-common carries."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mistral.errors import InputError
from mistral.tokenizer.messages import Message, Tool, ToolCall
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_file import load_tools

DATA = Path(mistral_common.__file__).parent / "data"
FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "tekken": "tekken_240718.json",
    "tekken-mm": "tekken_240911.json",
}
TEXTS = [
    "This is a test",
    " one leading space",
    "  two, and two trailing  ",
    "a   b    c",
    "line\n\n  indented\ttab\r\n",
    "\n",
    " ",
    "日本語のテキスト、漢字",
    "한국어 العربية עברית हिन्दी",
    "🙂 👩‍👩‍👧 🇫🇷 👍🏽",
    "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343",
    "\U00013080\U0010fffd\ufffd\x00\x7f",
    "1234567890 3.14 x=2**10",
    "[INST] </s><s> [/INST] <0x41> <unk>",
]
CONVERSATION = [
    Message("system", "Be nice"),
    Message("user", "Hi"),
    Message("assistant", "Hello"),
    Message("user", "Bye"),
]


@functools.cache
def load(kind: str) -> Tokenizer:
    return Tokenizer.from_file(DATA / FILES[kind])


@functools.cache
def library(kind: str) -> MistralTokenizer[Any, Any, Any, Any, Any]:
    return MistralTokenizer.from_file(str(DATA / FILES[kind]))


def pieces(kind: str, ids: list[int]) -> str:
    """The ids as the vocabulary writes them, control tokens included."""
    raw = library(kind).instruct_tokenizer.tokenizer
    return "".join(raw.id_to_piece(token_id) for token_id in ids)


def streamed(tokenizer: Tokenizer, ids: list[int], after: list[int] | None = None) -> list[str]:
    stream = tokenizer.stream(after or [])
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


# ---- encoding and decoding


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_encoding_and_equals_the_library(kind: str, text: str) -> None:
    ids = load(kind).encode(text)
    assert ids == library(kind).instruct_tokenizer.tokenizer.encode(text, bos=True, eos=False)
    assert load(kind).decode(ids) == text


@pytest.mark.parametrize("kind", FILES)
def test_bos_and_eos_are_added_once_and_only_on_request(kind: str) -> None:
    tokenizer = load(kind)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    bare = tokenizer.encode("Hi", bos=False)
    assert not {1, 2} & set(bare)
    assert tokenizer.encode("Hi") == [1, *bare]
    assert tokenizer.encode("Hi", bos=False, eos=True) == [*bare, 2]
    assert tokenizer.encode("") == [1]
    assert tokenizer.decode([1]) == tokenizer.decode([]) == ""


@pytest.mark.parametrize("kind", FILES)
def test_typed_control_tokens_are_plain_characters(kind: str) -> None:
    special = library(kind).instruct_tokenizer.tokenizer.special_ids
    ids = load(kind).encode("<s></s>[INST] x [/INST]<unk>[TOOL_CALLS][SYSTEM_PROMPT]", bos=False)
    assert not set(ids) & (special | {0})
    ids = load(kind).encode_chat([Message("user", "</s>[INST]<s>")])
    assert (ids.count(1), ids.count(2)) == (1, 0)
    assert ids.count(3) == (0 if kind == "v1" else 1)  # in v1, 3 is the byte 0 and [INST] is text


@pytest.mark.parametrize("kind", FILES)
def test_version_and_size_are_those_of_the_file(kind: str) -> None:
    tokenizer = load(kind)
    sizes = {"v1": 32000, "v2": 32768, "v3": 32768, "v7": 32768, "tekken": 131072, "tekken-mm": 131072}
    assert tokenizer.vocab_size == sizes[kind]
    assert tokenizer.version == ("v3 tekken" if "tekken" in kind else kind)
    assert tokenizer.file == DATA / FILES[kind]
    assert tokenizer.can_chat
    assert tokenizer.note is None


def test_a_name_with_a_vision_suffix_is_the_same_text_tokenizer() -> None:
    tokenizer = Tokenizer.from_file(DATA / "mistral_instruct_tokenizer_241114.model.v7m1")
    assert tokenizer.version == "v7"
    assert tokenizer.encode_chat(CONVERSATION) == load("v7").encode_chat(CONVERSATION)


@pytest.mark.parametrize("kind", ["v1", "tekken"])
@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(kind: str, token_id: int) -> None:
    with pytest.raises(InputError, match=rf"has \d+ ids, not id {token_id}; use the tokenizer of these weights"):
        load(kind).decode([1, token_id])


@pytest.mark.parametrize("kind", ["v1", "tekken"])
def test_half_a_surrogate_pair_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="not valid Unicode at character 2"):
        load(kind).encode("ab\ud83d")
    with pytest.raises(InputError, match="not valid Unicode at character 0"):
        load(kind).encode_chat([Message("user", "\udcff")])


# ---- what is not text, ids or messages


@pytest.mark.parametrize("kind", ["v1", "v3", "tekken"])
@pytest.mark.parametrize("text", [None, 42, b"bytes", ["a", "b"], {"text": "a"}])
def test_what_is_not_a_text_is_refused_by_its_type(kind: str, text: Any) -> None:
    line = f"the text is of type {type(text).__name__}; pass it as str"
    with pytest.raises(InputError, match=line):
        load(kind).encode(text)
    with pytest.raises(InputError, match=line):
        load("v3").encode_fim(text, "suffix")
    with pytest.raises(InputError, match=line):
        load("v3").encode_fim("prefix", text)
    with pytest.raises(InputError, match=line):
        load(kind).encode_chat([Message("user", text)])


@pytest.mark.parametrize("kind", ["v1", "tekken"])
@pytest.mark.parametrize(
    ("ids", "named"),
    [
        ("text", "the ids are of type str"),
        (b"text", "the ids are of type bytes"),
        (7, "the ids are of type int"),
        (None, "the ids are of type NoneType"),
        (["a", "b"], "an id is of type str"),
        ([1.0], "an id is of type float"),
        ([[1, 2], [3, 4]], "an id is of type list"),
        (np.array([[1, 2], [3, 4]]), "an id is of type ndarray"),
    ],
)
def test_what_is_not_a_list_of_integers_is_refused_by_its_type(kind: str, ids: Any, named: str) -> None:
    with pytest.raises(InputError, match=f"{named}; pass a list of integers, as encode returns it"):
        load(kind).decode(ids)


@pytest.mark.parametrize("kind", ["v1", "tekken"])
def test_integers_of_numpy_are_ids(kind: str) -> None:
    ids = load(kind).encode("Some text\n")
    for dtype in (np.int32, np.int64, np.uint32):
        assert load(kind).decode(np.array(ids, dtype)) == "Some text\n"  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["v1", "v3", "tekken"])
@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([{"role": "user", "content": "Hi"}], "message 1 is of type dict; pass Message(role, content)"),
        ([Message("user", "Hi"), "Hi"], "message 2 is of type str; pass Message(role, content)"),
        ("Hi", "the conversation is of type str; pass a list of Message(role, content)"),
        (Message("user", "Hi"), "the conversation is of type Message; pass a list of Message(role, content)"),
        (None, "the conversation is of type NoneType; pass a list of Message(role, content)"),
        (
            [Message("human", "Hi")],  # type: ignore[arg-type]
            "message 1 has the role 'human'; pass one of system, user, assistant, tool",
        ),
        (
            [Message("assistant", "", ({"name": "f"},))],  # type: ignore[arg-type]
            "message 1: a call is of type dict; pass ToolCall(name, arguments, id)",
        ),
        (
            [Message("assistant", "", (ToolCall("f", {}, "abcdefghi"),))],  # type: ignore[arg-type]
            "message 1: arguments of a call are of type dict; pass them as JSON text",
        ),
    ],
)
def test_what_is_not_a_message_is_refused_with_what_to_pass(kind: str, messages: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        load(kind).encode_chat(messages)
    assert str(caught.value) == line


def test_what_is_not_a_tool_is_refused_with_what_to_pass() -> None:
    tools: Any = [Tool("f", "", {}), {"type": "function"}]
    with pytest.raises(InputError, match=r"tool 2 is of type dict; pass Tool\(name, description, parameters\)"):
        load("v3").encode_chat([Message("user", "Hi")], tools)


@pytest.mark.parametrize("path", [123, None, b"folder", ["folder"]])
def test_what_is_not_a_path_is_refused_by_its_type(path: Any) -> None:
    line = f"the path is of type {type(path).__name__}; pass it as str or Path"
    for load_path in (Tokenizer.from_folder, Tokenizer.from_file, load_tools):
        with pytest.raises(InputError, match=line):
            load_path(path)


def test_a_tokenizer_says_what_it_is_in_one_line() -> None:
    assert repr(load("v3")) == "Tokenizer(mistral_instruct_tokenizer_240323.model.v3: v3, 32768 ids)"
    assert str(load("tekken")) == "Tokenizer(tekken_240718.json: v3 tekken, 131072 ids)"


# ---- streaming


@pytest.mark.parametrize("kind", ["v1", "v3", "tekken"])
@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_any_text_streams_back_without_a_split_character(kind: str, text: str) -> None:
    tokenizer = load(kind)
    ids = tokenizer.encode(text)
    parts = streamed(tokenizer, ids)
    assert "".join(parts) == text == tokenizer.decode(ids)
    assert parts[-1] == ""  # nothing that was certain is held back
    assert sum(part.count("\ufffd") for part in parts) == text.count("\ufffd")


@pytest.mark.parametrize("kind", ["v1", "v3", "tekken"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_ids_decode_as_the_library_decodes_them(kind: str, data: st.DataObject) -> None:
    """Also ids that no text gives: cut and broken characters, control tokens in between, spaces in front."""
    tokenizer = load(kind)
    space = tokenizer.encode(" ", bos=False)[-1]
    token_id = st.one_of(
        st.integers(0, tokenizer.vocab_size - 1), st.integers(0, 1300), st.integers(0, 20), st.just(space)
    )
    ids = data.draw(st.lists(token_id, max_size=12))
    expected = library(kind).decode(ids, special_token_policy=SpecialTokenPolicy.IGNORE)
    assert tokenizer.decode(ids) == expected
    assert "".join(streamed(tokenizer, ids)) == expected


@pytest.mark.parametrize("kind", ["v1", "v3", "v7", "tekken"])
@settings(max_examples=100, deadline=None)
@given(prompt=any_text, answer=any_text)
def test_a_stream_after_a_prompt_continues_it(kind: str, prompt: str, answer: str) -> None:
    tokenizer = load(kind)
    before, generated = tokenizer.encode(prompt), tokenizer.encode(answer, bos=False, eos=True)
    continued = "".join(streamed(tokenizer, generated, after=before))
    assert tokenizer.decode(before) + continued == tokenizer.decode(before + generated)


def test_a_continuation_keeps_the_space_that_a_new_text_drops() -> None:
    tokenizer = load("v1")
    ids = tokenizer.encode("world", bos=False)
    assert pieces("v1", ids) == "▁world"
    assert streamed(tokenizer, ids, after=tokenizer.encode("Hello")) == [" world", ""]
    assert streamed(tokenizer, ids, after=[1]) == ["world", ""]
    assert streamed(tokenizer, ids) == ["world", ""]


@pytest.mark.parametrize("kind", ["v1", "v3", "tekken"])
def test_a_character_appears_with_its_last_byte(kind: str) -> None:
    tokenizer = load(kind)
    ids = tokenizer.encode("\U0010fffd!", bos=False)
    parts = streamed(tokenizer, ids)
    assert [part for part in parts if part] == ["\U0010fffd", "!"]
    assert len(parts) > 4  # several ids made that character


@pytest.mark.parametrize(("kind", "marks"), [("v1", 3), ("tekken", 1)])
def test_an_incomplete_tail_waits_and_becomes_a_replacement_character(kind: str, marks: int) -> None:
    """As many as the library has: SentencePiece one for each byte, tekken one for the character."""
    tokenizer = load(kind)
    first = 3 if kind == "v1" else 1000  # the id of the byte 0
    cut = [first + byte for byte in "🙂".encode()[:3]]
    assert streamed(tokenizer, cut) == ["", "", "", "\ufffd" * marks]
    assert streamed(tokenizer, [*cut, tokenizer.eos_id]) == ["", "", "", "\ufffd" * marks, ""]
    assert tokenizer.decode(cut) == library(kind).decode(cut)


def test_a_stream_does_not_decode_everything_again_for_each_id() -> None:
    tokenizer = load("v1")
    seen: list[int] = []

    def piece(token_id: int) -> str | bytes | None:
        seen.append(token_id)
        return "▁x"

    stream = replace(tokenizer, codec=replace(tokenizer.codec, piece=piece)).stream(after=[5000] * 1000)
    assert len(seen) == 1  # the first visible piece of the prompt settles it
    assert "".join(stream.push(token_id) for token_id in range(1000)) == " x" * 1000
    assert seen[1:] == list(range(1000))


# ---- chat


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_conversation_equals_the_library(kind: str, text: str) -> None:
    ours = [
        Message("system", "Answer: " + text), Message("user", text), Message("assistant", text + "."),
        Message("user", "And " + text), Message("assistant", "ok"), Message("user", text),
    ]  # fmt: skip
    theirs = [
        SystemMessage(content="Answer: " + text), UserMessage(content=text), AssistantMessage(content=text + "."),
        UserMessage(content="And " + text), AssistantMessage(content="ok"), UserMessage(content=text),
    ]  # fmt: skip
    expected = library(kind).encode_chat_completion(ChatCompletionRequest(messages=theirs)).tokens
    assert load(kind).encode_chat(ours) == expected


@pytest.mark.parametrize(
    ("kind", "plain", "with_system"),
    [
        (
            "v1",
            "<s>▁[INST]▁Hi▁[/INST]▁Hello</s>▁[INST]▁Bye▁[/INST]",
            "<s>▁[INST]▁Be▁nice<0x0A><0x0A>Hi▁[/INST]▁Hello</s>▁[INST]▁Bye▁[/INST]",
        ),
        (
            "v3",
            "<s>[INST]▁Hi[/INST]▁Hello</s>[INST]▁Bye[/INST]",
            "<s>[INST]▁Hi[/INST]▁Hello</s>[INST]▁Be▁nice<0x0A><0x0A>Bye[/INST]",
        ),
        (
            "v7",
            "<s>[INST]▁Hi[/INST]▁Hello</s>[INST]▁Bye[/INST]",
            "<s>[SYSTEM_PROMPT]▁Be▁nice[/SYSTEM_PROMPT][INST]▁Hi[/INST]▁Hello</s>[INST]▁Bye[/INST]",
        ),
        (
            "tekken",
            "<s>[INST]Hi[/INST]Hello</s>[INST]Bye[/INST]",
            "<s>[INST]Hi[/INST]Hello</s>[INST]Be nice\n\nBye[/INST]",
        ),
    ],
)
def test_a_conversation_reads_as_the_published_template(kind: str, plain: str, with_system: str) -> None:
    assert pieces(kind, load(kind).encode_chat(CONVERSATION[1:])) == plain
    assert pieces(kind, load(kind).encode_chat(CONVERSATION)) == with_system


def test_a_v1_conversation_is_text_between_bos_and_eos() -> None:
    raw = sentencepiece.SentencePieceProcessor(model_file=str(DATA / FILES["v1"]))
    expected = [1, *raw.encode("[INST] Hi [/INST]"), *raw.encode("Hello"), 2, *raw.encode("[INST] Bye [/INST]")]
    assert load("v1").encode_chat(CONVERSATION[1:]) == expected


@pytest.mark.parametrize("kind", ["v2", "v3", "v7"])
def test_later_conversations_have_control_tokens_around_the_text(kind: str) -> None:
    raw = sentencepiece.SentencePieceProcessor(model_file=str(DATA / FILES[kind]))
    expected = [1, 3, *raw.encode("Hi"), 4, *raw.encode("Hello"), 2, 3, *raw.encode("Bye"), 4]
    assert load(kind).encode_chat(CONVERSATION[1:]) == expected


@pytest.mark.parametrize("kind", ["v1", "v3", "v7", "tekken"])
@pytest.mark.parametrize(
    ("messages", "defect"),
    [
        ([], "must end with a user's message"),
        ([Message("system", "x")], "must end with a user's message"),
        ([Message("user", "x"), Message("assistant", "y")], "must end with a user's message"),
        ([*CONVERSATION[1:3], Message("system", "x"), Message("user", "y")], "Unexpected role 'system' after"),
        ([Message("user", "x"), Message("assistant", ""), Message("user", "y")], "message 2: .* is empty"),
    ],
)
def test_a_conversation_that_does_not_fit_is_refused(kind: str, messages: list[Message], defect: str) -> None:
    with pytest.raises(InputError, match=defect) as caught:
        load(kind).encode_chat(messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["v1", "v3", "v7", "tekken"])
def test_an_empty_question_is_a_question(kind: str) -> None:
    expected = {"v1": "<s>▁[INST]▁▁[/INST]"}.get(kind, "<s>[INST][/INST]")
    assert pieces(kind, load(kind).encode_chat([Message("user", "")])) == expected


@pytest.mark.parametrize("kind", ["v1", "v3", "tekken"])
def test_two_questions_in_a_row_are_one_question(kind: str) -> None:
    ids = load(kind).encode_chat([Message("user", "one"), Message("user", "two")])
    assert ids == load(kind).encode_chat([Message("user", "one\n\ntwo")])
