"""Conversations as token ids by a chat template in jinja2, rendered as transformers renders it.

Control tokens come from the template alone. In what a user gives, every spelling of one is broken by a mark, a
character that is in no input; the rendered text is then cut where control tokens are spelled, and the marks taken out
of the plain text between them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mistral.errors import InputError, one_line
from mistral.text import parse_json
from mistral.tokenizer.bounded_process import BoundedProcess, Failed
from mistral.tokenizer.chat_template import NO_SYSTEM_THOUGHTS
from mistral.tokenizer.messages import Message, Tool
from mistral.tokenizer.thoughts import BEGIN, END, SystemThoughts, system_parts
from mistral.tokenizer.vocabulary import SpecialToken

SECONDS = 5.0  # of processor time, for one conversation
MEMORY = 1 << 30  # bytes of address space
PRIVATE = range(0xE000, 0xF8FF)  # characters that Unicode gives no meaning
REASONING_EFFORTS = ("none", "high")
LONGEST = 64  # characters of a control token that are looked for at the edges of a text
# Names that templates ask for, and values that they compare with
PLAIN_WORDS = {
    "role", "content", "tool_calls", "id", "type", "function", "name", "arguments", "tool_call_id", "description",
    "thinking", "text", "closed", "parameters", "properties", "required", "items", "enum", "default", "format", "title",
    "anyOf", "oneOf", "allOf", "additionalProperties", "string", "object", "array", "integer", "number", "boolean",
    "null",
}  # fmt: skip


@dataclass(frozen=True)
class JinjaTemplate:
    """A chat template: the function from messages and tools to ids.

    source: what a person calls it; templates: its texts by name; variables: bos_token and their like. `encode_part`
    and `encode_whole` encode a text behind a control token, and a text with control tokens in it; the second is None
    where the first does for all.
    """

    source: str
    templates: Mapping[str, str]
    variables: Mapping[str, str]
    specials: Mapping[str, SpecialToken]
    encode_part: Callable[[str], list[int]]
    encode_first: Callable[[str], list[int]]
    encode_whole: Callable[[str], list[int]] | None = None
    renderer: BoundedProcess = field(default_factory=lambda: BoundedProcess(MEMORY), repr=False, compare=False)

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Tool], reasoning_effort: str | None = None
    ) -> list[int]:
        """Ids of a conversation. Raises InputError where the template refuses it."""
        text, mark = self.rendered(messages, tools, reasoning_effort)
        if self.encode_whole and mark not in text:
            return self._checked(self.encode_whole(text))
        ids, first = list[int](), True
        for part in self._cut(text):
            if isinstance(part, SpecialToken):
                ids.append(part.id)
            elif plain := part.replace(mark, ""):
                ids += self.encode_first(plain) if first else self.encode_part(plain)
            first = False
        return self._checked(ids)

    @property
    def takes_tools(self) -> bool:
        """Whether the template has a place for tools."""
        return "tool_use" in self.templates or any("tools" in text for text in self.templates.values())

    @property
    def writes_calls(self) -> bool:
        """Whether calls are written with Mistral's control tokens, so that they can be told from text."""
        return any("[TOOL_CALLS]" in text for text in self.templates.values())

    @property
    def keeps_thoughts(self) -> bool:
        """Whether the template has a place for what an assistant thought before."""
        return self._names_thoughts or self._has_thinking_parts

    @property
    def system_thoughts(self) -> SystemThoughts:
        """What becomes of [THINK] in a system prompt."""
        if any("[MODEL_SETTINGS]" in text for text in self.templates.values()):
            return "refused"
        return "written" if BEGIN in self.specials and END in self.specials else "text"

    @property
    def reasoning_efforts(self) -> tuple[str, ...]:
        """The efforts that a template of the form of v15 takes."""
        settings = [text for text in self.templates.values() if "[MODEL_SETTINGS]" in text]
        return REASONING_EFFORTS if any("reasoning_effort" in text for text in settings) else ()

    @property
    def _names_thoughts(self) -> bool:
        return any("reasoning_content" in text for text in self.templates.values())

    @property
    def _has_thinking_parts(self) -> bool:
        return any(re.search("""['"]thinking['"]""", text) for text in self.templates.values())

    def rendered(
        self, messages: Sequence[Message], tools: Sequence[Tool], reasoning_effort: str | None = None
    ) -> tuple[str, str]:
        """The text of a conversation, and the mark that breaks control tokens spelled out by users in it."""
        template = self.templates["tool_use"] if tools and "tool_use" in self.templates else self._default()
        goes_on = messages[-1].prefix if messages else False
        parts = self._has_thinking_parts and not self._names_thoughts
        turns, offered = [_turn(message, parts) for message in messages], [_offer(tool) for tool in tools] or None
        given = json.dumps([turns, offered, dict(self.variables), template, *self.specials], ensure_ascii=False)
        mark, end = _unused(2, given)
        turns, offered = (self._marked(value, mark) for value in (turns, offered))
        for turn, message in zip(turns, messages, strict=True):
            if message.think_marks and self.system_thoughts != "text":
                turn["content"] = self._system(message.content, mark)
        if goes_on:
            content = turns[-1]["content"]
            whole, key = (content[-1], "text") if isinstance(content, list) else (turns[-1], "content")
            whole[key] += f"{end} "
        effort = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
        variables = {
            **self.variables, "messages": turns, "tools": offered, "documents": None,
            "add_generation_prompt": not goes_on, **effort,
        }  # fmt: skip
        text = self._text(template, variables)
        if not goes_on:
            return text, mark
        before, there, after = text.rpartition(end)
        if not there or messages[-1].content.strip() not in before.replace(mark, ""):
            raise InputError(
                f"the chat template ({self.source}) leaves out the answer that is to go on; end with a question"
            )
        return before if after.startswith(" ") else before.rstrip(), mark

    def _system(self, text: str, mark: str) -> str:
        """A system prompt whose [THINK] and [/THINK] stay what they are. Raises InputError where they cannot."""
        parts = system_parts(text)
        if self.system_thoughts == "refused" and any(is_thought for _, is_thought in parts):
            raise InputError(NO_SYSTEM_THOUGHTS)
        broken = [(self._broken(part, mark), is_thought) for part, is_thought in parts]
        return "".join(f"{BEGIN}{part}{END}" if is_thought else part for part, is_thought in broken)

    def _text(self, template: str, variables: Mapping[str, Any]) -> str:
        try:
            return str(self.renderer.ask("render", SECONDS, template=template, variables=variables))
        except Failed as failure:
            reason = one_line(failure)
            if failure.refused:
                raise InputError(f"the conversation does not fit the chat template ({self.source}): {reason}") from None
            raise InputError(f"the chat template ({self.source}) cannot be rendered: {reason}") from None

    def _default(self) -> str:
        template = self.templates.get("default")
        if template is None:
            names = ", ".join(sorted(self.templates))
            raise InputError(f"the chat template ({self.source}) has no default among {names}; name one by a file")
        return template

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise InputError(f"the chat template ({self.source}) writes nothing for this conversation")
        return ids

    def _cut(self, text: str) -> Iterator[str | SpecialToken]:
        """The control tokens of a text and what is between them, in order."""
        ends, spaces = 0, False
        for match in self._spellings.finditer(text):
            token, plain = self.specials[match[0]], text[ends : match.start()]
            plain = plain.lstrip() if spaces else plain
            plain = plain.rstrip() if token.lstrip else plain
            yield from ([plain] if plain else ())
            yield token
            ends, spaces = match.end(), token.rstrip
        rest = text[ends:].lstrip() if spaces else text[ends:]
        yield from ([rest] if rest else ())

    def _marked(self, value: Any, mark: str) -> Any:
        """A JSON value whose texts spell no control token, neither alone nor with what a template puts beside them."""
        if isinstance(value, list):
            return [self._marked(item, mark) for item in value]
        if isinstance(value, dict):
            return {
                self._broken(name, mark): item if name == "role" else self._marked(item, mark)
                for name, item in value.items()
            }
        return self._broken(value, mark) if isinstance(value, str) else value

    def _broken(self, text: str, mark: str) -> str:
        if text in PLAIN_WORDS:
            return text
        while self._any_case.search(text):
            text = self._any_case.sub(lambda match: f"{match[0][:1]}{mark}{match[0][1:]}", text)
        bare = text.rstrip()
        if bare.strip() and bare.strip().lower() in self._names:
            return bare + mark + text[len(bare) :]
        starts, ends = self._edges
        return _edge(_edge(text, starts, mark)[::-1], ends, mark)[::-1]

    @cached_property
    def _spellings(self) -> re.Pattern[str]:
        """Any control token, the longest first."""
        return re.compile("|".join(map(re.escape, sorted(self.specials, key=len, reverse=True))) or "(?!)")

    @cached_property
    def _any_case(self) -> re.Pattern[str]:
        """Any control token that can be broken, in upper and lower case: a template may change that."""
        names = sorted((name for name in self.specials if len(name) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or "(?!)", re.IGNORECASE)

    @cached_property
    def _names(self) -> str:
        """All control tokens in one text: what is a part of it may be a part of a control token."""
        return "\0".join(self.specials).lower()

    @cached_property
    def _edges(self) -> tuple[frozenset[str], frozenset[str]]:
        """What control tokens begin with, and, backwards, what they end with."""
        names = [name[:LONGEST].lower() for name in self.specials]
        backwards = [name[::-1][:LONGEST].lower() for name in self.specials]
        return tuple(  # type: ignore[return-value]  # two of them
            frozenset(name[:length] for name in each for length in range(1, len(name) + 1))
            for each in (names, backwards)
        )


def _edge(text: str, starts: Collection[str], mark: str) -> str:
    """A text with a mark at its end where the end is one of the starts; spaces at the end do not count."""
    for bare in (text, text.rstrip()):
        end = bare[-LONGEST:].lower()
        if any(end[-length:] in starts for length in range(1, len(end) + 1)):
            return bare + mark + text[len(bare) :]
    return text


def _unused(count: int, text: str) -> list[str]:
    """Characters that are not in a text."""
    there = set(text)
    free = [chr(code) for code in PRIVATE if chr(code) not in there][:count]
    if len(free) < count:
        raise InputError("the conversation has every private character of Unicode in it; leave some out")
    return free


def _turn(message: Message, thinking_parts: bool) -> dict[str, Any]:
    """A message as transformers hands it to a template; `thinking_parts`: with thoughts as a part of the content."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thoughts and thinking_parts:
        text = [{"type": "text", "text": message.content}] if message.content or message.prefix else []
        turn["content"] = [{"type": "thinking", "thinking": message.thoughts, "closed": True}, *text]
    elif message.thoughts:
        turn["reasoning_content"] = message.thoughts
    if message.calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.calls
        ]
    if message.call_id is not None:
        turn["tool_call_id"] = message.call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _arguments(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(
            f"the arguments of a tool call are {one_line(error)}; give the JSON text of an object"
        ) from None


def _offer(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
