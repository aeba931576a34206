"""Conversations in every template: which part of a prompt need not be computed, undo, retry, tools, the context."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mistral.cli.chat.answer import ChatAnswer
from mistral.cli.chat.conversation import Conversation, Turn
from mistral.cli.chat.conversation_file import as_text, parse
from mistral.cli.model_options import Options
from mistral.cli.session import Session
from mistral.errors import InputError
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tool_calls import Reply
from tests.support.tool_cases import CALL, FILES, OTHER, TOOLS, load

pytestmark = pytest.mark.usefixtures("all_compiled")


@dataclass
class Slots:
    """An engine that computes nothing and forgets nothing, for one row."""

    context_limit: int | None = None
    num_pipeline_ranks = 1
    tokens: int = 0
    fed: int = field(default=0)

    def join(self, capacity: int, sampling: object) -> int:
        self.tokens = 0
        return 0

    def kv_seqlen(self, row: int) -> int:
        return self.tokens

    def resume(self, row: int, kv_seqlen: int, capacity: int, sampling: object) -> int:
        self.tokens = kv_seqlen
        return kv_seqlen


def conversation(kind: str, limit: int | None = None, **more: Any) -> Conversation:
    options, engine = Options(max_tokens=20), cast(Any, Slots(limit))
    return Conversation(Session(options, cast(Any, None), load(kind), engine, 0.0), True, **more)


def feed(talk: Conversation, proposal: Any, reply: Reply, ids: list[int] | None = None) -> Turn:
    """ChatAnswer with `reply`, as if a model had written its text's own ids."""
    tokenizer, held = talk.session.tokenizer, list(talk.slot.cached_ids())
    request = talk.request(proposal)
    talk.slot.begin(request.prompt, 0, None)
    ids = tokenizer.encode(reply.text, bos=False) if ids is None else ids
    talk.slot.ids = [*request.prompt, *ids]
    talk.session.engine.tokens = len(talk.slot.ids)  # type: ignore[attr-defined]
    return talk.accept(proposal, ChatAnswer(reply, tuple(ids), "stop", 0.0), held)


def say(talk: Conversation, question: str, answer: str) -> Turn:
    return feed(talk, talk.ask(question), Reply(answer))


@pytest.mark.parametrize("kind", FILES)
def test_the_next_turn_has_all_of_the_last_one_in_common(kind: str) -> None:
    talk = conversation(kind)
    say(talk, "What is the weather like?", "It is fine, as it was yesterday.")
    held = len(talk.slot.cached_ids())
    turn = say(talk, "And tomorrow?", "Rain.")
    assert turn.reused == held < turn.prompt and not turn.note


@pytest.mark.parametrize(
    ("kind", "whole"), [("v1", True), ("v2", False), ("v3", False), ("v7", True), ("v3 tekken", False)]
)
def test_a_template_that_moves_the_system_prompt_is_told_of(kind: str, whole: bool) -> None:
    talk = conversation(kind, system="Be brief.")
    say(talk, "What is the weather like?", "It is fine.")
    held = len(talk.slot.cached_ids())
    turn = say(talk, "And tomorrow?", "Rain.")
    assert (turn.reused == held) == whole
    assert ("moves the system prompt" in turn.note) == (not whole) and (whole or turn.reused < 5)


@pytest.mark.parametrize("kind", ["v2", "v3", "v7"])
def test_a_template_that_moves_the_tools_is_told_of(kind: str) -> None:
    talk = conversation(kind, tools=TOOLS)
    say(talk, "What is the weather like?", "It is fine.")
    turn = say(talk, "And tomorrow?", "Rain.")
    assert turn.reused < 5 and "or the tools into the last question" in turn.note


def test_an_answer_that_reads_back_differently_ends_the_prefix_there() -> None:
    talk = conversation("v3")
    tokenizer = talk.session.tokenizer
    letters = [token for letter in "fine" for token in tokenizer.encode(letter, bos=False)[-1:]]
    feed(talk, talk.ask("How is it?"), Reply("fine"), letters)
    prompt = len(talk.last[0])
    turn = say(talk, "Really?", "Yes.")
    assert prompt <= turn.reused < prompt + 4 and "reads back as other tokens" in turn.note


def test_undo_retry_and_reset() -> None:
    talk = conversation("v3")
    with pytest.raises(InputError, match="nothing to take back"):
        talk.undo()
    with pytest.raises(InputError, match="nothing has been asked"):
        talk.ask_again()
    say(talk, "One?", "1")
    say(talk, "Two?", "2")
    again = talk.ask_again()
    assert [m.content for m in again.messages] == ["One?", "1", "Two?"] and talk.sample == 1
    assert talk.request(again).settings.sample == 1
    feed(talk, again, Reply("two"))
    talk.undo()
    assert [m.content for m in talk.messages] == ["One?", "1"]
    assert [m.content for m in talk.ask_again().messages] == ["One?", "1", "Two?"], "the question that was taken back"
    feed(talk, talk.ask("One?"), Reply(" \n"))
    assert [m.content for m in talk.messages] == ["One?", "1"], "an empty answer leaves, and takes its question along"
    assert [m.content for m in talk.ask_again().messages] == ["One?", "1", "One?"]
    talk.reset()
    assert [m.content for m in talk.ask("Three?").messages] == ["Three?"] and talk.sample == 0


def test_an_answer_goes_on_where_it_ended() -> None:
    talk = conversation("v3")
    with pytest.raises(InputError, match="nothing has been answered"):
        talk.go_on()
    say(talk, "Count.", "One, two")
    further = talk.go_on()
    assert list(further.ids) == [*talk.last[0], *talk.last[1]]
    stream = talk.request(further).text
    assert stream
    ids = talk.session.tokenizer.encode("three", bos=False)
    assert "".join(map(stream.push, ids)) == " three", "not the beginning of a text"
    feed(talk, further, Reply(", three"))
    assert talk.messages[-1] == Message("assistant", "One, two, three")


def test_a_system_prompt_that_comes_in_between_takes_nothing_away() -> None:
    talk = conversation("v3")
    say(talk, "Count.", "One, two")
    talk.system = "Be brief."
    feed(talk, talk.go_on(), Reply(", three"))
    assert talk.messages == [Message("user", "Count."), Message("assistant", "One, two, three")]
    assert [m.role for m in talk.ask("And?").messages] == ["system", "user", "assistant", "user"]


def test_after_a_question_that_failed_the_answer_before_it_goes_on() -> None:
    talk = conversation("v3")
    say(talk, "Count.", "One, two")
    with pytest.raises(InputError):
        talk.ask("\ud800")
    feed(talk, talk.go_on(), Reply(", three"))
    assert talk.messages == [Message("user", "Count."), Message("assistant", "One, two, three")]
    assert [m.content for m in talk.ask_again().messages] == ["Count."]


def test_over_the_context_limit_the_oldest_turns_go() -> None:
    talk = conversation("v3", limit=80, system="Be brief.")
    for number in range(12):
        proposal = talk.ask(f"Question number {number}?")
        assert len(proposal.ids) + 20 <= 80 and proposal.messages[0].role == "system"
        turn = feed(talk, proposal, Reply("It is fine."))
        assert proposal.dropped == (turn.note == "the oldest turns were left out")
        assert not proposal.dropped or len(proposal.ids) <= 60, "there is room for some turns more"
    assert any("left out" in turn.note for turn in talk.turns)
    assert [m.role for m in talk.messages[:2]] == ["user", "assistant"]


@pytest.mark.parametrize("kind", ["v2", "v3", "v7", "v3 tekken", "v13 tekken", "v15 tekken"])
def test_a_call_waits_for_its_results(kind: str) -> None:
    talk = conversation(kind, tools=TOOLS)
    calls = (CALL,) if kind == "v2" else (CALL, OTHER)
    feed(talk, talk.ask("Weather?"), Reply("", calls), [5, 6])
    assert talk.pending == calls
    with pytest.raises(InputError, match="ended in a call"):
        talk.go_on()
    proposal = talk.give_result("sunny")
    if len(calls) > 1:
        assert proposal is None and talk.pending == (OTHER,)
        proposal = talk.give_result("noon")
    assert proposal and [m.role for m in proposal.messages] == ["user", "assistant", *["tool"] * len(calls)]
    feed(talk, proposal, Reply("Sunny."))
    assert not talk.pending and talk.messages[-1].content == "Sunny."
    with pytest.raises(InputError, match="no call"):
        talk.give_result("?")
    talk.undo()
    assert talk.messages == []


def test_a_question_with_a_pending_call_can_be_taken_back() -> None:
    talk = conversation("v3", tools=TOOLS)
    feed(talk, talk.ask("Weather?"), Reply("", (CALL, OTHER)), [5, 6])
    talk.give_result("sunny")
    talk.undo()
    assert not talk.pending and [m.content for m in talk.ask("Hi").messages] == ["Hi"]


def test_what_was_thought_is_a_part_of_the_conversation() -> None:
    talk = conversation("v13 tekken")
    ids = [34, *talk.session.tokenizer.encode("Hm.", bos=False), 35, *talk.session.tokenizer.encode("Fine.", bos=False)]
    feed(talk, talk.ask("Well?"), Reply("Fine.", thoughts="Hm."), ids)
    assert talk.messages[-1] == Message("assistant", "Fine.", thoughts="Hm.")
    held = len(talk.slot.cached_ids())
    turn = feed(
        talk, talk.ask("Sure?"), Reply("", thoughts="Hm"), [34, *talk.session.tokenizer.encode("Hm", bos=False)]
    )
    assert turn.reused == held, "it is written as it came"
    assert talk.messages[-1] == Message("assistant", "", thoughts="Hm")
    assert talk.session.tokenizer.thinks_after(talk.go_on().ids)
    feed(talk, talk.go_on(), Reply("Yes.", thoughts="m."))
    assert talk.messages[-1] == Message("assistant", "Yes.", thoughts="Hmm.")
    talk.undo()
    assert len(talk.messages) == 2


def test_thoughts_alone_leave_a_conversation_whose_template_has_none() -> None:
    talk = conversation("v7")
    feed(talk, talk.ask("Well?"), Reply("", thoughts="Hm"), [5])
    assert talk.messages == []


def test_a_conversation_in_a_file_of_before_there_were_thoughts_is_read() -> None:
    talk = conversation("v13 tekken")
    cast(Any, talk.session.engine).args = SimpleNamespace(vocab_size=3000)
    feed(talk, talk.ask("Well?"), Reply("Fine.", thoughts="Hm."), [5])
    state = json.loads(as_text(talk))
    assert parse(json.dumps(state), talk).messages == talk.messages
    for message in state["messages"]:
        del message["thoughts"], message["think_marks"]
    assert parse(json.dumps(state), talk).messages == [Message("user", "Well?"), Message("assistant", "Fine.")]
