"""Templates v7, v11, v13 and v15 over the official vocabulary: each conversation as mistral-common itself writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mistral.errors import InputError
from mistral.tokenizer.messages import Message, ToolCall
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.tool_cases import CALL, LATER, OTHER, TOOLS, WHOLE, by_library, conversation, file, load

KINDS = [f"{kind} {WHOLE}" for kind in LATER]
THOUGHT = "The user wants [/THINK] the weather.\n\nI shall look."
FREE = ToolCall("now", "{}", "call_7")  # an id that templates before v13 do not take


def spelled(kind: str, ids: list[int]) -> str:
    """A prompt with its control tokens written out."""
    tokenizer = load(kind)
    names, text, run = {token.id: name for name, token in tokenizer.vocabulary.specials.items()}, "", list[int]()
    for token_id in ids:
        if token_id in names:
            text, run = text + tokenizer.decode(run) + names[token_id], []
        else:
            run.append(token_id)
    return text + tokenizer.decode(run)


def encoded(kind: str, *messages: Message, tools: bool = False, **more: str) -> str:
    """The prompt, which must be that of mistral-common, written out."""
    offered = TOOLS if tools else ()
    ids = load(kind).encode_chat(messages, offered, **more)
    assert ids == by_library(kind, list(messages), offered, **more)
    return spelled(kind, ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_what_the_library_writes(kind: str) -> None:
    messages = conversation(kind)
    for end in (2, 5, 7, len(messages)):
        for tools in (False, True):
            encoded(kind, *messages[:end], tools=tools)
    begun = Message("assistant", "It is", prefix=True)
    assert encoded(kind, Message("user", "Grüße 🙂"), begun).endswith("[INST]Grüße 🙂[/INST]It is")


@pytest.mark.parametrize("kind", KINDS)
def test_system_prompt_and_tools_stand_where_the_version_puts_them(kind: str) -> None:
    turns = [Message("system", "S"), Message("user", "A"), Message("assistant", "B"), Message("user", "C")]
    text = encoded(kind, *turns, tools=True)
    assert text.startswith("<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT]")
    offered = text[text.index("[AVAILABLE_TOOLS]") : text.index("[/AVAILABLE_TOOLS]") + len("[/AVAILABLE_TOOLS]")]
    assert json.loads(offered.removeprefix("[AVAILABLE_TOOLS]").removesuffix("[/AVAILABLE_TOOLS]"))[1]["function"][
        "name"
    ] == "now"  # fmt: skip
    settings = '[MODEL_SETTINGS]{"reasoning_effort": "none"}[/MODEL_SETTINGS]' if kind.startswith("v15") else ""
    first = kind.startswith(("v13", "v15"))
    assert text.removeprefix("<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT]") == (
        f"{offered}{settings}[INST]A[/INST]B</s>[INST]C[/INST]" if first
        else f"[INST]A[/INST]B</s>{offered}[INST]C[/INST]"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "call", "result"),
    [
        ("v7", '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "000000000"}]', "000000000[TOOL_CONTENT]1"),
        ("v11", "[TOOL_CALLS]now[CALL_ID]000000000[ARGS]{}", "000000000[TOOL_CONTENT]1"),
        ("v13", "[TOOL_CALLS]now[ARGS]{}", "1"),
        ("v15", "[TOOL_CALLS]now[ARGS]{}", "1"),
    ],
)
def test_calls_and_results_have_the_form_of_the_version(kind: str, call: str, result: str) -> None:
    kind = f"{kind} tekken {WHOLE}"
    turns = [Message("user", "x"), Message("assistant", "I look.", (OTHER,)), Message.result(OTHER, "1")]
    text = encoded(kind, *turns)
    assert text.endswith(f"[INST]x[/INST]I look.{call}</s>[TOOL_RESULTS]{result}[/TOOL_RESULTS]")
    several = [Message("user", "x"), Message("assistant", "", (CALL, OTHER))]
    both = encoded(kind, *several, Message.result(CALL, "a"), Message.result(OTHER, "b"))
    assert both.count("[TOOL_RESULTS]") == 2 and both.count("[TOOL_CALLS]") == (1 if kind.startswith("v7") else 2)


def test_ids_of_calls_are_free_from_v13_on() -> None:
    turns = [Message("user", "x"), Message("assistant", "", (FREE,)), Message.result(FREE, "1")]
    for kind in KINDS[2:]:
        encoded(kind, *turns)
    for kind in KINDS[:2]:
        with pytest.raises(InputError, match="Tool call id was call_7"):
            load(kind).encode_chat(turns)


# ---- thoughts


@pytest.mark.parametrize("kind", KINDS[2:])
def test_thoughts_are_given_back_as_control_tokens(kind: str) -> None:
    answered = [Message("user", "x"), Message("assistant", "Fine.", thoughts=THOUGHT), Message("user", "y")]
    text = encoded(kind, *answered)
    assert f"[/INST][THINK]{THOUGHT}[/THINK]Fine.</s>" in text
    tokens = load(kind).think_tokens
    ids = load(kind).encode_chat(answered)
    assert tokens and ids.count(tokens.begin) == ids.count(tokens.end) == 1, "what a thought spells is no control token"
    called = [Message("user", "x"), Message("assistant", "", (OTHER,), thoughts="Hm."), Message.result(OTHER, "1")]
    assert "[THINK]Hm.[/THINK][TOOL_CALLS]now[ARGS]{}</s>" in encoded(kind, *called, tools=True)
    cut = [Message("user", "x"), Message("assistant", "", thoughts="Hm"), Message("user", "y")]
    assert "[THINK]Hm[/THINK]</s>" in encoded(kind, *cut), "an answer that ended in its thoughts"


@pytest.mark.parametrize("kind", KINDS[:2])
def test_templates_without_thoughts_leave_them_out(kind: str) -> None:
    with_thoughts = [Message("user", "x"), Message("assistant", "Fine.", thoughts=THOUGHT), Message("user", "y")]
    without = [Message("user", "x"), Message("assistant", "Fine."), Message("user", "y")]
    assert load(kind).encode_chat(with_thoughts) == load(kind).encode_chat(without) == by_library(kind, without)
    assert load(kind).think_tokens is None
    with pytest.raises(InputError, match="message 2: an assistant's message is empty"):
        load(kind).encode_chat([Message("user", "x"), Message("assistant", "", thoughts="Hm"), Message("user", "y")])


def test_a_begun_answer_goes_on_behind_its_thoughts_or_within_them() -> None:
    kind, question = KINDS[2], Message("user", "x")
    behind = Message("assistant", "Fi", thoughts="Hm.", prefix=True)
    assert encoded(kind, question, behind).endswith("[/INST][THINK]Hm.[/THINK]Fi")
    ids = load(kind).encode_chat([question, Message("assistant", "", thoughts="Hm", prefix=True)])
    assert spelled(kind, ids).endswith("[/INST][THINK]Hm") and load(kind).thinks_after(ids)
    assert not load(kind).thinks_after(load(kind).encode_chat([question, behind]))


SYSTEM = "First.\n[THINK]Your thoughts.[/THINK]Then the answer [INST].\n"


def system_by_library(kind: str, *parts: tuple[str, str]) -> list[int]:
    """A conversation whose system prompt mistral-common is given in parts."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    from tests.support.tool_cases import library

    chunks = [{"type": name, name: text} for name, text in parts]
    turns = [{"role": "system", "content": chunks}, {"role": "user", "content": "x"}]
    request = ChatCompletionRequest.model_validate({"messages": turns})  # type: ignore[var-annotated]
    return list(library(kind).encode_chat_completion(request).tokens)


def test_think_marks_of_a_system_prompt_are_control_tokens_where_the_user_has_none() -> None:
    kind = KINDS[2]
    ids = load(kind).encode_chat([Message.system(SYSTEM), Message("user", "[THINK]x[/THINK]")])
    tokens = load(kind).think_tokens
    assert tokens and (ids.count(34), ids.count(35)) == (1, 1) and (tokens.begin, tokens.end) == (34, 35)
    parts = ("text", "First.\n"), ("thinking", "Your thoughts."), ("text", "Then the answer [INST].\n")
    asked = load(kind).encode_chat([Message.system(SYSTEM), Message("user", "x")])
    assert asked == system_by_library(kind, *parts) and asked.count(3) == 1, "[INST] in it stays plain"
    again = "[THINK]a[/THINK][THINK][/THINK]b"
    expected = system_by_library(kind, ("thinking", "a"), ("thinking", ""), ("text", "b"))
    assert load(kind).encode_chat([Message.system(again), Message("user", "x")]) == expected
    plain = [Message.system("No marks."), Message("user", "x")]
    assert load(kind).encode_chat(plain) == by_library(kind, plain)


def test_a_system_message_of_someone_else_stays_text() -> None:
    for kind in KINDS:
        turns = [Message("system", SYSTEM), Message("user", "x")]
        assert load(kind).encode_chat(turns) == by_library(kind, turns)
    for kind in KINDS[:2]:
        assert load(kind).encode_chat([Message.system(SYSTEM), Message("user", "x")]) == by_library(kind, turns)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a [THINK] b", "the system prompt has a [THINK] without [/THINK]; add that"),
        ("a [/THINK] b", "the system prompt has [/THINK] where it cannot be; write [THINK] ... [/THINK]"),
        ("[THINK]a[THINK]b[/THINK]", "the system prompt has [THINK] where it cannot be"),
        ("[THINK]a[/THINK][/THINK]", "has [/THINK] where it cannot be"),
    ],
)
def test_marks_that_are_no_pair_are_refused(text: str, message: str) -> None:
    for check in (load(KINDS[2]).check_system, lambda text: load(KINDS[2]).encode_chat([Message.system(text), USER])):
        with pytest.raises(InputError) as caught:
            check(text)
        assert message in str(caught.value)
    load(KINDS[0]).check_system(text)


USER = Message("user", "x")


def test_v15_has_no_thoughts_in_a_system_prompt() -> None:
    tokenizer = load(KINDS[3])
    for check in (tokenizer.check_system, lambda text: tokenizer.encode_chat([Message.system(text), USER])):
        with pytest.raises(InputError) as caught:
            check(SYSTEM)
        assert str(caught.value).startswith("the system prompt has [THINK], and templates of version v15 have none")
    tokenizer.check_system("No marks.")


# ---- reasoning effort


def test_v15_says_how_long_to_think() -> None:
    for effort in ("none", "high"):
        text = encoded(KINDS[3], USER, reasoning_effort=effort)
        assert text == f'<s>[MODEL_SETTINGS]{{"reasoning_effort": "{effort}"}}[/MODEL_SETTINGS][INST]x[/INST]'
    assert encoded(KINDS[3], USER) == encoded(KINDS[3], USER, reasoning_effort="none"), "what the file says"
    with pytest.raises(InputError, match=r"^reasoning_effort low: must be one of none, high$"):
        load(KINDS[3]).encode_chat([USER], reasoning_effort="low")


@pytest.mark.parametrize("kind", [*KINDS[:3], "v1", "v7"])
def test_other_versions_refuse_it_by_name(kind: str) -> None:
    with pytest.raises(InputError) as caught:
        load(kind).encode_chat([USER], reasoning_effort="high")
    source = load(kind).template_source
    assert str(caught.value) == (
        f"reasoning_effort high: the chat template ({source}) has no such setting, as those of version v15 have;"
        " leave it out"
    )


def test_a_v15_file_without_its_settings_is_refused(tmp_path: Path) -> None:
    table = json.loads(file("v15 tekken").read_text())
    for settings, message in (
        (None, "has no model_settings_builder, which v15 needs"),
        (
            {"reasoning_effort": {"type": "enum", "values": ["none"], "accepts_none": True}},
            "not readable as a tokenizer",
        ),
        ({"reasoning_effort": 7}, "not readable as a tokenizer"),
    ):
        (tmp_path / "tekken.json").write_text(json.dumps(table | {"model_settings_builder": settings}))
        with pytest.raises(InputError) as caught:
            Tokenizer.from_folder(tmp_path)
        assert message in str(caught.value) and "\n" not in str(caught.value)


# ---- the model's ids


@pytest.mark.parametrize(
    "beside",
    [
        {"params.json": {"vocab_size": 131072}},
        {"config.json": {"vocab_size": 131072}},
        {"config.json": {"text_config": {"vocab_size": 131072}}},
        {"config.json": {"vocab_size": 3000, "text_config": {"vocab_size": 131072}}},
        {"params.json": {"dim": 64}, "config.json": {"vocab_size": 131072}},
    ],
)
def test_ids_of_the_model_beyond_the_tokenizer_are_no_text(tmp_path: Path, beside: dict[str, object]) -> None:
    (tmp_path / "tekken.json").write_bytes(file("v13 tekken").read_bytes())
    for name, table in beside.items():
        (tmp_path / name).write_text(json.dumps(table))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.rows) == (3000, 131072)
    assert tokenizer.decode([*tokenizer.encode("ab", bos=False), 3000, 131071]) == "ab"
    with pytest.raises(InputError, match="has 3000 ids, not id 131072"):
        tokenizer.decode([131072])
