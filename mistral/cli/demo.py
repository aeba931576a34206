"""The demo command: complete a few prompts, all at once, and show them in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.cli.console import Board, Progress
from mistral.cli.model_options import Options
from mistral.cli.options import option
from mistral.cli.session import Session, with_session
from mistral.engine.prompt_cache import PromptCache
from mistral.engine.requests import Generated, Prefilled
from mistral.engine.scheduler import generate_stream
from mistral.tokenizer.tokenizer import Tokenizer

PROMPTS = (
    "This is a test",
    "This is another great test",
    "This is a third test, mistral AI is very good at testing. ",
)


@dataclass(frozen=True)
class Demo(Options):
    """Complete three prompts, or your own, and say how long it took."""

    prompts: tuple[str, ...] = option((), "A prompt, a JSON list of prompts, or @FILE with either.")
    prompt_cache: str | None = option(
        None, "A file that keeps what was computed of the first prompt; what prompts share with it is not read again."
    )

    def run(self) -> None:
        """Load, complete, report."""
        texts = self.prompts or PROMPTS
        caches: list[PromptCache] = []

        def prepare(checkpoint: Checkpoint, _: Tokenizer) -> None:
            if self.prompt_cache is not None:
                caches.append(PromptCache.open(self.prompt_cache, checkpoint, self.bits))

        with_session(self, False, lambda session: complete(session, texts, *caches), prepare)


def complete(session: Session, texts: Sequence[str], cache: PromptCache | None = None) -> None:
    """Complete the texts all at once; show them in order, or each as a JSON line when it is finished."""
    options = session.options
    requests = [session.request(session.tokenizer.encode(text), text_follows=True) for text in texts]
    board = Board(["" if options.json else text for text in texts])
    answers, ids = [""] * len(texts), [list[int]() for _ in texts]
    progress, total = Progress("reading prompts:", "tokens"), sum(len(request.prompt) for request in requests)
    stream = cache.stream if cache else generate_stream
    for event in stream(session.engine, requests, options.chunk_size, timings=session.timings):
        if isinstance(event, Prefilled):
            progress(session.timings.prefill_tokens, total)
            continue
        progress.clear()
        if not options.json:
            board.add(event.index, event.text, event.finish_reason is not None)
        answers[event.index] += event.text
        ids[event.index].extend(() if event.id is None else (event.id,))
        if options.json and event.finish_reason:
            print_result(event, texts[event.index], answers[event.index], ids[event.index])
    session.report()


def print_result(event: Generated, prompt: str, text: str, ids: list[int]) -> None:
    """One finished answer as a JSON line."""
    result = {"index": event.index, "prompt": prompt, "text": text, "ids": ids, "finish_reason": event.finish_reason}
    print(json.dumps(result), flush=True)
