"""What every command needs: a checkpoint, its tokenizer, its model, and the options that shape an answer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mistral.checkpoint import Checkpoint
from mistral.device import check_device
from mistral.engine import Engine
from mistral.errors import InputError
from mistral.generate import Request, Timings
from mistral.load import check_options, load_model
from mistral.model import split_layers
from mistral.mpi import connect
from mistral.options import operand, option
from mistral.pipeline import PipelineEngine, drive, open_engine, serve
from mistral.progress import Progress
from mistral.sampling import SamplingSettings
from mistral.shards import open_shared
from mistral.textstream import TextStream
from mistral.tokenizer import Tokenizer


def shipped_checkpoint() -> Path:
    """The small trained checkpoint that comes with the project: in the package when installed, else beside it."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "checkpoints" / "tiny"
    return beside if beside.is_dir() else package / "tiny"


@dataclass(frozen=True)
class Options:
    """The options that all commands share; `mistral/options.py` turns text into them."""

    ckpt: str | None = operand("The checkpoint folder; the small one that ships with the project when left out.")
    max_tokens: int = option(35, "New tokens for each prompt, at most.")
    temperature: float = option(0.0, "0 takes the likeliest token; higher values spread the choice.")
    top_p: float = option(1.0, "Choose among the likeliest tokens that together reach this probability; 1 is off.")
    top_k: int = option(0, "Choose among this many of the likeliest tokens; 0 is off.")
    min_p: float = option(0.0, "Leave out tokens below this share of the likeliest one's probability; 0 is off.")
    repetition_penalty: float = option(1.0, "Above 1, tokens that occurred before become less likely; 1 is off.")
    seed: int = option(0, "Same seed, same text.")
    stop: tuple[str, ...] = option((), "End an answer before this text; a JSON list of texts for several, or @FILE.")
    chunk_size: int | None = option(None, "Prompt tokens read at once; 512 when left out. Changes no result.")
    max_context: int | None = option(None, "Prompt and answer together, in tokens, where the checkpoint allows more.")
    backend: str = option("auto", "auto, native (CPU kernels, built on first use) or portable (MindSpore operators).")
    device: str = option("auto", "auto, CPU or Ascend.")
    threads: int | None = option(None, "Threads on a CPU; one for each core when left out.")
    bits: int = option(16, "16: the weights as they lie in the file; 8 or 4: quantized while loading.")
    lora: str | None = option(None, "A folder with a LoRA adapter, Mistral's or PEFT's, merged into the weights.")
    precise: bool = option(False, "Keep activations and cache in float32.")
    num_pipeline_ranks: int = option(1, "Processes that share the layers, started by mpirun -n; 1: this process alone.")
    pipeline_split: str = option("auto", "Layers of each rank, as 20,12; auto: such that no rank is much slower.")
    num_micro_batches: int | None = option(
        None, "Parts of the batch under way between the ranks at once, at most; chosen when left out."
    )
    json: bool = option(False, "Results as JSON, one object a line.")

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is loaded."""
        check_options(self.num_pipeline_ranks, self.backend, self.bits, self.device)
        check_device(self.device, self.threads)
        if self.max_tokens < 0:
            raise InputError(f"--max_tokens {self.max_tokens}: must be 0 or more")
        for name in ("chunk_size", "max_context", "num_micro_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} {value}: must be at least 1")
        self.settings()

    def settings(self) -> SamplingSettings:
        """How a token is chosen."""
        return SamplingSettings(
            self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty, self.seed
        )


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
