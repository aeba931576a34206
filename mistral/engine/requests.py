"""A request for an answer, what comes of it, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mistral.engine.engine import Engine, Outcome, Sampling, Work
from mistral.engine.micro_batches import Progress
from mistral.engine.sampling import SamplingSettings
from mistral.model.kv_cache import Snapshot
from mistral.pipeline.engine import PipelineEngine
from mistral.tokenizer.streaming import TextStream

FinishReason = Literal["stop", "length"]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


class KeptRow:
    """A row of the engine that outlives its request: the next one begins with the ids that both have in common.

    `ids` are those that the cache holds. After a request has begun, `shared` of its prompt's ids were among them, and
    `reused` are not computed again: as many, or none where a rolling cache has overwritten what they would need.
    """

    def __init__(self, engine: Engine | PipelineEngine) -> None:
        self.engine, self.ids, self.row = engine, list[int](), -1
        self.shared = self.reused = 0

    def begin(self, prompt: Sequence[int], capacity: int, sampling: Sampling | None) -> None:
        """Get ready for a prompt. Raises InputError where memory is short; what is held stays held then."""
        if self.row < 0:
            self.row = self.engine.join(capacity, sampling)
        shared = min(common_prefix(self.held(), prompt), len(prompt) - 1)  # the last token's logits are wanted
        self.reused = self.engine.resume(self.row, shared, capacity, sampling)
        self.shared, self.ids = shared, list(prompt[: self.reused])

    def held(self) -> list[int]:
        """The ids that the cache holds: those of a step that was interrupted are not among them."""
        del self.ids[0 if self.row < 0 else self.engine.kv_seqlen(self.row) :]
        return self.ids

    def export(self) -> Snapshot | None:
        """What the cache holds; None before the first request."""
        return self.engine.export(self.row, self.held()) if self.held() else None

    def restore(self, snapshot: Snapshot) -> None:
        """Hold what a snapshot does, instead. Raises InputError where memory is short; nothing has changed then."""
        row, held = self.engine.restore(snapshot, len(snapshot.ids), len(snapshot.ids))
        self.leave()
        self.row, self.ids = row, list(snapshot.ids[:held])

    def leave(self) -> None:
        """Give the row back."""
        if self.row >= 0:
            self.engine.leave(self.row)
        self.row, self.ids = -1, []


@dataclass(frozen=True)
class Request:
    """One prompt and what to make of it. `text` turns its ids into text and knows its stop strings.

    prompt_logprobs: whether those of prompt ids from `scored_from` on are wanted; top: of how many of the likeliest ids
    with each token of the answer. What need not be computed comes from `kept`, whose row then serves this request, or
    is copied from `start`; there are no logprobs of that.
    """

    prompt: Sequence[int]
    max_tokens: int = 35
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    eos_id: int | None = None
    text: TextStream | None = None
    prompt_logprobs: bool = False
    kept: KeptRow | None = None
    start: Snapshot | None = None
    scored_from: int = 1
    top: int = 0


@dataclass(frozen=True)
class Prefilled:
    """`done` of `total` prompt tokens of request `index` are read, and what `logprobs` of prompt ids came of that.

    The last of them is that of prompt id min(done, total - 1).
    """

    index: int
    done: int
    total: int
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Generated:
    """One step of the answer to request `index`.

    id is None where the answer ends without a token: at the end-of-sequence id, which is not shown, or at once when no
    token was asked for. logprob is that of the raw logits, in nats; top: the likeliest ids in its place, with theirs.
    """

    index: int
    id: int | None
    logprob: float | None
    text: str
    finish_reason: FinishReason | None
    top: tuple[tuple[int, float], ...] = ()


class Row:
    """A request that has a row of the engine."""

    def __init__(self, index: int, request: Request, engine: Engine | PipelineEngine) -> None:
        self.index, self.request = index, request
        limit, used = engine.context_limit, len(request.prompt)
        self.max_tokens = request.max_tokens if limit is None else min(request.max_tokens, limit - used)
        self.row, reused = self._begin(engine, used + self.max_tokens)
        self.sent, self.read, self.written, self.last_id = reused, reused, 0, -1
        self.waits = False  # for the token that follows what has been sent

    def _begin(self, engine: Engine | PipelineEngine, capacity: int) -> tuple[int, int]:
        """A row of the engine -> its number, and how many tokens of the prompt it has already."""
        request = self.request
        sampling = Sampling(request.settings, request.prompt, request.eos_id, request.top)
        if request.kept:
            request.kept.begin(request.prompt, capacity, sampling)
            return request.kept.row, request.kept.reused
        if request.start:
            shared = min(common_prefix(request.start.ids, request.prompt), len(request.prompt) - 1)
            return engine.restore(request.start, shared, capacity, sampling)
        return engine.join(capacity, sampling), 0

    def leave(self, engine: Engine | PipelineEngine) -> None:
        """Give the engine's row back, unless it is kept."""
        if not self.request.kept:
            engine.leave(self.row)

    @property
    def progress(self) -> Progress:
        """What of it a micro-batch could take."""
        return Progress(len(self.request.prompt) - self.sent, self.waits)

    def work(self, tokens: int) -> Work:
        """The row's next tokens: so many of its prompt, or the one just sampled."""
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
        if self.request.kept:
            self.request.kept.ids.extend(work.ids)
        return work

    def prefilled(self, work: Work, outcome: Outcome) -> Prefilled:
        """Count a chunk as read."""
        self.read += len(work.ids)
        return Prefilled(self.index, self.read, len(self.request.prompt), outcome.logprobs)

    def generated(self, outcome: Outcome) -> Generated:
        """Take a sampled token."""
        text = self.request.text
        self.waits = False
        if outcome.finished:
            return Generated(self.index, None, None, text.flush() if text else "", "stop")
        assert outcome.id is not None
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
