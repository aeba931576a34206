"""Prompts to complete: given by an option, or one in each line of a JSONL file, with options of its own."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mistral.cli.input_text import STANDARD_INPUT, display_name, read_bytes
from mistral.errors import InputError, one_line
from mistral.text import decoded, parse_json
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer

WHOLE, NUMBER = (int,), (int, float)
OPTIONS: Mapping[str, tuple[type, ...]] = {
    "max_tokens": WHOLE, "temperature": NUMBER, "top_p": NUMBER, "top_k": WHOLE, "min_p": NUMBER,
    "repetition_penalty": NUMBER, "seed": WHOLE, "stop": (str, list), "n": WHOLE, "logprobs": WHOLE,
}  # fmt: skip
CONTENT = ("prompt", "suffix", "messages", "id")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """A text to continue, or two to fill between (`suffix`), or a conversation to answer (`messages`).

    where: how messages name it; shown: what its results repeat of it; options: those that are its own.
    """

    where: str
    text: str = ""
    suffix: str | None = None
    messages: tuple[Message, ...] = ()
    shown: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Its ids, and those whose text an answer continues: none where it begins one of its own."""
        try:
            if self.messages:
                return tokenizer.encode_chat(self.messages), []
            if self.suffix is not None:
                ids = tokenizer.encode_fim(self.text, self.suffix)
                return ids, ids if self.text else []
            ids = tokenizer.encode(self.text)
            return ids, ids
        except InputError as error:
            raise error.within(self.where) from None


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a JSONL file, or of standard input for -. Raises InputError naming the line that is none."""
    name, prompts, unused = display_name(path), list[Prompt](), dict[str, None]()
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if line.strip():
            where = f"{name}: line {number}"
            found = _parsed(line, where)
            unused.update((key, None) for key in found if key not in OPTIONS and key not in CONTENT)
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
    text = decoded(read_bytes(STANDARD_INPUT), where).removesuffix("\n")
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


def _prompt(found: Mapping[str, Any], where: str) -> Prompt:
    text, suffix, messages = (found.get(key) for key in ("prompt", "suffix", "messages"))
    if (text is None) == (messages is None):
        near = difflib.get_close_matches("prompt", [key for key in found if key not in CONTENT], n=1)
        hint = f", not {near[0]!r}" if near and messages is None else ""
        raise InputError(f"{where}: needs either a prompt or messages{hint}")
    for key in ("prompt", "suffix"):
        if not isinstance(found.get(key), str | None):
            raise InputError(f"{where}: {key} must be a text")
    if suffix is not None and text is None:
        raise InputError(f"{where}: suffix needs a prompt, the text before it")
    if not isinstance(found.get("id"), str | int | float | None):
        raise InputError(f"{where}: id must be a text or a number")
    shown = {key: found[key] for key in ("id", "prompt", "suffix", "messages") if found.get(key) is not None}
    conversation = () if messages is None else _conversation(messages, where)
    return Prompt(where, text or "", suffix, conversation, shown, _options(found, where))


def _conversation(messages: object, where: str) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: messages must be a list of objects with role and content")
    turns = []
    for number, turn in enumerate(messages, 1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise InputError(
                f"{where}: message {number} needs a role, one of {', '.join(ROLES)}, and a text as content"
            )
        turns.append(Message(role, content))
    return tuple(turns)


def _options(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The line's own options, each of its type; whether its value can be is for the command to check."""
    options: dict[str, Any] = {}
    for key, kinds in OPTIONS.items():
        value = found.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kinds):
            what = "a text or a list of texts" if key == "stop" else "a number" if float in kinds else "a whole number"
            raise InputError(f"{where}: {key} must be {what}")
        options[key] = _texts(value, where) if key == "stop" else value
    return options


def _texts(value: Any, where: str) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: stop must be a text or a list of texts")
    return texts
