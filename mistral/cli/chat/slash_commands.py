"""The commands of a conversation, which start with a slash."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from dataclasses import replace
from os.path import expanduser
from pathlib import Path
from typing import Any

from mistral.cli.chat.conversation import Conversation, Proposal
from mistral.cli.chat.conversation_file import SETTINGS, load, save
from mistral.cli.model_options import Options
from mistral.cli.options import converted, read_text
from mistral.cli.status_line import dim
from mistral.errors import InputError

HELP = {
    "/help": "this list, as /?",
    "/system TEXT": "what the model is told before everything else, or @FILE; without TEXT, nothing",
    "/reset": "forget all that has been said, as /clear",
    "/undo": "forget the last question and its answer",
    "/retry": "answer the last question again, with another draw",
    "/more": "go on with the last answer",
    "/result TEXT": "what came of the call that the model waits for, or @FILE; a plain line is taken for it, too",
    "/set NAME VALUE": f"change {', '.join(SETTINGS)}; without VALUE, show them",
    "/save FILE": "write conversation, settings and cache into a file",
    "/load FILE": "go on from such a file",
    "/stats": "what each answer took, and how much of its prompt was computed already",
    "/exit": "leave, as /bye, /quit and Ctrl-D",
}
ALIASES = {"?": "help", "h": "help", "clear": "reset", "new": "reset", "bye": "exit", "quit": "exit", "q": "exit"}
HINTS = (
    "A first // stands for one slash. At a terminal, Alt-Enter begins a new line of the same prompt, as Enter",
    "does after a \\. Ctrl-C stops an answer; at the prompt it empties the line; twice at an empty line, it leaves.",
)


class EndOfChat(Exception):  # noqa: N818  not an error
    """Raised by /exit: the conversation is to end."""


class SlashCommands:
    """Processes lines: a prompt becomes a proposal, a command is executed."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation

    def __call__(self, line: str) -> Proposal | None:
        """What is to be answered, if anything. Raises InputError for a command that cannot be, and `EndOfChat`."""
        if not line.startswith("/") or line.startswith("//"):
            text = line[1:] if line.startswith("//") else line
            return self.conversation.give_result(text) if self.conversation.pending else self.conversation.ask(text)
        name, *rest = line[1:].split(maxsplit=1) or [""]
        text = rest[0].strip() if rest else ""
        commands = [usage.split()[0][1:] for usage in HELP]
        if name not in (*commands, *ALIASES):
            close = difflib.get_close_matches(name[:40], (*commands, *ALIASES), n=1)
            hint = f"did you mean /{close[0]}? /help lists them" if close else "/help lists them"
            raise InputError(f"/{name[:40]}: no such command; {hint}, and // begins a text with a slash")
        command: Callable[[str], Proposal | None] = getattr(self, f"_{ALIASES.get(name, name)}")
        try:
            return command(text)
        except InputError as error:
            raise error.within(f"/{name}") from None

    def _help(self, _: str) -> None:
        width = max(map(len, HELP)) + 2
        say(*(f"{usage:{width}}{text}" for usage, text in HELP.items()), *HINTS)

    def _system(self, text: str) -> None:
        if not self.conversation.instruct:
            raise InputError("only a conversation has a system prompt; start with --instruct")
        system = read_text("system", text)
        self.conversation.session.tokenizer.check_system(system)
        self.conversation.system = system
        count = len(self.conversation.system)
        say(dim(f"system prompt of {count} characters, from the next question on" if count else "no system prompt"))

    def _reset(self, _: str) -> None:
        count = len(self.conversation.messages)
        self.conversation.reset()
        say(dim(f"{counted(count)} forgotten"))

    def _undo(self, _: str) -> None:
        self.conversation.undo()
        say(dim(f"last question and its answer taken back; {counted(len(self.conversation.messages))} left"))

    def _retry(self, _: str) -> Proposal:
        proposal = self.conversation.ask_again()
        if self.conversation.session.options.temperature == 0:
            say("note: at temperature 0 the answer is always the same; /set temperature 0.7 changes that")
        return proposal

    def _more(self, _: str) -> Proposal:
        return self.conversation.go_on()

    def _result(self, text: str) -> Proposal | None:
        return self.conversation.give_result(read_text("result", text))

    def _set(self, text: str) -> None:
        session = self.conversation.session
        name, *rest = text.split(maxsplit=1)[:2] or [""]
        if name and name not in SETTINGS:
            raise InputError(f"{name[:40]}: cannot be set; {', '.join(SETTINGS)} can")
        if rest:
            typed: Any = {name: rest[0]}
            changed: Any = {name: () if typed == {"stop": "[]"} else getattr(converted(Options(**typed)), name)}
            options = replace(session.options, **changed)
            options.check()
            session.options = options.with_seed()
            say(dim(f"{name} is {shown_value(getattr(session.options, name))} now"))
        else:
            say(*(f"{each} {getattr(session.options, each)}" for each in SETTINGS if name in ("", each)))

    def _save(self, text: str) -> None:
        save(self.conversation, _file(text))
        say(f"saved {len(self.conversation.messages)} messages and {len(self.conversation.slot.cached_ids())} tokens")

    def _load(self, text: str) -> None:
        load(self.conversation, _file(text))
        say(f"loaded {len(self.conversation.messages)} messages and {len(self.conversation.slot.cached_ids())} tokens")

    def _stats(self, _: str) -> None:
        turns = self.conversation.turns
        say(f"{'turn':>5}{'prompt':>8}{'reused':>8}{'computed':>10}{'answer':>8}{'first token':>13}")
        for number, turn in enumerate(turns, 1):
            computed = turn.prompt - turn.reused
            say(
                f"{number:5}{turn.prompt:8}{turn.reused:8}{computed:10}{turn.written:8}{turn.seconds:11.2f} s"
                + (f"  {turn.drafts[0]} of {sum(turn.drafts)} drafts right" if any(turn.drafts) else "")
                + (f"  {turn.note}" if turn.note else "")
            )
        held, limit = len(self.conversation.slot.cached_ids()), self.conversation.session.engine.context_limit
        say(f"{held} tokens held, of {limit} at most" if limit is not None else f"{held} tokens held")

    def _exit(self, _: str) -> None:
        raise EndOfChat


def say(*lines: str) -> None:
    """Print a line on standard error."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def counted(messages: int) -> str:
    """A number of messages in words."""
    return f"{messages} message{'' if messages == 1 else 's'}"


def shown_value(value: object) -> str:
    """The value of a setting, such as [] for no stop."""
    return repr(list(value)) if isinstance(value, tuple) else str(value)


def _file(text: str) -> Path:
    if not text:
        raise InputError("name a file")
    return Path(expanduser(text))
