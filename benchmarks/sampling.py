"""Milliseconds that one step of choosing takes, for several numbers of rows and sizes of vocabulary.

    python benchmarks/sampling.py [--repeats 15] [--json]

Each figure is the median of `repeats` calls of `mistral.engine.sampling.choose`, in this process, on one thread. The
logits are made up: standard normal numbers times 3, and in each row eight ids at random places that lie 4 to 0 nats
above the largest of them. This is about as peaked as a language model's logits: at temperature 1 the likeliest id has a
probability of about 0.4. There are 64 rows of them, and each step takes the next B rows: whatever B is,
they come from memory and not from a cache that the step before has filled. Where logprobs are wanted, they are those of
the ids chosen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mistral.engine.sampling import SamplingRow, SamplingSettings, Wants, choose

ROWS = (1, 8, 64)
VOCABULARIES = (32_768, 131_072)
SETTINGS = {
    "greedy": SamplingSettings(),
    "temperature 0.7, top_p 0.9": SamplingSettings(temperature=0.7, top_p=0.9),
    "temperature 1": SamplingSettings(temperature=1.0),
    "temperature 1, top_k 50": SamplingSettings(temperature=1.0, top_k=50),
}
PEAKS = np.linspace(4, 0, 8, dtype=np.float32)


def made_up_logits(rows: int, vocabulary: int) -> NDArray[np.float32]:
    """Logits (rows, vocabulary), the same at every call."""
    generator = np.random.default_rng(1)
    logits = generator.standard_normal((rows, vocabulary), np.float32) * np.float32(3)
    for row in logits:
        row[generator.choice(vocabulary, len(PEAKS), replace=False)] = row.max() + PEAKS
    return logits


def milliseconds(
    logits: NDArray[np.float32], batch: int, settings: SamplingSettings, logprob: bool, repeats: int
) -> float:
    """The median time of a step that chooses for a batch of rows, which steps take in turn from logits (rows, V)."""
    rows = [SamplingRow(settings, ()) for _ in range(batch)]
    wants = [Wants(logprob)] * batch
    times = []
    for step in range(repeats + 1):
        first = step * batch % len(logits)
        start = time.perf_counter()
        choose(logits[first : first + batch], rows, wants)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])  # the first step is to warm up


def measured(repeats: int) -> Iterator[dict[str, str | int | float]]:
    """One record for each vocabulary, number of rows and settings."""
    for vocabulary in VOCABULARIES:
        logits = made_up_logits(max(ROWS), vocabulary)
        for rows in ROWS:
            for name, settings in SETTINGS.items():
                yield {
                    "vocabulary": vocabulary,
                    "rows": rows,
                    "settings": name,
                    "ms": round(milliseconds(logits, rows, settings, False, repeats), 3),
                    "ms_with_logprobs": round(milliseconds(logits, rows, settings, True, repeats), 3),
                }


def main() -> None:
    """Print the figures, as a table or as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    if not options.json:
        print(f"{'V':>7} {'B':>3}  {'settings':<27} {'ms':>8} {'with logprobs':>14}")
    for record in measured(options.repeats):
        if options.json:
            print(json.dumps(record), flush=True)
        else:
            size = f"{record['vocabulary']:>7} {record['rows']:>3}  {record['settings']:<27}"
            print(f"{size} {record['ms']:>8.2f} {record['ms_with_logprobs']:>14.2f}", flush=True)


if __name__ == "__main__":
    main()
