"""The roofline model: the work of a step, counted, and the machine's limits, measured; both bound the speed."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral.memory import BASE_MEMORY, available_memory
from mistral.model.args import ModelArgs
from mistral.model.parameters import EMBEDDING, parameters
from mistral.ops import build
from mistral.ops.backend import load_backend
from mistral.ops.device import thread_count

NEIGHBOURHOOD = 1 << 16  # bytes of a mapped file that Linux maps at once around the one asked for
BUFFER = 1 << 30  # bytes read to measure bandwidth, more than any cache holds
PRODUCT = 2048  # side of the square matrices whose product is timed
# Ways of multiplying, as the kernels number them; the last two are for weights in blocks alone.
WAYS = (
    "float32 vectors", "bfloat16 vectors", "bfloat16 tiles", "vectors of 8-bit integers", "tiles of 8-bit integers",
)  # fmt: skip
ROUNDS = 1 << 21  # of products on each thread: some hundredths of a second


def experts_touched(args: ModelArgs, tokens: int) -> float:
    """The share of a layer's experts, from 0 to 1, that `tokens` are expected to use if all are equally likely.

    1 for a model without experts.
    """
    return 1 - (1 - args.moe.num_experts_per_tok / args.moe.num_experts) ** tokens if args.moe else 1.0


def decode_nbytes(args: ModelArgs, weights: Mapping[str, int], batch: int, cache_nbytes: int) -> float:
    """Bytes that one step of `batch` rows must read: each weight that it needs, once, and the keys and values.

    `weights`: bytes of each parameter by its name; `cache_nbytes`: bytes of the keys and values of all rows. Of the
    embeddings a step reads a row for each token; of a mixture's experts, as many as are expected to be chosen.
    """
    experts = experts_touched(args, batch)
    embeddings = weights[EMBEDDING]
    total = batch * embeddings / args.vocab_size + cache_nbytes
    for name, parameter in parameters(args).items():
        if parameter.part != "embedding":
            total += weights[name] * experts if parameter.part == "experts" else weights[name]
    return total + (embeddings if args.tied_embeddings else 0)


def prefill_flops(args: ModelArgs, tokens: int) -> float:
    """Floating-point operations for a prompt: its matrices, attention within the window, the head for its last token.

    Beyond attention the last layer goes on with the last token alone. A multiplication and an addition are two. Norms,
    rotary embeddings and softmax are not counted.
    """
    share = args.moe.num_experts_per_tok / args.moe.num_experts if args.moe else 1.0
    products = 0.0
    for name, parameter in parameters(args).items():
        if parameter.is_matrix and parameter.layer is not None:
            goes_on = parameter.layer == args.n_layers - 1 and not name.endswith(
                ("wq.weight", "wk.weight", "wv.weight")
            )
            products += (1 if goes_on else tokens) * parameter.size * (share if parameter.part == "experts" else 1)
    seen = sum(keys_seen(tokens, window) for window in args.sliding_windows)
    attention = 2 * args.n_heads * args.head_dim * seen  # scores, and the sum of values
    return 2 * (products + attention + args.vocab_size * args.dim)


def keys_seen(tokens: int, window: int | None) -> int:
    """The number of pairs of a query and a key visible to it, in a layer with this window, for so many tokens."""
    short = tokens if window is None else min(tokens, window)
    return short * (short + 1) // 2 + (tokens - short) * short


def resident_limit(args: ModelArgs, weights: Mapping[str, int], cache_nbytes: int, tokens: int | None) -> float:
    """Bytes that decoding may keep in memory: the weights it has touched, the cache, and BASE_MEMORY.

    Embeddings in a mapped file count as far as they are near the rows of `tokens` random tokens; `tokens` is None where
    the embeddings were copied whole. A prompt of 128 tokens leaves hardly an expert out, so all experts count.
    """
    embeddings, touched = weights[EMBEDDING], 1.0
    if tokens is not None and not args.tied_embeddings:
        near = max(NEIGHBOURHOOD, embeddings // args.vocab_size)
        touched = 1 - (1 - min(1, near / embeddings)) ** tokens
    return sum(weights.values()) - embeddings * (1 - touched) + cache_nbytes + BASE_MEMORY


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """The median duration of `repeats` calls, in seconds, after one that does not count."""
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


@dataclass
class Machine:
    """What a CPU can do at most, the best measured so far.

    `bandwidth` in bytes a second, `peak` in floating-point operations a second; `bandwidth_of` and `peak_of` say in
    words what was measured. For the native backend that is memory read by the kernels, and products of values that
    stay in the registers, by the instruction that does most. No product of matrices reaches that peak, since its values
    must be brought to the registers; least of all with tiles. For the portable backend it is memory read by NumPy, and
    MindSpore's product of two square matrices. `integers`: products may be of 8-bit integers.
    """

    backend: str
    integers: bool = False
    bandwidth: float = 0.0
    peak: float = 0.0
    bandwidth_of: str = "1 GB, read by NumPy"
    peak_of: str = f"float32, MindSpore's product of {PRODUCT} by {PRODUCT}"

    def measure(self) -> None:
        """Measure bandwidth and peak once more; each keeps the higher of its old and its new value."""
        buffer = np.ones(min(BUFFER, available_memory() // 4) // 4, np.float32)
        if self.backend == "native":
            library = build.kernels().load(lambda path: ctypes.CDLL(str(path)))
            self.bandwidth_of = "1 GB, read by the kernels"
            self.bandwidth = max(self.bandwidth, kernels_bandwidth(library, buffer))
            ways = WAYS if self.integers else WAYS[:3]
            speeds = {way: kernels_flops(library, number) for number, way in enumerate(ways)}
            fastest = max(speeds, key=lambda way: speeds[way])
            self.peak_of, peak = f"{fastest}, in registers", speeds[fastest]
        else:
            self.bandwidth = max(self.bandwidth, numpy_bandwidth(buffer))
            peak = product_flops()
        self.peak = max(self.peak, peak)


def kernels_bandwidth(library: ctypes.CDLL, buffer: NDArray[np.float32]) -> float:
    """Bytes a second at which the kernels read a buffer."""
    library.read_memory.restype = ctypes.c_float
    data, count = ctypes.c_void_p(buffer.ctypes.data), ctypes.c_int64(buffer.size)
    return buffer.nbytes / seconds_of(lambda: library.read_memory(data, count), 5)


def kernels_flops(library: ctypes.CDLL, way: int) -> float:
    """Floating-point operations a second of one of WAYS, by its number; 0 where this processor does not have it."""
    library.multiply_in_registers.restype = ctypes.c_double
    rounds = ctypes.c_int64(ROUNDS)
    done = float(library.multiply_in_registers(rounds, way))
    return done / seconds_of(lambda: library.multiply_in_registers(rounds, way), 3) if done else 0.0


def numpy_bandwidth(buffer: NDArray[np.float32]) -> float:
    """Bytes a second at which NumPy reads a buffer on all threads."""
    parts = np.array_split(buffer, thread_count())
    with ThreadPoolExecutor(len(parts)) as pool:
        return buffer.nbytes / seconds_of(lambda: list(pool.map(np.max, parts)), 5)


def product_flops() -> float:
    """Floating-point operations a second of MindSpore's product of square float32 matrices."""
    ops = load_backend("portable")
    square = np.ones((PRODUCT, PRODUCT), np.float32)
    x, weight = ops.tensor(square), ops.weight(square)
    return 2 * PRODUCT**3 / seconds_of(lambda: ops.linear(x, weight), 3)
