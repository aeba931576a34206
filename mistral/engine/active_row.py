"""A request that has a row of the engine: how far its prompt has been read and its answer written."""

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

ANSWER_ROOM = 1024  # tokens of an answer whose memory is counted at once; more as it grows


class ActiveRow:
    """A row between its request's admission and the end of its answer."""

    def __init__(self, handle: Handle, engine: RowEngine, start: Snapshot | None = None) -> None:
        """`start` holds tokens that the prompt begins with. Raises InputError where memory is short."""
        request = handle.request
        self.handle, self.index, self.request = handle, handle.index, request
        self.capacity = row_capacity(request, engine.context_limit)
        self.max_tokens = self.capacity - len(request.prompt)
        self.reserved = reserved_at_first(request, engine.context_limit)
        self.row, reused = self._begin(engine, self.capacity, start or request.start)
        self.request = replace(request, start=None)  # whose memory may go
        self.ids = request.prompt  # to be read: once it has been parked, with what has been answered
        self.reused = self.stored = self.sent = self.read = reused
        self.answer = list[int]()
        self.waits = False  # for the token that follows what has been sent
        self.ended = self.parked = False
        self.yielded = False  # it was parked so that another key has a row, and not for its memory
        self.kept: Snapshot | None = None  # of a parked row

    def _begin(self, engine: RowEngine, capacity: int, start: Snapshot | None) -> tuple[int, int]:
        """A row of the engine -> its number, and how many tokens of the prompt it has already."""
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
        """See that there is memory for the row's next token. Raises InputError where there is none."""
        needed = len(self.request.prompt) + len(self.answer)
        if needed <= self.reserved or self.request.slot:  # that of a slot is counted as a whole
            return
        self.reserved = self._with_room(needed, lambda tokens: engine.grow(self.row, tokens))

    def _with_room(self, needed: int, reserve: Callable[[int], None]) -> int:
        """Reserve tokens for the answer beyond those needed, or at least these -> how many are reserved."""
        ample = min(self.capacity, needed + ANSWER_ROOM)
        try:
            reserve(ample)
        except InputError:
            reserve(needed)
            return needed
        return ample

    @property
    def can_park(self) -> bool:
        """Whether the row may give its memory to others now: it is being answered, and nothing of it is under way."""
        return not (self.reads or self.waits or self.request.slot or self.parked)

    def park(self, engine: RowEngine, keep: bool = False) -> None:
        """Give the row's memory away; the answer goes on later as it would have.

        With `keep`, a copy of what the cache holds stays on the host, whose memory is counted; else the tokens are read
        again. Raises InputError where there is no memory for a copy; nothing has changed then.
        """
        ids = [*self.request.prompt, *self.answer[:-1]]
        self.kept = engine.export(self.row, ids) if keep else None
        engine.park(self.row, len(ids) if keep else 0)
        self.parked, self.sent, self.ids = True, 0, ids

    def forget_kept(self, engine: RowEngine) -> None:
        """Give away the copy of a parked row, too."""
        self.kept = None
        engine.park(self.row)

    def unpark(self, engine: RowEngine, ample: bool = False, found: Snapshot | None = None) -> None:
        """Go on with the copy that was kept, or with what was found of the tokens elsewhere, and read what is missing.

        Raises InputError where there is no memory for the next token, or with `ample` for some more; it stays parked.
        """
        start, needed = self.kept or found, len(self.ids) + 1

        def reserve(tokens: int) -> None:
            self.sent = engine.unpark(self.row, self.capacity, tokens, start)

        if ample:
            needed = min(self.capacity, needed + ANSWER_ROOM)
        self.reserved = self._with_room(needed, reserve)
        self.parked, self.yielded, self.kept = False, False, None

    def leave(self, engine: RowEngine) -> None:
        """Give the engine's row back, unless it is that of a prefix slot."""
        self.ended, self.kept = True, None
        if not self.request.slot:
            engine.leave(self.row)

    @property
    def reads(self) -> bool:
        """Whether a part of what is to be read has not been sent yet."""
        return self.sent < len(self.ids)

    @property
    def progress(self) -> RowProgress:
        """What a micro-batch could take of the row."""
        return RowProgress(len(self.ids) - self.sent, self.waits)

    @property
    def draft_room(self) -> int:
        """Tokens that may be computed beyond the one just sampled: what can be taken back, and may be of use."""
        left = self.max_tokens - len(self.answer) - 1
        if not self.request.slot:
            left = min(left, self.reserved - len(self.request.prompt) - len(self.answer))
        return max(0, min(kv_cache.SPARE, left))

    def work(self, tokens: int, drafts: Sequence[int] = ()) -> Work:
        """The row's next tokens: so many of its prompt, or the token just sampled, and drafts of what follows it."""
        prompt, start = self.request.prompt, self.sent
        if start == len(self.ids):
            self.waits = True
            work = Work(self.row, [self.answer[-1]], sample=True, drafts=drafts)
        elif self.answer:  # it was parked: the token that follows is known
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
        """Count a chunk of the prompt as read."""
        self.read += len(work.ids)
        return Prefilled(self.index, self.read, len(self.request.prompt), outcome.logprobs, outcome.tops, self.reused)

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
        """The last step came to nothing: the row takes the same token once more."""
        self.waits = False

    def cut(self) -> Generated:
        """The end of an answer that no memory is left for."""
        text = self.request.text
        return Generated(self.index, None, None, text.flush() if text else "", "length")


def reserved_at_first(request: Request, limit: int | None) -> int:
    """Tokens whose memory is counted when a request begins."""
    return min(row_capacity(request, limit), len(request.prompt) + ANSWER_ROOM)


def _wanted(targets: Sequence[int], sample: bool) -> Literal["none", "last", "all"]:
    return "all" if len(targets) else "last" if sample else "none"
