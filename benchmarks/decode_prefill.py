"""Decode and prefill speed of the native backend at real dimensions, as shares of what the machine can do.

    python benchmarks/decode_prefill.py [--folder FOLDER] [--layers 4] [--threads N]

A checkpoint of Mistral 7B's dimensions, of some layers and the head, is filled with random bfloat16 values, once.
Memory bandwidth and the peak of bfloat16 products are measured in the same run, before and after; the better counts.
One JSON object a line: figure, batch, prompt, value, unit, limit, share_of_limit. The median of several runs counts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mistral.args import ModelArgs
from mistral.device import start_device
from mistral.engine import Engine, Work
from mistral.load import load_model
from mistral.ops import build

PARAMS = {
    "dim": 4096, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8, "norm_eps": 1e-5,
    "vocab_size": 32000, "sliding_window": 4096,
}  # fmt: skip


def write_checkpoint(folder: Path, layers: int) -> None:
    """Random weights of standard deviation 0.02, norms of one; real values, for a page of zeros is read faster."""
    from mistral.checkpoint import tensor_shapes

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps({**PARAMS, "n_layers": layers}))
    shapes = tensor_shapes(ModelArgs.from_file(folder / "params.json"))
    header, at = dict[str, object](), 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)
    random = np.random.default_rng(0)
    with (folder / "writing").open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = random.standard_normal(shape, np.float32)
            values *= 0.02
            if len(shape) == 1:
                values[:] = 1
            out.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    (folder / "writing").rename(folder / "consolidated.safetensors")


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The median duration of a call."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


class Limits:
    """Bytes and floating-point operations a second that this machine can do, the best seen so far."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(build.kernels().build()))
        self.library.multiply_most.restype = ctypes.c_double
        self.library.read_memory.restype = ctypes.c_float
        self.buffer = np.ones(1 << 28, np.float32)
        self.bandwidth = self.peak = 0.0

    def measure(self) -> None:
        """Measure both again."""
        pointer = self.buffer.ctypes.data_as(ctypes.c_void_p)
        size = ctypes.c_int64(self.buffer.size)
        took = seconds(lambda: self.library.read_memory(pointer, size), 5)
        self.bandwidth = max(self.bandwidth, self.buffer.nbytes / took)
        repeats = ctypes.c_int64(2_000_000)
        done = self.library.multiply_most(repeats)
        self.peak = max(self.peak, done / seconds(lambda: self.library.multiply_most(repeats), 3))


def show(figure: str, batch: int, prompt: int, value: float, unit: str, limit: float) -> None:
    """One line of JSON."""
    print(json.dumps({
        "figure": figure, "bits": 16, "batch": batch, "prompt": prompt, "value": round(value, 2), "unit": unit,
        "limit": round(limit, 2), "share_of_limit": round(value / limit, 3) if limit else None,
    }), flush=True)  # fmt: skip


def decode(engine: Engine, batch: int, steps: int) -> float:
    """Tokens a second of single-token steps, after a prompt of 16."""
    rows = [engine.join(64 + steps) for _ in range(batch)]
    engine.step([Work(row, list(range(16))) for row in rows])
    step = seconds(lambda: engine.step([Work(row, [7]) for row in rows]), steps)
    for row in rows:
        engine.leave(row)
    return batch / step


def prefill(engine: Engine, prompt: int, repeats: int) -> float:
    """Tokens a second of a prompt in chunks of 512, the head on its last token only."""
    ids = [int(i) for i in np.random.default_rng(1).integers(0, PARAMS["vocab_size"], prompt)]

    def once() -> None:
        row = engine.join(prompt)
        for at in range(0, prompt, 512):
            engine.step([Work(row, ids[at : at + 512], "last" if at + 512 >= prompt else "none")])
        engine.leave(row)

    once()
    return prompt / seconds(once, repeats)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/mistral-7b-4"))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if not (options.folder / "consolidated.safetensors").exists():
        write_checkpoint(options.folder, options.layers)
    start_device("CPU", options.threads)
    limits = Limits()
    limits.measure()
    started = time.perf_counter()
    engine = Engine(load_model(options.folder, backend="native", device="CPU"))
    show("load", 1, 0, time.perf_counter() - started, "s", 0)
    args = engine.model.args
    matrices = args.n_layers * args.dim * (2 * args.head_dim * (args.n_heads + args.n_kv_heads) + 3 * args.hidden_dim)
    head = args.dim * args.vocab_size
    found = [("decode", batch, 16, decode(engine, batch, 30)) for batch in (1, 8)]
    found += [("prefill", 1, prompt, prefill(engine, prompt, 5)) for prompt in (128, 512, 2048)]
    limits.measure()
    show("read_bandwidth", 1, 0, limits.bandwidth / 1e9, "GB/s", 0)
    show("bf16_peak", 1, 0, limits.peak / 1e9, "GFLOP/s", 0)
    for figure, batch, prompt, value in found:
        attention = 2 * args.n_layers * args.n_heads * args.head_dim * prompt
        of_compute = limits.peak / (2 * matrices + attention)
        limit = of_compute if figure == "prefill" else batch * limits.bandwidth / (2 * (matrices + head))
        show(figure, batch, prompt, value, "tokens/s", limit)


if __name__ == "__main__":
    main()
