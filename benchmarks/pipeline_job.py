"""What every rank does in a job of `benchmarks/pipeline.py`: run the cases, and say how long its stage computed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from benchmarks.timetable import Link
from mistral import Generated, Request, Transformer, drive, generate_stream, open_engine, serve
from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mistral.engine.engine import Engine
from mistral.engine.micro_batches import CHUNK_OVERHEAD, choose_chunk, decode_groups
from mistral.memory import resident_memory
from mistral.model.parameters import owns, parameters
from mistral.pipeline.engine import PipelineEngine
from mistral.pipeline.world import World

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
OWN_MEMORY = 600e6  # bytes that a process may take beside weights and cache
PING_BYTES, PINGS = 1 << 22, 20


@dataclass(frozen=True)
class Case:
    """Read a prompt of `size` tokens, or answer `size` rows at once for `steps` tokens that are timed."""

    figure: str
    size: int
    steps: int

    @classmethod
    def parse(cls, text: str, steps: int) -> Case:
        """From prefill:4096 or decode:16."""
        figure, _, size = text.partition(":")
        assert figure in ("prefill", "decode")
        return cls(figure, int(size), min(steps, 4) if int(size) > 64 else steps)

    def micro_batches(self, ranks: int, chosen: int | None) -> int:
        """Chunks of the prompt, or groups that go round."""
        if self.figure == "prefill":
            return -(-self.size // choose_chunk(self.size, ranks))
        return 1 if ranks == 1 else chosen or decode_groups(self.size, ranks)


@dataclass(frozen=True)
class Pass:
    """A micro-batch in one stage: tokens, start and end in seconds, and how long the head took of that."""

    tokens: int
    start: float
    end: float
    head: float = 0.0


@dataclass(frozen=True)
class Measured:
    """A case in a job; `layers` and `passes` of each rank, the latter within the time that counts."""

    figure: str
    size: int
    layers: list[int]
    micro_batches: int
    tokens: int
    seconds: float
    passes: list[list[Pass]]


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank: resident at most, and what it may have: weights, cache, and the process's own."""

    rank: int
    resident: int
    weights: int
    cache: int


class Meter:
    """Notes when this rank's layers and head compute; or, with `layer_seconds`, sleeps in their place."""

    def __init__(self, model: Transformer, world: World | None, layer_seconds: float | None) -> None:
        self.passes: list[Pass] = []
        run_blocks: Callable[..., Any] = model.run_blocks
        head = model.head

        def timed_blocks(x: Any, *others: Any) -> Any:
            started = time.perf_counter()
            if layer_seconds is None:
                x = run_blocks(x, *others)
            else:
                sleep(len(model.layers), layer_seconds * (1 + int(x.shape[0]) / CHUNK_OVERHEAD), world)
            self.passes.append(Pass(int(x.shape[0]), started, time.perf_counter()))
            return x

        def timed_head(x: Any) -> Any:
            started = time.perf_counter()
            result = head(x)
            before, now = self.passes[-1], time.perf_counter()
            self.passes[-1] = Pass(before.tokens, before.start, now, now - started)
            return result

        model.run_blocks = timed_blocks  # type: ignore[method-assign,assignment]
        model.head = timed_head  # type: ignore[method-assign]


def sleep(layers: int, seconds: float, world: World | None) -> None:
    """What layers would take on a machine of their own."""
    for _ in range(layers):
        time.sleep(seconds)
        if world:
            world.progress()


def prompt(tokens: int, vocab_size: int) -> list[int]:
    """Random ids."""
    return [int(i) for i in np.random.default_rng(1).integers(0, vocab_size, tokens)]


def prefill(engine: Engine | PipelineEngine, case: Case) -> tuple[int, float, float]:
    """Tokens read, from when to when."""
    started = time.perf_counter()
    list(generate_stream(engine, [Request(prompt(case.size, engine.args.vocab_size), 1)]))
    return case.size, started, time.perf_counter()


def decode(engine: Engine | PipelineEngine, case: Case) -> tuple[int, float, float]:
    """Tokens written, from when to when, once all rows are being answered."""
    requests = [Request(prompt(2, engine.args.vocab_size), case.steps + 4) for _ in range(case.size)]
    given, begun, counted, ended = [0] * case.size, 0.0, 0, 0.0
    events = generate_stream(engine, requests, max_rows=case.size)
    for event in events:
        if not isinstance(event, Generated):
            continue
        given[event.index] += 1
        if not begun and min(given) >= 2:
            begun = time.perf_counter()
        elif begun and counted < case.size * case.steps:
            counted, ended = counted + 1, time.perf_counter()
    return counted, begun, ended


def ping(world: World) -> tuple[float, float]:
    """Latency in seconds, and bandwidth in bytes a second, between ranks 0 and 1, with the pipeline's own waits."""
    found = []
    for size in (1, PING_BYTES // 4):
        array, trips = np.zeros(size, np.float32), []
        for _ in range(PINGS if world.rank < 2 else 0):
            started = time.perf_counter()
            for turn in (0, 1):
                if world.rank == turn:
                    world.send_array(array, 1 - world.rank, lambda: None)
                else:
                    request = world.receive_array(array, 1 - world.rank)
                    world.wait(lambda request=request: request.Test() or None, 1 - world.rank)  # type: ignore[misc]
            trips.append((time.perf_counter() - started) / 2)
        found.append(float(np.median(trips)) if trips else 0.0)
    return found[0], PING_BYTES / max(found[1] - found[0], 1e-9)


def measure(
    folder: Path,
    ranks: int,
    cases: list[Case],
    repeats: int,
    num_micro_batches: int | None,
    layer_seconds: float | None,
) -> None:
    """On every rank of a job: each case, small ones `repeats` times and then the median.

    The first rank prints JSON lines: link, cases, and memory of each rank.
    """
    model = Transformer.from_folder(folder, ranks, "native", device="CPU")
    world, meter = model.world, Meter(model, model.world, layer_seconds)
    leads = world is None or world.rank == 0

    def show(kind: str, value: DataclassInstance) -> None:
        if leads:
            print(json.dumps({"kind": kind} | asdict(value)), flush=True)

    if world:
        show("link", Link(*ping(world)))

    def once(case: Case) -> Measured:
        meter.passes.clear()
        tokens, begun, ended = run(model, case, num_micro_batches) if leads else serve(model)
        within = [each for each in meter.passes if each.start >= begun - 1e-3 and each.end <= ended + 1e-3]
        everyone = gather(world, (len(model.layers), within))
        layers, passes = [layers for layers, _ in everyone], [passes for _, passes in everyone]
        parts = case.micro_batches(ranks, num_micro_batches)
        return Measured(case.figure, case.size, layers, parts, tokens, ended - begun, passes)

    once(Case("prefill", 64, 1))  # brings the weights into memory
    for case in cases:
        found = [once(case) for _ in range(repeats if case.size < 64 else 1)]
        show("case", sorted(found, key=lambda each: each.seconds)[len(found) // 2])
    for each in gather(world, memory(open_checkpoint(folder), model, cases)):
        show("memory", each)


def gather(world: World | None, value: T) -> list[T]:
    """The value of each rank."""
    return world.gather(value) if world else [value]


def run(model: Transformer, case: Case, num_micro_batches: int | None) -> tuple[int, float, float]:
    """One case, on the first rank; what `serve` returns on the others."""
    engine = open_engine(model, None, num_micro_batches)
    measured: Callable[..., tuple[int, float, float]] = prefill if case.figure == "prefill" else decode
    return drive(engine, lambda: measured(engine, case))


def memory(checkpoint: Checkpoint, model: Transformer, cases: list[Case]) -> Memory:
    """This rank's; the cache is that of the largest case."""
    args = model.args
    names = [name for name, each in parameters(args).items() if owns(model.layers, each, args)]
    cache = model.new_cache()
    held = max(
        cache.nbytes(case.size + 1) if case.figure == "prefill" else case.size * cache.nbytes(case.steps + 6)
        for case in cases
    )
    rank = model.world.rank if model.world else 0
    return Memory(rank, resident_memory().peak, sum(map(checkpoint.nbytes, names)), held)
