"""The engine: rows join and leave, and one step moves any of them on. It holds the cache and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mistral.engine.sampling import SamplingRow, SamplingSettings, likeliest, sampler, target_logprob
from mistral.errors import InputError
from mistral.memory import available_memory, require_memory
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import Snapshot, can_rewind
from mistral.model.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a row are chosen; `eos_id` ends it. The ids of `prompt` count for a repetition penalty.

    With each token, the logprobs of the `top` likeliest are wanted.
    """

    settings: SamplingSettings
    prompt: Sequence[int]
    eos_id: int | None = None
    top: int = 0


@dataclass(frozen=True)
class Work:
    """New tokens of one row, and what is wanted of them.

    `logits`: of which of them; `targets`: ids whose logprobs are wanted, each foretold by the token at its place, for
    which `logits` must be "all"; `sample`: whether to choose the token that follows the last.
    """

    row: int
    ids: Sequence[int]
    logits: Literal["none", "last", "all"] = "last"
    targets: Sequence[int] = ()
    sample: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one piece of work: logprobs of its targets; the id chosen, its logprob, and whether it ends the row.

    top: the likeliest ids in its place and their logprobs. Logprobs are those of the raw logits, in nats.
    """

    logprobs: tuple[float, ...] = ()
    id: int | None = None
    logprob: float | None = None
    finished: bool = False
    top: tuple[tuple[int, float], ...] = ()


def context_limit(args: ModelArgs, max_context: int | None) -> int | None:
    """Tokens that a row may have: the checkpoint's limit and the user's, the less of the two."""
    if max_context is not None and max_context < 1:
        raise InputError(f"--max_context {max_context}: must be at least 1")
    return min((limit for limit in (args.max_seq_len, max_context) if limit is not None), default=None)


def wanted_tokens(work: Sequence[Work]) -> tuple[list[int], NDArray[np.int64]]:
    """How many logits each piece wants, and the flat tokens whose logits these are."""
    ends = np.cumsum([len(piece.ids) for piece in work])
    counts = [{"none": 0, "last": 1, "all": len(piece.ids)}[piece.logits] for piece in work]
    wanted = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return counts, np.concatenate(wanted)


class Samplers:
    """Chooses tokens for the rows that have joined with a `Sampling`."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[SamplingRow, Sampling]] = {}

    def join(self, row: int, sampling: Sampling) -> None:
        """A new row."""
        self._rows[row] = SamplingRow(sampling.settings, sampling.prompt), sampling

    def leave(self, row: int) -> None:
        """Forget a row, if it is known."""
        self._rows.pop(row, None)

    def choose(self, work: Sequence[Work], logits: Sequence[NDArray[np.float32]]) -> list[Outcome]:
        """What comes of each piece, whose logits are (n, V). Raises InputError for logits that are not numbers."""
        scored = [_scores(piece.targets, found) for piece, found in zip(work, logits, strict=True)]
        places = [place for place, piece in enumerate(work) if piece.sample]
        outcomes = [Outcome(logprobs) for logprobs in scored]
        if places:
            rows = [self._rows[work[place].row] for place in places]
            ids, logprobs = sampler(np.stack([logits[place][-1] for place in places]), [row for row, _ in rows])
            for place, (row, wanted), token, logprob in zip(places, rows, ids.tolist(), logprobs.tolist(), strict=True):
                finished = token == wanted.eos_id
                if not finished:
                    row.append(token)
                top = likeliest(logits[place][-1], wanted.top)
                outcomes[place] = Outcome(scored[place], token, logprob, finished, top)
        return outcomes


def _scores(targets: Sequence[int], logits: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(target_logprob(logits[i], target) for i, target in enumerate(targets))


class Engine:
    """A model with a cache whose rows come and go, each with its own capacity."""

    num_pipeline_ranks = 1
    num_micro_batches: int | None = None

    def __init__(self, model: Transformer, max_context: int | None = None) -> None:
        """`max_context` limits the tokens of a row where the checkpoint itself does not, or does so less."""
        self.context_limit = context_limit(model.args, max_context)
        self.model, self.cache, self.samplers = model, model.new_cache(), Samplers()
        self._next_row, self._available = 0, 0
        self._outcomes: dict[int, list[Outcome]] = {}
        self._next_ticket = 0

    @property
    def args(self) -> ModelArgs:
        """The model's architecture."""
        return self.model.args

    def join(self, capacity: int, sampling: Sampling | None = None) -> int:
        """A new row that will see at most `capacity` tokens -> its number. Raises InputError where memory is short."""
        limit = self.context_limit
        assert limit is None or capacity <= limit
        if not self.cache.rows:
            self._available = available_memory()
        require_cache(capacity, self.cache.nbytes(capacity), self._available - self._taken())
        row, self._next_row = self._next_row, self._next_row + 1
        self.cache.add(row, capacity)
        if sampling:
            self.samplers.join(row, sampling)
        return row

    def kv_seqlen(self, row: int) -> int:
        """Tokens of a row that the cache holds."""
        return self.cache.kv_seqlen(row)

    def resume(self, row: int, kv_seqlen: int, capacity: int, sampling: Sampling | None = None) -> int:
        """Let a row go on after its first `kv_seqlen` tokens, up to `capacity` -> how many of them it still has.

        That is 0 where a rolling cache has overwritten what the next token needs. Raises InputError where memory is
        short; nothing has changed then.
        """
        assert self.context_limit is None or capacity <= self.context_limit
        held = self.cache.rows[row]
        more = self.cache.nbytes(max(capacity, held.capacity)) - self.cache.nbytes(held.capacity)
        require_cache(capacity, more, self._available - self._taken())
        left = kv_seqlen if can_rewind(self.args.sliding_windows, held.written, kv_seqlen) else 0
        self.cache.resume(row, left, capacity)
        if sampling:
            self.samplers.join(row, sampling)
        return left

    def export(self, row: int, ids: Sequence[int]) -> Snapshot:
        """What the cache holds of a row, whose tokens are `ids`."""
        return self.cache.export(row, ids)

    def restore(
        self, snapshot: Snapshot, kv_seqlen: int, capacity: int, sampling: Sampling | None = None
    ) -> tuple[int, int]:
        """A new row that begins with the first `kv_seqlen` tokens of a snapshot -> its number, and how many it has.

        That is 0 where the snapshot does not hold what the next token needs. Raises InputError as `join` does.
        """
        row = self.join(capacity, sampling)
        if not kv_seqlen or not can_rewind(self.args.sliding_windows, snapshot.written, kv_seqlen):
            return row, 0
        self.cache.drop(row)
        self.cache.restore(row, capacity, snapshot, kv_seqlen)
        return row, kv_seqlen

    def _taken(self) -> int:
        """Bytes of the rows; they take their memory only as they fill, so it is counted here, not by the system."""
        return sum(self.cache.nbytes(row.capacity) for row in self.cache.rows.values())

    def leave(self, row: int) -> None:
        """Forget a row; its memory is free at once."""
        self.cache.drop(row)
        self.samplers.leave(row)

    def step(self, work: Sequence[Work]) -> list[NDArray[np.float32]]:
        """Run the new tokens of some rows through the model.

        Returns, for each piece of work, float32 logits (n, V): of none, the last, or all of its tokens. The head runs
        only on those.
        """
        counts, wanted = wanted_tokens(work)
        ids = np.concatenate([np.asarray(piece.ids, np.int64) for piece in work])
        seqlens, rows = [len(piece.ids) for piece in work], [piece.row for piece in work]
        logits = self.model.forward(ids, seqlens, self.cache, rows, wanted)
        return np.split(logits.asnumpy(), np.cumsum(counts)[:-1])

    def submit(self, work: Sequence[Work]) -> int:
        """Begin a micro-batch -> a ticket for what comes of it. Raises InputError for weights that overflow."""
        outcomes = self.samplers.choose(work, self.step(work))
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._outcomes[ticket] = outcomes
        return ticket

    def collect(self, ticket: int) -> list[Outcome]:
        """What came of each piece of a micro-batch, once it is through."""
        return self._outcomes.pop(ticket)


def require_cache(capacity: int, needed: int, available: int) -> None:
    """Raise InputError where a row's cache of `needed` bytes is more than what is available."""
    purpose, remedy = f"the cache of {capacity} tokens", "lower --max_tokens or --max_context, or shorten the text"
    require_memory(needed, available, purpose, remedy)
