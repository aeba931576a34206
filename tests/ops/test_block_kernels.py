"""The product of weights in blocks: every loop, for every instruction set, gives the bits of one definition.

The definition in plain C++ is the same file compiled with PLAIN_BLOCKS, and an oracle in NumPy checks that in turn.
"""

from __future__ import annotations

import platform
import zlib
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pytest

from mistral.ops.blocks.block_quantized import SCALES, BlockQuantized
from mistral.ops.blocks.kind import BLOCK_KINDS, BY_NAME
from mistral.ops.build import NATIVE
from tests.ops.test_native import MACHINES, flags
from tests.support.block_products import Array, product, random_blocks, with_scales
from tests.support.kernel_library import KernelLibrary

# Those of MACHINES that differ in what multiplies integers: "no bfloat16" has no VNNI either
INTEGERS = ("native", "AVX2", "no bfloat16", "AMX in C++", "no AMX")
VECTORS = {name: machine for name, machine in MACHINES.items() if name in INTEGERS}
if "avx_vnni" in flags and "avx512f" in flags:
    VECTORS["AVX-VNNI"] = ("-march=native", "-mno-amx-tile", "-mno-avx512f", "-O1")
# NEON in C++: a header of this folder stands for the compiler's. Without AVX, vectors are as wide as those of NEON.
NEON = Path(__file__).parents[1] / "support" / "arm_neon.h"
EMULATED = ("-O1", "-D__ARM_FEATURE_DOTPROD", f"-DHEADER={zlib.crc32(NEON.read_bytes())}", "-I", str(NEON.parent))
if platform.machine() == "x86_64":
    VECTORS["NEON dot product in C++"] = EMULATED
    VECTORS["NEON i8mm in C++"] = (*EMULATED, "-D__ARM_FEATURE_MATMUL_INT8")
FUSED = ("-march=x86-64-v3",) if platform.machine() == "x86_64" else NATIVE  # with a fused multiply-add
ROWS, TOKENS = (1, 5, 33, 100), (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 70)
COLUMNS = {32: (32, 96, 256, 768, 2048), 256: (256, 512, 768, 2048)}


@lru_cache
def library(*machine: str) -> KernelLibrary:
    """The kernels, compiled with these flags."""
    return KernelLibrary(machine)


def plain() -> KernelLibrary:
    """The definition in plain C++."""
    return library(*FUSED, "-DPLAIN_BLOCKS", "-O1")


@pytest.fixture(params=VECTORS)
def machine(request: pytest.FixtureRequest) -> str:
    """Each processor whose loops are tested."""
    return str(request.param)


@pytest.fixture
def kernels(machine: str) -> KernelLibrary:
    """The library with its loops of vectors."""
    return library(*VECTORS[machine])


@pytest.fixture
def definition(machine: str) -> KernelLibrary:
    """The definition as it is there: NEON in C++ is compiled for processors without a fused multiply-add."""
    return library(*MACHINES["baseline"]) if "NEON" in machine else plain()


def activations(columns: int) -> Array:
    """Tokens (70, columns): ordinary ones, nothing, what is close to half of a whole number, very small and large."""
    draw = np.random.default_rng(columns)
    x = draw.standard_normal((70, columns)).astype(np.float32)
    x[::7, : columns // 2] = 0
    largest = np.float32(2.7)
    x[3:6] = (draw.integers(-127, 127, (3, columns)) + 0.5) * (largest / np.float32(127))
    x[3:6, ::32] = largest
    x[6] *= 1e-30
    x[7] *= 1e-42
    x[8] *= 1e30
    x[9] *= np.exp(draw.uniform(-9, 9, columns))
    return x


@cache
def case(name: str, rows: int, columns: int, definition: KernelLibrary) -> tuple[BlockQuantized, Array, Array]:
    """A matrix, tokens, and their product as it is defined."""
    weight, x = random_blocks(name, rows, columns, seed=rows), activations(columns)
    return weight, x, definition.linear(x, weight)


def assert_same_bits(found: Array, expected: Array) -> None:
    """Also which zeros have a minus; NaN is NaN, whatever its bits."""
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))


@pytest.mark.parametrize("name", BLOCK_KINDS)
def test_the_definition_is_that_of_an_oracle(name: str) -> None:
    """With a fused multiply-add, and without one on the oldest processors."""
    for rows in ROWS:
        for columns in COLUMNS[BY_NAME[name].weights]:
            weight, x, defined = case(name, rows, columns, plain())
            simple = library(*MACHINES["baseline"]).linear(x, weight)
            for found, fused in ((defined, True), (simple, platform.machine() != "x86_64")):
                wanted = product(x, weight, fused)
                assert (np.abs(found - wanted.values.astype(np.float64)) <= 1e-6 * wanted.magnitudes).all()


@pytest.mark.parametrize("name", BLOCK_KINDS)
def test_every_number_of_tokens_gives_the_bits_of_the_definition(
    kernels: KernelLibrary, definition: KernelLibrary, name: str
) -> None:
    """Each token in a batch of every size, so neither company nor place changes a bit."""
    for rows in ROWS:
        for columns in COLUMNS[BY_NAME[name].weights]:
            weight, x, wanted = case(name, rows, columns, definition)
            for tokens in TOKENS:
                first = (11 * tokens) % (len(x) - tokens + 1)
                some = slice(first, first + tokens)
                assert_same_bits(kernels.linear(x[some], weight), wanted[some])


@pytest.mark.parametrize("name", BLOCK_KINDS)
def test_blocks_of_the_largest_numbers_do_not_overflow(
    kernels: KernelLibrary, definition: KernelLibrary, name: str
) -> None:
    """Rows of one byte throughout, -128 in Q8_0 among them, with the largest activations of one sign or of both."""
    kind = BY_NAME[name]
    bytes_of_rows = np.array([0x00, 0x0F, 0x7F, 0x80, 0x81, 0x88, 0xF0, 0xFF, 0x1F, 0x3F, 0xC0, 0x55], np.uint8)
    values = np.repeat(bytes_of_rows[:, None], 1024 // kind.weights * kind.nbytes, axis=1)
    weight = BlockQuantized(values, kind, (len(values), 1024))
    for place in range(len(SCALES[name])):
        weight = with_scales(weight, place, 1.0)
    six = np.full((6, 1024), 3, np.float32)
    six[1], six[2, ::2], six[3, 1::2], six[4, ::4], six[5, 512:] = -3, -3, -3, -3, -3
    wanted = product(six, weight)
    for tokens in (1, 2, 6, 40):
        x = np.resize(six, (tokens, 1024))
        found = kernels.linear(x, weight)
        assert_same_bits(found, definition.linear(x, weight))
        errors = np.abs(found - np.resize(wanted.values.astype(np.float64), found.shape))
        assert (errors <= 1e-6 * np.resize(wanted.magnitudes, found.shape)).all()


@pytest.mark.parametrize("name", BLOCK_KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_makes_its_token_nan_and_no_other(
    kernels: KernelLibrary, definition: KernelLibrary, name: str, value: float
) -> None:
    weight, x, wanted = case(name, 33, 768, definition)
    for tokens, place, column in ((1, 0, 0), (4, 2, 700), (9, 8, 300), (31, 17, 767)):
        bad = x[:tokens].copy()
        bad[place, column] = value
        found = kernels.linear(bad, weight)
        assert np.isnan(found[place]).all()
        assert_same_bits(np.delete(found, place, axis=0), np.delete(wanted[:tokens], place, axis=0))


@pytest.mark.parametrize("name", BLOCK_KINDS)
@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_scale_that_is_no_number_shows_in_its_row_and_no_other(
    kernels: KernelLibrary, definition: KernelLibrary, name: str, scale: float
) -> None:
    weight, x, wanted = case(name, 33, 768, definition)
    kind = weight.kind
    for place in range(len(SCALES[name])):
        at, values = SCALES[name][place], weight.values.copy()
        values[20, kind.nbytes + at : kind.nbytes + at + 2] = np.array([scale], "<f2").view(np.uint8)
        damaged = BlockQuantized(values, kind, weight.shape)
        for tokens in (1, 3, 10, 33):
            found = kernels.linear(x[10 : 10 + tokens], damaged)
            assert not np.isfinite(found[:, 20]).any()
            assert_same_bits(np.delete(found, 20, axis=1), np.delete(wanted[10 : 10 + tokens], 20, axis=1))


@pytest.mark.parametrize("name", BLOCK_KINDS)
def test_activations_of_nothing_give_nothing(kernels: KernelLibrary, name: str) -> None:
    weight = random_blocks(name, 33, 512, scale=100)
    for tokens in (1, 4, 12, 40):
        assert not kernels.linear(np.zeros((tokens, 512), np.float32), weight).any()


@pytest.mark.parametrize("name", BLOCK_KINDS)
def test_embedding_rows_are_the_weights_bit_for_bit(kernels: KernelLibrary, name: str) -> None:
    """Blocks of random bytes: scales that are subnormal, infinite or NaN are among them."""
    kind = BY_NAME[name]
    values = np.random.default_rng(3).integers(0, 256, (200, 2 * kind.nbytes), dtype=np.uint8)
    table = BlockQuantized(values, kind, (200, 2 * kind.weights))
    ids = [199, 0, 7, 7, *range(200)]
    for each in (kernels, plain(), library(*MACHINES["baseline"])):
        assert_same_bits(each.embed(table, ids), table.dense()[ids])


@pytest.mark.parametrize("name", BLOCK_KINDS)
def test_precise_rounds_no_activation(kernels: KernelLibrary, name: str) -> None:
    """Every token as float32 times the weights: the same bits in any batch, and close to the exact product."""
    for rows, columns in ((5, 256), (100, 768)):
        weight, x = random_blocks(name, rows, columns), activations(columns)[10:]
        exact, dense = x.astype(np.float64) @ weight.dense().T.astype(np.float64), weight.dense()
        magnitudes = np.abs(x).astype(np.float64) @ np.abs(dense).T.astype(np.float64)
        together = kernels.linear(x, weight, precise=True)
        assert (np.abs(together - exact) <= 1e-6 * magnitudes).all()
        for tokens in (1, 2, 9, 17):
            assert_same_bits(kernels.linear(x[5 : 5 + tokens], weight, precise=True), together[5 : 5 + tokens])
