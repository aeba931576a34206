"""A request for an answer, and the events that report its progress."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.sampling import SamplingSettings
from mistral.errors import InputError
from mistral.grammar.grammar import Grammar
from mistral.model.args import ModelArgs
from mistral.model.inputs import prompt_ids
from mistral.model.kv_cache import Snapshot
from mistral.tokenizer.streaming import TextStream

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Request:
    """A prompt (ids), and how to answer it. `text` decodes ids and has the stop strings.

    eos_id: the id that ends the answer, or a collection of such ids. The ids in `excluded` are never sampled.

    logprobs: whether the log-probability of each generated token is wanted; top: the number of likeliest ids at its
    position whose log-probabilities are wanted as well. prompt_logprobs: whether those of prompt ids from `scored_from`
    on are wanted.

    Neither an end id nor a stop string ends the answer before it has `min_tokens` tokens; with `ignore_eos`, no end id
    does at all. `constraint`: a grammar that restricts the answer, and ends it; an answer that is cut, by max_tokens or
    a stop string, is a prefix of one that the grammar allows.

    prediction: ids that the answer may consist of, in whole or in part, for draft tokens; they change only the time.

    A prefix that is already computed is taken from `slot`, whose row then serves this request, or copied from `start`;
    there are no log-probabilities of that part. `on_prompt_read` is called once the prompt has been read.

    An InputError raised by `text` or `on_prompt_read` ends this request and no other.
    """

    prompt: Sequence[int]
    max_tokens: int = 35
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    eos_id: int | Collection[int] | None = None
    text: TextStream | None = None
    prompt_logprobs: bool = False
    slot: PrefixSlot | None = None
    start: Snapshot | None = None
    scored_from: int = 1
    top: int = 0
    logprobs: bool = True
    on_prompt_read: Callable[[], None] | None = None
    excluded: tuple[range, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    constraint: Grammar | None = None
    prediction: Sequence[int] = ()


@dataclass(frozen=True)
class Prefilled:
    """`done` of `total` prompt tokens of request `index` have been read.

    logprobs: log-probabilities, in nats, of the prompt ids that this step has scored; the last of them is that of
    prompt id min(done, total - 1). tops: the `top` likeliest ids at the position of each, with their log-probabilities,
    if the request asks for them. cached: tokens of the prompt that were reused and not computed.
    """

    index: int
    done: int
    total: int
    logprobs: tuple[float, ...]
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    cached: int = 0


@dataclass(frozen=True)
class Generated:
    """One step of the answer to request `index`.

    id is None if the answer ends without a token: at the end-of-sequence id, which is not shown, at once if max_tokens
    is 0, or because of an error or a cancellation. logprob is that of the raw logits, in nats, if it was asked for;
    top: the likeliest ids at the same position, with theirs. `error` is the error, for finish_reason "error". accepted,
    rejected: the draft tokens of the row's step; they are in the event of its first token.
    """

    index: int
    id: int | None
    logprob: float | None
    text: str
    finish_reason: FinishReason | None
    top: tuple[tuple[int, float], ...] = ()
    error: InputError | None = None
    accepted: int = 0
    rejected: int = 0


Event = Prefilled | Generated


def check_request(name: str, request: Request, args: ModelArgs, limit: int | None) -> None:
    """Raise InputError, naming the request, if it cannot be served in a context of `limit` tokens."""
    prompt_ids(name, request.prompt, args.vocab_size)
    end_ids(request.eos_id)
    if request.max_tokens < 0:
        raise InputError("must be 0 or more", option="max_tokens", value=request.max_tokens)
    if request.min_tokens < 0:
        raise InputError("must be 0 or more", option="min_tokens", value=request.min_tokens)
    beyond = max(request.settings.logit_bias, default=0)
    if beyond >= args.vocab_size:
        raise InputError(
            f"{name}: logit_bias has the id {beyond}, and the model has {args.vocab_size} ids; leave it out"
        )
    length = len(request.prompt)
    if limit is not None and length + min(request.max_tokens, 1) > limit:
        raise InputError(f"{name} has {length} tokens and the context limit is {limit}: shorten the prompt")


def end_ids(eos_id: object) -> frozenset[int]:
    """The ids that end an answer, from one id, several, or None. Raises InputError for anything else."""
    several = isinstance(eos_id, Iterable) and not isinstance(eos_id, str | bytes)
    try:
        if eos_id is None:
            return frozenset()
        ids: list[Any] = list(eos_id) if several else [eos_id]  # type: ignore[call-overload]
        if any(isinstance(each, bool | np.bool_) for each in ids):
            raise TypeError
        return frozenset(map(operator.index, ids))
    except TypeError:
        shown = repr(eos_id)[:40]
        raise InputError(f"eos_id must be an id, a list of ids or None, not {shown}") from None


def row_capacity(request: Request, limit: int | None) -> int:
    """The most tokens of a request's row: prompt and answer, within the context limit."""
    wanted = len(request.prompt) + request.max_tokens
    return wanted if limit is None else min(wanted, limit)
