"""Keys of GGUF files that stand for arithmetic which this program does not have."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from mistral.checkpoint.gguf.args import NEUTRAL, require_neutral
from mistral.checkpoint.keys import Keys
from mistral.errors import InputError

ONLY_ZERO = (
    "attention.clamp_kqv", "attention.max_alibi_bias", "attention.q_lora_rank", "attention.kv_lora_rank",
    "attention.shared_kv_layers", "attn_logit_softcapping", "router_logit_softcapping", "final_logit_softcapping",
    "expert_shared_count", "leading_dense_block_count", "nextn_predict_layers", "pooling_type", "decoder_block_count",
)  # fmt: skip
ZERO_OR_ONE = (
    "attention.output_scale", "logit_scale", "residual_scale", "embedding_scale", "expert_weights_scale",
    "expert_gating_func", "expert_group_count", "interleave_moe_layer_step",
)  # fmt: skip
FLAGS = {"attention.causal": True, "expert_weights_norm": True, "use_parallel_residual": False}


def test_each_key_that_would_change_the_arithmetic_is_refused_unless_it_changes_nothing() -> None:
    allowed: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
        **dict.fromkeys(ONLY_ZERO, ((0, 0.0), (1, -1, 30.0, math.nan, "0", [0]))),
        **dict.fromkeys(ZERO_OR_ONE, ((0, 1, 1.0), (2, -1, 0.5, math.nan, "1", [1]))),
        **{key: ((value,), (not value, "x")) for key, value in FLAGS.items()},
    }
    assert set(allowed) == set(NEUTRAL)
    for key, (accepted, refused) in allowed.items():
        for value in accepted:
            require_neutral(Keys({f"llama.{key}": value}, "m.gguf"), "llama.")
        for value in refused:
            with pytest.raises(InputError, match=rf"^m\.gguf: llama\.{re.escape(key)} is .*does not support it$"):
                require_neutral(Keys({f"llama.{key}": value}, "m.gguf"), "llama.")
