"""The oracle against answers worked out by hand, against its own laws, and against Hugging Face transformers."""

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.rope import LinearScaling, Llama3Scaling, Llama4Scaling, YarnScaling
from tests.support import oracle

pytestmark = pytest.mark.usefixtures("no_spare_slots")  # so that short texts go round

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = [
    "dense",
    "head_dim",
    "interleaved",
    "llama",
    "llama3",
    "llama_linear",
    "ministral3",
    "ministral3_float8",
    "ministral3_scaled",
    "ministral3_tied",
    "mistral3",
    "moe",
    "moe_windowed",
    "tied",
    "windowed",
]
ARGS = ModelArgs(
    dim=4,
    n_layers=1,
    head_dim=2,
    hidden_dim=2,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=4,
    norm_eps=1e-5,
    rope_theta=1e4,
    sliding_windows=(None,),
)


@cache
def golden(case: str) -> tuple[dict[str, NDArray[Any]], ModelArgs, list[dict[str, Any]]]:
    checkpoint = open_checkpoint(GOLDEN / case)
    tensors = {name: checkpoint.get(name) for name in checkpoint.shapes}
    return tensors, checkpoint.args, json.loads((GOLDEN / case / "golden.json").read_text(encoding="utf-8"))


def test_every_golden_case_is_tested() -> None:
    assert sorted(folder.name for folder in GOLDEN.iterdir()) == CASES


@pytest.mark.parametrize("case", CASES)
def test_oracle_agrees_with_transformers(case: str) -> None:
    tensors, args, entries = golden(case)
    for entry in entries:
        tokens, logprobs = oracle.oracle_greedy(tensors, args, entry["prompt"], entry["max_tokens"])
        assert tokens == entry["tokens"]
        np.testing.assert_allclose(logprobs, entry["logprobs"], rtol=0, atol=1e-4)


def worst(case: str, **changes: Any) -> float:
    """The largest distance from the golden logprobs when the architecture is changed."""
    tensors, args, entries = golden(case)
    entry = entries[-1]
    ids = entry["prompt"] + entry["tokens"]
    logprobs = oracle.oracle_logprobs(tensors, replace(args, **changes), ids)
    return float(np.abs(np.array(logprobs) - entry["logprobs"]).max())


def test_golden_figures_tell_wrong_architectures_apart() -> None:
    for case in ("windowed", "moe_windowed", "tied", "interleaved"):
        right = golden(case)[1].sliding_windows
        assert worst(case) < 1e-4
        assert worst(case, sliding_windows=tuple(w and w + 1 for w in right)) > 0.1
        assert worst(case, sliding_windows=tuple(w and w - 1 for w in right)) > 0.1
    assert worst("interleaved", sliding_windows=(4, None, 4, 4)) > 0.1
    assert worst("dense", rope_theta=1e4) > 0.1
    assert worst("llama3", rope_scaling=None) > 0.1
    assert worst("llama3", rope_scaling=LinearScaling(8.0)) > 0.1
    assert worst("llama3", rope_scaling=Llama3Scaling(8.0, 1.0, 3.0, 32)) > 0.01
    assert worst("llama3", rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 40)) > 0.01
    yarn = YarnScaling(4.0, 12, 1.5, 0.7, 1.0)
    assert worst("ministral3") < 1e-4
    assert worst("ministral3", rope_scaling=None) > 0.1
    assert worst("ministral3", rope_scaling=replace(yarn, beta_fast=1.2)) > 0.01
    assert worst("ministral3", rope_scaling=replace(yarn, attention_factor=1.01)) > 0.01
    assert worst("ministral3", llama_4_scaling=None) > 0.1
    assert worst("ministral3", llama_4_scaling=Llama4Scaling(13, 0.3)) > 0.01
    assert worst("ministral3_scaled", rope_scaling=replace(yarn, factor=8.0)) > 0.1
    assert worst("llama_linear", rope_scaling=LinearScaling(2.0)) > 0.1
    assert worst("llama", sliding_windows=(20,) * 3) > 0.1
    assert worst("dense", norm_eps=1e-2) > 0.01
    assert worst("moe", moe=MoeArgs(4, 1)) > 0.1


def test_window_rows_exactly() -> None:
    rows = [[int(oracle.visible(i, j, 3)) for j in range(5)] for i in range(5)]
    assert rows == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert [oracle.visible(1000, j, None) for j in (0, 999, 1000, 1001)] == [True, True, True, False]
    assert [oracle.visible(4, j, 1) for j in (3, 4, 5)] == [False, True, False]


def test_rms_norm_of_a_known_row() -> None:
    x, weight = np.array([[3.0, 4.0], [1.0, -1.0]]), np.array([1.0, 2.0])
    expected = [[3 / math.sqrt(12.5), 8 / math.sqrt(12.5)], [1.0, -2.0]]
    np.testing.assert_allclose(oracle.rms_norm(x, weight, 0.0), expected)
    np.testing.assert_allclose(oracle.rms_norm(x[:1], weight, 3.5), [[0.75, 2.0]])  # 12.5 + 3.5 = 4 * 4


def test_rotation_turns_neighbouring_pairs() -> None:
    head = np.array([1.0, 0.0, 0.0, 2.0])
    np.testing.assert_array_equal(oracle.rotated(head, 0, 100.0), head)
    # Pair 0 turns by 3, pair 1 by 3 * 100 ** (-2 / 4) = 0.3.
    expected = [math.cos(3), math.sin(3), -2 * math.sin(0.3), 2 * math.cos(0.3)]
    np.testing.assert_allclose(oracle.rotated(head, 3, 100.0), expected, rtol=1e-15)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 8))
    near, far = (float(oracle.rotated(q, 7 + at, 1e4) @ oracle.rotated(k, at, 1e4)) for at in (0, 1000))
    assert near == pytest.approx(far, abs=1e-9)
    assert near != pytest.approx(float(q @ k), abs=1e-2)


def attention_weights() -> dict[str, NDArray[np.float64]]:
    """Queries of zero, so that every visible key counts the same; kv head g passes on x[2g] and x[2g + 1]."""
    return {
        "attention.wq.weight": np.zeros((8, 4)),
        "attention.wk.weight": np.eye(4),
        "attention.wv.weight": np.eye(4),
        "attention.wo.weight": np.zeros((4, 8)),
    }


@pytest.mark.parametrize(("head", "kv_head"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_each_group_of_heads_shares_a_kv_head(head: int, kv_head: int) -> None:
    layer = attention_weights()
    layer["attention.wo.weight"][0, 2 * head] = layer["attention.wo.weight"][3, 2 * head + 1] = 1
    out = oracle.attention(layer, ARGS, np.array([[1.0, 2.0, 3.0, 4.0]]), None)
    np.testing.assert_allclose(out, [[2 * kv_head + 1, 0, 0, 2 * kv_head + 2]])


@pytest.mark.parametrize(
    ("window", "means"),
    [(None, [1, 1.5, 7 / 3, 3.75]), (1, [1, 2, 4, 8]), (2, [1, 1.5, 3, 6]), (9, [1, 1.5, 7 / 3, 3.75])],
)
def test_equal_scores_average_the_visible_values(window: int | None, means: list[float]) -> None:
    layer = attention_weights()
    layer["attention.wo.weight"][0, 0] = 1
    x = np.zeros((4, 4))
    x[:, 0] = [1, 2, 4, 8]
    np.testing.assert_allclose(oracle.attention(layer, ARGS, x, window)[:, 0], means)


def test_scores_are_divided_by_the_root_of_head_dim() -> None:
    layer = attention_weights()
    layer["attention.wq.weight"][0, 0] = layer["attention.wo.weight"][1, 1] = 1
    x = np.array([[0.0, 0.0, 0.0, 0.0], [2.0, 5.0, 0.0, 0.0]])
    # Position 1 scores 0 against a key of zero and 2 * 2 / sqrt(2) against its own, where no turn separates them.
    share = math.exp(4 / math.sqrt(2)) / (1 + math.exp(4 / math.sqrt(2)))
    np.testing.assert_allclose(oracle.attention(layer, ARGS, x, None)[1], [0, 5 * share, 0, 0])


def expert(name: str, w1: float, w3: float, w2: float) -> dict[str, NDArray[np.float64]]:
    return {f"{name}.{key}.weight": np.array([[value]]) for key, value in (("w1", w1), ("w3", w3), ("w2", w2))}


def test_swiglu_of_a_known_number() -> None:
    sigmoid = 1 / (1 + math.exp(-6))
    out = oracle.swiglu(expert("feed_forward", 2.0, 5.0, 7.0), "feed_forward", np.array([[3.0]]))
    np.testing.assert_allclose(out, [[6 * sigmoid * 15 * 7]])


def test_experts_are_weighted_by_the_softmax_over_the_chosen_logits() -> None:
    layer = {"feed_forward.gate.weight": np.array([[1.0], [3.0], [2.0], [0.0]])}
    for e in range(4):
        layer |= expert(f"feed_forward.experts.{e}", 1.0, 1.0, 10.0**e)
    x = np.array([[1.0], [-1.0]])  # the second token prefers experts 3, then 0: logits 0 and -1
    base = 1 / (1 + math.exp(-1))  # silu(1) * 1; silu(-1) * -1 is 1 - base
    first, second = math.e / (1 + math.e), 1 / (1 + math.e)
    expected = [[base * (first * 10 + second * 100)], [(1 - base) * (first * 1000 + second)]]
    np.testing.assert_allclose(oracle.mixture(layer, MoeArgs(4, 2), x), expected)
    np.testing.assert_allclose(oracle.mixture(layer, MoeArgs(4, 1), x), [[base * 10], [(1 - base) * 1000]])


def test_layers_that_add_nothing_leave_the_normed_embedding() -> None:
    tensors = attention_weights()
    tensors |= {f"feed_forward.{w}.weight": np.zeros(s) for w, s in (("w1", (2, 4)), ("w2", (4, 2)), ("w3", (2, 4)))}
    tensors = {f"layers.0.{name}": t for name, t in tensors.items()}
    tensors |= {"layers.0.attention_norm.weight": np.ones(4), "layers.0.ffn_norm.weight": np.ones(4)}
    tensors |= {"tok_embeddings.weight": np.eye(4), "norm.weight": np.array([1.0, 2.0, 3.0, 4.0])}
    tensors["output.weight"] = np.full((4, 4), 0.5)
    args = replace(ARGS, norm_eps=0.75)  # mean square 1/4, and 3/4 more: the norm divides by 1
    np.testing.assert_allclose(oracle.oracle_logits(tensors, args, [2, 0]), [[1.5] * 4, [0.5] * 4])
    tied = replace(args, tied_embeddings=True)
    np.testing.assert_allclose(oracle.oracle_logits(tensors, tied, [2, 0]), [[0, 0, 3, 0], [1, 0, 0, 0]])
    np.testing.assert_allclose(
        oracle.oracle_logprobs(tensors, tied, [2, 0, 0]), [-math.log(3 + math.exp(3)), 1 - math.log(3 + math.e)]
    )


@pytest.mark.parametrize("case", CASES)
def test_later_tokens_change_no_earlier_logits(case: str) -> None:
    tensors, args, entries = golden(case)
    ids = entries[-1]["prompt"][:24]
    whole = oracle.oracle_logits(tensors, args, ids)
    assert whole.shape == (24, args.vocab_size)
    for length in (1, 5, 13):
        np.testing.assert_allclose(oracle.oracle_logits(tensors, args, ids[:length]), whole[:length], atol=1e-9)


@pytest.mark.parametrize("case", ["windowed", "moe_windowed"])
def test_a_token_reaches_n_layers_times_window_less_one_positions_and_no_further(case: str) -> None:
    tensors, args, entries = golden(case)
    ids = entries[-1]["prompt"][:24]
    reach = args.n_layers * (args.sliding_windows[0] or 0) - args.n_layers
    last = oracle.oracle_logits(tensors, args, ids)[-1]
    for distance, reached in ((reach, True), (reach + 1, False)):
        changed = list(ids)
        changed[-1 - distance] = (changed[-1 - distance] + 1) % args.vocab_size
        difference = np.abs(oracle.oracle_logits(tensors, args, changed)[-1] - last).max()
        assert difference > 1e-6 if reached else difference < 1e-12


def test_greedy_stops_before_eos_and_counts_prompt_logprobs() -> None:
    tensors, args, entries = golden("dense")
    prompt, tokens = entries[1]["prompt"], entries[1]["tokens"]
    eos = tokens[3]
    expected = tokens[: tokens.index(eos)]
    ids, logprobs = oracle.oracle_greedy(tensors, args, prompt, 10, eos_id=eos)
    assert ids == expected
    assert len(logprobs) == len(prompt) - 1 + len(expected)
    ids, logprobs = oracle.oracle_greedy(tensors, args, prompt, 0)
    assert (ids, len(logprobs)) == ([], len(prompt) - 1)
