"""Matrices made into blocks: no further from the weights than llama.cpp's, and the same bits however they are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from mistral.errors import InputError
from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.blocks.kind import BLOCK_KINDS, BY_NAME
from mistral.ops.blocks.quantize import quantize_blocks
from tests.support.command_line import ROOT
from tools.make_quantization_golden import importances, weights

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "quantization.json").read_text())


def error(made: BlockQuantized, x: NDArray[np.float32], counts: NDArray[np.float32] | float = 1.0) -> float:
    """The mean of the squared errors, each times what its column counts."""
    return float((np.square(made.dense().astype(np.float64) - x) * counts).mean())


@pytest.mark.parametrize("name", BLOCK_KINDS)
@pytest.mark.parametrize("spread", ["normal", "heavy"])
def test_errors_are_at_most_those_of_llama_cpp(name: str, spread: str) -> None:
    x, golden = weights(spread), GOLDEN[spread][name]
    plain = quantize_blocks(x, BY_NAME[name])
    assert error(plain, x) <= 1.001 * golden["plain"]
    weighted = quantize_blocks(x, BY_NAME[name], importances())
    assert error(weighted, x, importances()) <= 1.02 * golden["weighted"]
    if name != "Q8_0":
        assert error(weighted, x, importances()) < 0.98 * error(plain, x, importances())
    for made in (plain, weighted):
        wide = quants.dequantize(made.values, GGMLQuantizationType[name]).reshape(x.shape)
        assert np.array_equal(made.dense().view(np.uint32), wide.view(np.uint32))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_errors_are_at_most_those_of_the_gguf_package(name: str) -> None:
    x = weights("heavy") + np.float32(0.01)
    kind = GGMLQuantizationType[name]
    theirs = quants.dequantize(quants.quantize(x, kind), kind)
    assert error(quantize_blocks(x, BY_NAME[name]), x) <= np.square(theirs.astype(np.float64) - x).mean()


@pytest.mark.parametrize("name", BLOCK_KINDS)
def test_one_matrix_gives_one_result_whatever_it_lies_in(name: str) -> None:
    kind = BY_NAME[name]
    narrow = weights("heavy")[:9].astype(ml_dtypes.bfloat16)
    wanted = quantize_blocks(narrow.astype(np.float32), kind)
    padded = np.zeros((18, 2048), np.float32)
    padded[::2, :1024] = narrow
    half = narrow.astype(np.float16)
    for given in (narrow, padded[::2, :1024]):
        assert np.array_equal(quantize_blocks(given, kind).values, wanted.values)
    assert np.array_equal(quantize_blocks(half, kind).values, quantize_blocks(half.astype(np.float32), kind).values)
    row = quantize_blocks(narrow[4:5], kind)
    assert np.array_equal(row.values, wanted.values[4:5])


def test_threads_change_nothing() -> None:
    program = (
        "import hashlib\nfrom mistral.ops.blocks.kind import BLOCK_KINDS, BY_NAME\n"
        "from mistral.ops.blocks.quantize import quantize_blocks\n"
        "from tools.make_quantization_golden import importances, weights\n"
        "for name in BLOCK_KINDS:\n    for counts in (None, importances()):\n"
        "        made = quantize_blocks(weights('heavy'), BY_NAME[name], counts)\n"
        "        print(hashlib.sha256(made.values).hexdigest())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": threads},
            capture_output=True, text=True, check=True,
        ).stdout
        for threads in ("1", "5")
    }  # fmt: skip
    assert len(found) == 1 and found.pop().count("\n") == 2 * len(BLOCK_KINDS)


@pytest.mark.parametrize("name", BLOCK_KINDS)
def test_weights_that_are_all_alike_or_nothing(name: str) -> None:
    kind = BY_NAME[name]
    zeros = quantize_blocks(np.zeros((2, 512), np.float32), kind)
    assert not zeros.dense().any() and zeros.bad_blocks() == 0
    for value in (1.0, -1.0, 0.05, -1000.0):
        x = np.full((1, 512), value, np.float32)
        assert np.abs(quantize_blocks(x, kind).dense() / x - 1).max() < 0.02
    lone = np.zeros((1, 512), np.float32)
    lone[0, 300] = -0.5
    found = quantize_blocks(lone, kind).dense()
    assert abs(found[0, 300] / -0.5 - 1) < 0.02 and np.abs(np.delete(found, 300)).max() < 0.005


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_with_its_name(value: float) -> None:
    x: Any = weights("normal")[:3].copy()
    x[1, 77] = x[2, 1000] = value
    with pytest.raises(InputError, match=r"^some.weight: 2 of its values are NaN or infinite"):
        quantize_blocks(x, BY_NAME["Q4_K"], name="some.weight")


def test_what_has_no_scale_in_float16_is_refused() -> None:
    x = np.full((1, 64), 1e8, np.float32)
    with pytest.raises(InputError, match=r"^some.weight: 2 of its blocks need a scale beyond float16; write BF16"):
        quantize_blocks(x, BY_NAME["Q8_0"], name="some.weight")
