"""Measures a model: load time, decoding, prefill and memory, each beside what the machine allows."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mistral.checkpoint.weight_memory import used_nbytes
from mistral.cli.bench.roofline import Machine, decode_nbytes, prefill_flops, resident_limit
from mistral.cli.console import ProgressLine
from mistral.engine.engine import Engine
from mistral.engine.micro_batches import choose_chunk
from mistral.engine.work import Work
from mistral.load import load_model
from mistral.memory import available_memory, forget_peak, resident_memory
from mistral.model.args import ModelArgs
from mistral.ops.backend import load_backend

DECODE_PROMPT = 128  # tokens that a row has read before it is decoded
LOADING = 5.0  # seconds that loading may be repeated for


@dataclass(frozen=True)
class Plan:
    """What to measure, and how: prompts and rows by their number of tokens, and how often."""

    prompts: tuple[int, ...]
    batches: tuple[int, ...]
    tokens: int
    repeats: int

    def within(self, limit: int | None) -> Plan:
        """What a context of `limit` tokens allows; a line on standard error says what it does not."""
        if limit is None:
            return self
        prompts = tuple(prompt for prompt in self.prompts if prompt <= limit)
        if prompts != self.prompts:
            print(f"note: prompts longer than the context limit, {limit} tokens, are left out", file=sys.stderr)
        batches = self.batches
        if self.tokens + 2 > limit:
            print(f"note: no decoding: {self.tokens} tokens do not fit into the context limit, {limit}; lower --tokens",
                  file=sys.stderr)  # fmt: skip
            batches = ()
        return Plan(prompts, batches, self.tokens, self.repeats)


@dataclass(frozen=True)
class Figure:
    """Something measured: `value` in `unit`, the least and the most of its repeats, and what bounds it, if anything.

    `label` is for people and `note` says what the limit is, or how it was measured.
    """

    figure: str
    label: str
    value: float
    unit: str
    note: str = ""
    batch: int | None = None
    prompt: int | None = None
    limit: float | None = None
    least: float | None = None
    most: float | None = None

    @property
    def share(self) -> float | None:
        """Of the limit."""
        return self.value / self.limit if self.limit else None

    def record(self, setting: Mapping[str, str | int]) -> dict[str, str | float | None]:
        """As a JSON object has it, after what was measured: four digits of each number."""
        fields: dict[str, str | float | None] = {"figure": self.figure, **setting}
        fields |= {"batch": self.batch, "prompt": self.prompt, "value": short(self.value), "unit": self.unit}
        fields |= {"limit": short(self.limit), "share_of_limit": short(self.share), "note": self.note}
        return fields | {"least": short(self.least), "most": short(self.most)}


def short(value: float | None) -> float | None:
    """A number of four digits."""
    return None if value is None else float(f"{value:.4g}")


def table(figures: Sequence[Figure]) -> list[str]:
    """A line for each figure, in columns."""
    cells = []
    for f in figures:
        share = "" if f.share is None else f"{100 * f.share:.0f} % of "
        cells.append((f.label, f"{f.value:.0f}" if f.value >= 1000 else f"{f.value:.3g}", f.unit, share + f.note))
    wide = [max(len(row[column]) for row in cells) for column in range(3)]
    return [f"{a:{wide[0]}}  {b:>{wide[1]}} {c:{wide[2]}}  {d}".rstrip() for a, b, c, d in cells]


class Run:
    """One model measured once, on one machine."""

    def __init__(
        self, checkpoint: Checkpoint, args: ModelArgs, bits: int, backend: str, device: str, precise: bool, plan: Plan
    ) -> None:
        """`args`: as loading with these `bits` makes the model; `backend` and `device` are not "auto"."""
        self.checkpoint, self.args, self.bits, self.backend, self.device = checkpoint, args, bits, backend, device
        self.precise, self.plan = precise, plan.within(args.max_seq_len)
        self.weights = used_nbytes(checkpoint, args, backend)
        used = args.quantization.bits if args.quantization else 16
        self.machine = Machine(backend, used) if device == "CPU" else None
        self.random, self.tokens = np.random.default_rng(0), 0
        room = DECODE_PROMPT if args.max_seq_len is None else args.max_seq_len - plan.tokens - 1
        self.decode_prompt = min(DECODE_PROMPT, room)

    def measure(self) -> list[Figure]:
        """All figures; those of the limits first."""
        load_backend(self.backend, self.precise)  # built and imported before the load is timed
        progress, total = ProgressLine("measuring:", "figures"), 3 + len(self.plan.batches) + len(self.plan.prompts)
        self.measure_machine()
        fresh = forget_peak()
        engine, loads = self.load()
        progress(2, total)
        seconds: dict[tuple[str, int], list[float]] = {}
        for batch in self.plan.batches:
            seconds["decode", batch] = self.decode_seconds(engine, batch)
            progress(2 + len(seconds), total)
        memory = self.resident(engine, fresh)
        for prompt in self.plan.prompts:
            seconds["prefill", prompt] = self.prefill_seconds(engine, prompt)
            progress(2 + len(seconds), total)
        self.measure_machine()
        progress(total, total)
        load = Figure("load", "load", statistics.median(loads), "s", "MindSpore's import apart", least=min(loads),
                      most=max(loads))  # fmt: skip
        speeds = [
            self.decoded(engine, count, found) if figure == "decode" else self.prefilled(count, found)
            for (figure, count), found in seconds.items()
        ]
        return [*self.machine_figures(), load, *speeds, *memory]

    def measure_machine(self) -> None:
        """Limits are known of a CPU only."""
        if self.machine:
            self.machine.measure()

    def load(self) -> tuple[Engine, list[float]]:
        """The model, and seconds of each load: with a warm file cache, unless one load takes long or needs the disk."""
        seconds = list[float]()
        while True:
            started = time.perf_counter()
            model = load_model(
                open_checkpoint(self.checkpoint.folder), backend=self.backend, bits=self.bits,
                device=self.device, progress=ProgressLine("reading weights:", "GB", 1e9), precise=self.precise,
            )  # fmt: skip
            engine = Engine(model)
            seconds.append(time.perf_counter() - started)
            enough = len(seconds) > self.plan.repeats or sum(seconds) > LOADING
            if enough or sum(self.weights.values()) > available_memory():
                return engine, seconds[1:] or seconds
            del engine, model

    def ids(self, count: int) -> list[int]:
        """Random tokens, so many more of which the embeddings are read."""
        self.tokens += count
        return [int(i) for i in self.random.integers(0, self.args.vocab_size, count)]

    def decode_seconds(self, engine: Engine, batch: int) -> list[float]:
        """Seconds of each step of single tokens, the first after a prompt left out."""
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

    def prefill_seconds(self, engine: Engine, prompt: int) -> list[float]:
        """Seconds in which a prompt is read, after once that does not count."""
        found = list[float]()
        for _ in range(1 + self.plan.repeats):
            row, ids = engine.join(prompt), self.ids(prompt)
            started = time.perf_counter()
            read_prompt(engine, row, ids)
            found.append(time.perf_counter() - started)
            engine.leave(row)
        return found[1:]

    def decoded(self, engine: Engine, batch: int, seconds: Sequence[float]) -> Figure:
        """Decode speed, against the time that reading all that a step needs takes."""
        limit = None
        if self.machine:
            cache = batch * engine.cache.nbytes(self.decode_prompt + 1 + self.plan.tokens // 2)
            limit = batch * self.machine.bandwidth / decode_nbytes(self.args, self.weights, batch, cache)
        return speed("decode", f"decode, batch {batch}", batch, seconds, "what memory allows", batch,
                     self.decode_prompt, limit)  # fmt: skip

    def prefilled(self, prompt: int, seconds: Sequence[float]) -> Figure:
        """Prefill speed, against the time that its products take at the peak."""
        limit = prompt * self.machine.peak / prefill_flops(self.args, prompt) if self.machine else None
        return speed("prefill", f"prefill, {prompt} tokens", prompt, seconds, "the matrix peak", 1, prompt, limit)

    def machine_figures(self) -> list[Figure]:
        """What the others are shares of."""
        if not self.machine:
            return []
        bandwidth, peak = self.machine.bandwidth / 1e9, self.machine.peak / 1e9
        return [
            Figure("memory_bandwidth", "memory bandwidth", bandwidth, "GB/s", self.machine.bandwidth_of),
            Figure("matrix_peak", "matrix peak", peak, "GFLOP/s", self.machine.peak_of),
        ]

    def resident(self, engine: Engine, fresh: bool) -> list[Figure]:
        """Memory of this process after decoding; `fresh`: its peak is one since loading began."""
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
    """A prompt in chunks of the default size, with the head on its last token only."""
    size = choose_chunk(tokens=0, ranks=1)
    for at in range(0, len(ids), size):
        engine.step([Work(row, ids[at : at + size], "last" if at + size >= len(ids) else "none")])


def speed(
    figure: str, label: str, tokens: int, seconds: Sequence[float], note: str, batch: int, prompt: int,
    limit: float | None,
) -> Figure:  # fmt: skip
    """The median of `tokens` over each of `seconds`."""
    return Figure(
        figure, label, tokens / statistics.median(seconds), "tokens/s", note if limit else "", batch, prompt, limit,
        tokens / max(seconds), tokens / min(seconds),
    )  # fmt: skip
