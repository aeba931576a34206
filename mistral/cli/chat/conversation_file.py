"""A conversation in a file, with its settings and its cache: /save and /load."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mistral.checkpoint.fingerprint import fingerprint
from mistral.checkpoint.quantization import model_args
from mistral.cli.chat.conversation import Conversation
from mistral.engine.snapshot_file import Saved, read_saved, write_saved
from mistral.errors import InputError
from mistral.tokenizer.messages import Message, Tool, ToolCall

SETTINGS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")
ROLES = ("user", "assistant", "tool")


def save(conversation: Conversation, path: Path) -> None:
    """Write all of it. Raises InputError where that cannot be; nothing is written then."""
    options = conversation.session.options
    state = {
        "instruct": conversation.instruct,
        "system": conversation.system,
        "tools": [asdict(tool) for tool in conversation.tools],
        "messages": [asdict(message) for message in conversation.messages],
        "last": conversation.last,
        "settings": {name: getattr(options, name) for name in SETTINGS},
    }
    saved = Saved(json.dumps(state), conversation.slot.export(copy=False))
    write_saved(path, saved, key(conversation))


def load(conversation: Conversation, path: Path) -> None:
    """Go on from a file. Raises InputError for one that cannot be used; the conversation stays what it was then."""
    engine = conversation.session.engine
    saved = read_saved(path, key(conversation), engine.args, engine.model.ops.SLOT_BYTES)
    try:
        state = json.loads(saved.text)
        instruct, system, last = bool(state["instruct"]), str(state["system"]), state["last"]
        messages = [_message(found) for found in state["messages"]]
        tools = [_tool(found) for found in state["tools"]]
        prompt, written = (tuple(map(int, ids)) for ids in last)
        settings = {name: state["settings"][name] for name in SETTINGS}
        settings["stop"] = tuple(map(str, settings["stop"]))
        options = replace(conversation.session.options, **settings)
        options.check()
        starts_well = not messages or messages[0].role == "user"
        if not starts_well or not all(0 <= token < engine.args.vocab_size for token in (*prompt, *written)):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError, InputError):
        raise InputError(f"{path}: holds no conversation, or a damaged one; name another file") from None
    if instruct != conversation.instruct:
        way = "with" if instruct else "without"
        raise InputError(f"{path}: this was held {way} --instruct; start it {way} --instruct to load it")
    if saved.snapshot:
        limit = engine.context_limit
        if limit is not None and len(saved.snapshot.ids) > limit:
            raise InputError(f"{path}: has {len(saved.snapshot.ids)} tokens and the context limit is {limit}")
        conversation.slot.restore(saved.snapshot)
    else:
        conversation.slot.leave()
    conversation.session.options = options
    conversation.resume(system, tools, messages, (prompt, written))


def key(conversation: Conversation) -> str:
    """The fingerprint of the conversation's model, which a file must have been written with."""
    session = conversation.session
    return fingerprint(session.checkpoint, model_args(session.checkpoint, session.options.bits))


def _message(found: Any) -> Message:
    role, content, call_id, name = (found[key] for key in ("role", "content", "call_id", "name"))
    texts = isinstance(content, str) and isinstance(call_id, str | None) and isinstance(name, str | None)
    if role not in ROLES or not texts:
        raise ValueError
    calls = [ToolCall(str(call["name"]), str(call["arguments"]), str(call["id"])) for call in found["calls"]]
    return Message(role, content, tuple(calls), call_id, name)


def _tool(found: Any) -> Tool:
    return Tool(str(found["name"]), str(found["description"]), dict(found["parameters"]))
