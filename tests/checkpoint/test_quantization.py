"""Which format each matrix of a quantized model has: as files that llama.cpp has made have it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mistral.checkpoint.gguf.importances import Importances
from mistral.checkpoint.quantization import MIXTURES, block_kind, kind_of
from mistral.cli.bench.random_checkpoint import shape_args
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.parameters import parameters

SEVEN, MIXTRAL = shape_args("mistral-7b"), shape_args("mixtral-8x7b")
SEVENTY = replace(SEVEN, n_layers=80, n_heads=64, n_kv_heads=8, sliding_windows=(None,) * 80)
MORE = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]  # of 32 layers, those with more bits


def layers_with(args: ModelArgs, weight: str, kind: str, mixture: str, weighted: bool = False) -> list[int]:
    """The layers in which a weight has this format."""
    return sorted(
        {
            each.layer
            for each in parameters(args).values()
            if each.layer is not None and each.weight == weight and kind_of(each, args, mixture, weighted).name == kind
        }
    )


def outside(args: ModelArgs, mixture: str) -> dict[str, str]:
    """The formats of what is in no layer."""
    return {each.weight: kind_of(each, args, mixture).name for each in parameters(args).values() if each.layer is None}


def test_q4_k_m_and_q5_k_m_have_more_bits_in_half_of_the_layers() -> None:
    for mixture, base in (("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")):
        for weight in ("wv", "w2"):
            assert layers_with(SEVEN, weight, "Q6_K", mixture) == MORE
            assert layers_with(SEVEN, weight, base, mixture) == [n for n in range(32) if n not in MORE]
        for weight in ("wq", "wk", "wo", "w1", "w3"):
            assert layers_with(SEVEN, weight, base, mixture) == [*range(32)]
        assert outside(SEVEN, mixture) == {"tok_embeddings": base, "norm": "F32", "output": "Q6_K"}
    assert layers_with(SEVENTY, "wv", "Q4_K", "Q4_K_M") == []
    assert len(layers_with(SEVENTY, "wv", "Q5_K", "Q4_K_M")) == 40


def test_of_eight_experts_attention_has_more_bits() -> None:
    assert layers_with(MIXTRAL, "wk", "Q8_0", "Q4_K_M") == layers_with(MIXTRAL, "wv", "Q8_0", "IQ4_XS") == [*range(32)]
    assert layers_with(MIXTRAL, "wo", "Q5_K", "Q4_K_M") == layers_with(MIXTRAL, "wo", "Q5_K", "IQ4_XS") == [*range(32)]
    assert layers_with(MIXTRAL, "wo", "Q4_0", "Q4_0") == layers_with(MIXTRAL, "gate", "F32", "Q4_0") == [*range(32)]
    assert layers_with(MIXTRAL, "w2", "Q6_K", "Q4_K_M") == MORE
    four = replace(MIXTRAL, moe=replace(MIXTRAL.moe, num_experts=4))  # type: ignore[type-var]
    assert layers_with(four, "wk", "Q4_K", "Q4_K_M") == [*range(32)]


def test_importances_change_the_first_layers() -> None:
    assert layers_with(SEVEN, "w2", "Q5_K", "IQ4_XS") == [0, 1, 2, 3]
    assert layers_with(SEVEN, "w2", "Q5_K", "IQ4_XS", weighted=True) == []
    assert layers_with(SEVEN, "w2", "Q4_1", "Q4_0", weighted=True) == [0, 1, 2, 3]
    assert layers_with(SEVEN, "w2", "Q4_0", "Q4_0") == layers_with(SEVEN, "wv", "Q5_K", "IQ4_XS") == [*range(32)]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_short_rows_have_blocks_of_32_and_shorter_ones_none(mixture: str) -> None:
    plain = {"BF16", "F16"}
    for dim, fallback in ((576, {"Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q4_0"}), (40, {"F16"})):
        args = replace(SEVEN, dim=dim, tied_embeddings=True)
        kinds = {
            kind_of(each, args, mixture).name
            for each in parameters(args).values()
            if each.is_matrix and each.shape[-1] == dim
        }
        assert kinds <= fallback | ({mixture} & plain)
    tied = replace(SEVEN, tied_embeddings=True)
    head = {"Q8_0": "Q8_0", "BF16": "BF16", "F16": "F16"}.get(mixture, "Q6_K")
    assert outside(tied, mixture) == {"tok_embeddings": head, "norm": "F32"}


def test_what_is_loaded_with_bits_is_left_as_it_is_where_it_is_in_no_blocks() -> None:
    for bits, name in ((8, "Q8_0"), (4, "Q4_K")):
        for each in parameters(MIXTRAL).values():
            kind = block_kind(each, MIXTRAL, bits)
            assert (kind is None) == (each.part in ("norms", "router"))
            assert each.weight != "w1" or (kind and kind.name == name)
            assert block_kind(each, MIXTRAL, 16) is None


def test_importances_of_an_expert_are_its_own_or_its_row_of_all() -> None:
    """Files of before experts were merged have a tensor for each."""
    table = parameters(replace(SEVEN, moe=MoeArgs(4, 2)))
    third, second = (table[f"layers.0.feed_forward.experts.{number}.w3.weight"] for number in (2, 1))
    counts = np.array([1.0, 0.0, 2.0, 4.0], np.float32)
    merged = {"blk.0.ffn_up_exps.weight": np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32)}
    both = merged | {"blk.0.ffn_up.2.weight": np.array([[20, 40]], np.float32)}
    together = Importances(merged, {"blk.0.ffn_up_exps.weight": counts})
    apart = Importances(both, {**together.counts, "blk.0.ffn_up.2.weight": np.array([10.0], np.float32)})
    assert [list(each.of(third)) for each in (together, apart)] == [[2.5, 3], [2, 4]]  # type: ignore[arg-type]
    assert together.of(second) is None  # it has seen no token
