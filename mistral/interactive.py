"""The interactive command: prompts from a person or a pipe, answers as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mistral.answer import write_answer
from mistral.commands import HELP, Commands, Leave
from mistral.conversation import Conversation, Proposal
from mistral.errors import InputError
from mistral.options import option, read_text
from mistral.session import Options, with_session
from mistral.terminal import typed_lines
from mistral.typed_ahead import TypedAhead

NOT_UTF8 = "error: standard input: a line is not UTF-8 text; it is left out"


@dataclass(frozen=True)
class Interactive(Options):
    """Read prompts, one a line, and answer each until the input ends.

    A line such as /help is a command. Without --instruct each prompt is a text
    of its own that the model goes on with. Ctrl-C stops an answer; at an empty
    prompt it leaves, as Ctrl-D does. Under mpirun, Ctrl-C ends the whole job,
    and an empty line or /stop stops an answer.
    """

    max_tokens: int = option(256, "New tokens for each answer, at most.")
    temperature: float = option(0.7, "0 takes the likeliest token; higher values spread the choice.")
    instruct: bool = option(False, "Hold a conversation in the checkpoint's own chat template.")
    system: str = option("", "What the model is told before everything else, or @FILE; with --instruct.")

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is loaded."""
        super().check()
        if self.system and not self.instruct:
            raise InputError("--system: only a conversation has a system prompt; add --instruct")

    def run(self) -> None:
        """Load, then answer."""
        system = read_text("system", self.system)
        with_session(self, self.instruct, lambda session: converse(Conversation(session, self.instruct, system)))


def read_prompts(typed: TypedAhead | None = None) -> Iterator[str]:
    """Lines from standard input, or those of `typed`, without empty ones."""
    if typed:
        lines = decoded_lines(typed.lines())
    else:
        commands = [usage.split()[0] for usage in HELP]
        lines = typed_lines(commands) if sys.stdin.isatty() else decoded_lines(sys.stdin.buffer)
    return (line for line in lines if line.strip())


def decoded_lines(lines: Iterable[bytes]) -> Iterator[str]:
    """Lines from a file or a pipe. Decoded one by one: a line that is not UTF-8 costs no other."""
    for line in lines:
        try:
            yield line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            print(NOT_UTF8, file=sys.stderr)


def converse(conversation: Conversation) -> None:
    """Do what each line asks for, until they end."""
    session, commands = conversation.session, Commands(conversation)
    typed = TypedAhead() if session.engine.num_pipeline_ranks > 1 else None
    try:
        for line in read_prompts(typed):
            try:
                proposal = commands(line)
                if proposal:
                    answer(conversation, proposal, line, typed)
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
    except Leave:
        pass
    session.report()


def answer(conversation: Conversation, proposal: Proposal, line: str, typed: TypedAhead | None) -> None:
    """Answer, and take the answer into the conversation."""
    session, held = conversation.session, list(conversation.kept.held())
    limit = session.engine.context_limit
    if proposal.dropped:
        print(f"note: over the context limit of {limit} tokens; the oldest turns are left out", file=sys.stderr)
    given = write_answer(session, conversation.request(proposal), typed.stop if typed else lambda: False)
    conversation.accept(proposal, given, held)
    if session.options.json:
        record = {"prompt": line, "text": given.text, "ids": given.ids, "finish_reason": given.finish_reason}
        print(json.dumps(record), flush=True)
    else:
        print(" [stopped]" if given.finish_reason == "interrupted" else "", flush=True)
    if given.finish_reason == "length" and len(given.ids) < session.options.max_tokens:
        print(f"note: the answer ends at the context limit of {limit} tokens", file=sys.stderr)
