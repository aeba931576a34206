"""The score command: the log-probability of each token of a text, and the perplexity."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral.cli.console import ProgressLine, result_line
from mistral.cli.divergence import compare
from mistral.cli.input_text import display_name, read_text_file
from mistral.cli.model_options import Options
from mistral.cli.options import fixed, operand, option
from mistral.cli.session import Session, open_files, running
from mistral.cli.token_records import finite, piece_text
from mistral.engine.engine import Engine, context_limit
from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import generate_stream
from mistral.engine.timings import Timings
from mistral.errors import InputError
from mistral.load import load_model
from mistral.model.args import ModelArgs
from mistral.pipeline.launch import launched
from mistral.places import find_checkpoint
from mistral.tokenizer.tokenizer import Tokenizer

# Where neither checkpoint nor user limits it and a layer sees everything: no model here was made for less
CONTEXT = 32768
CHUNK = 512  # tokens whose logits are in memory at once


@dataclass(frozen=True)
class Score(Options):
    """Score a text: the logprob of each token, their sum, and the perplexity.

    FILE is a text file, or - for standard input. A text longer than the context is read in windows that overlap, each
    of which begins with the beginning-of-sequence id; a token is scored once, in the first window that has it. A model
    whose layers all have sliding windows reads any text in one go.
    """

    file: str | None = operand("The text file, in UTF-8; - is standard input.", alone=True)
    stride: int | None = option(None, "Tokens by which a window advances; half of the context when left out.")
    min_context: int | None = option(None, "Instead: the least tokens before each scored one, except at the start.")
    reference: str | None = option(
        None, "Another checkpoint of the same vocabulary: how far this one's predictions are from its.", file=True
    )
    max_tokens: int = fixed(0)
    temperature: float = fixed(0.0)
    top_p: float = fixed(1.0)
    top_k: int = fixed(0)
    min_p: float = fixed(0.0)
    repetition_penalty: float = fixed(1.0)
    seed: int | None = fixed(0)
    stop: tuple[str, ...] = fixed(())
    speculate: str = fixed("off")
    draft: str | None = fixed(None)

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is loaded."""
        super().check()
        if self.file is None:
            raise InputError("score: name a text file, or - for standard input, after the checkpoint")
        if self.stride is not None and self.min_context is not None:
            raise InputError("--min_context: is what --stride leaves of the context; leave one out")
        if self.reference is not None and self.num_pipeline_ranks > 1:
            raise InputError("--reference: two models are compared in one process; leave out --num_pipeline_ranks")
        if self.reference is not None:
            require_reference(self.reference)
        if self.stride is not None and self.stride < 1:
            raise InputError(f"--stride {self.stride}: must be at least 1")
        if self.min_context is not None and self.min_context < 1:
            raise InputError(f"--min_context {self.min_context}: must be at least 1")

    def run(self) -> None:
        """Read the text, load the model, score. Raises InputError for a text or model that cannot be read."""
        assert self.file is not None
        launch = launched()
        text = read_text_file(self.file) if launch is None or launch.rank == 0 else ""
        if not text and not (launch and launch.rank):
            raise InputError(f"{display_name(self.file)}: empty; there is nothing to score")
        opened, scored = open_files(self), None
        with opened.before_loading() as first:
            if first:
                ids = opened.tokenizer.encode(text, bos=False)
                scored = ScoredText(text, ids, *choose_context(self, opened.checkpoint.args))
        with running(opened) as session:
            if session and scored and self.reference is not None:
                compare_with(session, scored, self.reference)
            elif session and scored:
                score(session, scored)


def require_reference(reference: str) -> None:
    """Raise InputError, naming the option, if there is no checkpoint to compare with."""
    try:
        find_checkpoint(reference)
    except InputError as error:
        raise error.within("--reference") from None


@dataclass(frozen=True)
class Window:
    """A part of a text: the tokens `start` to `stop`, of which those from `scored` on are scored in it."""

    start: int
    scored: int
    stop: int


def windows(tokens: int, context: int | None, overlap: int) -> list[Window]:
    """Parts of at most `context` tokens that score each of `tokens` once, with `overlap` before it but at the start."""
    if context is None or tokens <= context:
        return [Window(0, 0, tokens)]
    stops = [*range(context, tokens, context - overlap), tokens]
    return [Window(0, 0, context), *(Window(done - overlap, done, stop) for done, stop in pairwise(stops))]


def choose_context(options: Score, args: ModelArgs) -> tuple[int | None, int]:
    """Text tokens that a window holds beside its first id, None for any number, and how many of these overlap.

    Raises InputError where options leave no room.
    """
    limit = context_limit(args, options.max_context)
    if limit is None and None in args.sliding_windows:
        limit = CONTEXT
    if limit is None:
        for name in ("stride", "min_context"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name}: needs --max_context, for this model's context has no limit")
        return None, 0
    context = limit - 1
    overlap = context // 2
    if options.stride is not None:
        overlap = context - options.stride
    if options.min_context is not None:
        overlap = options.min_context - 1  # the beginning of the sequence counts
    if not 0 <= overlap < context:
        name, value = ("stride", options.stride) if options.stride is not None else ("min_context", options.min_context)
        if value is None:
            raise InputError(f"--max_context {limit}: must be at least 2")
        raise InputError(f"--{name} {value}: must be less than the context of {limit} tokens")
    return context, overlap


def score_windows(
    engine: Engine,
    ids: Sequence[int],
    parts: Sequence[Window],
    bos_id: int,
    chunk_size: int | None,
    timings: Timings,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Logprobs of ids (T,), in nats: the place of the first of some, and these, in any order."""
    requests = [
        Request(
            [bos_id, *ids[part.start : part.stop]], 0, prompt_logprobs=True, scored_from=part.scored - part.start + 1
        )
        for part in parts
    ]
    chunk_size = chunk_size or CHUNK
    rows = max(1, chunk_size // max(len(request.prompt) for request in requests))
    for event in generate_stream(engine, requests, chunk_size, rows, timings):
        if isinstance(event, Generated):
            if event.error:
                raise event.error
        elif event.logprobs:
            part = parts[event.index]
            last = part.start + min(event.done, event.total - 1) - 1
            first = max(part.scored, last - len(event.logprobs) + 1)
            yield first, np.asarray(event.logprobs[first - last - 1 :], np.float32)


@dataclass(frozen=True)
class ScoredText:
    """A text, its ids, and the windows it is read in: `context` text tokens each (None: any number), of which `overlap`
    are also in the window before.
    """

    text: str
    ids: Sequence[int]
    context: int | None
    overlap: int

    def summary(self, logprobs: NDArray[np.float32]) -> dict[str, Any]:
        """The text as a whole, from the log-probabilities (T,) of its ids, in nats."""
        total, tokens, nbytes = float(logprobs.astype(np.float64).sum()), len(logprobs), len(self.text.encode())
        mean = total / tokens
        return {
            "tokens": tokens,
            "bytes": nbytes,
            "logprob": finite(total),
            "mean_logprob": finite(mean),
            "perplexity": finite(math.exp(-mean)) if mean > -700 else None,
            "bits_per_byte": finite(-total / math.log(2) / nbytes),
            "context": None if self.context is None else self.context + 1,
            "min_context": self.overlap + 1 if self.context is not None and tokens > self.context else None,
        }


def score(session: Session, scored: ScoredText) -> None:
    """Score a text, and show each token as soon as those before it are shown."""
    ids, options = scored.ids, session.options
    logprobs = np.full(len(ids), np.nan, np.float32)
    parts, shown = windows(len(ids), scored.context, scored.overlap), 0
    progress = ProgressLine("scoring:", "tokens", total=len(ids))
    session.engine.on_layer = progress.layer
    bos_id, chunk_size = session.tokenizer.bos_id, options.chunk_size
    for first, found in score_windows(session.engine, ids, parts, bos_id, chunk_size, session.timings):
        logprobs[first : first + len(found)] = found
        start = shown
        while shown < len(logprobs) and not math.isnan(logprobs[shown]):
            shown += 1
        if sys.stdout.isatty():
            progress.give_way()
        progress(shown, len(ids))
        show_tokens(start, ids[start:shown], logprobs[start:shown], session.tokenizer, options.json)
    assert shown == len(ids)
    show_summary(scored.summary(logprobs), options.json)
    session.report()


def compare_with(session: Session, scored: ScoredText, reference: str) -> None:
    """Compare with another checkpoint on the same ids, and show how far the two are from each other.

    Raises InputError for a checkpoint that cannot be loaded or has another vocabulary.
    """
    options, ids = session.options, scored.ids
    other = load_model(reference, 1, options.backend, 16, options.device, precise=options.precise)
    parts = windows(len(ids), scored.context, scored.overlap)
    prompts = [
        ([session.tokenizer.bos_id, *ids[part.start : part.stop]], part.scored - part.start + 1) for part in parts
    ]
    progress, found = ProgressLine("comparing:", "tokens", total=len(ids)), None
    for found in compare(session.engine, Engine(other), prompts, options.chunk_size or CHUNK // 2):
        progress(found.tokens, len(ids))
    progress.give_way()
    assert found and found.tokens == len(ids)
    record = found.record()
    if options.json:
        print(result_line({"divergence": {"reference": reference, **record}}), flush=True)
    else:
        print(
            f"{found.tokens} tokens | divergence {record['mean_kl']} nats, 99 of 100 below {record['kl_p99']} | same"
            f" likeliest token {100 * found.same_top:.2f} % | perplexity {record['perplexity']}, of the reference"
            f" {record['reference_perplexity']}"
        )


def show_tokens(
    start: int, ids: Sequence[int], logprobs: NDArray[np.float32], tokenizer: Tokenizer, as_json: bool
) -> None:
    """The tokens from place `start` on with their log-probabilities, a line each."""
    lines = []
    for index, (token, logprob) in enumerate(zip(ids, logprobs.tolist(), strict=True), start):
        text = piece_text(tokenizer, token)
        if as_json:
            lines.append(result_line({"index": index, "id": token, "text": text, "logprob": finite(logprob)}))
        else:
            lines.append(f"{index:8d} {logprob:10.4f}  {text!r}")
    print("\n".join(lines), flush=True)


def show_summary(found: Mapping[str, Any], as_json: bool) -> None:
    """Print the summary in one line."""
    if as_json:
        print(result_line({"summary": found}), flush=True)
        return
    tokens, total, mean, perplexity, bits = (
        found[name] for name in ("tokens", "logprob", "mean_logprob", "perplexity", "bits_per_byte")
    )
    print(f"{tokens} tokens | logprob {total} | {mean} a token | perplexity {perplexity} | {bits} bits a byte")
