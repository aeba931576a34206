"""A request that has a row of the engine: how far its prompt has been read and its answer written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mistral.engine.micro_batches import RowProgress
from mistral.engine.prefix_slot import common_prefix
from mistral.engine.requests import FinishReason, Generated, Prefilled, Request, end_ids, row_capacity
from mistral.engine.row_engine import RowEngine
from mistral.engine.work import Outcome, Sampling, Work


class ActiveRow:
    """A row between its request's admission and the end of its answer."""

    def __init__(self, index: int, request: Request, engine: RowEngine) -> None:
        """Raises InputError where memory is short; no row has been taken then."""
        self.index, self.request = index, request
        capacity = row_capacity(request, engine.context_limit)
        self.max_tokens = capacity - len(request.prompt)
        self.row, reused = self._begin(engine, capacity)
        self.sent, self.read, self.written, self.last_id = reused, reused, 0, -1
        self.waits = False  # for the token that follows what has been sent
        self.ended = False

    def _begin(self, engine: RowEngine, capacity: int) -> tuple[int, int]:
        """A row of the engine -> its number, and how many tokens of the prompt it has already."""
        request = self.request
        ends = end_ids(request.eos_id)
        sampling = Sampling(request.settings, request.prompt, ends, request.logprobs, request.top, request.excluded)
        if request.slot:
            request.slot.begin(request.prompt, capacity, sampling)
            return request.slot.row, request.slot.reused
        if request.start:
            shared = min(common_prefix(request.start.ids, request.prompt), len(request.prompt) - 1)
            return engine.restore(request.start, shared, capacity, sampling)
        return engine.join(capacity, sampling), 0

    def leave(self, engine: RowEngine) -> None:
        """Give the engine's row back, unless it is that of a prefix slot."""
        self.ended = True
        if not self.request.slot:
            engine.leave(self.row)

    @property
    def reads(self) -> bool:
        """Whether a part of the prompt has not been sent yet."""
        return self.sent < len(self.request.prompt)

    @property
    def progress(self) -> RowProgress:
        """What a micro-batch could take of the row."""
        return RowProgress(len(self.request.prompt) - self.sent, self.waits)

    def work(self, tokens: int) -> Work:
        """The row's next tokens: so many of its prompt, or the token just sampled."""
        prompt, start = self.request.prompt, self.sent
        if start == len(prompt):
            self.waits = True
            work = Work(self.row, [self.last_id], sample=True)
        else:
            self.sent += tokens
            self.waits = self.sent == len(prompt)
            scored = self.request.prompt_logprobs and self.sent >= self.request.scored_from
            targets = prompt[start + 1 : self.sent + 1] if scored else ()
            sample = self.waits and self.max_tokens > 0
            work = Work(self.row, prompt[start : self.sent], _wanted(targets, sample), targets, sample)
        if self.request.slot:
            self.request.slot.ids.extend(work.ids)
        return work

    def prefilled(self, work: Work, outcome: Outcome) -> Prefilled:
        """Count a chunk of the prompt as read."""
        self.read += len(work.ids)
        return Prefilled(self.index, self.read, len(self.request.prompt), outcome.logprobs)

    @property
    def prompt_read(self) -> bool:
        """Whether all of the prompt has been read."""
        return self.read == len(self.request.prompt)

    def generated(self, outcome: Outcome) -> Generated:
        """Take the token that was chosen. Raises InputError where it stands for no text."""
        if outcome.id is None:  # no token was asked for
            return Generated(self.index, None, None, "", "length")
        text = self.request.text
        self.waits = False
        if outcome.finished:
            return Generated(self.index, None, None, text.flush() if text else "", "stop")
        self.written, self.last_id = self.written + 1, outcome.id
        shown = text.push(outcome.id) if text else ""
        reason: FinishReason | None = "length" if self.written == self.max_tokens else None
        if text and text.stopped:
            reason = "stop"
        elif text and reason:
            shown += text.flush()
        return Generated(self.index, outcome.id, outcome.logprob, shown, reason, outcome.top)


def _wanted(targets: Sequence[int], sample: bool) -> Literal["none", "last", "all"]:
    return "all" if len(targets) else "last" if sample else "none"
