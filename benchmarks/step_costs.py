"""What a step of several tokens takes, beside one of a single token: what drafts cost. As JSON lines.

    python benchmarks/step_costs.py CKPT... [--rounds 25] [--threads 2]

Each step is timed between two of a single token, since memory's speed changes from one second to the next; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mistral.engine.engine import Engine
from mistral.engine.self_draft import SelfDraft
from mistral.engine.work import Work
from mistral.load import load_model

SIZES = (2, 3, 4, 5, 6, 8, 12, 16)
PROMPT, CAPACITY = 96, 256


def step_shares(
    engine: Engine, sizes: Sequence[int], rounds: int, copy: SelfDraft | None = None
) -> tuple[float, dict[int, float]]:
    """Seconds of a step of one token, and by tokens what others take as a share of it; 0: a step of the copy."""
    random, vocab_size = np.random.default_rng(0), engine.args.vocab_size
    row = engine.join(CAPACITY)
    engine.step([Work(row, random.integers(3, vocab_size, PROMPT).tolist(), "none")])

    def step(tokens: int) -> float:
        work, begun = [Work(row, random.integers(3, vocab_size, tokens).tolist(), "all")], time.perf_counter()
        if tokens:
            engine.step(work)
        elif copy:
            work, stage = [Work(row, [5])], copy.stage
            stage.logits(work, stage.run_layers(stage.begin(work), work, stage.embed(work)))
        taken = time.perf_counter() - begun
        engine.resume(row, PROMPT, CAPACITY)
        return taken

    kinds = [*sizes, *([0] if copy else [])]
    for kind in (1, *kinds):
        step(kind)
    ratios, single = {kind: list[float]() for kind in kinds}, list[float]()
    for _ in range(rounds):
        for kind, found in ratios.items():
            before, taken, after = step(1), step(kind), step(1)
            found.append(2 * taken / (before + after))
            single += [before, after]
    engine.leave(row)
    return statistics.median(single), {kind: statistics.median(found) for kind, found in ratios.items()}


def best_depth(share: Callable[[int], float], copy: float, right: float) -> tuple[int, float]:
    """The number of drafts that gains most, and what it gains, where each is right with a chance.

    `share` of the tokens of a step, and that of a step of the copy.
    """

    def gain(count: int) -> float:
        return sum(right**place for place in range(count + 1)) / (share(1 + count) + count * copy)

    found = max(range(max(SIZES)), key=gain)
    return found, gain(found)


def between(shares: dict[int, float]) -> Callable[[int], float]:
    """The share of any number of tokens, on lines between those that were measured."""
    known = {1: 1.0, **{tokens: share for tokens, share in sorted(shares.items()) if tokens}}
    return lambda tokens: float(np.interp(tokens, list(known), list(known.values())))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    for path in options.checkpoints:
        engine = Engine(load_model(path, backend="native", threads=options.threads))
        seconds, shares = step_shares(engine, SIZES, options.rounds)
        rounded = {str(tokens): round(share, 2) for tokens, share in shares.items()}
        print(json.dumps({"model": path.name, "one_token_ms": round(seconds * 1000, 2), **rounded}), flush=True)


if __name__ == "__main__":
    main()
