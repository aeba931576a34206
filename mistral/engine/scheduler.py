"""The scheduler: continuous batching. Requests come at any time, and every step runs all rows together.

A step computes the next tokens of every row: a chunk of its prompt (prefill), or the token just sampled (decode). So a
short prompt is answered while a long one is still being read, and a finished row makes room for the next request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace

from mistral.engine import micro_batches
from mistral.engine.active_row import ActiveRow
from mistral.engine.figures import Figures
from mistral.engine.flight import Flight, Kind
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.request_queue import Handle, RequestQueue
from mistral.engine.requests import Event, Generated, Request, check_request, row_capacity
from mistral.engine.row_engine import RowEngine
from mistral.engine.row_table import RowTable
from mistral.engine.speculation import Speculation
from mistral.engine.step_budget import StepBudget
from mistral.engine.timings import Timings
from mistral.engine.work import Outcome, Work
from mistral.errors import InputError
from mistral.model.kv_cache import Snapshot

__all__ = ["MAX_ROWS", "STEP_MS", "STEP_TOKENS", "Handle", "Scheduler", "generate_stream"]

MAX_ROWS = 64  # most rows at once
STEP_TOKENS = 2048  # most prompt tokens of all rows in one step, unless one chunk alone is longer
STEP_MS = 200  # time limit of a step while rows are in decode, for interactive use


class Scheduler:
    """Serves any number of requests with the rows of one engine.

    `submit` and `cancel` may be called from any thread and at any time, and `figures` be read. `step` and `close` are
    for the one thread that owns the engine. An answer depends only on its own request: not on other requests, the chunk
    size, or the prefix cache. An error in one request ends that request, with finish_reason "error", and no other. Of
    requests with the same prompt at the same time, one reads it and the others start with a copy of its row. See
    `RowTable` for which request gets a row.
    """

    def __init__(
        self,
        engine: RowEngine,
        chunk_size: int | None = None,
        max_rows: int = MAX_ROWS,
        timings: Timings | None = None,
        step_ms: float | None = None,
        prefix_store: PrefixStore | None = None,
        clock: Callable[[], float] = time.perf_counter,
        speculation: Speculation | None = None,
    ) -> None:
        """`chunk_size` prompt tokens of a row are read at once (see `micro_batches.choose_chunk`).

        step_ms: the time limit of a step while any row is in decode, which limits its prompt tokens; None: no limit.
        prefix_store: the prefix cache; it uses memory that rows do not need. clock: seconds. speculation: draft tokens,
        so that a step may sample several tokens of a row; None: none. Raises InputError for an invalid option.
        """
        if chunk_size is not None and chunk_size < 1:
            raise InputError("must be at least 1", option="chunk_size", value=chunk_size)
        if max_rows < 1:
            raise InputError("must be at least 1", option="max_rows", value=max_rows)
        if step_ms is not None and not step_ms > 0:
            raise InputError("must be above 0", option="step_ms", value=step_ms)
        self.engine, self.chunk_size, self.max_rows = engine, chunk_size, max_rows
        self.timings = Timings() if timings is None else timings
        self.prefix_store = engine.prefix_store = prefix_store
        self._budget = None if step_ms is None else StepBudget(step_ms / 1000 / engine.num_pipeline_ranks)
        self._queue = RequestQueue()
        self._rows = RowTable(engine, self._queue, prefix_store, max_rows)
        self._active, self._parked = self._rows.active, self._rows.parked
        self._flights: deque[Flight] = deque()
        self._speculation = speculation
        self._time, self._clock = clock, 0.0
        self._done = Figures()

    def submit(self, request: Request, name: str = "the prompt", key: str = "", space: str | None = None) -> Handle:
        """Add a request, which starts as soon as there is a row and memory for it.

        `key` says whose it is, for fair scheduling. Requests of different `space`s share no computed prefixes; the
        default is the key. Raises InputError, with the prompt's `name`, for a request that cannot be served.
        """
        check_request(name, request, self.engine.args, self.engine.context_limit)
        self.engine.check_capacity(row_capacity(request, self.engine.context_limit))
        return self._queue.add(request, key, key if space is None else space)

    def cancel(self, handle: Handle) -> None:
        """End a request: the next step gives its last event, with finish_reason "cancelled", and frees its memory.

        Nothing happens where the request has ended already.
        """
        self._queue.cancel(handle)

    @property
    def idle(self) -> bool:
        """Whether there are no requests."""
        return not (len(self._queue) or self._active or self._parked)

    @property
    def figures(self) -> Figures:
        """What the scheduler is doing and has done. May be called from any thread; does not wait."""
        rows = list(self._active.values())
        reading = sum(row.reads for row in rows)
        return replace(
            self._done,
            waiting=len(self._queue), reading=reading, answering=len(rows) - reading, parked=len(self._parked),
            row_bytes=self.engine.row_bytes, prefix_bytes=self.prefix_store.nbytes if self.prefix_store else 0,
            cached_tokens=self._rows.cached_tokens,
        )  # fmt: skip

    def step(self) -> list[Event]:
        """Admit requests, run the next micro-batch, and return its events; none if the scheduler is idle.

        Every request ends in exactly one Generated with a finish_reason.
        """
        begun = self._time()
        new, cancelled = self._queue.news()
        self._rows.come(new)
        events = list[Event]()
        while self._flights and self._rows.slots_wait(cancelled):  # another may take the row: drafts are to be gone
            events += self._land(self._flights.popleft())
        events += [*self._rows.cancel(cancelled), *self._rows.admit(), *self._rows.grow()]
        self._forget_guesses(events)
        if not self._flights:
            self._clock = self._time()
        while self._launch():
            pass
        flight = self._flights.popleft() if self._flights else None
        if flight:
            events += self._land(flight)
        self._count_step(flight, self._time() - begun)
        return events

    def close(self) -> None:
        """Release all rows; requests that have not ended get no more events."""
        for flight in self._flights:
            with suppress(InputError):  # of a micro-batch that nobody wants any more
                self.engine.collect(flight.ticket)
        self._flights.clear()
        self._rows.clear()
        self._queue.clear()
        if self._speculation:
            self._speculation.clear()

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
        chunk_size, room = self._sizes(rows, answering)
        order = sorted(range(len(rows)), key=lambda place: self._turn(rows[place]))
        picked = micro_batches.next_micro_batch([row.progress for row in rows], decoding, chunk_size, room, order)
        if not picked:
            return False
        answered = [rows[place] for place, _ in picked if not rows[place].reads]
        pieces, drafts = [], self._drafts(answered, beside=len(answered) < len(picked))
        for place, tokens in picked:
            row = rows[place]
            kind: Kind = "answer"
            if row.reads:
                kind = "again" if row.answer else "prompt"
            pieces.append((row, row.work(tokens, drafts.get(row.index, ())), kind))
        ticket = self.engine.submit([work for _, work, _ in pieces])
        self._flights.append(Flight(ticket, tuple(pieces)))
        return True

    def _drafts(self, rows: Sequence[ActiveRow], beside: bool) -> dict[int, list[int]]:
        """Draft tokens of rows in decode, by the index of their requests; `beside`: the step also reads prompts."""
        if self._speculation is None or not rows:
            return {}
        left = None if self._budget is None else self._budget.left(len(rows))
        if left is not None and beside:
            left *= 1 - self._prompts_share
        found = self._speculation.drafts(rows, self.engine.args.vocab_size, left)
        return {row.index: draft for row, draft in zip(rows, found, strict=True)}

    @property
    def _prompts_share(self) -> float:
        """The share of a step's time for prompts while a draft model has to read, too."""
        return 0.5 if self._speculation and self._speculation.behind else 1.0

    def _forget_guesses(self, ended: Sequence[Event]) -> None:
        """Drop the drafters of requests that have ended without a step."""
        if self._speculation:
            for event in ended:
                self._speculation.forget(event.index)

    def _turn(self, row: ActiveRow) -> tuple[int, int]:
        """Whose prompt is read first: that of the key that was served least, then of the request that came first."""
        return self._rows.shares.served(row.handle.key), row.index

    def _sizes(self, rows: Sequence[ActiveRow], answering: int) -> tuple[int, int]:
        """Prompt tokens of one row, and of all rows together, that a micro-batch takes at most."""
        ranks = self.engine.num_pipeline_ranks
        tokens = sum(len(row.request.prompt) for row in rows)
        if ranks > 1:
            tokens += self._queue.prompt_tokens()
        chosen = micro_batches.choose_chunk(tokens, ranks)
        chunk_size = self.chunk_size or chosen
        room = max(chunk_size, STEP_TOKENS if ranks == 1 else chosen)
        if self._budget and answering < len(rows):
            fitting = self._budget.tokens(answering, room, self._prompts_share)
            room = fitting if answering else max(chunk_size, fitting)
        return chunk_size, room

    def _land(self, flight: Flight) -> list[Event]:
        """Wait for a micro-batch; what came of it: chunks that were read, then tokens that were chosen."""
        outcomes = self.engine.collect(flight.ticket)
        self._count(flight, outcomes)
        prefilled: list[Event] = []
        generated: list[Generated] = []
        for (row, work, kind), outcome in zip(flight.pieces, outcomes, strict=True):
            if row.ended or kind == "again":  # ended: it was cancelled, or failed in an earlier chunk
                continue
            self._rows.shares.add(row.handle.key, len(work.ids) + len(outcome.more))
            if outcome.again:
                row.again()
            if self._speculation and kind == "answer":
                self._speculation.landed(row, work, outcome)
            if outcome.again:
                continue
            try:
                if outcome.error:
                    raise outcome.error
                if kind == "prompt":
                    prefilled.append(self._read(row, work, outcome))
                if row.prompt_read:
                    generated += self._chosen(row, work, outcome)
            except InputError as error:
                generated.append(Generated(row.index, None, None, "", "error", error=error))
        ended = {event.index for event in generated if event.finish_reason}
        for row in [piece[0] for piece in flight.pieces if piece[0].index in ended]:
            if self._speculation:
                self._speculation.ended(row)
        self._rows.end({event.index for event in generated if event.error}, keep=False)
        self._rows.end(ended)
        return [*prefilled, *generated]

    def _chosen(self, row: ActiveRow, work: Work, outcome: Outcome) -> list[Generated]:
        """The tokens that a row has got, up to the end of its answer; an error after some of them ends it."""
        events = list[Generated]()
        right = len(outcome.more)
        for each in (outcome, *outcome.more):
            try:
                if each.error:
                    raise each.error
                event = row.generated(each)
            except InputError as error:
                event = Generated(row.index, None, None, "", "error", error=error)
            if work.drafts and not events:
                event = replace(event, accepted=right, rejected=len(work.drafts) - right)
            self.timings.decode_tokens += event.id is not None
            events.append(event)
            if event.finish_reason:
                break
        return events

    def _read(self, row: ActiveRow, work: Work, outcome: Outcome) -> Event:
        """A chunk of a prompt has been read. Raises InputError where what is to be done at its end fails."""
        event = row.prefilled(work, outcome)
        if not row.prompt_read:
            self._rows.keep_chunk(row)
            return event
        self._queue.read(row.handle, lambda: self._copy(row))
        self._rows.keep(row)
        if row.request.on_prompt_read:
            row.request.on_prompt_read()
        return event

    def _copy(self, row: ActiveRow) -> Snapshot | None:
        """What a prompt that has been read left in the cache, for other requests that wait for it."""
        with suppress(InputError):  # no memory for a copy: then each of them reads the prompt itself
            return self.engine.export(row.row, row.request.prompt)
        return None

    def _count(self, flight: Flight, outcomes: Sequence[Outcome]) -> None:
        """Add the time since the micro-batch before to the timings, and what it has done to the figures."""
        now = self._time()
        seconds, self._clock = now - self._clock, now
        read = flight.reads
        again = sum(len(work.ids) for _, work, kind in flight.pieces if kind == "again")
        pairs = zip(flight.pieces, outcomes, strict=True)
        answered = sum(kind == "answer" and not outcome.again for (_, _, kind), outcome in pairs)
        drafted, right = flight.drafted, sum(len(outcome.more) for outcome in outcomes)
        self.timings.add_step(read, answered, seconds, drafted, right)
        if read != again:
            self._done = replace(self._done, prompt_tokens=self._done.prompt_tokens + read - again)

    def _count_step(self, flight: Flight | None, seconds: float) -> None:
        """Count a whole step, in which a micro-batch has come to its end: with what was stored of it."""
        done = self._done
        if flight and self._speculation and not flight.reads:
            self._speculation.measured(flight.answering, seconds)
        reading = self._speculation.read_seconds() if self._speculation else 0.0
        if flight and self._budget:
            self._budget.add(flight.answering, flight.reads, max(0.0, seconds - reading))
        self._done = replace(
            done,
            generated_tokens=self.timings.decode_tokens, drafted_tokens=self.timings.drafted_tokens,
            accepted_tokens=self.timings.accepted_tokens, steps=done.steps + 1, seconds=done.seconds + seconds,
            last_seconds=seconds, longest_seconds=max(done.longest_seconds, seconds),
        )  # fmt: skip


def generate_stream(
    engine: RowEngine,
    requests: Sequence[Request],
    chunk_size: int | None = None,
    max_rows: int = MAX_ROWS,
    timings: Timings | None = None,
    speculation: Speculation | None = None,
) -> Generator[Event]:
    """Generate for all requests, yielding events as they happen; an event's `index` is that of its request.

    `chunk_size`: prompt tokens of a row in one step; `speculation`: draft tokens; neither changes a result.
    Every request ends in exactly one Generated with a finish_reason. Closing the iterator frees the rows. Raises
    InputError for a request that cannot be served at all, before anything is computed.
    """
    scheduler = Scheduler(engine, chunk_size, max_rows, timings, speculation=speculation)
    for index, request in enumerate(requests):
        scheduler.submit(request, "the prompt" if len(requests) == 1 else f"prompt {index}")
    return _events(scheduler)


def _events(scheduler: Scheduler) -> Generator[Event]:
    try:
        while not scheduler.idle:
            yield from scheduler.step()
    finally:
        scheduler.close()
