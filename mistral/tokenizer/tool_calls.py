"""Answers parsed into thinking, text and tool calls.

Parsing works on ids, since [THINK] and [TOOL_CALLS] are control tokens, which no text can be.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mistral.text import parse_json
from mistral.tokenizer.call_stream import CallPart, CallStream, usable_id
from mistral.tokenizer.chat_template import ToolTokens
from mistral.tokenizer.messages import Message, Tool, ToolCall
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.thoughts import BEGIN, END, ThoughtStream
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_file import TOOL_NAME


@dataclass(frozen=True)
class Reply:
    """An answer parsed into text, tool calls, and the thinking before them.

    `warning` is a line for the user about a malformed call, which is part of the text, or one of an unknown tool.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    warning: str | None = None
    thoughts: str = ""


class ReplyStream:
    """Parses an answer while it is generated: text is returned at once, calls are held back until they are valid.

    Call `push` for each event of `generate_stream` and show the text that it returns; call `finish` at the end, and
    show the text that it returns with the reply. `thought` is the thinking that the last push has added, which is not
    in the text. `call_parts` are additions to calls, for callers that stream them, if the template marks arguments; if
    one of the calls turns out malformed or cut, the reply has no calls.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tools: Sequence[Tool] = (),
        taken: Collection[str] = (),
        thinking: bool = False,
        has_calls: bool = True,
        salt: Sequence[int] = (),
    ) -> None:
        """As for `parse_reply`; without `has_calls`, calls are not looked for."""
        self.tokenizer, self.tools, self.taken = tokenizer, tools, taken
        self.ids: list[int] = []
        self.thinking, self.has_calls, self.calling, self.thought = thinking, has_calls, False, ""
        self.salt, self.call_parts = salt, list[CallPart]()
        self._calls = CallStream(tokenizer, tokenizer.tool_tokens, taken, salt) if tokenizer.tool_tokens else None
        self._parts = ThoughtStream(tokenizer.think_tokens, thinking)

    def push(self, token_id: int | None, text: str) -> str:
        """The text to show now, for one more id (None without one) and the text that came with it."""
        if token_id is not None:
            self.ids.append(token_id)
        self.thought = ""
        self.call_parts = []
        before, tokens = self.calling, self.tokenizer.tool_tokens if self.has_calls else None
        self.calling = before or (tokens is not None and token_id == tokens.calls)
        if self.calling and self._calls and token_id is not None:
            self.call_parts = self._calls.push(self.ids[:-1], token_id)
        if before:
            return ""
        shown, self.thought = self._parts.push(token_id, text)  # beside [TOOL_CALLS] it is the end of what came before
        return shown

    def finish(self) -> tuple[str, Reply]:
        """The text that is still to be shown, and the whole reply."""
        if not self.calling:
            return "", Reply(self._parts.text, thoughts=self._parts.thoughts)
        reply = parse_reply(self.tokenizer, self.ids, self.tools, self.taken, self.thinking, self.salt)
        return reply.text[len(self._parts.text) :], reply


def parse_reply(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    tools: Sequence[Tool] = (),
    taken: Collection[str] = (),
    thinking: bool = False,
    salt: Sequence[int] = (),
) -> Reply:
    """The text, the thinking and the calls in generated ids; `thinking`: the prompt ended within thinking.

    Raises InputError only for ids that the vocabulary does not have.

    With a malformed call the whole answer is text, its control tokens written out, with a warning. A call of a tool
    that is not in `tools`, if any are given, only gets a warning. If the model wrote no usable id of a call, one is
    computed that is not in `taken`: from the ids up to the call's arguments if these are marked, otherwise from all
    ids; the same ids with the same `salt` give the same one.
    """
    tokens = tokenizer.tool_tokens
    if tokens is None or tokens.calls not in ids:
        text, thoughts = _text_and_thoughts(tokenizer, ids, thinking)
        return Reply(text, thoughts=thoughts)
    ids = list(ids)
    while ids[-1] in tokenizer.end_ids:
        ids.pop()
    begin = ids.index(tokens.calls)
    text, thoughts = _text_and_thoughts(tokenizer, ids[:begin], thinking)
    try:
        found = _calls(tokenizer, tokens, ids, begin)
    except ValueError as error:
        text += _written_out(tokenizer, tokens, ids[begin:])
        return Reply(text, warning=f"malformed tool call: {error}", thoughts=thoughts)
    calls, used = list[ToolCall](), set(taken)
    for name, arguments, given, end in found:
        call_id = usable_id(given, ids[:end], used, salt)
        used.add(call_id)
        calls.append(ToolCall(name, arguments, call_id))
    unknown = {call.name for call in calls} - {tool.name for tool in tools} if tools else set()
    warning = f"the model calls {', '.join(sorted(unknown))}, which is not among the tools" if unknown else None
    return Reply(text, tuple(calls), warning, thoughts)


def assistant_message(tokenizer: Tokenizer, reply: Reply) -> Message:
    """The reply as a message of the conversation, without its text if the template cannot hold it beside calls."""
    tokens = tokenizer.tool_tokens
    keeps_text = not reply.calls or tokens is None or tokens.beside_text
    return Message("assistant", reply.text if keeps_text else "", reply.calls, thoughts=reply.thoughts)


def _text_and_thoughts(tokenizer: Tokenizer, ids: Sequence[int], thinking: bool) -> tuple[str, str]:
    tokens = tokenizer.think_tokens
    if not thinking and (tokens is None or not {tokens.begin, tokens.end} & set(ids)):
        return tokenizer.decode(ids), ""
    stream = TextStream(tokenizer.stream(), (), tokens, thinking)
    parts = ThoughtStream(tokens, thinking)
    for token_id in ids:
        parts.push(token_id, stream.push(token_id))
    parts.push(None, stream.flush())
    return parts.text, parts.thoughts


def _split(ids: Sequence[int], mark: int) -> list[list[int]]:
    """The ids before, between and after the marks: one list more than there are marks."""
    parts = [list[int]()]
    for token_id in ids:
        if token_id == mark:
            parts.append([])
        else:
            parts[-1].append(token_id)
    return parts


def _calls(tokenizer: Tokenizer, tokens: ToolTokens, ids: list[int], begin: int) -> list[tuple[str, str, str, int]]:
    """Name, arguments, id, and where in the ids the call's head ends, of all calls. Raises ValueError."""
    found, place = list[tuple[str, str, str, int]](), begin + 1
    for part in _split(ids[begin + 1 :], tokens.calls):
        end = place + part.index(tokens.args) + 1 if tokens.args in part else len(ids)
        found += [(*call, end) for call in _parse(tokenizer, tokens, part)]
        place += len(part) + 1
    return found


def _parse(tokenizer: Tokenizer, tokens: ToolTokens, ids: list[int]) -> Iterator[tuple[str, str, str]]:
    """Name, arguments and id ("" if there is none) of the calls after one [TOOL_CALLS]. Raises ValueError."""
    if tokens.args is None:
        calls = parse_json(_plain(tokenizer, ids))
        if not isinstance(calls, list) or not calls:
            raise ValueError("not a JSON list of calls")
        for call in calls:
            if not isinstance(call, dict):
                raise ValueError("a call is not an object")
            call_id = call.get("id")
            yield *_checked(call.get("name"), call.get("arguments")), call_id if isinstance(call_id, str) else ""
        return
    head, *arguments = _split(ids, tokens.args)
    if len(arguments) != 1:
        raise ValueError("not a name, [ARGS] and arguments")
    name, *call_ids = [head] if tokens.call_id is None else _split(head, tokens.call_id)
    if len(call_ids) > 1:
        raise ValueError("[CALL_ID] is there twice")
    call_id = _plain(tokenizer, call_ids[0]).strip() if call_ids else ""
    yield *_checked(_plain(tokenizer, name).strip(), parse_json(_plain(tokenizer, arguments[0]))), call_id


def _checked(name: Any, arguments: Any) -> tuple[str, str]:
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise ValueError("its name is not that of a function")
    if not isinstance(arguments, dict):
        raise ValueError("its arguments are not an object")
    return name, json.dumps(arguments, ensure_ascii=False)


def _plain(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    if any(tokenizer.piece(token_id) is None for token_id in ids):
        raise ValueError("a control token is in it")
    return tokenizer.decode(ids)


def _written_out(tokenizer: Tokenizer, tokens: ToolTokens, ids: Sequence[int]) -> str:
    """The text of ids with the control tokens of calls and thinking written as [TOOL_CALLS], [ARGS] and so on."""
    marks = {tokens.calls: "[TOOL_CALLS]", tokens.args: "[ARGS]", tokens.call_id: "[CALL_ID]"}
    if think := tokenizer.think_tokens:
        marks |= {think.begin: BEGIN, think.end: END}
    text, run = "", list[int]()
    for token_id in ids:
        if token_id in marks:
            text, run = text + tokenizer.decode(run) + marks[token_id], []
        else:
            run.append(token_id)
    return text + tokenizer.decode(run)
