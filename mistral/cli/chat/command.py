"""The interactive command: prompts from a terminal or a pipe, answers streamed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mistral.cli import console
from mistral.cli.chat.answer import ChatAnswer, write_answer
from mistral.cli.chat.answer_view import PlainView, TerminalView, View
from mistral.cli.chat.autosave import Autosave, state_folder
from mistral.cli.chat.conversation import Conversation, Form, Proposal
from mistral.cli.chat.line_editor import typed_lines
from mistral.cli.chat.slash_commands import ALIASES, HELP, EndOfChat, SlashCommands, say
from mistral.cli.chat.typed_ahead import TypedAhead
from mistral.cli.input_text import read_text_file
from mistral.cli.model_options import Options
from mistral.cli.options import CHOICE, FORM, OUTPUT, option, text_option
from mistral.cli.session import EFFORTS, check_told, open_files, running
from mistral.cli.status_line import dim, is_capable
from mistral.errors import InputError
from mistral.tokenizer.messages import Tool
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_file import load_tools

LEAVING = ("exit", "quit")  # understood where a person types
NOT_UTF8 = "error: standard input: a line is not UTF-8 text; it is left out"


@dataclass(frozen=True)
class Interactive(Options):
    """Read prompts, one a line, and answer each until the input ends.

    With an instruct model, or --instruct, this is a conversation; without,
    each prompt is a text of its own that the model goes on with. A line such as
    /help is a command. Ctrl-C stops an answer; at an empty prompt it leaves
    when it is pressed twice, as Ctrl-D does. Under mpirun, Ctrl-C ends the
    whole job, and an empty line or /stop stops an answer.
    """

    max_tokens: int = option(256, "New tokens for each answer, at most.", CHOICE)
    temperature: float = option(
        0.7, "0 takes the likeliest token; higher values make unlikely tokens more likely.", CHOICE
    )
    instruct: bool | None = option(
        None, "Hold a conversation in the checkpoint's own chat template; if left out, for instruct models."
    )
    chat_template: str | None = option(
        None, "A file with the chat template to use in place of the checkpoint's own.", file=True
    )
    system: str | None = text_option("In a conversation: the system prompt, or @FILE.")
    tools: str | None = option(None, "A JSON file of functions that the model may call in a conversation.", file=True)
    reasoning_effort: str | None = option(
        None, "In a conversation: whether the model thinks before it answers, none or high; templates of v15 alone.",
        choices=EFFORTS,
    )  # fmt: skip
    json_schema: str | None = option(None, "Each answer is JSON by the schema in this file.", FORM, file=True)
    resume: bool = option(False, "Continue the last conversation with this checkpoint.")
    autosave: bool | None = option(
        None, "Keep the conversation for --resume, and what is typed; at a terminal only, if left out."
    )
    quiet: bool | None = option(
        None, "No lines about model, tokens and speed; they are shown at a terminal only, if left out.", OUTPUT
    )
    show_thinking: bool | None = option(
        None, "Show what the model thinks before it answers, dim; at a terminal only, if left out.", OUTPUT
    )
    plain: bool = option(False, "On a terminal: no Markdown, colour or line breaks between words.", OUTPUT)

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is loaded."""
        super().check()
        if self.json_schema and self.tools:
            raise InputError("--json_schema: an answer of that form calls none of the --tools; leave one out")
        if self.instruct is False:
            self.check_conversation(False)

    def check_conversation(self, instruct: bool) -> None:
        """Raise InputError for an option that only a conversation has, where this is none."""
        for name in ("system", "tools", "reasoning_effort"):
            if getattr(self, name) and not instruct:
                raise InputError(f"--{name}: only a conversation has that; add --instruct")

    def run(self) -> None:
        """Load the model, then answer each line until the input ends. Raises InputError for what cannot be loaded."""
        opened = open_files(self, bool(self.instruct), self.chat_template)
        instruct, kept, last, form = False, None, None, None
        tools: Sequence[Tool] = ()
        with opened.before_loading() as first:
            if first:
                kept = Autosave(opened.checkpoint, sys.stdin.isatty() if self.autosave is None else self.autosave)
                last = kept.last() if self.resume else None
                instruct = self.is_conversation(opened.tokenizer, kept, last)
                self.check_conversation(instruct)
                form = self.form(opened.tokenizer)
            if first and instruct:
                check_told(opened.tokenizer, self.system, self.reasoning_effort, offer=not self.resume)
            if first and self.tools:
                tools = load_tools(self.tools)
                opened.tokenizer.check_tools()
        with running(opened) as session:
            if session and kept:
                conversation = Conversation(session, instruct, self.system or "", tools, self.reasoning_effort, form)
                if self.about:
                    say(dim(introduction(conversation)))
                if self.resume:
                    go_on(conversation, kept, last)
                converse(conversation, kept)

    def form(self, tokenizer: Tokenizer) -> Form | None:
        """The function that makes the grammar of each answer. Raises InputError for an invalid schema."""
        if self.json_schema is None:
            return None
        from mistral.grammar.constraint import Constraint
        from mistral.grammar.grammars import Grammars

        try:
            form = partial(Grammars(tokenizer).grammar, Constraint.json_schema(read_text_file(self.json_schema)))
            form(True, None, False)  # what cannot be used is told at once
        except InputError as error:
            raise error if error.option else error.within("--json_schema") from None
        return form

    def is_conversation(self, tokenizer: Tokenizer, kept: Autosave, last: Path | None) -> bool:
        """Whether to hold a conversation: by the option, the resumed conversation, or the kind of model."""
        if self.instruct is not None:
            return self.instruct
        if last:
            with suppress(InputError):  # of a file that `go_on` tells of
                return kept.was_instruct(last) and tokenizer.can_chat
        return tokenizer.is_instruct

    @property
    def about(self) -> bool:
        """Whether to show lines about the model, tokens and speed."""
        if self.quiet is None:
            return sys.stdin.isatty() and sys.stderr.isatty() and not self.json
        return not self.quiet


def introduction(conversation: Conversation) -> str:
    """Model, template, context, and where to find help, in a line."""
    session = conversation.session
    template = f"template {session.tokenizer.template_source or session.tokenizer.version}"
    limit = session.engine.context_limit
    return " | ".join(
        [
            session.checkpoint.name,
            template if conversation.instruct else "no template: goes on with each text",
            "context without limit" if limit is None else f"context {limit} tokens",
            "/help lists commands",
        ]
    )


def go_on(conversation: Conversation, kept: Autosave, last: Path | None) -> None:
    """Continue the conversation in the file `last`; if that fails, print a note."""
    try:
        if last is None:
            print("note: there is no conversation with this checkpoint to resume; this is a new one", file=sys.stderr)
        else:
            say(dim(kept.resume(conversation, last)))
    except (InputError, OSError) as error:
        reason = error.with_flags() if isinstance(error, InputError) else error
        print(f"note: {reason}; this is a new conversation", file=sys.stderr)


def read_prompts(typed: TypedAhead | None = None, history: Path | None = None) -> Iterator[str]:
    """Lines from standard input, or those of `typed`, without empty ones; at a terminal, `history` keeps them."""
    if typed:
        lines = decoded_lines(typed.lines())
    else:
        commands = [usage.split()[0] for usage in HELP] + [f"/{alias}" for alias in ALIASES if alias.isalpha()]
        lines = typed_lines(commands, history) if sys.stdin.isatty() else decoded_lines(sys.stdin.buffer)
    return (line for line in lines if line.strip())


def decoded_lines(lines: Iterable[bytes]) -> Iterator[str]:
    """Lines from a file or a pipe. Decoded one by one: a line that is not UTF-8 costs no other."""
    for line in lines:
        try:
            yield line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            print(NOT_UTF8, file=sys.stderr)


def converse(conversation: Conversation, kept: Autosave) -> None:
    """Answer prompts and execute commands, line by line, until the input ends."""
    session, commands = conversation.session, SlashCommands(conversation)
    typed, leaving = TypedAhead() if session.engine.num_pipeline_ranks > 1 else None, LEAVING * sys.stdin.isatty()
    try:
        for line in read_prompts(typed, state_folder() / "history" if kept.wanted else None):
            if line.strip() in leaving:
                break
            try:
                proposal = commands(line)
                if proposal:
                    answer(conversation, proposal, typed)
                if conversation.pending:
                    print(f"note: the next line is the result of {conversation.pending[0].name}", file=sys.stderr)
                kept.save(conversation)
            except InputError as error:
                print(f"error: {error.with_flags()}", file=sys.stderr)
            except KeyboardInterrupt:  # before an answer began, or while a file was written or read
                print("interrupted", file=sys.stderr)
    except EndOfChat:
        pass
    if session.options.json or not getattr(session.options, "quiet", None):
        session.report()


def answer(conversation: Conversation, proposal: Proposal, typed: TypedAhead | None) -> None:
    """ChatAnswer, and take the answer into the conversation."""
    session, cached = conversation.session, list(conversation.slot.cached_ids())
    limit = session.engine.context_limit
    if proposal.dropped:
        print(f"note: over the context limit of {limit} tokens; the oldest turns are left out", file=sys.stderr)
    stop, replies = typed.stop if typed else lambda: False, conversation.replies(proposal)
    view = view_for(conversation)
    given = write_answer(session, conversation.request(proposal), replies, view, stop)
    conversation.accept(proposal, given, cached)
    prompt = proposal.messages[-1].content if proposal.messages else ""
    show_end(given, prompt, session.options.json, view.ends_in_thought)
    if given.reply.warning:
        print(f"warning: {given.reply.warning}", file=sys.stderr)
    tell_end(conversation, given)


def view_for(conversation: Conversation) -> View:
    """Where answers are shown."""
    options = conversation.session.options
    plain = isinstance(options, Interactive) and options.plain
    wanted = options.show_thinking if isinstance(options, Interactive) else None
    thoughts = sys.stdout.isatty() if wanted is None else wanted
    if options.json or plain or not is_capable(sys.stdout):
        return PlainView(shown=not options.json, thoughts=thoughts)
    return TerminalView(markdown=conversation.instruct, thoughts=thoughts)


def tell_end(conversation: Conversation, given: ChatAnswer) -> None:
    """Say that an answer was cut, and why; then, where that is wanted, what it took."""
    session, limit = conversation.session, conversation.session.engine.context_limit
    options, held = session.options, len(conversation.slot.cached_ids())
    if given.finish_reason == "length" and len(given.ids) < options.max_tokens:
        print(f"note: the answer ends at the context limit of {limit} tokens", file=sys.stderr)
    elif given.finish_reason == "length" and not options.json:
        print(f"note: cut at --max_tokens {options.max_tokens}; /more goes on", file=sys.stderr)
    if isinstance(options, Interactive) and options.about:
        share = f"{held} tokens held" if limit is None else f"{100 * held // limit} % of the context of {limit} tokens"
        speed = "" if given.speed is None else f", {given.speed:.1f} tokens/s"
        say(dim(f"{len(given.ids)} token{'' if len(given.ids) == 1 else 's'}{speed} | {share}"))


def show_end(given: ChatAnswer, prompt: str, as_json: bool, after_thought: bool) -> None:
    """What of an answer is shown when it is complete: all of it as JSON, else the end of its line and its calls.

    `after_thought`: the line is that of a thought.
    """
    text, calls = given.reply.text, given.reply.calls
    if as_json:
        record = {"prompt": prompt, "text": text, "ids": given.ids, "finish_reason": given.finish_reason}
        record |= {"reasoning_content": given.reply.thoughts} if given.reply.thoughts else {}
        record |= {"tool_calls": [call.record() for call in calls]} if calls else {}
        print(console.result_line(record), flush=True)
        return
    stopped = given.finish_reason == "interrupted"
    if text or not calls or stopped or after_thought:
        print(" [stopped]" if stopped else "", flush=True)
    for call in calls:
        console.write(f"[call {call.id}] {call.name} {call.arguments}", end="\n")
