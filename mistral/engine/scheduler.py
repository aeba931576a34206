"""The scheduler: requests come at any time, and every step moves all rows on together.

A step feeds every row its next tokens: a chunk of its prompt, or the token just sampled. So a short prompt is already
being answered while a long one is still read, and a row that has finished makes room for the next request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from mistral.engine import micro_batches
from mistral.engine.active_row import ActiveRow
from mistral.engine.requests import Event, Generated, Request, check_request, row_capacity
from mistral.engine.row_engine import RowEngine
from mistral.engine.shared_prompts import SharedPrompts
from mistral.engine.timings import Timings
from mistral.engine.work import Work
from mistral.errors import InputError

MAX_ROWS = 64  # rows generated for at once
STEP_TOKENS = 2048  # prompt tokens of all rows in one step, at most, unless one chunk alone is longer


@dataclass(frozen=True, eq=False)
class Handle:
    """A request that has been submitted; `index` is the one that its events have, and `key` says whose it is."""

    index: int
    request: Request
    key: str = ""


@dataclass(frozen=True)
class _Flight:
    """A micro-batch that is under way: its ticket, and its rows with their work and what that is of."""

    ticket: int
    pieces: tuple[tuple[ActiveRow, Work, Literal["prompt", "again", "answer"]], ...]


class Scheduler:
    """Serves any number of requests with the rows of one engine.

    `submit` and `cancel` may be called from any thread and at any time. `step` and `close` are for the one thread that
    owns the engine. An answer depends on its own request alone: not on what else is under way, nor on chunks. Whatever
    goes wrong with one request ends that request, with finish_reason "error", and no other. Of requests with the same
    prompt that are there at the same time, one reads it and the others begin with a copy of its row.
    """

    def __init__(
        self,
        engine: RowEngine,
        chunk_size: int | None = None,
        max_rows: int = MAX_ROWS,
        timings: Timings | None = None,
    ) -> None:
        """`chunk_size` prompt tokens of a row are read at once (see `micro_batches.choose_chunk`)."""
        if chunk_size is not None and chunk_size < 1:
            raise InputError("must be at least 1", option="chunk_size", value=chunk_size)
        if max_rows < 1:
            raise InputError("must be at least 1", option="max_rows", value=max_rows)
        self.engine, self.chunk_size, self.max_rows = engine, chunk_size, max_rows
        self.timings = Timings() if timings is None else timings
        self._lock = threading.Lock()  # of what waits and what is cancelled, which other threads may change
        self._waiting: deque[Handle] = deque()
        self._cancelled: set[Handle] = set()
        self._submitted = 0
        self._active: dict[Handle, ActiveRow] = {}
        self._parked: dict[Handle, ActiveRow] = {}  # gave their memory to others; they go on before others begin
        self._prompts = SharedPrompts()
        self._flights: deque[_Flight] = deque()
        self._clock = 0.0

    def submit(self, request: Request, name: str = "the prompt", key: str = "") -> Handle:
        """Take a request, which begins as soon as there is a row and memory for it.

        Raises InputError, with the prompt's `name`, for one that cannot be served at all.
        """
        check_request(name, request, self.engine.args, self.engine.context_limit)
        self.engine.check_capacity(row_capacity(request, self.engine.context_limit))
        with self._lock:
            handle = Handle(self._submitted, request, key)
            self._submitted += 1
            self._waiting.append(handle)
            self._prompts.add(handle.index, request)
        return handle

    def cancel(self, handle: Handle) -> None:
        """End a request: the next step gives its last event, with finish_reason "cancelled", and frees its memory.

        Nothing happens where the request has ended already.
        """
        with self._lock:
            self._cancelled.add(handle)

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or under way."""
        return not (self._waiting or self._active or self._parked)

    def step(self) -> list[Event]:
        """Admit requests, run the next micro-batch, and return what came of it; nothing where the scheduler is idle.

        Every request ends in exactly one Generated with a finish_reason.
        """
        events = [*self._drop_cancelled(), *self._admit(), *self._grow()]
        if not self._flights:
            self._clock = time.perf_counter()
        while self._launch():
            pass
        if self._flights:
            events += self._land(self._flights.popleft())
        return events

    def close(self) -> None:
        """Give all rows back; requests that have not ended get no more events."""
        for flight in self._flights:
            with suppress(InputError):  # of a micro-batch that nobody wants any more
                self.engine.collect(flight.ticket)
        self._flights.clear()
        for row in (*self._active.values(), *self._parked.values()):
            row.leave(self.engine)
        self._active.clear()
        self._parked.clear()
        with self._lock:
            self._waiting.clear()
            self._prompts = SharedPrompts()

    def _drop_cancelled(self) -> list[Event]:
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
            waiting = [handle for handle in self._waiting if handle in cancelled]
            self._waiting = deque(handle for handle in self._waiting if handle not in cancelled)
            for handle in cancelled:
                self._prompts.forget(handle.index)
        under_way = [handle for handle in (*self._active, *self._parked) if handle in cancelled]
        for handle in under_way:
            (self._active.pop(handle, None) or self._parked.pop(handle)).leave(self.engine)
        return [Generated(handle.index, None, None, "", "cancelled") for handle in (*under_way, *waiting)]

    def _admit(self) -> list[Event]:
        """Give rows to requests, the first ones first, while there are rows and memory."""
        failed = self._unpark()
        if self._parked:
            return failed
        kept_back = 0  # rows for requests that begin when another one has read their prompt
        for handle in tuple(self._waiting):
            if len(self._active) + kept_back >= self.max_rows:
                break
            if self._prompts.must_wait(handle.index):
                kept_back += 1
                continue
            request, start = handle.request, self._prompts.start(handle.index)
            try:
                row = ActiveRow(handle.index, replace(request, start=start) if start else request, self.engine)
            except InputError as error:  # no memory for one more
                if self._active:
                    break
                failed.append(Generated(handle.index, None, None, "", "error", error=error))
            else:
                self._active[handle] = row
            with self._lock:
                self._waiting.remove(handle)
                if handle in self._active:
                    self._prompts.begin(handle.index)
                else:
                    self._prompts.forget(handle.index)
        return failed

    def _unpark(self) -> list[Event]:
        """Let parked rows go on, the first ones first; one for which there is no memory even alone ends."""
        ended: list[Event] = []
        for handle in sorted(self._parked, key=lambda handle: handle.index):
            row = self._parked[handle]
            try:
                row.unpark(self.engine)
            except InputError:
                if self._active:
                    break
                ended.append(row.cut())
                self._parked.pop(handle).leave(self.engine)
            else:
                self._active[handle] = self._parked.pop(handle)
        return ended

    def _grow(self) -> list[Event]:
        """See that every row that is being answered has memory for its next token.

        Where it is short, the row that came last gives its own away and reads its tokens again later. A row for which
        there is none even alone ends.
        """
        ended: list[Event] = []
        for handle in sorted(self._active, key=lambda handle: handle.index):
            row = self._active.get(handle)
            while row and row.can_park and not self._grown(row):
                others = [other for other in self._active if self._active[other].can_park]
                last = max(others, key=lambda other: other.index)
                if len(self._active) == 1:
                    ended.append(row.cut())
                    self._end({row.index})
                else:
                    self._parked[last] = self._active.pop(last)
                    self._parked[last].park(self.engine)
                row = self._active.get(handle)
        return ended

    def _grown(self, row: ActiveRow) -> bool:
        try:
            row.grow(self.engine)
        except InputError:
            return False
        return True

    def _launch(self) -> bool:
        """Begin one more micro-batch, if there is work for one and the pipeline is not full."""
        ranks, chosen = self.engine.num_pipeline_ranks, self.engine.num_micro_batches
        if len(self._flights) >= (1 if ranks == 1 else chosen or ranks + 1):
            return False
        rows = list(self._active.values())
        answering = sum(not row.reads for row in rows)
        groups = 1 if ranks == 1 else chosen or micro_batches.decode_groups(answering, ranks)
        under_way = sum(any(kind == "answer" for _, _, kind in flight.pieces) for flight in self._flights)
        decoding = -(-answering // groups) if under_way < groups else 0
        picked = micro_batches.next_micro_batch([row.progress for row in rows], decoding, *self._sizes(rows))
        if not picked:
            return False
        pieces = []
        for place, tokens in picked:
            row = rows[place]
            kind: Literal["prompt", "again", "answer"] = "answer"
            if row.reads:
                kind = "again" if row.answer else "prompt"
            pieces.append((row, row.work(tokens), kind))
        ticket = self.engine.submit([work for _, work, _ in pieces])
        self._flights.append(_Flight(ticket, tuple(pieces)))
        return True

    def _sizes(self, rows: Sequence[ActiveRow]) -> tuple[int, int]:
        """Prompt tokens of one row, and of all rows together, that a micro-batch takes at most."""
        ranks = self.engine.num_pipeline_ranks
        tokens = sum(len(row.request.prompt) for row in rows)
        if ranks > 1:
            tokens += sum(len(handle.request.prompt) for handle in tuple(self._waiting))
        chosen = micro_batches.choose_chunk(tokens, ranks)
        chunk_size = self.chunk_size or chosen
        return chunk_size, max(chunk_size, STEP_TOKENS if ranks == 1 else chosen)

    def _land(self, flight: _Flight) -> list[Event]:
        """Wait for a micro-batch; what came of it: chunks that were read, then tokens that were chosen."""
        outcomes = self.engine.collect(flight.ticket)
        self._count(flight)
        prefilled: list[Event] = []
        generated: list[Event] = []
        for (row, work, kind), outcome in zip(flight.pieces, outcomes, strict=True):
            if row.ended or kind == "again":  # ended: it was cancelled, or failed in an earlier chunk
                continue
            try:
                if outcome.error:
                    raise outcome.error
                if kind == "prompt":
                    prefilled.append(row.prefilled(work, outcome))
                    if row.prompt_read:
                        self._share(row)
                        if row.request.on_prompt_read:
                            row.request.on_prompt_read()
                if row.prompt_read:
                    event = row.generated(outcome)
                    self.timings.decode_tokens += event.id is not None
                    generated.append(event)
            except InputError as error:
                generated.append(Generated(row.index, None, None, "", "error", error=error))
        self._end({event.index for event in generated if isinstance(event, Generated) and event.finish_reason})
        return prefilled + generated

    def _share(self, row: ActiveRow) -> None:
        """Keep what a prompt that has been read left in the cache, where other requests wait for it."""
        with self._lock:
            wanted = self._prompts.wanted(row.index)
        snapshot = None
        if wanted:
            with suppress(InputError):  # no memory for a copy: then each of them reads the prompt itself
                snapshot = self.engine.export(row.row, row.request.prompt)
        with self._lock:
            self._prompts.read(row.index, snapshot)

    def _end(self, indices: set[int]) -> None:
        for handle in [handle for handle in self._active if handle.index in indices]:
            self._active.pop(handle).leave(self.engine)
            with self._lock:
                self._prompts.forget(handle.index)

    def _count(self, flight: _Flight) -> None:
        """Add the time since the micro-batch before to the timings."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        read = sum(len(work.ids) for _, work, kind in flight.pieces if kind != "answer")
        self.timings.add_step(read, sum(kind == "answer" for _, _, kind in flight.pieces), seconds)


def generate_stream(
    engine: RowEngine,
    requests: Sequence[Request],
    chunk_size: int | None = None,
    max_rows: int = MAX_ROWS,
    timings: Timings | None = None,
) -> Generator[Event]:
    """Generate for all requests, yielding each row's progress as it happens; an event's index is the request's place.

    `chunk_size` prompt tokens of a row are read at once; this changes no result. Every request ends in exactly one
    Generated with a finish_reason. Closing the iterator frees the rows. Raises InputError for a request that cannot be
    served at all, before anything is computed.
    """
    scheduler = Scheduler(engine, chunk_size, max_rows, timings)
    for index, request in enumerate(requests):
        scheduler.submit(request, "the prompt" if len(requests) == 1 else f"prompt {index}")
    return _events(scheduler)


def _events(scheduler: Scheduler) -> Generator[Event]:
    try:
        while not scheduler.idle:
            yield from scheduler.step()
    finally:
        scheduler.close()
