"""Prompts to complete: given by an option, or one in each line of a JSONL file, with options of its own.

A line may also be one of OpenAI's batch files: `custom_id`, and a `body` with what is asked for.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mistral.cli.input_text import STANDARD_INPUT, display_name, read_bytes, read_text_file
from mistral.errors import InputError, one_line
from mistral.grammar.constraint import Constraint
from mistral.grammar.response_format import read_response_format
from mistral.text import parse_json
from mistral.tokenizer.message_json import read_messages
from mistral.tokenizer.messages import Message, Tool
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_file import read_tools

WHOLE, NUMBER = (int,), (int, float)
OPTIONS: Mapping[str, tuple[type, ...]] = {
    "max_tokens": WHOLE, "temperature": NUMBER, "top_p": NUMBER, "top_k": WHOLE, "min_p": NUMBER,
    "repetition_penalty": NUMBER, "seed": WHOLE, "stop": (str, list), "n": WHOLE, "logprobs": WHOLE,
    "reasoning_effort": (str,), "presence_penalty": NUMBER, "frequency_penalty": NUMBER, "min_tokens": WHOLE,
    "logit_bias": (dict,), "ignore_eos": (bool,),
}  # fmt: skip
OTHER_NAMES = {"max_completion_tokens": "max_tokens", "random_seed": "seed"}  # of options, in other programs
CONTENT = (
    "prompt",
    "suffix",
    "messages",
    "tools",
    "id",
    "custom_id",
    "json_schema",
    "response_format",
    "regex",
    "grammar",
)
FORMS: Mapping[str, Callable[[Any], Constraint | None]] = {
    "json_schema": Constraint.json_schema, "response_format": read_response_format, "regex": Constraint.regex,
    "grammar": Constraint.lark,
}  # fmt: skip
"""Keys about what an answer must be."""
UNNAMED = ("model", "top_logprobs")  # not used, or part of another key; no word is said about them
BATCH, URLS = ("custom_id", "method", "url", "body"), ("/v1/chat/completions", "/v1/completions")
LINE_BREAK = re.compile(rb"\r\n|\n|\r")  # none of them can be within JSON but as an escape


@dataclass(frozen=True)
class Prompt:
    """A text to continue, or two to fill between (`suffix`), or a conversation to answer (`messages`).

    `tools`: functions that the model may call in its answer to a conversation. where: how messages name it; shown: what
    its results repeat of it; options: those that are its own; constraint: what its answer must be; shared: what all
    answers must be that no line says more of.
    """

    where: str
    text: str = ""
    suffix: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    shown: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    constraint: Constraint | None = None
    shared: Constraint | None = None

    def encode(self, tokenizer: Tokenizer, reasoning_effort: str | None = None) -> tuple[list[int], list[int]]:
        """Its ids, and those whose text an answer continues: none where it begins one of its own."""
        try:
            if self.messages:
                ids = tokenizer.encode_chat(fitting(self.messages, tokenizer), self.tools, reasoning_effort)
                return ids, ids if self.messages[-1].prefix else []
            if reasoning_effort is not None:
                raise InputError("only messages have that; leave it out", option="reasoning_effort")
            if self.suffix is not None:
                ids = tokenizer.encode_fim(self.text, self.suffix)
                return ids, ids if self.text else []
            ids = tokenizer.encode(self.text)
            return ids, ids
        except InputError as error:
            own = "reasoning_effort" in self.options  # a key of an object has no dashes
            raise (InputError(str(error)) if own else error).within(self.where) from None


def fitting(messages: tuple[Message, ...], tokenizer: Tokenizer) -> tuple[Message, ...]:
    """The messages, without the text beside calls where the tokenizer's template has no room for both."""
    if tokenizer.tool_tokens is None or tokenizer.tool_tokens.beside_text:
        return messages
    return tuple(replace(message, content="") if message.calls else message for message in messages)


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a JSONL file, or of standard input for -. Raises InputError naming the line that is none."""
    name, prompts, unused = display_name(path), list[Prompt](), dict[str, None]()
    for number, line in enumerate(LINE_BREAK.split(read_bytes(path).removeprefix(b"\xef\xbb\xbf")), 1):
        if line.strip():
            where = f"{name}: line {number}"
            found = _unpacked(_parsed(line, where), where)
            unused.update((key, None) for key in found if key not in OPTIONS and key not in (*CONTENT, *UNNAMED))
            prompts.append(_prompt(found, where))
    if not prompts:
        remedy = "give objects with a prompt, one a line"
        raise InputError(f"{name}: has no prompts; {remedy}")
    if unused:
        print(f"note: {name}: keys that are not used: {', '.join(map(repr, list(unused)[:5]))}", file=sys.stderr)
    return prompts


def read_prompt() -> Prompt:
    """Standard input as one prompt, without its last line break. Raises InputError where there is nothing."""
    if sys.stdin.isatty():
        print("note: the prompt is read from standard input, up to Ctrl-D", file=sys.stderr)
    where = display_name(STANDARD_INPUT)
    text = read_text_file(STANDARD_INPUT)
    if not text:
        raise InputError(f"{where}: empty; give a prompt there, or with --prompt, --fim or --input")
    return Prompt(where, text, shown={"prompt": text})


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    """The object in a line; a string alone is a prompt."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text at byte {error.start} of the line; convert it") from None
    try:
        found = parse_json(text)
    except ValueError as error:
        raise InputError(f'{where}: {one_line(error)}; write {{"prompt": "..."}} in one line') from None
    if isinstance(found, str):
        found = {"prompt": found}
    if not isinstance(found, dict):
        raise InputError(f'{where}: not an object; write {{"prompt": "..."}}')
    return found


def _unpacked(found: dict[str, Any], where: str) -> dict[str, Any]:
    """The object with the names of this program: of a batch line, what its body asks for."""
    if "body" in found:
        body, url = found["body"], found.get("url")
        if not isinstance(body, dict):
            raise InputError(f"{where}: body must be an object")
        if url is not None and url not in URLS:
            raise InputError(f"{where}: url {str(url)[:60]!r} is not of completions; {' and '.join(URLS)} are")
        found = {key: value for key, value in found.items() if key not in BATCH[1:]} | body
    for other, name in OTHER_NAMES.items():
        if found.get(other) is not None:
            found[name] = found[other]
        found.pop(other, None)
    if isinstance(found.get("logprobs"), bool) or found.get("top_logprobs") is not None:
        top = found.get("top_logprobs")
        found["logprobs"] = None if found.get("logprobs") is False else 0 if top is None else top
    one = found.get("prompt")
    if isinstance(one, list) and len(one) == 1 and isinstance(one[0], str):
        found["prompt"] = one[0]
    return found


def _prompt(found: Mapping[str, Any], where: str) -> Prompt:
    text, suffix, messages, tools = (found.get(key) for key in ("prompt", "suffix", "messages", "tools"))
    if (text is None) == (messages is None):
        near = difflib.get_close_matches("prompt", [key for key in found if key not in CONTENT], n=1)
        hint = f", not {near[0]!r}" if near and messages is None else ""
        raise InputError(f"{where}: needs either a prompt or messages{hint}")
    for key in ("prompt", "suffix"):
        if not isinstance(found.get(key), str | None):
            raise InputError(f"{where}: {key} must be a text")
    if suffix is not None and text is None:
        raise InputError(f"{where}: suffix needs a prompt, the text before it")
    if tools and messages is None:
        raise InputError(f"{where}: tools need messages; a prompt has no place for them")
    for key in ("id", "custom_id"):
        if not isinstance(found.get(key), str | int | float | None):
            raise InputError(f"{where}: {key} must be a text or a number")
    names = ("id", "custom_id", "prompt", "suffix", "messages")
    shown = {key: found[key] for key in names if found.get(key) is not None}
    try:
        conversation = () if messages is None else read_messages(messages)
        offered = read_tools(tools) if tools else ()
        constraint = _constraint(found)
    except InputError as error:
        raise InputError(str(error)).within(where) from None  # a key of an object has no dashes
    return Prompt(where, text or "", suffix, conversation, offered, shown, _options(found, where), constraint)


def _constraint(found: Mapping[str, Any]) -> Constraint | None:
    """What the line says that an answer must be. Raises InputError for what cannot be, and where it says two things."""
    given = [name for name in FORMS if found.get(name) is not None]
    made = {name: FORMS[name](found[name]) for name in given}
    several = [name for name in given if made[name] is not None]
    if len(several) > 1:
        raise InputError(f"cannot be together with {several[0]}; leave one out", option=several[1])
    return made[several[0]] if several else None


def _options(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The line's own options, each of its type; whether its value can be is for the command to check."""
    options: dict[str, Any] = {}
    for key, kinds in OPTIONS.items():
        value = found.get(key)
        if value is None:
            continue
        if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
            named = {bool: "true or false", dict: "an object"}
            what = "a text or a list of texts" if list in kinds else "a text" if str in kinds else "a number"
            what = "a whole number" if kinds == WHOLE else named.get(kinds[0], what)
            raise InputError(f"{where}: {key} must be {what}")
        options[key] = _texts(value, where) if key == "stop" else value
    return options


def _texts(value: Any, where: str) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: stop must be a text or a list of texts")
    return texts
