"""A conversation, or independent texts to continue: its messages, and its row of the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mistral.cli.chat.answer import ChatAnswer
from mistral.cli.session import Session
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.requests import Request
from mistral.errors import InputError
from mistral.grammar.grammar import Grammar
from mistral.tokenizer.messages import Message, Tool, ToolCall
from mistral.tokenizer.thoughts import ThinkState, ThinkTokens
from mistral.tokenizer.tool_calls import ReplyStream, assistant_message

# Whether an answer begins a text, marks of thoughts, and whether it begins within one -> what it must follow
Form = Callable[[bool, ThinkTokens | None, bool], Grammar]
# Shares of a context: what an answer may need at most, and what is kept when it is too long
FULL, SHRUNK = 1 / 4, 3 / 4


@dataclass(frozen=True)
class Turn:
    """What one answer took: tokens of its prompt, how many of them were reused from the cache, tokens written, and the
    seconds to the first token. `note` says why not more were reused, if that needs an explanation. `drafts`: the
    numbers of accepted and rejected draft tokens.
    """

    prompt: int
    reused: int
    written: int
    seconds: float
    note: str
    drafts: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Proposal:
    """What is answered next: the ids, and the messages or text that they come from."""

    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    goes_on: bool = False  # with the last answer
    dropped: bool = False  # the oldest turns were


class Conversation:
    """Turns that share a row of the cache. Without `instruct` each prompt is an independent text to continue."""

    def __init__(
        self,
        session: Session,
        instruct: bool,
        system: str = "",
        tools: Sequence[Tool] = (),
        reasoning_effort: str | None = None,
        form: Form | None = None,
    ) -> None:
        """`form`: what makes the grammar of each answer, where these must have one."""
        self.form = form
        self.session, self.instruct, self.system, self.tools = session, instruct, system, tuple(tools)
        self.reasoning_effort = reasoning_effort
        self.messages: list[Message] = []
        self.question: Message | None = None  # the last one, answered or not
        self.sample = 0  # how often it has been asked again
        self._answered = False
        self._results: list[Message] = []  # of the last answer's calls
        self.last: tuple[tuple[int, ...], tuple[int, ...]] = (), ()  # ids of the last prompt and of its answer
        self.slot, self.turns = PrefixSlot(session.engine), list[Turn]()
        self._asked: tuple[Message, ...] = ()  # with the last prompt, the system's included

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        """The calls whose results the model waits for; those that have come are not among them."""
        calls = self.messages[-1].calls if self.messages else ()
        return calls[len(self._results) :]

    def ask(self, text: str) -> Proposal:
        """A new question. Raises InputError if the template or the context cannot hold it."""
        self.question, self.sample, self._answered = Message("user", text), 0, False
        return self._proposal([self.question])

    def give_result(self, text: str) -> Proposal | None:
        """Add the result of the first pending call; the model continues when no call is pending."""
        if not self.pending:
            raise InputError("no call is waiting for a result")
        self._results.append(Message.result(self.pending[0], text))
        if self.pending:
            return None
        results, self._results = self._results, []
        return self._proposal(results)

    def ask_again(self) -> Proposal:
        """The last question without its answer; with a temperature above 0 the new answer differs."""
        if self.question is None:
            raise InputError("nothing has been asked yet")
        if self._answered:
            self.undo()
        self.sample += 1
        return self._proposal([self.question])

    def go_on(self) -> Proposal:
        """The last answer, from where it ended."""
        if self.form:
            raise InputError("an answer in JSON cannot be continued; ask again with a larger --max_tokens")
        if not self.last[1]:
            raise InputError("nothing has been answered yet")
        if self.pending:
            raise InputError("the answer ended in a call; give its result")
        return Proposal(self._asked, (*self.last[0], *self.last[1]), goes_on=True)

    def undo(self) -> None:
        """Remove the last question and its answer."""
        if not self.messages:
            raise InputError("nothing to take back")
        del self.messages[self._last_question() :]
        self.last, self._answered, self._results = ((), ()), False, []

    def reset(self) -> None:
        """Remove all messages."""
        self.messages, self.question, self.last, self._answered, self._results = [], None, ((), ()), False, []

    def resume(
        self,
        system: str,
        tools: Sequence[Tool],
        messages: Sequence[Message],
        last: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> None:
        """Take over a saved state, except the row."""
        self.reset()
        self.system, self.tools, self.messages, self.last = system, tuple(tools), list(messages), last
        if self.messages:
            self.question, self._answered = self.messages[self._last_question()], True
            self._asked = (*self._told(), *self.messages[:-1])

    def request(self, proposal: Proposal) -> Request:
        """The request to the engine that answers a proposal."""
        session = self.session
        request = session.request(proposal.ids, text_follows=proposal.goes_on or not self.instruct)
        assert request.text
        if self.instruct:
            thinks = session.tokenizer.thinks_after(proposal.ids)
            request.text.thinking = ThinkState(session.tokenizer.think_tokens, thinks)
        if proposal.goes_on and self.instruct:  # the answer began a text of its own
            request.text.decoder = session.tokenizer.stream(self.last[1])
        settings, constraint = replace(request.settings, sample=self.sample), None
        if self.form:
            begins = session.tokenizer.begins_text(() if self.instruct else proposal.ids)
            thinking = request.text.thinking
            constraint = self.form(begins, thinking.tokens, thinking.inside)
        return replace(request, settings=settings, slot=self.slot, constraint=constraint)

    def replies(self, proposal: Proposal) -> ReplyStream | None:
        """What takes thoughts out of an answer, and calls where there are tools; None without a conversation."""
        if not self.instruct:
            return None
        tokenizer, taken = self.session.tokenizer, {call.id for message in self.messages for call in message.calls}
        return ReplyStream(tokenizer, self.tools, taken, tokenizer.thinks_after(proposal.ids), bool(self.tools))

    def accept(self, proposal: Proposal, answer: ChatAnswer, cached: Sequence[int]) -> Turn:
        """Add an answer to the conversation; an empty one is dropped with its question.

        `cached`: the ids that the cache had before.
        """
        note = self._note(proposal, cached)
        turn = Turn(len(proposal.ids), self.slot.reused, len(answer.ids), answer.seconds, note, answer.drafts)
        self.turns.append(turn)
        reply, said = answer.reply, [message for message in proposal.messages if message.role != "system"]
        if proposal.goes_on:
            self.last = self.last[0], self.last[1] + answer.ids
        else:
            self._asked, self.last = proposal.messages, (proposal.ids, answer.ids)
        if proposal.goes_on and self.messages[:-1] == said:
            begun = self.messages[-1]
            reply = replace(reply, text=begun.content + reply.text, thoughts=begun.thoughts + reply.thoughts)
        if reply.text.strip() or reply.calls or (reply.thoughts and self.session.tokenizer.keeps_thoughts):
            self.messages = [*said, assistant_message(self.session.tokenizer, reply)]
            self.question, self._answered = self.messages[self._last_question()], True
        return turn

    def _told(self) -> tuple[Message, ...]:
        """What comes before all that is said."""
        return (Message.system(self.system),) if self.system and self.instruct else ()

    def _last_question(self) -> int:
        return max(place for place, message in enumerate(self.messages) if message.role == "user")

    def _proposal(self, new: Sequence[Message]) -> Proposal:
        """The conversation with a new question, or the results of calls.

        Where it leaves too little of the context for an answer, its oldest questions go, with their answers.
        """
        tokenizer, limit = self.session.tokenizer, self.session.engine.context_limit
        if not self.instruct:
            return Proposal((*self.messages, *new), tuple(tokenizer.encode(new[0].content)))
        system = self._told()
        messages, dropped = [*self.messages, *new], False
        while True:
            ids = tokenizer.encode_chat([*system, *messages], self.tools, self.reasoning_effort)
            roles = [message.role for message in messages]
            if limit is None or "user" not in roles[1:]:
                break
            room = min(self.session.options.max_tokens, int(limit * FULL))
            if len(ids) + room <= limit and not (dropped and len(ids) > limit * SHRUNK):
                break
            messages, dropped = messages[roles.index("user", 1) :], True
        return Proposal((*system, *messages), tuple(ids), dropped=dropped)

    def _note(self, proposal: Proposal, cached: Sequence[int]) -> str:
        """Why not all of the cache was reused; "" if it was."""
        shared, reused, asked = self.slot.shared, self.slot.reused, self._asked
        if reused < shared:
            return f"{shared} tokens were the same, but the rolling cache has overwritten what the next one sees"
        if not cached or shared >= min(len(cached), len(proposal.ids) - 1) or not self.instruct:
            return ""
        if proposal.dropped:
            return "the oldest turns were left out"
        if asked and proposal.messages[: len(asked)] == asked:
            if shared < len(self.last[0]):
                version = self.session.tokenizer.version
                return f"the {version} template moves the system prompt or the tools into the last question"
            return "the answer's text reads back as other tokens"
        return ""
