"""Generation: chunked prefill, then one token at a time, for any number of prompts at once.

Every step feeds every row its next tokens: a chunk of its prompt, or the token just sampled. So a short prompt is
already being answered while a long one is still read, and a row that has finished makes room for the next prompt.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mistral.engine import Engine, Work
from mistral.errors import InputError
from mistral.model import Transformer
from mistral.sampling import SamplingRow, SamplingSettings, log_softmax, sampler
from mistral.textstream import TextStream

MAX_ROWS = 64  # rows generated for at once
STEP_TOKENS = 2048  # prompt tokens of all rows in one step, at most, unless one chunk alone is longer
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """One prompt and what to make of it. `text` turns its ids into text and knows its stop strings."""

    prompt: Sequence[int]
    max_tokens: int = 35
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    eos_id: int | None = None
    text: TextStream | None = None
    prompt_logprobs: bool = False


@dataclass(frozen=True)
class Prefilled:
    """`done` of `total` prompt tokens of request `index` are read; logprobs of these, but for the prompt's first."""

    index: int
    done: int
    total: int
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Generated:
    """One step of the answer to request `index`.

    id is None where the answer ends without a token: at the end-of-sequence id, which is not shown, or at once when no
    token was asked for. logprob is that of the raw logits, in nats.
    """

    index: int
    id: int | None
    logprob: float | None
    text: str
    finish_reason: FinishReason | None


@dataclass
class Timings:
    """Tokens and seconds of the steps that read prompts, and of those that only wrote answers."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0


class _Row:
    """A request that has a row of the engine."""

    def __init__(self, index: int, request: Request, engine: Engine) -> None:
        self.index, self.request = index, request
        self.sampling = SamplingRow(request.settings, request.prompt)
        limit, used = engine.context_limit, len(request.prompt)
        self.max_tokens = request.max_tokens if limit is None else min(request.max_tokens, limit - used)
        self.row = engine.join(used + self.max_tokens)
        self.read, self.written, self.last_id = 0, 0, -1

    @property
    def prefilling(self) -> bool:
        return self.read < len(self.request.prompt)

    def work(self, chunk_size: int) -> Work:
        """The row's next tokens: at most `chunk_size` of its prompt, or the one just sampled."""
        if not self.prefilling:
            return Work(self.row, [self.last_id])
        chunk = self.request.prompt[self.read : self.read + chunk_size]
        last = self.read + len(chunk) == len(self.request.prompt)
        return Work(self.row, chunk, "all" if self.request.prompt_logprobs else "last" if last else "none")

    def prefilled(self, work: Work, logits: NDArray[np.float32]) -> Prefilled:
        """Count a chunk as read, and score the prompt tokens that its logits foretell."""
        self.read += len(work.ids)
        logprobs: tuple[float, ...] = ()
        if self.request.prompt_logprobs:
            targets = self.request.prompt[self.read - len(work.ids) + 1 : self.read + 1]
            scores = log_softmax(logits[: len(targets)])
            logprobs = tuple(float(scores[i, target]) for i, target in enumerate(targets))
        return Prefilled(self.index, self.read, len(self.request.prompt), logprobs)

    def generated(self, token: int, logprob: float) -> Generated:
        """Take a sampled token."""
        text = self.request.text
        if token == self.request.eos_id:
            return Generated(self.index, None, None, text.flush() if text else "", "stop")
        self.sampling.append(token)
        self.written, self.last_id = self.written + 1, token
        shown = text.push(token) if text else ""
        reason: FinishReason | None = "length" if self.written == self.max_tokens else None
        if text and text.stopped:
            reason = "stop"
        elif text and reason:
            shown += text.flush()
        return Generated(self.index, token, logprob, shown, reason)


def default_chunk_size(model: Transformer) -> int:
    """Prompt tokens of a row read at once: 512, or the shortest window if that is less."""
    return min([512, *(window for window in model.args.sliding_windows if window is not None)])


def check_request(index: int, request: Request, engine: Engine) -> None:
    """Raise InputError for a prompt that cannot be generated for."""
    vocab_size, limit = engine.model.args.vocab_size, engine.context_limit
    length = len(request.prompt)
    if length == 0:
        raise InputError(f"prompt {index} is empty: give it at least the id that begins a sequence")
    if not all(0 <= token < vocab_size for token in request.prompt):
        raise InputError(
            f"prompt {index} has an id outside the vocabulary of {vocab_size}: is it this model's tokenizer?"
        )
    if request.max_tokens < 0:
        raise InputError(f"--max_tokens {request.max_tokens}: must be 0 or more")
    if limit is not None and length + min(request.max_tokens, 1) > limit:
        raise InputError(f"prompt {index} has {length} tokens and the context limit is {limit}: shorten the prompt")


def generate_stream(
    engine: Engine,
    requests: Sequence[Request],
    chunk_size: int | None = None,
    max_rows: int = MAX_ROWS,
    timings: Timings | None = None,
) -> Generator[Prefilled | Generated]:
    """Generate for all requests, yielding each row's progress as it happens.

    `chunk_size` prompt tokens of a row are read at once (see `default_chunk_size`); this changes no result.
    Every request ends in exactly one Generated with a finish_reason. Closing the iterator frees the rows. Raises
    InputError for a request that cannot be served, before anything is computed.
    """
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"--chunk_size {chunk_size}: must be at least 1")
    assert max_rows > 0
    for index, request in enumerate(requests):
        check_request(index, request, engine)
    return _run(engine, requests, chunk_size or default_chunk_size(engine.model), max_rows, timings or Timings())


def _run(
    engine: Engine, requests: Sequence[Request], chunk_size: int, max_rows: int, timings: Timings
) -> Generator[Prefilled | Generated]:
    waiting = deque(enumerate(requests))
    active: list[_Row] = []
    try:
        while waiting or active:
            while waiting and len(active) < max_rows:
                try:
                    active.append(_Row(*waiting[0], engine))
                except InputError:  # no memory for one more
                    if not active:
                        raise
                    break
                waiting.popleft()
            for event in _step(engine, active, chunk_size, timings):
                yield event
                if isinstance(event, Generated) and event.finish_reason:
                    row = next(row for row in active if row.index == event.index)
                    active.remove(row)
                    engine.leave(row.row)
    finally:
        for row in active:
            engine.leave(row.row)


def _step(engine: Engine, active: Sequence[_Row], chunk_size: int, timings: Timings) -> list[Prefilled | Generated]:
    """One step of the rows that fit into it."""
    started = time.perf_counter()
    room = max(chunk_size, STEP_TOKENS)
    rows, work = [], []
    for row in active:
        piece = row.work(min(chunk_size, room) if row.prefilling else 1) if room else None
        if piece is None:
            continue
        room -= len(piece.ids) if row.prefilling else 0
        rows.append(row)
        work.append(piece)
    logits = engine.step(work)
    events: list[Prefilled | Generated] = []
    ready: list[tuple[_Row, NDArray[np.float32]]] = []
    prefill_tokens = sum(len(piece.ids) for row, piece in zip(rows, work, strict=True) if row.prefilling)
    for row, piece, found in zip(rows, work, logits, strict=True):
        if row.prefilling:
            events.append(row.prefilled(piece, found))
        if row.prefilling:
            continue
        if row.max_tokens == 0:
            events.append(Generated(row.index, None, None, "", "length"))
        else:
            ready.append((row, found[-1]))
    if ready:
        ids, logprobs = sampler(np.stack([last for _, last in ready]), [row.sampling for row, _ in ready])
        for (row, _), token, logprob in zip(ready, ids, logprobs, strict=True):
            events.append(row.generated(int(token), float(logprob)))
    seconds = time.perf_counter() - started
    if prefill_tokens:
        timings.prefill_tokens += prefill_tokens
        timings.prefill_seconds += seconds
    else:
        timings.decode_tokens += len(rows)
        timings.decode_seconds += seconds
    return events


def generate(
    encoded_prompts: Sequence[Sequence[int]],
    model: Transformer,
    max_tokens: int = 35,
    temperature: float = 0.0,
    chunk_size: int | None = None,
    eos_id: int | None = None,
    *,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    sample: int = 0,
    prompt_logprobs: bool = True,
    max_context: int | None = None,
) -> tuple[list[list[int]], list[list[float]]]:
    """Generate for ragged prompts at once.

    Returns, for each prompt, the ids generated (without `eos_id`) and the logprobs, in nats from the raw logits, of
    the prompt's tokens 1, 2, ... and then of each id generated; with `prompt_logprobs` False, of the latter alone, and
    the head then runs only where a token is sampled. Sampling depends on (seed, sample), not on the place among the
    prompts. Raises InputError for prompts or settings that cannot be used.
    """
    settings = SamplingSettings(temperature, top_p, top_k, min_p, repetition_penalty, seed, sample)
    requests = [Request(prompt, max_tokens, settings, eos_id, None, prompt_logprobs) for prompt in encoded_prompts]
    tokens: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    for event in generate_stream(Engine(model, max_context), requests, chunk_size):
        if isinstance(event, Prefilled):
            logprobs[event.index].extend(event.logprobs)
        elif event.id is not None and event.logprob is not None:
            tokens[event.index].append(event.id)
            logprobs[event.index].append(event.logprob)
    return tokens, logprobs
