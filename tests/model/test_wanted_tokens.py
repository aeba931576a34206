"""The last layer goes on with wanted tokens only: logits, and what the cache holds, are those of all tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from mistral.engine.orders import Join
from mistral.engine.stage import Stage
from mistral.engine.work import Work
from mistral.load import Transformer
from mistral.model.args import ModelArgs
from mistral.model.fused_block import FusedBlock
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from tests.support.block_products import random_blocks
from tests.support.checkpoint_forms import random_tensors
from tests.support.small_models import SHAPES

# Steps of two rows: how many new tokens each has, of which logits are wanted, end to end and in any order
STEPS: list[tuple[list[int], list[int]]] = [
    ([9, 4], []),
    ([3, 8], [10]),
    ([1, 1], [1]),
    ([6, 2], [7, 0, 5]),
    ([2, 30], list(range(32))),
    ([1, 3], [3, 2, 1, 0]),
    ([1, 1], []),
    ([17, 1], [17, 16]),
]


@pytest.fixture(scope="module")
def backends(ops: Ops) -> dict[str, Ops]:
    """Both, and the native one that rounds nothing."""
    return {"portable": ops, "native": cast(Ops, Native()), "precise": cast(Ops, Native(precise=True))}


def model_of(args: ModelArgs, ops: Ops, blocks: str = "") -> Transformer:
    """A random model in bfloat16, or its layers in blocks."""
    tensors = random_tensors(args, 3, ml_dtypes.bfloat16)

    def get(name: str) -> object:
        tensor = tensors[name]
        small = not blocks or not name.startswith("layers") or tensor.ndim < 2 or "gate" in name
        return ops.weight(tensor if small else random_blocks(blocks, tensor.shape[0], tensor.shape[1], scale=2e-3))

    return Transformer(args, get, ops)  # type: ignore[arg-type]


def held(model: Transformer, steps: list[tuple[list[int], list[int] | None]]) -> list[NDArray[Any]]:
    """Logits of each step, and then the keys and values that the cache holds of each row."""
    ids = np.random.default_rng(4).integers(0, model.args.vocab_size, 100)
    cache, found, fed = model.new_cache(), list[NDArray[Any]](), [list[int](), list[int]()]
    for row in (0, 1):
        cache.add(row, 80)
    for seqlens, wanted in steps:
        step = [int(token) for token in ids[: sum(seqlens)]]
        found.append(model.forward(step, seqlens, cache, wanted=wanted).asnumpy())
        fed[0] += step[: seqlens[0]]
        fed[1] += step[seqlens[0] :]
    for row in (0, 1):
        for keys, values in cache.export(row, fed[row]).layers.values():
            found += [keys, values]
    return found


@pytest.mark.parametrize("backend", ["portable", "native", "precise"])
@pytest.mark.parametrize("shape", ["interleaved", "moe_windowed"])
def test_logits_and_cache_are_those_of_all_tokens(backends: dict[str, Ops], backend: str, shape: str) -> None:
    """The same bits but for the logits of portable, which sums in another order for another number of tokens."""
    model = model_of(SHAPES[shape], backends[backend])
    if backend == "portable":
        compare(model, STEPS[:6], 1e-5)
    else:
        compare(model, STEPS, 0)


@pytest.mark.parametrize("blocks", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("shape", ["interleaved", "moe_windowed"])
def test_weights_in_blocks_change_nothing(backends: dict[str, Ops], shape: str, blocks: str) -> None:
    args = replace(SHAPES[shape], dim=64, head_dim=16, hidden_dim=96)
    compare(model_of(args, backends["native"], blocks), STEPS, 0)


def compare(model: Transformer, steps: list[tuple[list[int], list[int]]], tolerance: float) -> None:
    some, every = held(model, [*steps]), held(model, [(seqlens, None) for seqlens, _ in steps])
    for (_, wanted), part, whole in zip(steps, some, every, strict=False):
        assert part.shape == (len(wanted), model.args.vocab_size) and np.isfinite(whole).all()
        np.testing.assert_allclose(part, whole[wanted], rtol=0, atol=tolerance)
    for part, whole in zip(some[len(steps) :], every[len(steps) :], strict=True):
        assert part.any() and np.array_equal(part, whole)


@pytest.mark.parametrize("backend", ["portable", "native"])
def test_an_engine_computes_no_last_layer_for_what_nobody_wants(
    backends: dict[str, Ops], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of work that want all logits, the last or none, in one step."""
    model = model_of(SHAPES["moe"], backends[backend])
    stage, last, fed = Stage(model), model.blocks[model.args.n_layers - 1], list[int]()
    owner, name = (last.fused, "feed_forward_half") if isinstance(last, FusedBlock) else (last, "feed_forward")
    forward = getattr(owner, name)

    def spied(*arguments: Any) -> Any:
        fed.append(int(arguments[-1].shape[0]))
        return forward(*arguments)

    monkeypatch.setattr(owner, name, spied)
    for row in (0, 1, 2):
        stage.apply(Join(row, 60, None))
    ids = [3, 1, 4, 1, 5]
    alone = model.forward(ids, [5]).asnumpy()
    del fed[:]
    for wanted, counts in (("none", (5, 0, 1)), ("all", (5, 5, 1))):
        work = [Work(0, ids, "all"), Work(1, ids, cast(Any, wanted)), Work(2, ids, "last")]
        logits = stage.logits(work, stage.run_layers(stage.begin(work), work, stage.embed(work)))
        assert tuple(map(len, logits)) == counts and fed.pop() == sum(counts) and not fed
        if wanted == "none":
            np.testing.assert_allclose(logits[2][0], alone[-1], rtol=0, atol=1e-5 if backend == "portable" else 0)
    nothing = [Work(row, ids, "none") for row in (2, 0)]
    found = stage.run_layers(stage.begin(nothing), nothing, stage.embed(nothing))
    assert found is None and not fed and [len(each) for each in stage.logits(nothing, found)] == [0, 0]
