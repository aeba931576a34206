"""Every function of the native backend against the portable one, at the sizes where its loops begin and end.

Each test runs with the kernels compiled for several processors: this one, and what is left of it without its widest
instructions.
"""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from mistral.engine.sampling import log_softmax
from mistral.generate import generate
from mistral.load import Transformer
from mistral.model.kv_cache import CacheMetadata, CacheView, RollingCache, uncached
from mistral.model.rope import Llama4Scaling, rope_angles
from mistral.ops import portable
from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.build import NATIVE
from mistral.ops.interface import Ops, Rotation
from mistral.ops.native import Native
from tests.support.block_products import product, random_blocks
from tests.support.checkpoint_forms import random_tensors
from tests.support.small_models import DENSE, SHAPES

Array = npt.NDArray[np.float32]
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
# By name: compiler flags. "AMX in C++" replaces the tile instructions, so it runs on processors without them.
# Those that fewer have are compiled with -O1, in half of the time: their loops are written in vectors anyway.
MACHINES: dict[str, tuple[str, ...]] = {"native": NATIVE, "baseline": ("-O1",)}
flags = Path("/proc/cpuinfo").read_text().split() if platform.machine() == "x86_64" else []
if flags:
    MACHINES["AVX2"] = ("-march=x86-64-v3",)
if "avx512vl" in flags:
    MACHINES["no bfloat16"] = ("-march=x86-64-v4", "-O1")  # which has no VNNI either
if "avx512_bf16" in flags:
    MACHINES["AMX in C++"] = ("-march=native", "-DEMULATE_AMX", "-O1")
if "amx_tile" in flags:
    MACHINES["no AMX"] = ("-march=native", "-mno-amx-tile", "-O1")
ROWS = [1, 2, 7, 8, 15, 16, 17, 33, 70]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module", params=MACHINES)
def native(ops: Ops, request: pytest.FixtureRequest) -> Ops:
    """The backend, compiled for a processor with these instructions."""
    return cast(Ops, Native(machine=MACHINES[request.param]))


@pytest.fixture(scope="module", params=MACHINES)
def precise(ops: Ops, request: pytest.FixtureRequest) -> Ops:
    """The backend that rounds no activation."""
    return cast(Ops, Native(precise=True, machine=MACHINES[request.param]))


def random(*shape: int, seed: int = 0, scale: float = 1) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def rounded(array: Array) -> Array:
    """As bfloat16 holds it."""
    return array.astype(BFLOAT16).astype(np.float32)


def assert_close(found: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float = 2e-5) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
def test_embed_widens_every_value_exactly(native: Ops, dtype: npt.DTypeLike) -> None:
    """All 65,536 bit patterns, so subnormals, infinities and NaN too."""
    table = np.arange(1 << 16, dtype=np.uint16).view(np.float16 if dtype == np.float16 else BFLOAT16)
    with np.errstate(invalid="ignore"):
        table = table.astype(dtype).reshape(256, 256)
        ids = np.array([255, 0, 3, 3, 128, *range(256)])
        found = native.embed(native.weight(table), ids).asnumpy()
        assert np.array_equal(found, table.astype(np.float32)[ids], equal_nan=True)


@pytest.mark.parametrize(("inner", "outer"), [(1, 1), (3, 5), (16, 16), (32, 33), (40, 130), (1100, 31), (64, 300)])
def test_linear_rounds_to_bfloat16_and_sums_in_float32(native: Ops, inner: int, outer: int) -> None:
    for tokens in ROWS:
        x, w = random(tokens, inner), random(outer, inner, seed=1).astype(BFLOAT16)
        found = native.linear(native.tensor(x), native.weight(w)).asnumpy()
        assert_close(found, rounded(x).astype(np.float64) @ w.astype(np.float64).T, 1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("inner", "outer"), [(1, 1), (33, 17), (1100, 70)])
def test_linear_of_other_dtypes_keeps_float32(native: Ops, dtype: npt.DTypeLike, inner: int, outer: int) -> None:
    for tokens in ROWS:
        x, w = random(tokens, inner), random(outer, inner, seed=1).astype(dtype)
        found = native.linear(native.tensor(x), native.weight(w)).asnumpy()
        assert_close(found, x.astype(np.float64) @ w.astype(np.float64).T, 5e-6)


def test_precise_rounds_no_activation(precise: Ops) -> None:
    for tokens in ROWS:
        x, w = random(tokens, 300), random(70, 300, seed=1).astype(BFLOAT16)
        found = precise.linear(precise.tensor(x), precise.weight(w)).asnumpy()
        assert_close(found, x.astype(np.float64) @ w.astype(np.float64).T, 2e-5)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
def test_linear_of_weights_in_blocks(native: Ops, name: str) -> None:
    """As defined, through MindSpore's operator; `test_block_kernels.py` has every format and size."""
    for tokens in ROWS:
        x, w = random(tokens, 512), random_blocks(name, 70, 512)  # none of x lies close to half of a whole number
        found, wanted = native.linear(native.tensor(x), native.weight(w)).asnumpy(), product(x, w)
        assert (np.abs(found - wanted.values.astype(np.float64)) <= 1e-6 * wanted.magnitudes).all(), tokens


@pytest.mark.parametrize("tokens", [1, 7, 33])
@pytest.mark.parametrize("kinds", [("Q8_0", "Q8_0", "Q8_0"), ("Q4_K", "Q6_K", "Q4_K"), ("Q5_0", "Q4_K", None)])
def test_feed_forward_of_weights_in_blocks(native: Ops, tokens: int, kinds: tuple[str | None, ...]) -> None:
    """w2 has activations of its own, rounded too; of w1 and w3 each may be in a format of its own, or in none."""
    x = random(tokens, 256)
    w1, w2, w3 = (
        random(*shape, seed=i, scale=0.05)
        if kind is None
        else random_blocks(kind, *shape, seed=i, scale=1e-4 if kind.endswith("K") else 3e-3)
        for i, (kind, shape) in enumerate(zip(kinds, [(512, 256), (256, 512), (512, 256)], strict=True))
    )
    found = native.feed_forward(native.tensor(x), *map(native.weight, (w1, w2, w3))).asnumpy()
    gate, up = (product(x, w).values if isinstance(w, BlockQuantized) else x @ w.T for w in (w1, w3))
    hidden = gate / (1 + np.exp(-gate)) * up
    assert isinstance(w2, BlockQuantized)
    assert_close(found, product(hidden, w2).values, 4e-3)  # what lies close to half a number may be rounded up or down
    assert np.abs(found - product(hidden, w2).values).mean() <= 2e-4 * np.abs(found).mean()


def test_more_tokens_than_are_packed_at_once(native: Ops) -> None:
    x, w = random(1030, 70), random(150, 70, seed=1).astype(BFLOAT16)
    found = native.linear(native.tensor(x), native.weight(w)).asnumpy()
    assert_close(found, rounded(x) @ w.astype(np.float32).T, 1e-5)


@pytest.mark.parametrize(("dim", "hidden"), [(1, 1), (3, 5), (32, 48), (70, 33)])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_feed_forward(native: Ops, dim: int, hidden: int, dtype: npt.DTypeLike) -> None:
    for tokens in ROWS:
        x, scale = random(tokens, dim), dim**-0.5
        weights = [random(*shape, seed=i, scale=scale).astype(dtype) for i, shape in
                   enumerate([(hidden, dim), (dim, hidden), (hidden, dim)])]  # fmt: skip
        found = native.feed_forward(native.tensor(x), *map(native.weight, weights)).asnumpy()
        expected = portable.feed_forward(portable.tensor(x), *map(portable.weight, weights)).asnumpy()
        assert_close(found, expected, 2e-2 if dtype == BFLOAT16 else 2e-5)


@pytest.mark.parametrize("dim", [1, 5, 16, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
def test_rms_norm(native: Ops, dim: int, dtype: npt.DTypeLike) -> None:
    for tokens in ROWS:
        x, w = random(tokens, dim), random(dim, seed=1).astype(dtype)
        found = native.rms_norm(native.tensor(x), native.weight(w), 1e-5).asnumpy()
        assert_close(found, portable.rms_norm(portable.tensor(x), portable.weight(w), 1e-5).asnumpy())


def test_add(native: Ops) -> None:
    x, y = random(3, 77), random(3, 77, seed=1)
    assert np.array_equal(native.add(native.tensor(x), native.tensor(y)).asnumpy(), x + y)


def attend(
    ops: Ops, arrays: tuple[Array, Array, Array], metadata: CacheMetadata, cache: RollingCache | None, head_dim: int,
    window: int | None,
) -> Array:  # fmt: skip
    """Attention of a step: q, k, v as (T, heads * d) -> (T, heads * d); but for heads of 32, queries have factors."""
    q, k, v = map(ops.tensor, arrays)
    angles = [*rope_angles(metadata.positions, head_dim, 1e4)]
    if head_dim != 32:
        angles.append(Llama4Scaling(7, 0.4).factors(metadata.positions))
    rotation = Rotation(*map(ops.tensor, angles))
    found = ops.attention(q, k, v, rotation, CacheView(metadata, cache, 0, window))
    return np.asarray(found.asnumpy(), np.float32)


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 32), (3, 1, 10), (2, 2, 2), (6, 2, 64), (8, 2, 96)])
def test_attention_over_chunks_a_full_cache_and_ragged_rows(
    native: Ops, window: int | None, heads: int, kv_heads: int, head_dim: int
) -> None:
    compare_attention(native, window, heads, kv_heads, head_dim, 2e-2)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(3, 1, 10), (6, 2, 64)])
def test_precise_attention(precise: Ops, window: int | None, heads: int, kv_heads: int, head_dim: int) -> None:
    compare_attention(precise, window, heads, kv_heads, head_dim, 2e-5)


def compare_attention(
    native: Ops, window: int | None, heads: int, kv_heads: int, head_dim: int, tolerance: float
) -> None:
    """Steps of rows of different lengths: first chunks, chunks that wrap around the rolling cache, single tokens."""
    args = replace(DENSE, n_layers=1, n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, sliding_windows=(window,))
    backends = [native, cast(Ops, portable)]
    caches = [RollingCache(args, range(1), ops) for ops in backends]
    for cache in caches:
        for row in range(3):
            cache.add(row, 200)
    for step, seqlens in enumerate([(5, 1, 17), (1, 1, 1), (3, 40, 1), (1, 1, 1), (70, 2, 5), (1, 1, 1), (33, 16, 1)]):
        tokens = sum(seqlens)
        q, k, v = (random(tokens, n * head_dim, seed=9 * step + i) for i, n in enumerate((heads, kv_heads, kv_heads)))
        found = list[Array]()
        for ops, cache in zip(backends, caches, strict=True):
            metadata = cache.begin(seqlens, range(3))
            found.append(attend(ops, (q, k, v), metadata, cache, head_dim, window))
            cache.end(metadata)
        assert_close(found[0], found[1], tolerance)
        assert np.abs(found[0] - found[1]).mean() < tolerance / 6


@pytest.mark.parametrize("window", [None, 4])
def test_attention_without_a_cache(native: Ops, window: int | None) -> None:
    seqlens, found = (9, 1, 30), list[Array]()
    q, k, v = (random(40, n * 8, seed=n) for n in (4, 2, 2))
    for ops in (native, cast(Ops, portable)):
        metadata = uncached(seqlens, ops)
        found.append(attend(ops, (q, k, v), metadata, None, 8, window))
    assert_close(found[0], found[1], 2e-2)


def test_what_no_kernel_takes_is_refused(native: Ops) -> None:
    """MindSpore hands custom operators tensors of any dtype and layout."""
    x, w = native.tensor(random(4, 6)), native.weight(random(5, 6))
    for wrong in (
        native.tensor(np.ones((4, 6))),
        native.tensor(random(6, 4)).transpose(1, 0),
        native.tensor(random(4, 5)),
    ):
        with pytest.raises(ValueError, match="expected"):
            native.linear(wrong, w)
    assert native.linear(x, w).shape == (4, 5)


def test_nan_and_infinity_in_weights_pass_through(native: Ops) -> None:
    for tokens in (1, 3, 40):
        w = np.ones((20, 40), np.float32)
        w[3, 5], w[7, 1] = np.nan, np.inf
        found = native.linear(
            native.tensor(np.ones((tokens, 40), np.float32)), native.weight(w.astype(BFLOAT16))
        ).asnumpy()
        assert np.isnan(found[:, 3]).all()
        assert np.isinf(found[:, 7]).all()
        assert (np.delete(found, [3, 7], axis=1) == 40).all()


# Whole models: bfloat16 weights, against the same model on the portable backend, which keeps float32 throughout


Pairs = dict[str, tuple[Transformer, Transformer]]


def beside_portable(ops: Ops, native: Ops) -> Pairs:
    """By the name of a shape: its model on the native and on the portable backend."""
    found = {}
    for seed, (name, args) in enumerate(SHAPES.items()):
        tensors = random_tensors(args, seed, ml_dtypes.bfloat16)
        found[name] = tuple(
            Transformer(args, lambda weight, ops=ops, tensors=tensors: ops.weight(tensors[weight]), ops)  # type: ignore[misc]
            for ops in (native, ops)
        )
    return cast(Pairs, found)


@pytest.fixture(scope="module")
def pairs(ops: Ops, native: Ops) -> Pairs:
    """Models with activations rounded to bfloat16, beside portable ones."""
    return beside_portable(ops, native)


@pytest.fixture(scope="module")
def precise_pairs(ops: Ops, precise: Ops) -> Pairs:
    """Models with nothing rounded, beside portable ones."""
    return beside_portable(ops, precise)


@pytest.mark.parametrize("name", SHAPES)
def test_precise_logprobs_are_those_of_float32(precise_pairs: Pairs, name: str) -> None:
    """Whatever the batch and the chunk; a prompt long enough for every way to multiply."""
    native, portable_model = precise_pairs[name]
    ids = [int(i) for i in np.random.default_rng(5).integers(0, 40, 50)]
    wanted = log_softmax(portable_model.forward(ids, [50]).asnumpy())
    assert np.abs(log_softmax(native.forward(ids, [50]).asnumpy()) - wanted).max() <= 1e-3
    for chunk_size in (1, 7, None):
        found = generate([ids, ids[:3]], native, 1, chunk_size=chunk_size)[1][0][:49]
        assert np.abs(found - wanted[np.arange(49), ids[1:]]).max() <= 1e-3


@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_within_the_error_of_bfloat16(pairs: Pairs, name: str) -> None:
    """0.07 in the mean and 0.3 at most, but for a token or two whose router hesitates between experts."""
    ids = np.random.default_rng(5).integers(0, 40, 50)
    native, exact = (log_softmax(model.forward(ids, [50]).asnumpy()) for model in pairs[name])
    error = np.abs(native - exact)
    assert error.mean() <= 0.07
    assert (error.max(axis=1) > 0.3).sum() <= (2 if SHAPES[name].moe else 0)


@pytest.mark.parametrize("name", SHAPES)
def test_batch_and_chunk_change_not_one_bit(pairs: Pairs, name: str) -> None:
    model, random = pairs[name][0], np.random.default_rng(6)
    prompts = [[int(i) for i in random.integers(0, 40, length)] for length in (2, 40, 17, 5)]
    together = generate(prompts, model, 1)[1]
    for chunk_size in (1, 3, 16, None):
        for prompt, expected in zip(prompts, together, strict=True):
            alone = generate([prompt], model, 1, chunk_size=chunk_size)[1][0]
            assert np.array_equal(alone[: len(prompt) - 1], expected[: len(prompt) - 1])


@pytest.mark.parametrize("name", sorted(folder.name for folder in GOLDEN.iterdir()))
def test_golden_tokens_where_the_margin_allows(ops: Ops, name: str) -> None:
    """From the folder, as users load one. A token may differ only where bfloat16 can turn the order around."""
    exact, native = (Transformer.from_folder(GOLDEN / name, backend=b, device="CPU") for b in ("portable", "native"))
    for entry in json.loads((GOLDEN / name / "golden.json").read_text()):
        ids = entry["prompt"] + entry["tokens"][:-1]
        wanted, found = (log_softmax(model.forward(ids, [len(ids)]).asnumpy()) for model in (exact, native))
        assert np.abs(found - wanted).mean() <= 0.07
        best = np.sort(wanted, axis=1)
        clear = best[:, -1] - best[:, -2] > 0.3
        assert np.array_equal(found.argmax(axis=1)[clear], wanted.argmax(axis=1)[clear])
