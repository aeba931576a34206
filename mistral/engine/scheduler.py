"""Prompts on their way through an engine: chunked prefill, then one token at a time, for many rows at once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mistral.engine import micro_batches
from mistral.engine.engine import Engine, Work
from mistral.engine.requests import Generated, Prefilled, Request, Row
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.pipeline.engine import PipelineEngine

MAX_ROWS = 64  # rows generated for at once
STEP_TOKENS = 2048  # prompt tokens of all rows in one step, at most, unless one chunk alone is longer


@dataclass
class Timings:
    """Tokens and seconds of the steps that read prompts, and of those that only wrote answers."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class _Flight:
    """A micro-batch that is under way: its ticket, and its rows with their work and whether that was a prompt's."""

    ticket: int
    pieces: tuple[tuple[Row, Work, bool], ...]


def check_prompt(name: str, request: Request, args: ModelArgs, limit: int | None) -> None:
    """Raise InputError for a prompt that cannot be generated for, in a context of `limit` tokens."""
    vocab_size, length = args.vocab_size, len(request.prompt)
    if length == 0:
        raise InputError(f"{name} is empty: give it at least the id that begins a sequence")
    if not all(0 <= token < vocab_size for token in request.prompt):
        raise InputError(f"{name} has an id outside the vocabulary of {vocab_size}: is it this model's tokenizer?")
    if request.max_tokens < 0:
        raise InputError(f"--max_tokens {request.max_tokens}: must be 0 or more")
    if limit is not None and length + min(request.max_tokens, 1) > limit:
        raise InputError(f"{name} has {length} tokens and the context limit is {limit}: shorten the prompt")


def generate_stream(
    engine: Engine | PipelineEngine,
    requests: Sequence[Request],
    chunk_size: int | None = None,
    max_rows: int = MAX_ROWS,
    timings: Timings | None = None,
) -> Generator[Prefilled | Generated]:
    """Generate for all requests, yielding each row's progress as it happens.

    `chunk_size` prompt tokens of a row are read at once (see `micro_batches.choose_chunk`); this changes no result.
    Every request ends in exactly one Generated with a finish_reason. Closing the iterator frees the rows. Raises
    InputError for a request that cannot be served, before anything is computed.
    """
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"--chunk_size {chunk_size}: must be at least 1")
    assert max_rows > 0
    for index, request in enumerate(requests):
        name = "the prompt" if len(requests) == 1 else f"prompt {index}"
        check_prompt(name, request, engine.args, engine.context_limit)
    ranks, tokens = engine.num_pipeline_ranks, sum(len(request.prompt) for request in requests)
    chunk_size = chunk_size or micro_batches.choose_chunk(tokens, ranks)
    room = max(chunk_size, STEP_TOKENS if ranks == 1 else micro_batches.choose_chunk(tokens, ranks))
    return _Stream(engine, chunk_size, room, timings or Timings()).run(requests, max_rows)


class _Stream:
    """Rows on their way through an engine, and the micro-batches that they are in."""

    def __init__(self, engine: Engine | PipelineEngine, chunk_size: int, room: int, timings: Timings) -> None:
        """`room`: prompt tokens of a micro-batch, at most."""
        self.engine, self.chunk_size, self.room, self.timings = engine, chunk_size, room, timings
        self.active: list[Row] = []
        self.flying: deque[_Flight] = deque()
        self.clock = 0.0

    def run(self, requests: Sequence[Request], max_rows: int) -> Generator[Prefilled | Generated]:
        """Serve the requests, `max_rows` at a time at most."""
        waiting = deque(enumerate(requests))
        try:
            while waiting or self.active:
                self.admit(waiting, max_rows)
                if not self.flying:
                    self.clock = time.perf_counter()
                while self.launch():
                    pass
                for event in self.land():
                    yield event
                    if isinstance(event, Generated) and event.finish_reason:
                        row = next(row for row in self.active if row.index == event.index)
                        self.active.remove(row)
                        row.leave(self.engine)
        finally:
            for flight in self.flying:
                with suppress(InputError):  # of a micro-batch that nobody wants any more
                    self.engine.collect(flight.ticket)
            for row in self.active:
                row.leave(self.engine)

    def admit(self, waiting: deque[tuple[int, Request]], max_rows: int) -> None:
        """Give rows to requests while there are rows and memory."""
        while waiting and len(self.active) < max_rows:
            try:
                self.active.append(Row(*waiting[0], self.engine))
            except InputError:  # no memory for one more
                if not self.active:
                    raise
                return
            waiting.popleft()

    def launch(self) -> bool:
        """Begin one more micro-batch, if there is work for one and the pipeline is not full."""
        ranks, chosen = self.engine.num_pipeline_ranks, self.engine.num_micro_batches
        if len(self.flying) >= (1 if ranks == 1 else chosen or ranks + 1):
            return False
        answering = sum(row.sent == len(row.request.prompt) for row in self.active)
        groups = 1 if ranks == 1 else chosen or micro_batches.decode_groups(answering, ranks)
        under_way = sum(any(not prefill for _, _, prefill in flight.pieces) for flight in self.flying)
        decoding = -(-answering // groups) if under_way < groups else 0
        picked = micro_batches.next_micro_batch(
            [row.progress for row in self.active], decoding, self.chunk_size, self.room
        )  # fmt: skip
        if not picked:
            return False
        pieces = []
        for place, tokens in picked:
            row = self.active[place]
            prefill = row.sent < len(row.request.prompt)
            pieces.append((row, row.work(tokens), prefill))
        ticket = self.engine.submit([work for _, work, _ in pieces])
        self.flying.append(_Flight(ticket, tuple(pieces)))
        return True

    def land(self) -> list[Prefilled | Generated]:
        """Wait for the oldest micro-batch; what came of it."""
        flight = self.flying.popleft()
        outcomes = self.engine.collect(flight.ticket)
        events: list[Prefilled | Generated] = []
        sampled: list[Generated] = []
        for (row, work, prefill), outcome in zip(flight.pieces, outcomes, strict=True):
            if prefill:
                events.append(row.prefilled(work, outcome))
            if outcome.id is not None:
                sampled.append(row.generated(outcome))
            elif row.read == len(row.request.prompt):  # and no token was asked for
                sampled.append(Generated(row.index, None, None, "", "length"))
        self.count(flight)
        return events + sampled

    def count(self, flight: _Flight) -> None:
        """Add the time since the micro-batch before to the timings."""
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        prefill_tokens = sum(len(work.ids) for _, work, prefill in flight.pieces if prefill)
        if prefill_tokens:
            self.timings.prefill_tokens += prefill_tokens
            self.timings.prefill_seconds += seconds
        else:
            self.timings.decode_tokens += len(flight.pieces)
            self.timings.decode_seconds += seconds
