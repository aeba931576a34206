"""The mean squared errors of llama.cpp's own quantizers, which the tests hold ours against.

    python -m tools.make_quantization_golden

needs llama-cpp-python, which is installed in an environment of its own, and writes tests/data/quantization.json.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

OUT = Path(__file__).parents[1] / "tests" / "data" / "quantization.json"
# number in GGUF files, weights and bytes of a block
KINDS = {
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136),
}  # fmt: skip


def weights(spread: str) -> NDArray[np.float32]:
    """Random weights (64, 1024): "normal", or with the outliers that trained ones have ("heavy")."""
    random = np.random.default_rng(11)
    drawn = random.standard_normal((64, 1024)) if spread == "normal" else random.standard_t(5, (64, 1024))
    return np.asarray(drawn * 0.02, np.float32)


def importances() -> NDArray[np.float32]:
    """How much each of 1024 columns counts: a few count many times as much as others."""
    return np.asarray(np.exp(np.random.default_rng(12).standard_normal(1024)), np.float32)


def main() -> None:
    """Quantize with llama.cpp, widen with the gguf package, and write the errors."""
    import llama_cpp
    from gguf import GGMLQuantizationType, quants

    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    found: dict[str, dict[str, dict[str, float]]] = {}
    for spread in ("normal", "heavy"):
        x, counts = weights(spread), importances()
        for name, (number, size, nbytes) in KINDS.items():
            for weighing, pointer in (("plain", None), ("weighted", counts.ctypes.data)):
                out = np.empty((len(x), x.shape[1] // size * nbytes), np.uint8)
                library.ggml_quantize_chunk(
                    number, ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(0),
                    ctypes.c_int64(len(x)), ctypes.c_int64(x.shape[1]), ctypes.c_void_p(pointer),
                )  # fmt: skip
                wide = quants.dequantize(out, GGMLQuantizationType[name]).reshape(x.shape)
                squares = np.square(wide.astype(np.float64) - x)
                error = squares.mean() if pointer is None else (squares * counts).mean()
                found.setdefault(spread, {}).setdefault(name, {})[weighing] = float(f"{error:.6g}")
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{OUT}: written", file=sys.stderr)


if __name__ == "__main__":
    main()
