"""The transformer against the float64 oracle, its window to the exact row, and how its layers are shared out."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import CacheMetadata
from mistral.model.parameters import parameters
from mistral.model.transformer import Transformer
from mistral.ops.interface import Ops
from mistral.pipeline.split import split_layers
from tests.support.oracle import oracle_logits
from tests.support.small_models import DENSE, SHAPES, WINDOW, WINDOWED, SmallModel, build

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
        model.run_blocks(model.embed(ids), CacheMetadata((12,), (start,), (0,), ops), None).asnumpy()
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


def test_an_id_outside_the_vocabulary_is_a_mistake(models: dict[str, SmallModel]) -> None:
    for bad in (-1, DENSE.vocab_size):
        with pytest.raises(AssertionError, match="vocabulary"):
            models["dense"].transformer.forward([1, bad], [2])


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
