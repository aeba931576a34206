"""The transformer against the float64 oracle, its window to the exact row, and how its layers are shared out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import CacheMetadata
from mistral.model.parameters import parameters
from mistral.model.transformer import Transformer, in_millions
from mistral.ops.interface import Ops
from mistral.pipeline.split import split_layers
from tests.support.oracle import oracle_logits
from tests.support.small_models import DENSE, SHAPES, WINDOW, WINDOWED, SmallModel, build

pytestmark = pytest.mark.usefixtures("no_spare_slots")  # so that short texts go round

Logits = npt.NDArray[np.float32]


def ids_of(length: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, DENSE.vocab_size, length)]


def assert_close(found: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=2e-4)


def in_chunks(model: SmallModel, ids: list[int], chunks: list[int]) -> Logits:
    """Logits of one sequence fed to a cache in pieces of these lengths, the last repeated to the end."""
    cache = model.transformer.new_cache()
    cache.add(0, len(ids))
    parts, done = [], 0
    while done < len(ids):
        size = chunks.pop(0) if len(chunks) > 1 else chunks[0]
        piece = ids[done : done + size]
        parts.append(model.transformer.forward(piece, [len(piece)], cache).asnumpy())
        done += len(piece)
    return np.concatenate(parts)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [1, 4, 26])
def test_logits_equal_the_oracles(models: dict[str, SmallModel], name: str, length: int) -> None:
    model, ids = models[name], ids_of(length)
    logits = model.logits(ids)
    assert logits.shape == (length, DENSE.vocab_size)
    assert_close(logits, oracle_logits(model.tensors, model.args, ids))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("chunks", [[1], [4], [5], [6], [7, 1, 1, 11, 3], [100]])
def test_chunks_through_the_cache_equal_the_oracle(models: dict[str, SmallModel], name: str, chunks: list[int]) -> None:
    model, ids = models[name], ids_of(26, seed=1)
    expected = oracle_logits(model.tensors, model.args, ids)
    assert_close(in_chunks(model, ids, list(chunks)), expected)


@pytest.mark.parametrize("name", ["dense", "interleaved", "moe_windowed"])
def test_trap_6_without_a_cache_rows_are_causal_windowed_and_apart(models: dict[str, SmallModel], name: str) -> None:
    model, lengths = models[name], [3, 11, 1, 8]
    sequences = [ids_of(length, seed=i) for i, length in enumerate(lengths)]
    logits = model.transformer.forward(list(chain(*sequences)), lengths).asnumpy()
    expected = [oracle_logits(model.tensors, model.args, ids) for ids in sequences]
    assert_close(logits, np.concatenate(expected))


def test_a_step_may_move_any_rows_of_the_cache_in_any_order(models: dict[str, SmallModel]) -> None:
    model = models["windowed"]
    sequences = {4: ids_of(12, seed=4), 0: ids_of(9, seed=5), 7: ids_of(8, seed=6)}
    cache = model.transformer.new_cache()
    for row, ids in sequences.items():
        cache.add(row, len(ids))
    found: dict[int, list[Logits]] = {row: [] for row in sequences}
    for step in ({4: 3}, {0: 1, 4: 7}, {7: 8, 0: 4, 4: 1}, {0: 4, 4: 1}):
        pieces = {row: sequences[row][cache.kv_seqlen(row) :][:count] for row, count in step.items()}
        logits = model.transformer.forward(list(chain(*pieces.values())), list(step.values()), cache, list(step))
        for row, part in zip(step, np.split(logits.asnumpy(), np.cumsum(list(step.values()))[:-1]), strict=True):
            found[row].append(part)
    for row, ids in sequences.items():
        assert_close(np.concatenate(found[row]), oracle_logits(model.tensors, model.args, ids))


@pytest.mark.parametrize("chunks", [None, [1], [3], [WINDOW], [WINDOW + 1], [100]])
def test_trap_1_w_keys_are_visible_not_one_more(ops: Ops, chunks: list[int] | None) -> None:
    """Of one layer: another token at position p changes the rows p to p + W - 1, and not one bit of any other."""
    model = build(replace(WINDOWED, n_layers=1, sliding_windows=(WINDOW,)), ops, seed=20)
    ids = ids_of(20, seed=2)
    for changed in (0, 6, 19):
        others = list(ids)
        others[changed] = (ids[changed] + 1) % DENSE.vocab_size
        run = [model.logits(x) if chunks is None else in_chunks(model, x, list(chunks)) for x in (ids, others)]
        rows = [position for position in range(20) if not np.array_equal(run[0][position], run[1][position])]
        assert rows == list(range(changed, min(20, changed + WINDOW)))


def test_information_travels_w_minus_1_positions_per_layer(models: dict[str, SmallModel]) -> None:
    model, ids = models["windowed"], ids_of(24, seed=3)
    others = [(ids[0] + 1) % DENSE.vocab_size, *ids[1:]]
    reach = model.args.n_layers * (WINDOW - 1)
    rows = np.flatnonzero((model.logits(ids) != model.logits(others)).any(axis=1))
    assert rows.max() == reach


def test_truncating_and_going_on_equals_a_fresh_start(models: dict[str, SmallModel]) -> None:
    for name, back in (("dense", 9), ("interleaved", 11), ("windowed", 11)):
        model = models[name]
        ids, other = ids_of(12, seed=7), ids_of(6, seed=8)
        cache = model.transformer.new_cache()
        cache.add(0, 30)
        model.transformer.forward(ids, [12], cache)
        assert cache.truncate(0, back)
        logits = model.transformer.forward(other, [6], cache).asnumpy()
        expected = oracle_logits(model.tensors, model.args, ids[:back] + other)[back:]
        assert_close(logits, expected)


def test_a_reserved_or_reset_row_goes_on_correctly(models: dict[str, SmallModel]) -> None:
    model, ids = models["interleaved"], ids_of(20, seed=9)
    expected = oracle_logits(model.tensors, model.args, ids)
    cache = model.transformer.new_cache()
    cache.add(0, 4)
    for _ in range(2):
        first = model.transformer.forward(ids[:4], [4], cache).asnumpy()
        cache.reserve(0, 20)
        rest = model.transformer.forward(ids[4:], [16], cache).asnumpy()
        assert_close(np.concatenate([first, rest]), expected)
        cache.reset(0)


def test_wanted_picks_the_tokens_whose_logits_are_needed(models: dict[str, SmallModel]) -> None:
    model, ids = models["moe"], ids_of(9)
    everything = model.logits(ids)
    for wanted in ([0], [8, 2], list(range(9))):
        logits = model.transformer.forward(ids, [4, 5], wanted=wanted).asnumpy()
        assert logits.shape == (len(wanted), DENSE.vocab_size)
    np.testing.assert_allclose(
        model.transformer.forward(ids, [9], wanted=[8, 2]).asnumpy(), everything[[8, 2]], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("offset", [100_000, 131_072, 3_000_000])
def test_trap_7_any_position_has_its_rotation(models: dict[str, SmallModel], ops: Ops, offset: int) -> None:
    """Attention sees distances only, so a sequence that begins at any position gives the same."""
    model, ids = models["windowed"].transformer, np.array(ids_of(12))
    at_zero, far = (
        cast(Any, model.run_blocks(model.embed(ids), CacheMetadata((12,), (start,), (0,), ops), None)).asnumpy()
        for start in (0, offset)
    )
    np.testing.assert_allclose(far, at_zero, rtol=0, atol=1e-4)


def test_trap_4_windows_go_by_the_global_layer(ops: Ops) -> None:
    """A stage that holds the later layers must not begin again with the window of layer 0."""
    args = replace(DENSE, n_layers=4, sliding_windows=(None, 2, 3, 7))
    model = build(args, ops, seed=30)
    whole, ids = model.transformer, np.array(ids_of(18))
    x = whole.embed(ids)
    for layers in split_layers(4, 3):
        stage = Transformer(args, lambda name: ops.weight(model.tensors[name]), ops, layers)
        cache = stage.new_cache()
        cache.add(0, 18)
        assert {layer: held[0].shape[1] for layer, held in cache.rows[0].layers.items()} == {
            layer: [18, 2, 3, 7][layer] for layer in layers
        }
        x = stage.run_blocks(x, cache.begin([18], [0]), cache)
    assert_close(whole.head(x).asnumpy(), oracle_logits(model.tensors, args, ids.tolist()))


def names_asked(args: ModelArgs, ops: Ops, layers: range | None) -> list[str]:
    model, asked = build(args, ops), list[str]()

    def get(name: str) -> object:
        asked.append(name)
        return ops.weight(model.tensors[name])

    Transformer(args, get, ops, layers)  # type: ignore[arg-type]
    return asked


@pytest.mark.parametrize("name", SHAPES)
def test_each_weight_is_asked_for_once(ops: Ops, name: str) -> None:
    asked = names_asked(SHAPES[name], ops, None)
    assert sorted(asked) == sorted(parameters(SHAPES[name]))


@pytest.mark.parametrize("tied", [False, True])
def test_trap_12_a_stage_asks_for_its_own_weights_alone(ops: Ops, tied: bool) -> None:
    args = replace(SHAPES["moe"], n_layers=3, sliding_windows=(None,) * 3, tied_embeddings=tied)
    ends = [{"tok_embeddings.weight"}, set(), {"norm.weight", "tok_embeddings.weight" if tied else "output.weight"}]
    for layers, extra in zip(split_layers(3, 3), ends, strict=True):
        asked = names_asked(args, ops, layers)
        of_layers = {name for name, each in parameters(args).items() if each.layer == layers.start}
        assert sorted(asked) == sorted(of_layers | extra)


def refused(call: Callable[[], object]) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(InputError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


FLAT = "must be one flat sequence of integers from 0 to"
TEXT = "text: encode it first, as tokenizer.encode(text) does"


@pytest.mark.parametrize(
    ("ids", "shown"),
    [
        ([[1, 2, 3], [4, 5, 6]], "an array of shape (2, 3)"),
        ([[1, 2], [3]], "sequences of different lengths"),
        (7, "a single number"),
        ([1.0, 2.0], "one of float64"),
        ([True, False], "one of bool"),
        (["a", "b"], TEXT),
        ("This is a test", TEXT),
        ([1, None], "one with NoneType in it"),
        ({"ids": [1]}, "one with dict in it"),
        ([1 << 70], "one of numbers so large"),
        ([1, -1], "one with -1 in it"),
        ([1, DENSE.vocab_size, 2], f"one with {DENSE.vocab_size} in it"),
    ],
)
def test_what_are_no_ids_is_refused_with_what_to_pass(models: dict[str, SmallModel], ids: Any, shown: str) -> None:
    model = models["dense"].transformer
    assert refused(lambda: model.forward(ids, [2])) == f"input_ids {FLAT} {DENSE.vocab_size - 1}, not {shown}"


def test_a_step_without_tokens_is_refused(models: dict[str, SmallModel]) -> None:
    assert refused(lambda: models["dense"].transformer.forward([], [])) == "input_ids must hold at least one token"


@pytest.mark.parametrize("seqlens", [[], [2], [4], [3, 0], [4, -1], [1.0, 2.0], ["3"], 3, [[3]], None])
def test_seqlens_that_do_not_fit_are_refused(models: dict[str, SmallModel], seqlens: Any) -> None:
    line = refused(lambda: models["dense"].transformer.forward([1, 2, 3], seqlens))
    assert line.startswith("seqlens must be ") and line.endswith(f"the 3 tokens of input_ids, not {seqlens!r}")


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ([2, 3], "one with 3 in it"),
        ([-1], "one with -1 in it"),
        ([[0]], "an array of shape (1, 1)"),
        ([0.5], "one of float64"),
        (0, "a single number"),
    ],
)
def test_tokens_that_there_are_not_cannot_be_wanted(models: dict[str, SmallModel], wanted: Any, shown: str) -> None:
    line = refused(lambda: models["dense"].transformer.forward([1, 2, 3], [3], wanted=wanted))
    assert line == f"wanted {FLAT} 2, not {shown}"


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (None, "the cache has no row 1: call cache.add(1, capacity) first"),
        ([0, 5], "the cache has no row 5: call cache.add(5, capacity) first"),
        ([0], "rows must be 2 numbers of rows, one for each of seqlens, not [0]"),
        (["a", "b"], "rows must be 2 numbers of rows, one for each of seqlens, not ['a', 'b']"),
        ([0, 0], "rows must be different rows of the cache, not [0, 0]"),
        ([7, 0], "row 0 has seen 2 tokens, and 3 more would exceed its capacity of 4: call cache.reserve first"),
    ],
)
def test_rows_that_the_cache_cannot_serve_are_refused_and_nothing_changes(
    models: dict[str, SmallModel], rows: Any, line: str
) -> None:
    model = models["windowed"].transformer
    cache = model.new_cache()
    cache.add(0, 4)
    cache.add(7, 30)
    model.forward([1, 2], [2], cache)
    assert refused(lambda: model.forward([1, 2, 3, 4], [1, 3], cache, rows)) == line
    assert [(row.kv_seqlen, row.written) for row in cache.rows.values()] == [(2, 2), (0, 0)]


def test_integers_of_any_kind_are_ids_and_an_empty_choice_is_none(models: dict[str, SmallModel]) -> None:
    model, expected = models["dense"].transformer, models["dense"].logits([3, 1])
    for ids in (np.array([3, 1], np.uint8), (3, 1), np.array([3, 1], np.int32)):
        assert np.array_equal(model.forward(ids, np.array([2])).asnumpy(), expected)  # type: ignore[arg-type]
    assert model.forward([3, 1], [2], wanted=[]).shape == (0, DENSE.vocab_size)


def test_a_stage_says_what_it_is_and_what_it_lacks(ops: Ops) -> None:
    args = replace(DENSE, n_layers=4, sliding_windows=(None,) * 4)
    model = build(args, ops)
    first, last = (
        Transformer(args, lambda name: ops.weight(model.tensors[name]), ops, layers)
        for layers in (range(3), range(3, 4))
    )
    size = 40 * 16 + 3 * sum(tensor.size for name, tensor in model.tensors.items() if name.startswith("layers.0."))
    name = f"Transformer(layers 0 to 2 of 4, each of 16, portable, float32 weights, {size} parameters)"
    assert repr(first) == name
    assert refused(lambda: first.forward([1], [1])).startswith(f"{name} is a stage of a pipeline and has no logits")
    assert refused(lambda: first.head(first.embed(np.array([1])))) == f"{name} has no head: the last stage has it"
    assert refused(lambda: last.embed(np.array([1]))) == f"{last!r} has no embeddings: the first stage has them"
    assert repr(model.transformer).startswith("Transformer(4 layers of 16, portable, float32 weights, ")


def test_a_number_of_parameters_is_shown_in_three_digits() -> None:
    assert [in_millions(n) for n in (999_999, 2_030_000, 7_241_732_096)] == ["999999", "2.03 M", "7.24 B"]


@given(n_layers=st.integers(1, 200), ranks=st.integers(1, 200))
def test_trap_11_layers_are_shared_out_evenly_and_none_is_left_empty(n_layers: int, ranks: int) -> None:
    if ranks > n_layers:
        with pytest.raises(InputError, match=rf"^num_pipeline_ranks {ranks}: .*{n_layers} layers"):
            split_layers(n_layers, ranks)
        return
    parts = split_layers(n_layers, ranks)
    assert [layer for part in parts for layer in part] == list(range(n_layers))
    sizes = [len(part) for part in parts]
    assert len(sizes) == ranks
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_32_layers_on_12_and_on_5_ranks() -> None:
    assert [len(part) for part in split_layers(32, 12)] == [3] * 8 + [2] * 4
    assert [len(part) for part in split_layers(32, 5)] == [7, 7, 6, 6, 6]


@pytest.mark.parametrize("ranks", [0, -1])
def test_a_number_of_ranks_below_one_is_refused(ranks: int) -> None:
    with pytest.raises(InputError):
        split_layers(32, ranks)
