"""Generation of tokens from prompts, for a whole model and for a pipeline of ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from mistral.engine.engine import Engine
from mistral.engine.requests import Event, Prefilled, Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import generate_stream
from mistral.engine.speculation import Speculation
from mistral.errors import InputError
from mistral.load import Transformer
from mistral.pipeline.engine import PipelineEngine
from mistral.pipeline.follower import Follower

T = TypeVar("T")


def open_engine(model: Transformer, max_context: int | None = None, num_micro_batches: int | None = None) -> Engine:
    """An engine for a whole model, or on the first rank of a pipeline; the other ranks call `serve`."""
    if model.world is None:
        return Engine(model, max_context)
    return PipelineEngine(model, model.world, max_context, num_micro_batches)


@dataclass
class Result:
    """The result that the first rank sends to the others at the end."""

    value: Any = None


@contextmanager
def driven(engine: Engine) -> Iterator[Result]:
    """A block in which an engine is used; at its end the other ranks' `serve` returns the result.

    An InputError that leaves the block is raised on them, too. If output cannot be written they just end; any other
    exception ends the job.
    """
    result = Result()
    if not isinstance(engine, PipelineEngine):
        yield result
        return
    try:
        yield result
    except OSError:
        engine.close()
        raise
    except InputError as error:
        engine.close(error)
        raise
    except BaseException as error:
        engine.world.fail_with(error)
    engine.close(result.value)


def drive(engine: Engine, use: Callable[[], T]) -> T:
    """The result of `use`, which every other rank's `serve` then returns; see `driven`."""
    with driven(engine) as result:
        result.value = use()
    return cast(T, result.value)


def serve(model: Transformer) -> Any:
    """Execute the first rank's orders until it closes its engine; returns its result.

    Raises the InputError that it sends; any other exception here ends the job.
    """
    world = model.world
    if world is None or not world.rank:
        raise InputError("serve is for the ranks beside the first of a job that mpirun has started; use drive here")
    world.busy = True
    try:
        result = Follower(model, world).serve()
    except BaseException as error:
        world.fail_with(error)
    world.busy = False
    if isinstance(result, InputError):
        raise result
    return result


def generate(
    encoded_prompts: Sequence[Sequence[int]],
    model: Transformer,
    max_tokens: int = 35,
    temperature: float = 0.0,
    chunk_size: int | None = None,
    eos_id: int | Collection[int] | None = None,
    *,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    sample: int = 0,
    prompt_logprobs: bool = True,
    max_context: int | None = None,
    num_micro_batches: int | None = None,
    excluded: Sequence[range] = (),
    speculate: str = "auto",
) -> tuple[list[list[int]], list[list[float]]]:
    """Generate for prompts of any lengths as one batch.

    `eos_id` ends an answer; it may be a collection, such as a tokenizer's `end_ids`. The ids in `excluded` are never
    sampled, such as `tokenizer.uncovered()`, those without a piece. speculate: see `Speculation`.

    Returns, for each prompt, the ids generated (without `eos_id`) and the log-probabilities, in nats from the raw
    logits, of the prompt's tokens 1, 2, ... and then of each id generated; with `prompt_logprobs` False, of the latter
    alone, and the head then runs only for tokens that are sampled. Sampling depends on (seed, sample), not on the index
    of the prompt. On a pipeline every rank calls this and gets the result; the prompts of the first rank are used. May
    be called from several threads with one model: their steps take turns.

    Raises InputError for invalid prompts or settings, and if logits are not finite.
    """
    if model.world is not None and model.world.rank:
        return cast(tuple[list[list[int]], list[list[float]]], serve(model))
    settings = SamplingSettings(temperature, top_p, top_k, min_p, repetition_penalty, seed, sample)
    try:
        prompts = list(encoded_prompts)
    except TypeError:
        raise InputError(f"encoded_prompts is {type(encoded_prompts).__name__}: give a list of lists of ids") from None
    fixed = max_tokens, settings, eos_id, None, prompt_logprobs
    requests = [Request(prompt, *fixed, excluded=tuple(excluded)) for prompt in prompts]
    engine, speculation = open_engine(model, max_context, num_micro_batches), Speculation.of(speculate, model.ops.name)

    def answered() -> tuple[list[list[int]], list[list[float]]]:
        return _collected(generate_stream(engine, requests, chunk_size, speculation=speculation), len(requests))

    return drive(engine, answered)


def _collected(events: Iterable[Event], requests: int) -> tuple[list[list[int]], list[list[float]]]:
    """Ids and log-probabilities of each request. Raises the error of the first request that has one."""
    tokens: list[list[int]] = [[] for _ in range(requests)]
    logprobs: list[list[float]] = [[] for _ in range(requests)]
    for event in events:
        if isinstance(event, Prefilled):
            logprobs[event.index].extend(event.logprobs)
        elif event.error:
            raise event.error
        elif event.id is not None and event.logprob is not None:
            tokens[event.index].append(event.id)
            logprobs[event.index].append(event.logprob)
    return tokens, logprobs
