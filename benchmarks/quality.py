"""What weights of fewer bits cost: how much worse several checkpoints of one model predict texts than the first.

    python benchmarks/quality.py --models bf16.gguf q8.gguf q4.gguf --texts a.txt b.txt [--precise] [--json]

Each text is read in pieces of `window` tokens, which have nothing before them but the beginning-of-sequence id, by the
first checkpoint's tokenizer. A checkpoint's loss on a text is its perplexity over the first one's, less 1, in percent;
"all" is that of all tokens together. All files are read by this program, so that only the weights differ: name one that
another program has written to compare quantizers. The checkpoints are read one after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mistral.cli.input_text import read_text_file
from mistral.cli.score import score_windows, windows
from mistral.engine.engine import Engine
from mistral.engine.timings import Timings
from mistral.errors import InputError
from mistral.load import load_model
from mistral.tokenizer.tokenizer import Tokenizer

WINDOW = 1023  # tokens; with the beginning of the sequence 1,024 positions


def logprob(engine: Engine, ids: Sequence[int], bos_id: int, window: int) -> float:
    """The log-probability of a text's ids (T,) in nats, read in pieces of `window` tokens."""
    parts, total = windows(len(ids), window, 0), 0.0
    for _, found in score_windows(engine, ids, parts, bos_id, None, Timings()):
        total += float(found.astype(np.float64).sum())
    return total


def losses(first: Mapping[str, float], other: Mapping[str, float], tokens: Mapping[str, int]) -> dict[str, float]:
    """Percent that `other`'s perplexity is above `first`'s, from log-probabilities in nats: by text, and in all."""
    found = {name: (first[name] - other[name]) / count for name, count in tokens.items()}
    found["all"] = (sum(first.values()) - sum(other.values())) / sum(tokens.values())
    return {name: 100 * math.expm1(nats) for name, nats in found.items()}


@dataclass(frozen=True)
class Measured:
    """What a checkpoint gives: tokens and log-probabilities in nats by text, and what it loses against the first."""

    model: str
    tokens: dict[str, int]
    logprob: dict[str, float]
    loss_percent: dict[str, float]


def measured(options: argparse.Namespace, ids: Mapping[str, Sequence[int]], bos_id: int) -> Iterator[Measured]:
    """One checkpoint after the other, over the texts' ids."""
    tokens, first = {name: len(text) for name, text in ids.items()}, dict[str, float]()
    for model in options.models:
        engine = Engine(load_model(model, backend=options.backend, threads=options.threads, precise=options.precise))
        found = {name: logprob(engine, text, bos_id, options.window) for name, text in ids.items()}
        first = first or found
        yield Measured(model, tokens, found, losses(first, found, tokens))


def main() -> None:
    """Print the losses, as a table or as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="checkpoints of one model; the first is the measure")
    parser.add_argument("--texts", nargs="+", required=True, help="text files in UTF-8")
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precise", action="store_true", help="keep activations float32")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    try:
        run(options)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    """Read the texts, then checkpoint after checkpoint."""
    tokenizer = Tokenizer.from_folder(options.models[0])
    ids = {Path(text).name: tokenizer.encode(read_text_file(text), bos=False) for text in options.texts}
    names, width = [*ids, "all"], max(len(Path(model).name) for model in options.models)
    if not options.json:
        counts = [*map(len, ids.values()), sum(map(len, ids.values()))]
        print(" " * width, *(f"{name:>12.12}" for name in names))
        print(f"{'tokens':{width}}", *(f"{count:12,}" for count in counts), flush=True)
    for found in measured(options, ids, tokenizer.bos_id):
        if options.json:
            print(json.dumps(asdict(found)), flush=True)
        else:
            columns = (f"{found.loss_percent[name]:+10.2f} %" for name in names)
            print(f"{Path(found.model).name:{width}}", *columns, flush=True)


if __name__ == "__main__":
    main()
