"""A request for an answer, what comes of it, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mistral.engine import Engine, Outcome, Sampling, Work
from mistral.pipeline import PipelineEngine
from mistral.sampling import SamplingSettings
from mistral.schedule import Progress
from mistral.textstream import TextStream

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """One prompt and what to make of it. `text` turns its ids into text and knows its stop strings.

    prompt_logprobs: whether those of prompt ids from `scored_from` on are wanted; top: of how many of the likeliest ids
    with each token of the answer.
    """

    prompt: Sequence[int]
    max_tokens: int = 35
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    eos_id: int | None = None
    text: TextStream | None = None
    prompt_logprobs: bool = False
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
        sampling = Sampling(request.settings, request.prompt, request.eos_id, request.top)
        self.row = engine.join(used + self.max_tokens, sampling)
        self.sent, self.read, self.written, self.last_id = 0, 0, 0, -1
        self.waits = False  # for the token that follows what has been sent

    @property
    def progress(self) -> Progress:
        """What of it a micro-batch could take."""
        return Progress(len(self.request.prompt) - self.sent, self.waits)

    def work(self, tokens: int) -> Work:
        """The row's next tokens: so many of its prompt, or the one just sampled."""
        prompt, start = self.request.prompt, self.sent
        if start == len(prompt):
            self.waits = True
            return Work(self.row, [self.last_id], sample=True)
        self.sent += tokens
        self.waits = self.sent == len(prompt)
        scored = self.request.prompt_logprobs and self.sent >= self.request.scored_from
        targets = prompt[start + 1 : self.sent + 1] if scored else ()
        sample = self.waits and self.max_tokens > 0
        return Work(self.row, prompt[start : self.sent], _wanted(targets, sample), targets, sample)

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
