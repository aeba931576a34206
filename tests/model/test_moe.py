"""Routing: every token reaches each of its experts, and nothing else is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral.model.args import MoeArgs
from mistral.model.layers import FeedForward
from mistral.model.moe import Dispatch, MoeLayer
from mistral.ops.interface import Ops
from tests.support.small_models import SmallModel

if TYPE_CHECKING:
    from mindspore import Tensor

Array = npt.NDArray[np.float32]


class Scaling(FeedForward):
    """An expert that multiplies by its number, and counts the tokens that it is given."""

    def __init__(self, number: int) -> None:
        self.number, self.served = number, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.served += int(x.shape[0])
        return x * float(self.number)


class Exploding(FeedForward):
    """An expert that must not be used."""

    def __init__(self) -> None:
        """It has no weights."""

    def __call__(self, x: Tensor) -> Tensor:
        raise AssertionError("an expert that no token chose was run")


def mixed(logits: Array, x: Array, per_token: int) -> Array:
    """What experts that multiply by 1, 2, ... make of x, token by token, with weights that sum to 1."""
    out = np.zeros_like(x)
    for token, row in enumerate(logits):
        chosen = np.argsort(-row)[:per_token]
        powers = np.exp(row[chosen] - row.max())
        out[token] = x[token] * float((powers / powers.sum()) @ (chosen + 1))
    return out


def run(ops: Ops, experts: list[FeedForward], logits: Array, x: Array, per_token: int) -> Array:
    """The layer, with a gate that gives these logits: x is led by an identity matrix."""
    tokens = len(x)
    led = np.concatenate([np.eye(tokens, dtype=np.float32), x], axis=1)
    gate = np.concatenate([logits.T, np.zeros((len(experts), x.shape[1]), np.float32)], axis=1)
    layer = MoeLayer(experts, ops.weight(gate), MoeArgs(len(experts), per_token), ops)
    return np.asarray(layer(ops.tensor(led)).asnumpy()[:, tokens:], np.float32)


@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize(("num_experts", "per_token"), [(1, 1), (4, 1), (4, 2), (5, 3), (3, 3), (8, 2)])
def test_trap_19_no_token_is_dropped_and_weights_are_renormalised(
    ops: Ops, tokens: int, num_experts: int, per_token: int
) -> None:
    random = np.random.default_rng(num_experts * 10 + per_token)
    logits = random.standard_normal((tokens, num_experts)).astype(np.float32)
    x = random.standard_normal((tokens, 4)).astype(np.float32)
    experts = [Scaling(number + 1) for number in range(num_experts)]
    result = run(ops, [*experts], logits, x, per_token)
    np.testing.assert_allclose(result, mixed(logits, x, per_token), rtol=1e-5, atol=1e-5)
    assert sum(expert.served for expert in experts) == tokens * per_token
    served = np.bincount(np.argsort(-logits, axis=1)[:, :per_token].ravel(), minlength=num_experts)
    assert [expert.served for expert in experts] == served.tolist()


def test_weights_sum_to_one_over_the_chosen_alone(ops: Ops) -> None:
    """With experts that do nothing the layer gives back its input; a softmax over all four would shrink it."""
    x = np.ones((3, 4), np.float32)
    result = run(ops, [Scaling(1) for _ in range(4)], np.zeros((3, 4), np.float32), x, 2)
    np.testing.assert_allclose(result, x, rtol=1e-6)


def test_trap_22_experts_that_no_token_chose_are_not_touched(ops: Ops) -> None:
    logits = np.array([[0, 5, 0, 4, 0], [0, 4, 0, 5, 0], [-1, 9, -1, 9, -1]], np.float32)
    experts = [Exploding(), Scaling(2), Exploding(), Scaling(4), Exploding()]
    x = np.ones((3, 2), np.float32)
    np.testing.assert_allclose(run(ops, experts, logits, x, 2), mixed(logits, x, 2), rtol=1e-6)


def test_all_tokens_to_one_expert(ops: Ops) -> None:
    """No expert has a capacity that could overflow."""
    logits = np.tile(np.array([0, 0, 9], np.float32), (50, 1))
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    expert = Scaling(3)
    np.testing.assert_allclose(run(ops, [Exploding(), Exploding(), expert], logits, x, 1), 3 * x, rtol=1e-6)
    assert expert.served == 50


def test_an_expert_runs_once_per_layer_however_many_tokens_chose_it(models: dict[str, SmallModel]) -> None:
    block: Any = models["moe"].transformer.blocks[0]
    assert isinstance(block.feed_forward, MoeLayer)
    calls = 0

    class Counting(Scaling):
        def __call__(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return super().__call__(x)

    ops = block.feed_forward.ops
    MoeLayer([Counting(1) for _ in range(4)], block.feed_forward.gate, MoeArgs(4, 2), ops)(
        ops.tensor(np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32))
    )
    assert calls <= 4


@st.composite
def choices(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], int]:
    """For each token, K different experts of E."""
    num_experts = draw(st.integers(1, 9))
    per_token = draw(st.integers(1, num_experts))
    one = st.permutations(range(num_experts)).map(lambda experts: experts[:per_token])
    return np.array(draw(st.lists(one, min_size=1, max_size=12)), np.int64), num_experts


@settings(deadline=None)
@given(choices())
def test_every_pair_is_dispatched_once_and_finds_its_way_back(choice: tuple[npt.NDArray[np.int64], int]) -> None:
    chosen, num_experts = choice
    dispatch = Dispatch.from_chosen(chosen, num_experts)
    assert dispatch.bounds[0] == 0
    assert dispatch.bounds[-1] == len(dispatch.tokens) == chosen.size
    pairs = []
    for expert in range(num_experts):
        tokens = dispatch.tokens[dispatch.bounds[expert] : dispatch.bounds[expert + 1]]
        assert tokens.tolist() == [t for t in range(len(chosen)) if expert in chosen[t]]
        pairs += [(int(token), expert) for token in tokens]
    back = [pairs[i] for i in dispatch.inverse]
    assert back == [(t, int(expert)) for t in range(len(chosen)) for expert in chosen[t]]
