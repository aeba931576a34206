"""The interactive command: prompts from a person or a pipe, answers as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mistral.cli import console
from mistral.cli.chat.answer import ChatAnswer, write_answer
from mistral.cli.chat.conversation import Conversation, Proposal
from mistral.cli.chat.line_editor import typed_lines
from mistral.cli.chat.slash_commands import HELP, EndOfChat, SlashCommands
from mistral.cli.chat.typed_ahead import TypedAhead
from mistral.cli.model_options import Options
from mistral.cli.options import CHOICE, option, text_option
from mistral.cli.session import open_files, running
from mistral.errors import InputError
from mistral.tokenizer.tool_file import load_tools

NOT_UTF8 = "error: standard input: a line is not UTF-8 text; it is left out"


@dataclass(frozen=True)
class Interactive(Options):
    """Read prompts, one a line, and answer each until the input ends.

    A line such as /help is a command. Without --instruct each prompt is a text
    of its own that the model goes on with. Ctrl-C stops an answer; at an empty
    prompt it leaves, as Ctrl-D does. Under mpirun, Ctrl-C ends the whole job,
    and an empty line or /stop stops an answer.
    """

    max_tokens: int = option(256, "New tokens for each answer, at most.", CHOICE)
    temperature: float = option(0.7, "0 takes the likeliest token; higher values spread the choice.", CHOICE)
    instruct: bool = option(False, "Hold a conversation in the checkpoint's own chat template.")
    chat_template: str | None = option(None, "A file with the chat template to use in place of the checkpoint's own.")
    system: str | None = text_option("With --instruct: what the model is told before, or @FILE.")
    tools: str | None = option(None, "A JSON file of functions that the model may call; with --instruct.", file=True)

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is loaded."""
        super().check()
        for name in ("system", "tools"):
            if getattr(self, name) and not self.instruct:
                raise InputError(f"--{name}: only a conversation has that; add --instruct")

    def run(self) -> None:
        """Load the model, then answer each line until the input ends. Raises InputError for what cannot be loaded."""
        tools = load_tools(self.tools) if self.tools else ()
        opened = open_files(self, self.instruct, self.chat_template)
        with opened.before_loading() as first:
            if first and tools:
                opened.tokenizer.check_tools()
        with running(opened) as session:
            if session:
                converse(Conversation(session, self.instruct, self.system or "", tools))


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
    session, commands = conversation.session, SlashCommands(conversation)
    typed = TypedAhead() if session.engine.num_pipeline_ranks > 1 else None
    try:
        for line in read_prompts(typed):
            try:
                proposal = commands(line)
                if proposal:
                    answer(conversation, proposal, typed)
                if conversation.pending:
                    print(f"note: the next line is the result of {conversation.pending[0].name}", file=sys.stderr)
            except InputError as error:
                print(f"error: {error.with_flags()}", file=sys.stderr)
            except KeyboardInterrupt:  # before an answer began, or while a file was written or read
                print("interrupted", file=sys.stderr)
    except EndOfChat:
        pass
    session.report()


def answer(conversation: Conversation, proposal: Proposal, typed: TypedAhead | None) -> None:
    """ChatAnswer, and take the answer into the conversation."""
    session, cached = conversation.session, list(conversation.slot.cached_ids())
    limit = session.engine.context_limit
    if proposal.dropped:
        print(f"note: over the context limit of {limit} tokens; the oldest turns are left out", file=sys.stderr)
    stop, replies = typed.stop if typed else lambda: False, conversation.replies()
    given = write_answer(session, conversation.request(proposal), replies, stop)
    conversation.accept(proposal, given, cached)
    show_end(given, proposal.messages[-1].content if proposal.messages else "", session.options.json)
    if given.reply.warning:
        print(f"warning: {given.reply.warning}", file=sys.stderr)
    if given.finish_reason == "length" and len(given.ids) < session.options.max_tokens:
        print(f"note: the answer ends at the context limit of {limit} tokens", file=sys.stderr)


def show_end(given: ChatAnswer, prompt: str, as_json: bool) -> None:
    """What of an answer is shown when it is complete: all of it as JSON, else the end of its line and its calls."""
    text, calls = given.reply.text, given.reply.calls
    if as_json:
        record = {"prompt": prompt, "text": text, "ids": given.ids, "finish_reason": given.finish_reason}
        record |= {"tool_calls": [call.record() for call in calls]} if calls else {}
        print(console.result_line(record), flush=True)
        return
    stopped = given.finish_reason == "interrupted"
    if text or not calls or stopped:
        print(" [stopped]" if stopped else "", flush=True)
    for call in calls:
        console.write(f"[call {call.id}] {call.name} {call.arguments}", end="\n")
