"""What 2 to 16 machines would give for Mixtral 8x22B, by the model of the schedule, as a table in Markdown.

    python benchmarks/machines.py [--bandwidth 200] [--teraflops 3]

A machine is taken to read weights at `bandwidth` GB/s and to multiply at `teraflops`; a stage takes the longer of the
two times, a mixture reads the experts that its tokens can be expected to choose, and attention over the cache, a few
per cent at these lengths, is left out. `timetable.py` adds up stages and links; `pipeline.py` checks
that part against measurements.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timetable import Link, predicted_seconds
from mistral.cli.bench.random_checkpoint import shape_args
from mistral.engine.micro_batches import GROUP_ROWS, choose_chunk, decode_groups
from mistral.model.args import ModelArgs
from mistral.model.parameters import HEAD, parameters
from mistral.pipeline.split import balance_layers

MACHINES = (1, 2, 4, 8, 16)
NETWORKS = {"10 Gbit/s": Link(5e-5, 1.1e9), "1 Gbit/s": Link(1e-4, 0.11e9)}
PROMPT, ROWS, ROUNDS = 4096, 256, 50


@dataclass(frozen=True)
class Machine:
    """Bytes a second that it reads, and floating-point operations a second."""

    bandwidth: float
    flops: float

    def seconds(self, nbytes: float, flops: float) -> float:
        """Of work that reads and multiplies at once."""
        return max(nbytes / self.bandwidth, flops / self.flops)


def parameter_counts(args: ModelArgs) -> tuple[int, int, int]:
    """Parameters of a layer without its experts, of one expert, and of the head."""
    layer = [parameter for parameter in parameters(args).values() if parameter.layer == 0]
    expert = sum(parameter.size for parameter in layer if parameter.expert == 0)
    shared = sum(parameter.size for parameter in layer if parameter.expert is None)
    return shared, expert, parameters(args)[HEAD].size


def layer_seconds(args: ModelArgs, machine: Machine, tokens: int) -> float:
    """Of one layer for so many tokens at once, weights in bfloat16."""
    assert args.moe is not None
    shared, expert, _ = parameter_counts(args)
    experts, chosen = args.moe.num_experts, args.moe.num_experts_per_tok
    touched = experts * (1 - (1 - chosen / experts) ** tokens)
    return machine.seconds(2 * (shared + touched * expert), 2 * (shared + chosen * expert) * tokens)


def head_seconds(args: ModelArgs, machine: Machine, tokens: int) -> float:
    """Of the head."""
    _, _, head = parameter_counts(args)
    return machine.seconds(2 * head, 2 * head * tokens)


def stages(args: ModelArgs, machine: Machine, count: int, tokens: int, head_tokens: int) -> list[float]:
    """Seconds of each stage for a micro-batch."""
    layer, head = layer_seconds(args, machine, tokens), head_seconds(args, machine, max(head_tokens, 1))
    split = balance_layers([layer] * args.n_layers, head, count)
    found = [layer * len(part) for part in split]
    found[-1] += head if head_tokens else 0.0
    return found


def prefill(args: ModelArgs, machine: Machine, count: int, link: Link) -> float:
    """Tokens a second of a prompt."""
    chunk = choose_chunk(PROMPT, count)
    seconds = stages(args, machine, count, chunk, 0)
    return PROMPT / predicted_seconds(seconds, PROMPT // chunk, 4 * args.dim * chunk, link)


def decode(args: ModelArgs, machine: Machine, count: int, link: Link, rows: int) -> float:
    """Tokens a second of all rows together."""
    groups = decode_groups(rows, count)
    each = rows / groups
    seconds = stages(args, machine, count, math.ceil(each), math.ceil(each))
    whole = predicted_seconds(seconds, groups * ROUNDS, 4 * args.dim * each, link, groups)
    return rows * ROUNDS / whole


def table(args: ModelArgs, machine: Machine) -> list[str]:
    """Lines of Markdown."""
    nbytes = 2 * sum(parameter.size for parameter in parameters(args).values())
    fast, slow = NETWORKS.values()
    lines = [
        "| machines | weights on each | prompt of 4096 | over 1 Gbit/s | one row | 8 rows a machine | 256 rows |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in MACHINES:
        figures = [
            prefill(args, machine, count, fast),
            prefill(args, machine, count, slow),
            decode(args, machine, count, fast, 1),
            decode(args, machine, count, fast, GROUP_ROWS * count),
            decode(args, machine, count, fast, ROWS),
        ]
        cells = [f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in figures]
        lines.append(f"| {count} | {nbytes / count / 1e9:.0f} GB | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", type=float, default=200, help="GB/s")
    parser.add_argument("--teraflops", type=float, default=3)
    options = parser.parse_args()
    for line in table(shape_args("mixtral-8x22b"), Machine(options.bandwidth * 1e9, options.teraflops * 1e12)):
        print(line)


if __name__ == "__main__":
    main()
