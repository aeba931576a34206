"""Checkpoint, tokenizer, model and engine, opened for a command."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.cli.console import ProgressLine, result_line
from mistral.cli.model_options import Options, shipped_checkpoint
from mistral.cli.status_line import loaded, status
from mistral.engine.engine import Engine
from mistral.engine.requests import Request
from mistral.engine.speculation import Speculation
from mistral.engine.timings import Timings
from mistral.errors import InputError
from mistral.generate import driven, open_engine, serve
from mistral.llm.draft_files import DraftFiles
from mistral.load import Transformer, load_model
from mistral.ops.device import check_surroundings, require_address_space
from mistral.pipeline.shared_checkpoint import open_shared
from mistral.pipeline.split import split_layers
from mistral.pipeline.world import World, connect
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.template_files import SYSTEM_PROMPT
from mistral.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
EFFORTS = ("none", "high")  # values of --reasoning_effort


@dataclass
class Session:
    """A loaded model with its tokenizer; `timings` adds up what it has generated.

    `drew_seed`: the seed of the options was drawn, and is not one that somebody named.
    """

    options: Options
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    engine: Engine
    load_seconds: float
    timings: Timings = field(default_factory=Timings)
    drew_seed: bool = False
    speculation: Speculation | None = None

    def request(self, prompt: Sequence[int], text_follows: bool) -> Request:
        """An answer to these ids; `text_follows` says whether it continues their text or begins one of its own."""
        stream = TextStream(self.tokenizer.stream(prompt if text_follows else ()), self.options.stop)
        options, tokenizer = self.options, self.tokenizer
        return Request(
            prompt, options.max_tokens, options.settings(), tokenizer.end_ids, stream, logprobs=False,
            excluded=tokenizer.uncovered(),
        )  # fmt: skip

    def figures(self) -> dict[str, float | int]:
        """Seconds, tokens and tokens a second so far, and the seed where answers are drawn."""
        t, options = self.timings, self.options
        figures: dict[str, float | int] = {
            "load_seconds": round(self.load_seconds, 3),
            "prefill_tokens": t.prefill_tokens,
            "prefill_tokens_per_second": round(t.prefill_rate, 1),
            "decode_tokens": t.decode_tokens,
            "decode_tokens_per_second": round(t.decode_rate, 1),
        }
        if t.drafted_tokens:
            figures["drafted_tokens"] = t.drafted_tokens
            figures["accepted_tokens"] = t.accepted_tokens
            figures["tokens_per_step"] = round(t.tokens_per_step, 2)
        if options.temperature > 0 and options.seed is not None:
            figures["seed"] = options.seed
        return figures

    def drafts_kept(self) -> str:
        """The share of accepted draft tokens, as text."""
        t = self.timings
        return f"{100 * t.acceptance:.0f} % right, {t.tokens_per_step:.2f} tokens a step"

    def report(self) -> None:
        """The figures, for people on standard error or as one JSON object on standard output."""
        figures = self.figures()
        if self.options.json:
            print(result_line({"timings": figures}), flush=True)
            return
        print(
            f"load {figures['load_seconds']:.2f} s"
            f" | prefill {figures['prefill_tokens']} tokens, {figures['prefill_tokens_per_second']} tokens/s"
            f" | decode {figures['decode_tokens']} tokens, {figures['decode_tokens_per_second']} tokens/s"
            + (f" | drafts {self.timings.drafted_tokens}, {self.drafts_kept()}" if self.timings.drafted_tokens else "")
            + (f" | seed {figures['seed']}" if "seed" in figures else ""),
            file=sys.stderr,
        )


@dataclass(frozen=True)
class OpenedFiles:
    """A checkpoint and its tokenizer, opened and checked; nothing of the model is loaded yet.

    `world`: the ranks that share the layers, None for this process alone. `started`: when opening began, in seconds of
    `time.perf_counter`. `draft`: the files of a draft model, on the first rank.
    """

    options: Options
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    world: World | None
    started: float
    draft: DraftFiles | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that reads prompts and shows answers."""
        return self.world is None or self.world.rank == 0

    @contextmanager
    def before_loading(self) -> Iterator[bool]:
        """A block in which the first rank gets ready (True there); its InputError is raised on every rank."""
        with self.world.agreement() if self.world else nullcontext():
            yield self.is_first

    def led(self, attempt: Callable[[], T]) -> T | None:
        """What the first rank alone does, while the others wait; its InputError is raised on every rank."""
        return self.world.led(attempt) if self.world else attempt()

    def load_draft(self) -> Transformer | None:
        """The draft model, on the first rank. Raises InputError, on every rank, if it cannot be loaded."""
        options, draft = self.options, self.draft
        if options.draft is None:
            return None
        progress = ProgressLine("reading weights of the draft:", "GB", 1e9)
        how = options.backend, options.bits, options.device, options.threads, options.precise, progress
        return self.led(lambda: draft.load(*how) if draft else None)


def open_files(options: Options, chat: bool = False, chat_template: str | None = None) -> OpenedFiles:
    """Open what the options name; `chat` asks for a chat template, and `chat_template` is a file with one.

    Raises InputError, on every rank, for what is unsound.
    """
    started = time.perf_counter()
    if options.num_pipeline_ranks == 1:
        check_surroundings()  # before anything is told
        require_address_space()
    if sys.stderr.isatty() or not options.json:
        status(f"loading {Path(options.ckpt or shipped_checkpoint()).name} ...")
    world = connect(options.num_pipeline_ranks) if options.num_pipeline_ranks > 1 else None
    checkpoint = open_shared(shipped_checkpoint() if options.ckpt is None else options.ckpt, options.lora, world)
    with world.agreement() if world else nullcontext():
        tokenizer = open_tokenizer(options, checkpoint, chat, chat_template)
    opened = OpenedFiles(options, checkpoint, tokenizer, world, started)
    if options.draft is None:
        return opened
    named = options.draft
    return replace(opened, draft=opened.led(lambda: DraftFiles.open(named, checkpoint, tokenizer, options.bits)))


@contextmanager
def running(opened: OpenedFiles) -> Iterator[Session | None]:
    """Load the model and give the session that drives it; None on the other ranks, which have done their part then.

    The session's options have a seed, a random one where none was given.
    """
    options, world = opened.options.with_seed(), opened.world
    model = load_model(
        opened.checkpoint, options.num_pipeline_ranks, options.backend, options.bits, options.device, options.threads,
        ProgressLine("reading weights:", "GB", 1e9), options.precise, options.pipeline_split, world,
    )  # fmt: skip
    drafting = opened.load_draft()
    if not opened.is_first:
        serve(model)
        yield None
        return
    engine = open_engine(model, options.max_context, options.num_micro_batches)
    computed = opened.draft.drafter(drafting, engine) if opened.draft and drafting else None
    seconds = time.perf_counter() - opened.started
    loaded()
    with driven(engine):
        drew = options.seed != opened.options.seed
        yield Session(
            options, opened.checkpoint, opened.tokenizer, engine, seconds, drew_seed=drew,
            speculation=Speculation.of(options.speculate, model.ops.name, computed),
        )  # fmt: skip


def check_told(tokenizer: Tokenizer, system: str | None, reasoning_effort: str | None, offer: bool = True) -> None:
    """Check what a model is told before a conversation; with `offer`, say where it could be told something.

    Raises InputError for what its chat template cannot hold.
    """
    if reasoning_effort is not None:
        tokenizer.check_reasoning_effort(reasoning_effort)
    prompt = tokenizer.file.with_name(SYSTEM_PROMPT)
    if system is not None:
        try:
            tokenizer.check_system(system)
        except InputError as error:
            raise error.within("--system") from None
    elif offer and prompt.is_file():
        print(f"note: {SYSTEM_PROMPT} is in the folder; --system {shlex.quote(f'@{prompt}')} uses it", file=sys.stderr)


def raise_first(errors: Sequence[InputError]) -> None:
    """Raise the first of the errors that ended requests, if there are any; it says how many more there are."""
    if errors:
        raise errors[0].and_more(len(errors) - 1)


def open_tokenizer(options: Options, checkpoint: Checkpoint, chat: bool, chat_template: str | None = None) -> Tokenizer:
    """The checkpoint's tokenizer. Raises InputError where it does not serve, or the model has too few layers."""
    split_layers(checkpoint.args.n_layers, options.num_pipeline_ranks)
    if checkpoint.gguf:
        tokenizer = Tokenizer.from_gguf(checkpoint.gguf, chat_template)
    else:
        tokenizer = Tokenizer.from_folder(checkpoint.folder, chat_template)
    tokenizer = tokenizer.for_rows(checkpoint.args.vocab_size)
    if chat:
        tokenizer.check_chat()
    for line in (*checkpoint.warnings, *tokenizer.notes):
        print(f"note: {line}", file=sys.stderr)
    return tokenizer
