"""What every command needs: a checkpoint, its tokenizer, its model, and the options that shape an answer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.cli.console import Progress
from mistral.cli.model_options import Options, shipped_checkpoint
from mistral.engine.engine import Engine
from mistral.engine.requests import Request
from mistral.engine.scheduler import Timings
from mistral.errors import InputError
from mistral.generate import drive, open_engine, serve
from mistral.load import load_model
from mistral.pipeline.engine import PipelineEngine
from mistral.pipeline.shared_checkpoint import open_shared
from mistral.pipeline.split import split_layers
from mistral.pipeline.world import connect
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.tokenizer import Tokenizer


@dataclass
class Session:
    """A loaded model with its tokenizer; `timings` adds up what it has generated."""

    options: Options
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    engine: Engine | PipelineEngine
    load_seconds: float
    timings: Timings = field(default_factory=Timings)

    def request(self, prompt: Sequence[int], text_follows: bool) -> Request:
        """An answer to these ids; `text_follows` says whether it continues their text or begins one of its own."""
        stream = TextStream(self.tokenizer.stream(prompt if text_follows else ()), self.options.stop)
        return Request(prompt, self.options.max_tokens, self.options.settings(), self.tokenizer.eos_id, stream)

    def figures(self) -> dict[str, float | int]:
        """Seconds, tokens and tokens a second so far."""
        t = self.timings
        return {
            "load_seconds": round(self.load_seconds, 3),
            "prefill_tokens": t.prefill_tokens,
            "prefill_tokens_per_second": round(t.prefill_tokens / t.prefill_seconds, 1) if t.prefill_seconds else 0.0,
            "decode_tokens": t.decode_tokens,
            "decode_tokens_per_second": round(t.decode_tokens / t.decode_seconds, 1) if t.decode_seconds else 0.0,
        }

    def report(self) -> None:
        """The figures, for people on standard error or as one JSON object on standard output."""
        figures = self.figures()
        if self.options.json:
            print(json.dumps({"timings": figures}), flush=True)
            return
        print(
            f"load {figures['load_seconds']:.2f} s"
            f" | prefill {figures['prefill_tokens']} tokens, {figures['prefill_tokens_per_second']} tokens/s"
            f" | decode {figures['decode_tokens']} tokens, {figures['decode_tokens_per_second']} tokens/s",
            file=sys.stderr,
        )


def with_session(
    options: Options,
    chat: bool,
    use: Callable[[Session], None],
    prepare: Callable[[Checkpoint, Tokenizer], None] | None = None,
) -> None:
    """Load, then `use` the session; on the other ranks of a pipeline, do their part of it instead.

    `chat` wants a chat template. `prepare` is called first, on the first rank, before anything is loaded.
    """
    started = time.perf_counter()
    world = connect(options.num_pipeline_ranks) if options.num_pipeline_ranks > 1 else None

    checkpoint = open_shared(shipped_checkpoint() if options.ckpt is None else options.ckpt, options.lora, world)

    def opened() -> Tokenizer:
        found = open_tokenizer(options, checkpoint, chat)
        if prepare and not (world and world.rank):
            prepare(checkpoint, found)
        return found

    tokenizer = world.agreed(opened) if world else opened()
    model = load_model(
        checkpoint, options.num_pipeline_ranks, options.backend, options.bits, options.device, options.threads,
        Progress("reading weights:", "GB", 1e9), options.precise, options.pipeline_split, world,
    )  # fmt: skip
    if world and world.rank:
        serve(model)
        return
    engine = open_engine(model, options.max_context, options.num_micro_batches)
    session = Session(options, checkpoint, tokenizer, engine, time.perf_counter() - started)
    drive(engine, lambda: use(session))


def open_tokenizer(options: Options, checkpoint: Checkpoint, chat: bool) -> Tokenizer:
    """The checkpoint's tokenizer. Raises InputError where it does not serve, or the model has too few layers."""
    split_layers(checkpoint.args.n_layers, options.num_pipeline_ranks)
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    check_tokenizer(tokenizer, checkpoint)
    if chat and not tokenizer.can_chat:
        raise InputError(
            f"{tokenizer.file}: has no chat template; for --instruct, put the model's tokenizer.model.v3 or tekken.json"
            " beside it"
        )
    for line in (*checkpoint.warnings, *([tokenizer.note] if tokenizer.note else [])):
        print(f"note: {line}", file=sys.stderr)
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    """Raise InputError for a tokenizer with ids that the model has no embedding for."""
    known, wanted = checkpoint.args.vocab_size, tokenizer.vocab_size
    if wanted > known:
        raise InputError(f"{tokenizer.file}: has {wanted} ids and the model {known}; it is another model's tokenizer")
