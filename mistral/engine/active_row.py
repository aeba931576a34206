"""A request that has a row of the engine: the progress of its prompt and its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from mistral.engine.micro_batches import RowProgress
from mistral.engine.prefix_slot import common_prefix
from mistral.engine.request_queue import Handle
from mistral.engine.requests import FinishReason, Generated, Prefilled, Request, end_ids, row_capacity
from mistral.engine.row_engine import RowEngine
from mistral.engine.work import Outcome, Sampling, Work
from mistral.errors import InputError
from mistral.model import kv_cache
from mistral.model.kv_cache import Snapshot

ANSWER_ROOM = 1024  # tokens of an answer that memory is reserved for at a time


class ActiveRow:
    """A row between its request's admission and the end of its answer."""

    def __init__(self, handle: Handle, engine: RowEngine, start: Snapshot | None = None) -> None:
        """`start` is a snapshot of a prefix of the prompt. Raises InputError if memory is short."""
        request = handle.request
        self.handle, self.index, self.request = handle, handle.index, request
        self.capacity = row_capacity(request, engine.context_limit)
        self.max_tokens = self.capacity - len(request.prompt)
        self.reserved = reserved_at_first(request, engine.context_limit)
        self.row, reused = self._begin(engine, self.capacity, start or request.start)
        self.request = replace(request, start=None)  # its memory may be released
        self.ids = request.prompt  # tokens to read: after parking, the prompt and the answer so far
        self.reused = self.stored = self.sent = self.read = reused
        self.answer = list[int]()
        self.waits = False  # for the token after those that were sent
        self.ended = self.parked = False
        self.yielded = False  # parked to give another key a row, and not for its memory
        self.kept: Snapshot | None = None  # the copy of a parked row

    def _begin(self, engine: RowEngine, capacity: int, start: Snapshot | None) -> tuple[int, int]:
        """Get a row of the engine -> its number, and the number of prompt tokens that it already has."""
        request = self.request
        ends = frozenset[int]() if request.ignore_eos else end_ids(request.eos_id)
        sampling = Sampling(
            request.settings, request.prompt, ends, request.logprobs, request.top, request.excluded,
            request.min_tokens, request.constraint,
        )  # fmt: skip
        if request.text and request.min_tokens:
            request.text.hold(request.min_tokens)
        if request.slot:
            request.slot.begin(request.prompt, capacity, sampling)
            return request.slot.row, request.slot.reused
        if start:
            shared = min(common_prefix(start.ids, request.prompt), len(request.prompt) - 1)
            return engine.restore(start, shared, capacity, sampling, self.reserved)
        return engine.join(capacity, sampling, self.reserved), 0

    def grow(self, engine: RowEngine) -> None:
        """Reserve memory for the row's next token. Raises InputError if there is none."""
        needed = len(self.request.prompt) + len(self.answer)
        if needed <= self.reserved or self.request.slot:  # a slot has memory for its whole capacity
            return
        self.reserved = self._with_room(needed, lambda tokens: engine.grow(self.row, tokens))

    def _with_room(self, needed: int, reserve: Callable[[int], None]) -> int:
        """Reserve ANSWER_ROOM tokens beyond those needed, or at least the needed ones -> how many are reserved."""
        ample = min(self.capacity, needed + ANSWER_ROOM)
        try:
            reserve(ample)
        except InputError:
            reserve(needed)
            return needed
        return ample

    @property
    def can_park(self) -> bool:
        """Whether the row may be parked now: it is in decode, and no step of it is being computed."""
        return not (self.reads or self.waits or self.request.slot or self.parked)

    def park(self, engine: RowEngine, keep: bool = False) -> None:
        """Release the row's memory; the answer continues later, unchanged.

        With `keep`, a copy of the row is kept on the host, in reserved memory; otherwise its tokens are read again.
        Raises InputError, and changes nothing, if there is no memory for the copy.
        """
        ids = [*self.request.prompt, *self.answer[:-1]]
        self.kept = engine.export(self.row, ids) if keep else None
        engine.park(self.row, len(ids) if keep else 0)
        self.parked, self.sent, self.ids = True, 0, ids

    def forget_kept(self, engine: RowEngine) -> None:
        """Release the copy of a parked row, too."""
        self.kept = None
        engine.park(self.row)

    def unpark(self, engine: RowEngine, ample: bool = False, found: Snapshot | None = None) -> None:
        """Continue a parked row with its copy, or a snapshot `found` of a prefix of its tokens; the rest is read again.

        Raises InputError if there is no memory for the next token, or with `ample` for ANSWER_ROOM more; the row then
        stays parked.
        """
        start, needed = self.kept or found, len(self.ids) + 1

        def reserve(tokens: int) -> None:
            self.sent = engine.unpark(self.row, self.capacity, tokens, start)

        if ample:
            needed = min(self.capacity, needed + ANSWER_ROOM)
        self.reserved = self._with_room(needed, reserve)
        self.parked, self.yielded, self.kept = False, False, None

    def leave(self, engine: RowEngine) -> None:
        """Release the engine's row, unless it belongs to a prefix slot."""
        self.ended, self.kept = True, None
        if not self.request.slot:
            engine.leave(self.row)

    @property
    def reads(self) -> bool:
        """Whether the row is in prefill: some of its tokens to read have not been sent yet."""
        return self.sent < len(self.ids)

    @property
    def progress(self) -> RowProgress:
        """The row's progress, from which the next micro-batch is chosen."""
        return RowProgress(len(self.ids) - self.sent, self.waits)

    @property
    def draft_room(self) -> int:
        """The most draft tokens of the next step: the row can be rewound over them, and the answer may have them."""
        left = self.max_tokens - len(self.answer) - 1
        if not self.request.slot:
            left = min(left, self.reserved - len(self.request.prompt) - len(self.answer))
        return max(0, min(kv_cache.SPARE, left))

    def work(self, tokens: int, drafts: Sequence[int] = ()) -> Work:
        """The row's work in a step: `tokens` tokens of its prompt, or the token just sampled and draft tokens."""
        prompt, start = self.request.prompt, self.sent
        if start == len(self.ids):
            self.waits = True
            work = Work(self.row, [self.answer[-1]], sample=True, drafts=drafts)
        elif self.answer:  # it was parked: the next token is already known
            self.sent += tokens
            work = Work(self.row, self.ids[start : self.sent], "none")
        else:
            self.sent += tokens
            self.waits = self.sent == len(prompt)
            scored = self.request.prompt_logprobs and self.sent >= self.request.scored_from
            targets = prompt[start + 1 : self.sent + 1] if scored else ()
            sample = self.waits and self.max_tokens > 0
            work = Work(self.row, prompt[start : self.sent], _wanted(targets, sample), targets, sample)
        if self.request.slot:
            self.request.slot.cached_ids().extend(work.tokens)
        return work

    def prefilled(self, work: Work, outcome: Outcome) -> Prefilled:
        """Count a chunk of the prompt as read -> the event."""
        self.read += len(work.ids)
        return Prefilled(self.index, self.read, len(self.request.prompt), outcome.logprobs, outcome.tops, self.reused)

    @property
    def prompt_read(self) -> bool:
        """Whether all of the prompt has been read."""
        return self.read == len(self.request.prompt)

    def generated(self, outcome: Outcome) -> Generated:
        """Add the sampled token to the answer -> the event. Raises InputError if it cannot be decoded."""
        if outcome.id is None:  # no token was asked for
            return Generated(self.index, None, None, "", "length")
        text = self.request.text
        self.waits = False
        if outcome.finished:
            return Generated(self.index, None, None, text.flush() if text else "", "stop")
        self.answer.append(outcome.id)
        shown = text.push(outcome.id) if text else ""
        reason: FinishReason | None = None
        if outcome.last or len(self.answer) == self.max_tokens:
            reason = "stop" if outcome.last else "length"
        if text and text.stopped:
            reason = "stop"
        elif text and reason:
            shown += text.flush()
        return Generated(self.index, outcome.id, outcome.logprob, shown, reason, outcome.top)

    def again(self) -> None:
        """Repeat the last step, which had no result."""
        self.waits = False

    def cut(self) -> Generated:
        """The last event of an answer for which there is no more memory."""
        text = self.request.text
        return Generated(self.index, None, None, text.flush() if text else "", "length")


def reserved_at_first(request: Request, limit: int | None) -> int:
    """Tokens that memory is reserved for when a request gets its row."""
    return min(row_capacity(request, limit), len(request.prompt) + ANSWER_ROOM)


def _wanted(targets: Sequence[int], sample: bool) -> Literal["none", "last", "all"]:
    return "all" if len(targets) else "last" if sample else "none"
