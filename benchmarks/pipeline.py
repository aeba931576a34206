"""What a pipeline of ranks on one core each gains over one rank on one core, at real dimensions.

    python benchmarks/pipeline.py [--cases prefill:4096,decode:16] [--layers 8] [--ranks 2] [--small] [--folder FOLDER]

Random weights of Mistral 7B's dimensions are made once; ranks share them in the page cache. A job of one rank and one
of several run one after the other, each rank bound to a core of its own where there are enough. `prefill:N` reads a
prompt of N tokens; `decode:N` answers N rows at once. One JSON object a line: tokens a second; with several ranks also
the ratio to one rank (8 rows to a rank are compared with 8 rows on one), the share of the time that the stages idle
beside the ideal one, and the seconds taken beside those that timetable.py predicts from the one rank's times
and the link between the ranks; and what memory each rank took beside its weights, cache and 600 MB.

`--small` takes small dimensions. `--layer_seconds S` lets each layer sleep instead of computing, S for each 16 tokens
and S for the chunk: four ranks on two cores then behave like four machines, and only messages and schedule are real.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pipeline_job import OWN_MEMORY, Case, Measured, Memory, Pass, measure
from benchmarks.timetable import Link, bubble_share, timetable
from mistral.cli.bench.random_checkpoint import found_or_made, shape_args, write_random
from mistral.engine.micro_batches import CHUNK_OVERHEAD, GROUP_ROWS
from mistral.model.args import ModelArgs

CASES = "prefill:4096,decode:1,decode:8,decode:16,decode:256"


def small(args: ModelArgs) -> ModelArgs:
    """The same with small dimensions."""
    return replace(args, dim=512, head_dim=64, hidden_dim=1792, n_heads=8, n_kv_heads=2, vocab_size=4000)


def job(arguments: list[str], ranks: int, flags: list[str]) -> list[dict[str, Any]]:
    """What the first rank prints of a job of so many ranks."""
    cores = len(os.sched_getaffinity(0))
    place = ["--bind-to", "core", "--map-by", "core"] if ranks <= cores else ["--oversubscribe", "--bind-to", "none"]
    environment = os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    mpirun = [str(Path(sys.executable).parent / "mpirun"), "-n", str(ranks), *place, *flags]
    command = [*mpirun, sys.executable, __file__, *arguments, "--job", str(ranks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def measured(lines: list[dict[str, Any]]) -> list[Measured]:
    """The cases among what a job prints."""
    found = []
    for line in lines:
        if line.pop("kind") == "case":
            line["passes"] = [[Pass(**each) for each in passes] for passes in line["passes"]]
            found.append(Measured(**line))
    return found


def reference(case: Case, ranks: int) -> Case:
    """What one rank does in comparison: with 8 rows for each rank, 8 rows in all."""
    return replace(case, size=GROUP_ROWS) if (case.figure, case.size) == ("decode", GROUP_ROWS * ranks) else case


def group(case: Case, ranks: int, chosen: int | None) -> Case:
    """What one rank does to tell how long a layer takes: the rows of one group; for a prompt, the same prompt."""
    return case if case.figure == "prefill" else replace(case, size=-(-case.size // case.micro_batches(ranks, chosen)))


def stage_seconds(case: Measured, one: Measured) -> NDArray[np.float64]:
    """Seconds (R, M) that each stage should take for each micro-batch, from what one rank took for all layers."""
    rounds = 1 if case.figure == "prefill" else case.tokens // case.size
    layers, head = pass_seconds(one, case.micro_batches)
    all_layers, heads = np.tile(layers, rounds), np.tile(head, rounds)
    seconds = np.outer(np.array(case.layers) / sum(case.layers), all_layers)
    seconds[-1] += heads
    return seconds


def pass_seconds(one: Measured, parts: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds (M,) of all layers and of the head for each micro-batch of one round."""
    passes = one.passes[0]
    layers = np.array([each.end - each.start - each.head for each in passes])
    head = np.array([each.head for each in passes])
    if one.figure == "decode":
        return np.full(parts, np.median(layers)), np.full(parts, np.median(head))
    ends = np.interp(
        np.linspace(0, one.size, parts + 1),
        np.cumsum([0, *(each.tokens for each in passes)]),
        np.concatenate([[0.0], np.cumsum(layers)]),
    )
    longer = (1 + CHUNK_OVERHEAD * parts / one.size) / (1 + CHUNK_OVERHEAD * len(passes) / one.size)
    return np.diff(ends) * longer, np.array([0.0] * (parts - 1) + [head[-1]])


def predicted(case: Measured, one: Measured, link: Link, dim: int, cores: int) -> tuple[float, float]:
    """Seconds that the case should take, and the share of them that its stages should idle."""
    seconds, ranks = stage_seconds(case, one), len(case.layers)
    tokens = case.size // case.micro_batches
    moves = [link.seconds(4 * dim * tokens)] * (ranks - 1) + [link.latency]
    starts = timetable(seconds, moves, None if case.figure == "prefill" else case.micro_batches)
    ends = starts + seconds
    rounds = 1 if case.figure == "prefill" else case.tokens // case.size
    total = float(ends[-1, -1])
    if rounds > 1:  # from the end of one group's step to that of the same group's so many rounds later
        total = (total - float(ends[-1, 0])) * rounds / (rounds - 1 / case.micro_batches)
    total = max(total, float(seconds.sum()) / min(cores, ranks))
    return total, 1 - float(seconds.sum()) / (ranks * total)


def compare(one: list[Measured], several: list[Measured], link: Link, options: argparse.Namespace, dim: int) -> None:
    """Print all, those of several ranks beside one rank's and beside what is ideal and predicted."""
    ranks, chosen = options.ranks, options.num_micro_batches
    cores = ranks if options.layer_seconds else len(os.sched_getaffinity(0))
    alone = {(each.figure, each.size): each for each in one}
    for each in one:
        print(json.dumps(speed(each)))
    for each in several:
        case = Case(each.figure, each.size, options.steps)
        against, timed = reference(case, ranks), group(case, ranks, chosen)
        first, model = alone[against.figure, against.size], alone[timed.figure, timed.size]
        ideal = (
            bubble_share(ranks, each.micro_batches)
            if each.figure == "prefill"
            else 1 - min(each.micro_batches, ranks) / ranks
        )
        busy = sum(one.end - one.start for passes in each.passes for one in passes)
        seconds, idle = predicted(each, model, link, dim, cores)
        beside = {
            "ratio": round(each.tokens / each.seconds / (first.tokens / first.seconds), 3),
            "against_rows": against.size if each.figure == "decode" else 1,
            "idle_share": round(1 - busy / (ranks * each.seconds), 3),
            "ideal_idle_share": round(ideal, 3),
            "predicted_idle_share": round(idle, 3),
            "seconds": round(each.seconds, 3),
            "predicted_seconds": round(seconds, 3),
        }
        print(json.dumps(speed(each) | beside))


def speed(case: Measured) -> dict[str, Any]:
    """Tokens a second of a case."""
    return {
        "figure": case.figure, "size": case.size, "layers": case.layers, "micro_batches": case.micro_batches,
        "tokens_per_second": round(case.tokens / case.seconds, 2),
    }  # fmt: skip


def show_memory(memory: Memory) -> None:
    """Print what a rank took, in MB, and as a share of what it may take."""
    allowed = memory.weights + memory.cache + OWN_MEMORY
    megabytes = {name: round(getattr(memory, name) / 1e6) for name in ("resident", "weights", "cache")}
    print(json.dumps({"figure": "memory_mb", "rank": memory.rank} | megabytes | {
        "share_of_allowed": round(memory.resident / allowed, 3)}))  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the random weights are kept")
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="tokens of each row that are timed; 4 above 64 rows")
    parser.add_argument("--repeats", type=int, default=3, help="of cases of less than 64 rows or tokens: the median")
    parser.add_argument("--num_micro_batches", type=int)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--layer_seconds", type=float)
    parser.add_argument("--mpirun", default="", help="more options of mpirun")
    parser.add_argument("--job", type=int, help="used by the program itself: measure, in a job of so many ranks")
    options = parser.parse_args()
    ranks, chosen = options.ranks, options.num_micro_batches
    cases = [Case.parse(text, options.steps) for text in options.cases.split(",")]
    args = shape_args("mistral-7b", options.layers)
    args = small(args) if options.small else args
    folder = options.folder or Path(f"/tmp/mistral-pipeline-{'small' if options.small else '7b'}-{options.layers}")
    if options.job == 1:
        wanted = [way for case in cases for way in (reference(case, ranks), group(case, ranks, chosen))]
        measure(folder, 1, list(dict.fromkeys(wanted)), options.repeats, None, options.layer_seconds)
        return
    if options.job:
        measure(folder, ranks, cases, options.repeats, chosen, options.layer_seconds)
        return
    found_or_made(folder, args, lambda work: write_random(args, work))
    one, several = (job(sys.argv[1:], count, shlex.split(options.mpirun)) for count in (1, ranks))
    memories = [
        Memory(**{k: v for k, v in line.items() if k != "kind"}) for line in several if line["kind"] == "memory"
    ]
    link = next(Link(line["latency"], line["bandwidth"]) for line in several if line["kind"] == "link")
    print(json.dumps({"figure": "link", "latency_us": link.latency * 1e6, "bandwidth_gb_s": link.bandwidth / 1e9}))
    compare(measured(one), measured(several), link, options, args.dim)
    for memory in memories:
        show_memory(memory)


if __name__ == "__main__":
    main()
