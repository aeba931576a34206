"""A conversation in a file, with its settings and its cache: /save and /load."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mistral.checkpoint.fingerprint import fingerprint
from mistral.cli.chat.conversation import Conversation
from mistral.cli.model_options import Options
from mistral.engine.snapshot_file import Saved, read_saved, write_saved
from mistral.errors import InputError
from mistral.tokenizer.messages import Message, Tool, ToolCall

SETTINGS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")
ROLES = ("user", "assistant", "tool")


@dataclass(frozen=True)
class State:
    """What a file says of a conversation."""

    instruct: bool
    system: str
    tools: list[Tool]
    messages: list[Message]
    last: tuple[tuple[int, ...], tuple[int, ...]]
    options: Options


def as_text(conversation: Conversation) -> str:
    """All of a conversation but its cache, as JSON."""
    options = conversation.session.options
    state = {
        "instruct": conversation.instruct,
        "system": conversation.system,
        "tools": [asdict(tool) for tool in conversation.tools],
        "messages": [asdict(message) for message in conversation.messages],
        "last": conversation.last,
        "settings": {name: getattr(options, name) for name in SETTINGS},
    }
    return json.dumps(state)


def save(conversation: Conversation, path: Path) -> None:
    """Write all of it. Raises InputError where that cannot be; nothing is written then."""
    write_saved(path, Saved(as_text(conversation), conversation.slot.export(copy=False)), key(conversation))


def load(conversation: Conversation, path: Path) -> None:
    """Go on from a file. Raises InputError for one that cannot be used; the conversation stays what it was then."""
    saved, state = read(conversation, path, key(conversation))
    if saved.snapshot:
        limit = conversation.session.engine.context_limit
        if limit is not None and len(saved.snapshot.ids) > limit:
            raise InputError(f"{path}: has {len(saved.snapshot.ids)} tokens and the context limit is {limit}")
        conversation.slot.restore(saved.snapshot)
    else:
        conversation.slot.leave()
    conversation.session.options = state.options
    conversation.resume(state.system, state.tools, state.messages, state.last)


def resume(conversation: Conversation, path: Path, checkpoint: str) -> None:
    """Go on from a file without a cache, as `load` does, but what the command line has set stays."""
    _, state = read(conversation, path, checkpoint)
    session, defaults = (
        conversation.session,
        {field.name: field.default for field in fields(conversation.session.options)},
    )
    unset = [name for name in SETTINGS if getattr(session.options, name) == defaults[name]]
    unset += ["seed"] if session.drew_seed else []
    session.options = replace(session.options, **{name: getattr(state.options, name) for name in unset})
    conversation.resume(
        conversation.system or state.system, conversation.tools or state.tools, state.messages, state.last
    )


def read(conversation: Conversation, path: Path, checkpoint: str) -> tuple[Saved, State]:
    """A file for the checkpoint of this fingerprint. Raises InputError for one that this conversation cannot become."""
    engine = conversation.session.engine
    saved = read_saved(path, checkpoint, engine.args, engine.model.ops.SLOT_BYTES)
    try:
        state = parse(saved.text, conversation)
    except (ValueError, TypeError, KeyError, RecursionError, InputError):
        raise InputError(f"{path}: holds no conversation, or a damaged one; name another file") from None
    if state.instruct != conversation.instruct:
        way = "with" if state.instruct else "without"
        raise InputError(f"{path}: this was held {way} --instruct; start it {way} --instruct to load it")
    return saved, state


def parse(text: str, conversation: Conversation) -> State:
    """What `as_text` wrote. Raises ValueError, TypeError, KeyError or InputError for another text."""
    state = json.loads(text)
    messages = [_message(found) for found in state["messages"]]
    tools = [_tool(found) for found in state["tools"]]
    prompt, written = (tuple(map(int, ids)) for ids in state["last"])
    settings = {name: state["settings"][name] for name in SETTINGS}
    settings["stop"] = tuple(map(str, settings["stop"]))
    options = replace(conversation.session.options, **settings)
    options.check()
    starts_well = not messages or messages[0].role == "user"
    known = range(conversation.session.engine.args.vocab_size)
    if not starts_well or not all(token in known for token in (*prompt, *written)):
        raise ValueError
    return State(bool(state["instruct"]), str(state["system"]), tools, messages, (prompt, written), options)


def key(conversation: Conversation) -> str:
    """The fingerprint of the conversation's model, which a file must have been written with."""
    session = conversation.session
    return fingerprint(session.checkpoint, session.options.bits)


def _message(found: Any) -> Message:
    role, content, call_id, name = (found[key] for key in ("role", "content", "call_id", "name"))
    thoughts = found.get("thoughts", "")  # which older files have not
    texts = isinstance(content, str) and isinstance(call_id, str | None) and isinstance(name, str | None)
    if role not in ROLES or not texts or not isinstance(thoughts, str):
        raise ValueError
    calls = [ToolCall(str(call["name"]), str(call["arguments"]), str(call["id"])) for call in found["calls"]]
    return Message(role, content, tuple(calls), call_id, name, thoughts=thoughts)


def _tool(found: Any) -> Tool:
    return Tool(str(found["name"]), str(found["description"]), dict(found["parameters"]))
