"""Runs the completions of the complete command, and writes their results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mistral.cli import console
from mistral.cli.complete.complete_options import CompleteOptions
from mistral.cli.complete.plan import Item, own_options, plan
from mistral.cli.complete.prompt_file import Prompt
from mistral.cli.complete.result_file import ResultFile, remembered_seed
from mistral.cli.console import Board, ProgressLine, result_line
from mistral.cli.session import OpenedFiles, Session, raise_first
from mistral.cli.token_records import PartialAnswer, token_line, token_record
from mistral.engine.engine import OPEN_ENDED, Engine
from mistral.engine.prompt_cache import PromptCache
from mistral.engine.requests import Prefilled, Request
from mistral.engine.scheduler import generate_stream
from mistral.errors import InputError
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_calls import parse_reply


@dataclass(frozen=True)
class Job:
    """The items that are still to be completed, `total` with those that are in the file `out` already."""

    options: CompleteOptions
    items: Sequence[Item]
    total: int
    out: ResultFile | None
    cache: PromptCache | None

    @classmethod
    def prepared(cls, options: CompleteOptions, prompts: Sequence[Prompt], opened: OpenedFiles) -> Job:
        """Check all prompts, and leave out those whose results are there already. Raises InputError naming a prompt.

        The job's options have a seed: where none is named, that of the results that are there, or a random one.
        """
        cache = None
        if options.prompt_cache is not None:
            cache = PromptCache.open(options.prompt_cache, opened.checkpoint, options.bits)
        drawn = {index for index, prompt in enumerate(prompts) if own_options(options, prompt).draws_seed}
        known = remembered_seed(options.out, drawn) if options.out is not None else None
        seeded = replace(options, seed=None).with_seed(known)
        assert seeded.seed is not None
        items, out = plan(options, seeded.seed, prompts, opened.checkpoint, opened.tokenizer), None
        total = len(items)
        if options.out is not None:
            out = ResultFile(options.out, {(item.index, item.sample): item.key for item in items})
            items = [item for item in items if (item.index, item.sample) not in out.done]
            if out.done:
                print(f"note: {options.out} has {len(out.done)} of {total} results already", file=sys.stderr)
        if any(item.options.n > 1 and item.options.temperature == 0 for item in items):
            print("note: with --temperature 0, all samples of a prompt are the same", file=sys.stderr)
        return cls(options.with_seed(seeded.seed), items, total, out, cache)


def complete(session: Session, job: Job) -> None:
    """Complete what is left. Ctrl-C keeps the results so far.

    Raises InputError at the end where a prompt could not be completed; the others are.
    """
    try:
        errors = complete_items(session, job)
    except KeyboardInterrupt:
        if job.options.shows_text:
            print(flush=True)  # below an answer that was cut off
        if job.out is None:
            raise
        done = f"{len(job.out.done)} of {job.total} results are in {job.options.out}"
        raise KeyboardInterrupt(f"interrupted; {done}, and the same command goes on") from None
    finally:
        if job.out:
            job.out.close()
    session.report()
    raise_first(errors)


def requests_of(items: Iterable[Item], engine: Engine) -> list[Request]:
    """The requests of items; one whose answer has no limit is given the room that the engine has for it."""
    items = list(items)
    rooms = engine.answer_rooms([len(item.request.prompt) for item in items])
    return [
        item.request if item.options.max_tokens is not None else replace(item.request, max_tokens=room)
        for item, room in zip(items, rooms, strict=True)
    ]


def complete_items(session: Session, job: Job) -> list[InputError]:
    """Complete the items and show or write their results -> the errors of those that could not be completed."""
    options, answers, errors = job.options, dict[int, PartialAnswer](), list[InputError]()
    show = shower(len(job.items)) if options.shows_text else None
    total, cut = sum(len(item.request.prompt) for item in job.items), 0
    reading = ProgressLine("reading prompts:", "tokens", total=total)
    finishing = ProgressLine("completing:", "results")
    if len(job.items) <= options.batch_size:
        session.engine.on_layer = reading.layer
    requests = requests_of(job.items, session.engine)
    stream = job.cache.stream if job.cache else generate_stream
    for event in stream(
        session.engine, requests, options.chunk_size, options.batch_size, session.timings, session.speculation
    ):
        if isinstance(event, Prefilled):
            if len(job.items) <= options.batch_size:
                reading(session.timings.prefill_tokens, total)
            continue
        reading.give_way()
        item = job.items[event.index]
        answer = answers.setdefault(event.index, PartialAnswer(item.parts()))
        added = answer.add(event)
        if event.error:
            errors.append(event.error.within(item.prompt.where))
        if show:
            logprobs = item.options.logprobs is not None
            text = token_line(event, session.tokenizer) if logprobs else added
            show(event.index, text, event.finish_reason is not None)
            cut += event.finish_reason == "length"
        elif event.finish_reason:
            finish(job, item, answers.pop(event.index), session.tokenizer)
            if job.out:
                finishing(len(job.out.done), job.total)
    if cut:
        say_cut(options, cut, len(job.items), session.engine.context_limit)
    return errors


def say_cut(options: CompleteOptions, cut: int, answers: int, limit: int | None) -> None:
    """Print a note on standard error about answers that were cut, and why."""
    which = "the answer is" if answers == 1 else f"{cut} of {answers} answers are"
    most = "the end of memory" if limit is None else f"the context limit of {limit} tokens"
    if options.max_tokens is not None:
        most = f"--max_tokens {options.max_tokens}" + ("" if limit is None else f" or {most}")
    elif limit is None:
        most = f"{OPEN_ENDED} tokens, or {most}; --max_tokens N allows more"
    print(f"note: {which} cut at {most}", file=sys.stderr)


def finish(job: Job, item: Item, answer: PartialAnswer, tokenizer: Tokenizer) -> None:
    """Write a result. One that ended in an error does not go into a file: the same command tries it again."""
    result = record(item, answer, tokenizer)
    if job.out is None:
        print(result_line(result), flush=True)
    elif answer.error is None:
        job.out.write({**result, "key": item.key})
        job.out.done.add((item.index, item.sample))


def shower(count: int) -> Callable[[int, str, bool], None]:
    """What shows more text of an answer and whether that ends it: a single one as it grows, several in their order."""
    if count > 1:
        return Board([""] * count).add

    def show(index: int, text: str, finished: bool) -> None:
        console.write(text, end="\n" if finished else "")

    return show


def record(item: Item, answer: PartialAnswer, tokenizer: Tokenizer) -> dict[str, Any]:
    """A result as JSON has it: with the calls of tools that are in an answer to messages, apart from its text."""
    settings = item.request.settings
    result = {
        "index": item.index,
        **item.prompt.shown,
        **({"sample": item.sample} if item.options.n > 1 else {}),
        **({"seed": settings.seed} if settings.temperature > 0 else {}),
        "text": answer.text,
        **({"reasoning_content": answer.thoughts} if answer.thoughts else {}),
        "ids": answer.ids,
        "finish_reason": answer.finish_reason,
        **({"error": str(answer.error)} if answer.error else {}),
    }
    if item.prompt.messages:
        result |= called(item, answer, tokenizer)
    if item.options.logprobs is not None:
        result["logprobs"] = [token_record(step, tokenizer) for step in answer.steps]
    return result


def called(item: Item, answer: PartialAnswer, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a result says of calls in an answer: text, calls and finish_reason as chat interfaces have them."""
    tokens = tokenizer.tool_tokens
    if tokens is None or tokens.calls not in answer.ids:
        return {}
    taken = [call.id for message in item.prompt.messages for call in message.calls]
    reply = parse_reply(tokenizer, answer.ids, item.prompt.tools, taken, item.thinks)
    found: dict[str, Any] = {"text": reply.text}
    if reply.calls:
        found["tool_calls"] = [call.record() for call in reply.calls]
        found["finish_reason"] = "tool_calls" if answer.finish_reason == "stop" else answer.finish_reason
    return found | ({"warning": reply.warning} if reply.warning else {})
