"""What a pipeline of ranks on one core each gains over one rank on one core, at real dimensions.

    python benchmarks/pipeline.py [--folder FOLDER] [--layers 8] [--ranks 2] [--small]

A checkpoint of Mistral 7B's dimensions is filled with random bfloat16 values, once; ranks share it in the page cache.
One job of one rank and one of several are run one after the other, each rank bound to a core of its own. Of each: a
prompt of 4096 tokens read; tokens a second with one row, with 8 rows, with 8 rows to a micro-batch, and with 256 rows.
One JSON object a line: figure, ranks, rows, micro_batches, value and unit; with several ranks also the ratio to the
figure of one rank that it is measured against, and the bubble share measured beside the ideal one. `--small` tries it
with small dimensions.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mistral import Generated, Prefilled, Request, Timings, Transformer, drive, generate_stream, open_engine, serve
from mistral.args import ModelArgs
from mistral.engine import Engine
from mistral.mpi import launched
from mistral.pipeline import PipelineEngine
from mistral.random_checkpoint import kept, shape_args, write_random
from mistral.schedule import bubble_share, choose_chunk, decode_groups

STEPS = 12  # tokens of each row that are timed


@dataclass(frozen=True)
class Figure:
    """One measurement; `busy`: seconds that each rank computed, as a share of the time it took."""

    figure: str
    rows: int
    micro_batches: int
    value: float
    unit: str
    busy: float


def small(args: ModelArgs) -> ModelArgs:
    """The same with small dimensions."""
    return replace(args, dim=256, head_dim=32, hidden_dim=512, n_heads=8, n_kv_heads=4, vocab_size=1000)


class Meter:
    """Seconds that this rank's layers and head take."""

    def __init__(self, model: Transformer) -> None:
        self.seconds = 0.0
        for name in ("embed", "run_blocks", "head"):
            setattr(model, name, self.timed(getattr(model, name)))

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, counted."""

        def counted(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = call(*arguments)
            self.seconds += time.perf_counter() - started
            return result

        return counted


def prompt(tokens: int, vocab_size: int) -> list[int]:
    """Random ids."""
    return [int(i) for i in np.random.default_rng(1).integers(0, vocab_size, tokens)]


def prefill(engine: Engine | PipelineEngine, tokens: int, repeats: int) -> list[float]:
    """Seconds of a prompt."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        for event in generate_stream(engine, [Request(prompt(tokens, engine.args.vocab_size), 1)]):
            assert isinstance(event, Prefilled | Generated)
        found.append(time.perf_counter() - started)
    return found


def decode(engine: Engine | PipelineEngine, rows: int) -> float:
    """Tokens a second of so many rows, once all are being answered."""
    requests = [Request(prompt(4, engine.args.vocab_size), STEPS + 8) for _ in range(rows)]
    given, begun, counted = [0] * rows, 0.0, 0
    for event in generate_stream(engine, requests, max_rows=rows, timings=Timings()):
        if not isinstance(event, Generated):
            continue
        given[event.index] += 1
        if begun and min(given) <= STEPS + 3:
            counted, ended = counted + 1, time.perf_counter()
        elif not begun and min(given) >= 3:
            begun = time.perf_counter()
    return counted / (ended - begun)


def measure(
    folder: Path, ranks: int, tokens: int, most_rows: int, repeats: int, micro_batches: int | None, together: int
) -> None:
    """On every rank of a job: the figures, as JSON lines on the first rank, with this rank's own share of work."""
    model = Transformer.from_folder(folder, ranks, "native", device="CPU")
    meter = Meter(model)

    def show(figure: str, rows: int, parts: int, value: float, unit: str, seconds: float) -> None:
        print(json.dumps(asdict(Figure(figure, rows, parts, value, unit, meter.seconds / seconds))), flush=True)

    if model.world and model.world.rank:
        serve(model)
    else:
        engine = open_engine(model, None, micro_batches)

        def use() -> None:
            prefill(engine, 512, 1)  # brings the weights into memory
            counts = dict.fromkeys(rows for rows in (1, 8, 8 * together, most_rows) if rows <= most_rows)
            for figure, rows in (("prefill", 1), *(("decode", rows) for rows in counts)):
                meter.seconds, started = 0.0, time.perf_counter()
                if figure == "prefill":
                    parts = -(-tokens // choose_chunk(tokens, ranks))
                    value = tokens / statistics.median(prefill(engine, tokens, repeats))
                else:
                    parts = 1 if ranks == 1 else micro_batches or decode_groups(rows, ranks)
                    value = decode(engine, rows)
                show(figure, rows, parts, value, "tokens/s", time.perf_counter() - started)

        drive(engine, use)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    anonymous = int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024
    line = {
        "figure": "memory",
        "rank": launched_rank(),
        "resident_mb": round(resident),
        "anonymous_mb": round(anonymous),
    }
    print(json.dumps(line), file=sys.stderr, flush=True)


def launched_rank() -> int:
    """This process's rank."""
    launch = launched()
    return launch.rank if launch else 0


def job(arguments: list[str], ranks: int) -> list[dict[str, object]]:
    """The figures of a job of so many ranks, each bound to a core."""
    mpirun = [str(Path(sys.executable).parent / "mpirun"), "-n", str(ranks), "--bind-to", "core", "--map-by", "core"]
    environment = os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [*mpirun, sys.executable, __file__, *arguments, "--job", str(ranks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def compare(one: list[dict[str, object]], several: list[dict[str, object]], ranks: int) -> None:
    """Print all, those of several ranks with their ratio to one rank's."""
    alone = {(line["figure"], line["rows"]): float(str(line["value"])) for line in one}
    for line in one:
        print(json.dumps({"ranks": 1, **line}))
    for line in several:
        figure, rows, parts = line["figure"], int(str(line["rows"])), int(str(line["micro_batches"]))
        against = 8 if (figure, rows) == ("decode", 8 * ranks) else rows
        ideal = bubble_share(ranks, parts) if figure == "prefill" else 1 - min(parts, ranks) / ranks
        shares = {"ratio": round(float(str(line["value"])) / alone[figure, against], 3), "against_rows": against}
        bubble = {
            "bubble_share_of_rank_0": round(1 - float(str(line["busy"])), 3),
            "ideal_bubble_share": round(ideal, 3),
        }
        print(json.dumps({"ranks": ranks, **line, **shares, **bubble}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--most_rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_micro_batches", type=int)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--job", type=int, help="used by the program itself: measure, in a job of so many ranks")
    options = parser.parse_args()
    folder = options.folder or Path(f"/tmp/mistral-pipeline-{'small' if options.small else '7b'}-{options.layers}")
    if options.job:
        limits = options.tokens, options.most_rows, options.repeats
        measure(folder, options.job, *limits, options.num_micro_batches, options.ranks)
        return
    args = shape_args("mistral-7b", options.layers)
    if options.small:
        args = small(args)
    kept(folder, args, lambda work: write_random(args, work))
    one = job(sys.argv[1:], 1)
    compare(one, job(sys.argv[1:], options.ranks), options.ranks)


if __name__ == "__main__":
    main()
