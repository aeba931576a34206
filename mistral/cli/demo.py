"""The demo command: complete a few prompts as one batch, and show them in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mistral.cli.console import Board, ProgressLine, result_line
from mistral.cli.model_options import Options
from mistral.cli.options import option
from mistral.cli.session import Session, open_files, raise_first, running
from mistral.cli.token_records import PartialAnswer
from mistral.engine.prompt_cache import PromptCache
from mistral.engine.requests import Prefilled
from mistral.engine.scheduler import generate_stream
from mistral.errors import InputError

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
        None,
        "A file for the cache of the first prompt; prompts reuse the prefix that they share with it.",
        file=True,
    )

    def run(self) -> None:
        """Load the model, complete the prompts, report the timings. Raises InputError for what cannot be loaded."""
        texts, cache = self.prompts or PROMPTS, None
        opened = open_files(self)
        with opened.before_loading() as first:
            if first and self.prompt_cache is not None:
                cache = PromptCache.open(self.prompt_cache, opened.checkpoint, self.bits)
        with running(opened) as session:
            if session:
                complete(session, texts, cache)


def complete(session: Session, texts: Sequence[str], cache: PromptCache | None = None) -> None:
    """Complete the texts as one batch; show them in order, or each as a JSON line when it is finished.

    Raises InputError, at the end, if a text could not be completed.
    """
    options = session.options
    requests = [session.request(session.tokenizer.encode(text), text_follows=True) for text in texts]
    board = Board(["" if options.json else text for text in texts])
    answers, errors = [PartialAnswer() for _ in texts], list[InputError]()
    total = sum(len(request.prompt) for request in requests)
    progress = ProgressLine("reading prompts:", "tokens", total=total)
    session.engine.on_layer = progress.layer
    stream = cache.stream if cache else generate_stream
    for event in stream(
        session.engine, requests, options.chunk_size, timings=session.timings, speculation=session.speculation
    ):
        if isinstance(event, Prefilled):
            progress(session.timings.prefill_tokens, total)
            continue
        progress.give_way()
        answers[event.index].add(event)
        if event.error:
            errors.append(event.error.within(f"prompt {event.index}") if len(texts) > 1 else event.error)
        if not options.json:
            board.add(event.index, event.text, event.finish_reason is not None)
        elif event.finish_reason:
            print(result_line(record(event.index, texts[event.index], answers[event.index])), flush=True)
    session.report()
    raise_first(errors)


def record(index: int, prompt: str, answer: PartialAnswer) -> dict[str, Any]:
    """A finished answer as a JSON object."""
    result = {"index": index, "prompt": prompt, "text": answer.text, "ids": answer.ids}
    return result | {"finish_reason": answer.finish_reason} | ({"error": str(answer.error)} if answer.error else {})
