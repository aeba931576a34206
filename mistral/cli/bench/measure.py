"""Measures a model: load time, decoding, whole answers, prefill and memory, each beside what the machine allows."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mistral.checkpoint.weight_memory import used_nbytes
from mistral.cli.bench.figure import Figure
from mistral.cli.bench.roofline import Machine, decode_nbytes, prefill_flops, resident_limit
from mistral.cli.console import ProgressLine
from mistral.engine.engine import Engine
from mistral.engine.micro_batches import choose_chunk
from mistral.engine.requests import Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import generate_stream
from mistral.engine.work import Work
from mistral.load import load_model
from mistral.memory import available_memory, forget_peak, resident_memory
from mistral.model.parameters import FIRST_MATRIX
from mistral.ops.backend import load_backend
from mistral.ops.blocks.kind import BY_NAME

PROMPT = 128  # tokens that a row has read before it is decoded, or that an answer is generated to
ANSWER = 64  # tokens of a generated answer
TEMPERATURE, TOP_P = 0.7, 0.9  # of the sampling in generated answers
LOADING = 5.0  # seconds that loading may be repeated for


@dataclass(frozen=True)
class MeasurementPlan:
    """What to measure, and how often.

    `prompts`: tokens of each prompt to read. `batches`: rows to decode at once, each for `tokens` tokens.
    `answers`: rows to generate answers for at once.
    """

    prompts: tuple[int, ...]
    batches: tuple[int, ...]
    answers: tuple[int, ...]
    tokens: int
    repeats: int

    def within(self, limit: int | None) -> MeasurementPlan:
        """The part of the plan that a context of `limit` tokens allows; a line on standard error says what is left out.

        None is no limit.
        """
        if limit is None:
            return self
        prompts, batches, answers = self.prompts, self.batches, self.answers
        prompts = tuple(prompt for prompt in prompts if prompt <= limit)
        if prompts != self.prompts:
            print(f"note: prompts longer than the context limit, {limit} tokens, are left out", file=sys.stderr)
        if self.tokens + 2 > limit:
            print(f"note: no decoding: {self.tokens} tokens do not fit into the context limit, {limit}; lower --tokens",
                  file=sys.stderr)  # fmt: skip
            batches = ()
        if limit < PROMPT + ANSWER:
            print(f"note: no generation: a prompt of {PROMPT} tokens and {ANSWER} new ones do not fit into the context"
                  f" limit, {limit}", file=sys.stderr)  # fmt: skip
            answers = ()
        return replace(self, prompts=prompts, batches=batches, answers=answers)


class Measurement:
    """One model measured on one machine, as a plan says."""

    def __init__(
        self, checkpoint: Checkpoint, bits: int, backend: str, device: str, precise: bool,
        plan: MeasurementPlan,
    ) -> None:  # fmt: skip
        """`bits`: those that the model is loaded with; `backend` and `device` are not "auto"."""
        self.checkpoint, self.bits, self.backend, self.device = checkpoint, bits, backend, device
        self.args = args = checkpoint.args
        self.precise, self.plan = precise, plan.within(args.max_seq_len)
        self.weights = used_nbytes(checkpoint, bits, backend)
        in_blocks = bits != 16 or checkpoint.type_name(FIRST_MATRIX) in BY_NAME
        self.machine = Machine(backend, integers=in_blocks and not precise) if device == "CPU" else None
        self.random, self.tokens = np.random.default_rng(0), 0
        room = PROMPT if args.max_seq_len is None else args.max_seq_len - plan.tokens - 1
        self.decode_prompt = min(PROMPT, room)

    def measure(self) -> list[Figure]:
        """All figures, those of the machine first."""
        plan = self.plan
        load_backend(self.backend, self.precise)  # built and imported before the load is timed
        progress = ProgressLine("measuring:", "figures")
        steps = 3 + len(plan.batches) + len(plan.answers) + len(plan.prompts)
        self.measure_machine()
        fresh = forget_peak()
        engine, loads = self.load()
        progress(2, steps)
        seconds: dict[tuple[str, int], list[float]] = {}
        for batch in plan.batches:
            seconds["decode", batch] = self.decode_seconds(engine, batch)
            progress(2 + len(seconds), steps)
        memory = self.memory_figures(engine, fresh)
        for batch in plan.answers:
            seconds["generate", batch] = self.generate_seconds(engine, batch)
            progress(2 + len(seconds), steps)
        for prompt in plan.prompts:
            seconds["prefill", prompt] = self.prefill_seconds(engine, prompt)
            progress(2 + len(seconds), steps)
        self.measure_machine()
        progress(steps, steps)
        load = Figure("load", "load", statistics.median(loads), "s", "MindSpore's import apart", least=min(loads),
                      most=max(loads))  # fmt: skip
        speeds = [self.decode_figure(engine, batch, seconds["decode", batch]) for batch in plan.batches]
        speeds += [self.generate_figure(batch, seconds["generate", batch]) for batch in plan.answers]
        speeds += [self.prefill_figure(prompt, seconds["prefill", prompt]) for prompt in plan.prompts]
        return [*self.machine_figures(), load, *speeds, *memory]

    def measure_machine(self) -> None:
        """Measure what the machine allows, which is known of a CPU only; the best of all calls counts."""
        if self.machine:
            self.machine.measure()

    def load(self) -> tuple[Engine, list[float]]:
        """An engine with the model, and the seconds of each load that counts.

        The file cache is warm in these, unless one load takes long or needs the disk.
        """
        seconds = list[float]()
        while True:
            started = time.perf_counter()
            model = load_model(
                open_checkpoint(self.checkpoint.path), backend=self.backend, bits=self.bits,
                device=self.device, progress=ProgressLine("reading weights:", "GB", 1e9), precise=self.precise,
            )  # fmt: skip
            engine = Engine(model)
            seconds.append(time.perf_counter() - started)
            enough = len(seconds) > self.plan.repeats or sum(seconds) > LOADING
            if enough or sum(self.weights.values()) > available_memory():
                return engine, seconds[1:] or seconds
            del engine, model

    def ids(self, count: int) -> list[int]:
        """So many random tokens; `tokens` counts them, for the rows of the embeddings that they touch."""
        self.tokens += count
        return [int(i) for i in self.random.integers(0, self.args.vocab_size, count)]

    def decode_seconds(self, engine: Engine, batch: int) -> list[float]:
        """Seconds of each step of one token a row, without sampling; the first step after a prompt is left out."""
        tokens, found = self.plan.tokens, list[float]()
        for _ in range(self.plan.repeats):
            rows = [engine.join(self.decode_prompt + 1 + tokens) for _ in range(batch)]
            for row in rows:
                read_prompt(engine, row, self.ids(self.decode_prompt))
            for step in range(1 + tokens):
                work = [Work(row, self.ids(1)) for row in rows]
                started = time.perf_counter()
                engine.step(work)
                found += [time.perf_counter() - started] if step else []
            for row in rows:
                engine.leave(row)
        return found

    def generate_seconds(self, engine: Engine, batch: int) -> list[float]:
        """Seconds in which `batch` prompts are read and answered, their tokens sampled, for each repeat."""
        found = list[float]()
        for _ in range(self.plan.repeats):
            requests = [
                Request(self.ids(PROMPT), ANSWER, SamplingSettings(TEMPERATURE, TOP_P, seed=seed))
                for seed in range(batch)
            ]
            started = time.perf_counter()
            for _ in generate_stream(engine, requests, max_rows=batch):
                pass
            found.append(time.perf_counter() - started)
        return found

    def prefill_seconds(self, engine: Engine, prompt: int) -> list[float]:
        """Seconds in which a prompt of so many tokens is read, for each repeat after one that does not count."""
        found = list[float]()
        for _ in range(1 + self.plan.repeats):
            row, ids = engine.join(prompt), self.ids(prompt)
            started = time.perf_counter()
            read_prompt(engine, row, ids)
            found.append(time.perf_counter() - started)
            engine.leave(row)
        return found[1:]

    def decode_figure(self, engine: Engine, batch: int, seconds: Sequence[float]) -> Figure:
        """Tokens a second of decoding; the limit is the time that reading all bytes which a step needs takes."""
        limit = None
        if self.machine:
            cache = batch * engine.cache.nbytes(self.decode_prompt + 1 + self.plan.tokens // 2)
            limit = batch * self.machine.bandwidth / decode_nbytes(self.args, self.weights, batch, cache)
        return Figure.speed("decode", f"decode, batch {batch}", batch, seconds, "what memory allows" if limit else "",
                            batch, self.decode_prompt, limit)  # fmt: skip

    def generate_figure(self, batch: int, seconds: Sequence[float]) -> Figure:
        """New tokens a second of whole answers, over the time of their prompts and of sampling too."""
        return Figure.speed("generate", f"generate, batch {batch}", batch * ANSWER, seconds,
                            "prompt and sampling included", batch, PROMPT)  # fmt: skip

    def prefill_figure(self, prompt: int, seconds: Sequence[float]) -> Figure:
        """Tokens a second of reading a prompt; the limit is the time that its products take at the matrix peak."""
        limit = prompt * self.machine.peak / prefill_flops(self.args, prompt) if self.machine else None
        return Figure.speed("prefill", f"prefill, {prompt} tokens", prompt, seconds, "the matrix peak" if limit else "",
                            1, prompt, limit)  # fmt: skip

    def machine_figures(self) -> list[Figure]:
        """What the machine allows, of which the other figures are shares; none for a device other than a CPU."""
        if not self.machine:
            return []
        bandwidth, peak = self.machine.bandwidth / 1e9, self.machine.peak / 1e9
        return [
            Figure("memory_bandwidth", "memory bandwidth", bandwidth, "GB/s", self.machine.bandwidth_of),
            Figure("matrix_peak", "matrix peak", peak, "GFLOP/s", self.machine.peak_of),
        ]

    def memory_figures(self, engine: Engine, fresh: bool) -> list[Figure]:
        """Memory of this process after decoding, in MB; `fresh`: its peak counts from when loading began."""
        memory, batch = resident_memory(), max(self.plan.batches, default=0)
        cache = batch * engine.cache.nbytes(self.decode_prompt + 1 + self.plan.tokens) if batch else 0
        tokens = self.tokens if self.backend == "native" else None
        limit = resident_limit(self.args, self.weights, cache, tokens) / 1e6
        peak = memory.peak if fresh else memory.now
        rows, prompt = (batch, self.decode_prompt) if batch else (None, None)
        return [
            Figure("resident_peak", "peak resident memory", peak / 1e6, "MB", "weights, cache and 600 MB", rows, prompt,
                   limit),
            Figure("resident_anonymous", "  of its own", memory.anonymous / 1e6, "MB", "", rows, prompt),
            Figure("resident_mapped", "  of mapped files", memory.mapped / 1e6, "MB", "", rows, prompt),
        ]  # fmt: skip


def read_prompt(engine: Engine, row: int, ids: Sequence[int]) -> None:
    """Read a prompt in chunks of the default size, with the head on its last token only."""
    size = choose_chunk(tokens=0, ranks=1)
    for at in range(0, len(ids), size):
        engine.step([Work(row, ids[at : at + size], "last" if at + size >= len(ids) else "none")])
