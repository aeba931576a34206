"""How long a conversation's next answer takes to begin, with its row slot and without, as JSON lines.

    python benchmarks/turns.py [--shape mistral-7b] [--layers 4] [--folder FOLDER] [--threads 2]

Random weights, which are made once; questions and answers of random ids; each turn's prompt is all that came before and
a new question. Then what /save and /load of such a conversation take, and --prompt_cache with them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.fingerprint import fingerprint
from mistral.cli.bench.random_checkpoint import random_checkpoint
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import generate_stream
from mistral.engine.snapshot_file import Saved, read_saved, write_saved
from mistral.load import load_model
from mistral.ops.library_cache import user_folder

SAVED = "turns.saved"


def first_token(engine: Engine, request: Request) -> tuple[float, list[int]]:
    """Seconds until the first token, and the whole answer."""
    started, first, ids = time.perf_counter(), 0.0, list[int]()
    for event in generate_stream(engine, [request]):
        if isinstance(event, Generated):
            first = first or time.perf_counter() - started
            ids.extend(() if event.id is None else (event.id,))
    return first, ids


def turns(engine: Engine, slot: PrefixSlot, count: int, question: int, answer: int) -> Iterator[dict[str, float | int]]:
    """One line for each turn; both ways must give the same answer."""
    random, prompt = np.random.default_rng(0), list[int]()
    first_token(engine, Request([1], 1))  # not counted: what the first step of a process takes
    for turn in range(1, count + 1):
        prompt = prompt + random.integers(3, engine.args.vocab_size, question).tolist()
        fresh, expected = first_token(engine, Request(prompt, answer))
        seconds, ids = first_token(engine, Request(prompt, answer, slot=slot))
        assert ids == expected
        yield {
            "turn": turn, "prompt_tokens": len(prompt), "reused_tokens": slot.reused,
            "first_token_fresh_seconds": round(fresh, 3), "first_token_kept_seconds": round(seconds, 3),
        }  # fmt: skip
        prompt += ids


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="mistral-7b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=user_folder() / "bench")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--question", type=int, default=200, help="tokens")
    parser.add_argument("--answer", type=int, default=50, help="tokens")
    options = parser.parse_args()
    folder = random_checkpoint(options.folder, options.shape, options.layers)
    checkpoint = open_checkpoint(folder)
    model = load_model(checkpoint, backend="native", threads=options.threads)
    engine = Engine(model)
    slot = PrefixSlot(engine)
    for line in turns(engine, slot, options.turns, options.question, options.answer):
        print(json.dumps(line), flush=True)
    held, path = slot.export(), options.folder / SAVED
    assert held
    started = time.perf_counter()
    key = fingerprint(checkpoint)
    write_saved(path, Saved("", held), key)
    written, size = time.perf_counter(), path.stat().st_size
    snapshot = read_saved(path, key, model.args, model.ops.SLOT_BYTES).snapshot
    assert snapshot
    PrefixSlot(engine).restore(snapshot)
    loaded = time.perf_counter()
    path.unlink()
    seconds = {"save_seconds": round(written - started, 3), "load_seconds": round(loaded - written, 3)}
    print(json.dumps({"saved_tokens": len(held.ids), "saved_bytes": size, **seconds}), flush=True)


if __name__ == "__main__":
    main()
