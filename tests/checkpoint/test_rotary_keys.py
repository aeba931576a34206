"""YaRN and queries that grow, in every spelling that files have for them, and what cannot be."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mistral.checkpoint.args_file import args_from_params, params_of
from mistral.checkpoint.config_file import args_from_config
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.rope import Llama4Scaling, RopeScaling, YarnScaling

PARAMS: dict[str, Any] = {
    "dim": 16, "n_layers": 2, "head_dim": 8, "hidden_dim": 20, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 30,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 20,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 30, "max_position_embeddings": 999,
}  # fmt: skip
YARN = {"original_max_position_embeddings": 64, "factor": 16, "beta": 8, "alpha": 2}
HF_YARN = {"rope_type": "yarn", "original_max_position_embeddings": 64, "factor": 16.0, "beta_fast": 8, "beta_slow": 2}
QUERIES = {"original_max_position_embeddings": 32, "beta": 0.1}
SHARP = 0.1 * math.log(16) + 1


def official(**keys: Any) -> ModelArgs:
    return args_from_params(PARAMS | keys)


def scaling(**keys: Any) -> RopeScaling | None:
    """That of a config.json with these keys in its rope_parameters beside HF_YARN."""
    return args_from_config(CONFIG | {"rope_parameters": HF_YARN | keys}).rope_scaling


def refused(read: Any, table: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        read(table)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 300
    return line


def test_the_official_table_says_whether_what_is_turned_is_scaled() -> None:
    for apply, factor in ((True, SHARP), (None, SHARP), (False, 1.0)):
        assert official(yarn=YARN | {"apply_scale": apply}).rope_scaling == YarnScaling(16.0, 64, 8.0, 2.0, factor)
    assert official(yarn=YARN).rope_scaling == YarnScaling(16.0, 64, 8.0, 2.0, SHARP)
    bare = {"original_max_position_embeddings": 64, "factor": "16"}
    assert official(yarn=bare).rope_scaling == YarnScaling(16.0, 64, 32.0, 1.0, SHARP)
    for off in (None, False):
        assert official(yarn=off, llama_4_scaling=off) == official()


def test_queries_that_grow_are_read_and_a_beta_of_zero_is_none() -> None:
    assert official(llama_4_scaling=QUERIES).llama_4_scaling == Llama4Scaling(32, 0.1)
    assert official(llama_4_scaling=QUERIES | {"beta": 0}).llama_4_scaling is None
    assert args_from_config(CONFIG | {"llama_4_scaling": QUERIES}).llama_4_scaling == Llama4Scaling(32, 0.1)
    inside = {"rope_parameters": HF_YARN | {"llama_4_scaling_beta": "0.1"}}
    assert args_from_config(CONFIG | inside).llama_4_scaling == Llama4Scaling(64, 0.1)
    assert args_from_config(CONFIG | {"rope_parameters": HF_YARN | {"llama_4_scaling_beta": 0}}).llama_4_scaling is None
    plain = {"rope_type": "default", "original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.2}
    assert args_from_config(CONFIG | {"rope_parameters": plain}).llama_4_scaling == Llama4Scaling(64, 0.2)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_yarn_is_read_in_either_spelling_of_hugging_face(key: str, kind: str) -> None:
    table = {kind: "yarn", **{name: value for name, value in HF_YARN.items() if name != "rope_type"}}
    args = args_from_config(CONFIG | {key: table | {"rope_theta": 5e5}})
    assert (args.rope_theta, args.rope_scaling) == (5e5, YarnScaling(16.0, 64, 8.0, 2.0, SHARP))
    both = {**table, "type": "yarn", "rope_type": "yarn"}
    assert args_from_config(CONFIG | {"rope_theta": 5e5, key: both}) == args


def test_the_factor_of_what_is_turned_has_its_order_of_spellings() -> None:
    def factor(**keys: Any) -> float:
        found = scaling(**keys)
        assert isinstance(found, YarnScaling)
        return found.attention_factor

    assert factor() == factor(mscale=1.0) == factor(mscale=1.0, mscale_all_dim=0.0) == factor(mscale=None) == SHARP
    assert factor(mscale=1.0, mscale_all_dim=1.0) == 1
    g = [0.1 * s * math.log(16) + 1 for s in (0.7, 1.3)]
    assert factor(mscale=0.7, mscale_all_dim=1.3) == pytest.approx(g[0] / g[1], rel=1e-15)
    assert factor(attention_factor=1.5, mscale=0.7, mscale_all_dim=1.3) == 1.5
    assert factor(attention_factor=None) == SHARP
    assert factor(factor=1.0) == 1


def test_other_keys_of_yarn_have_the_defaults_of_transformers() -> None:
    assert scaling(beta_fast=None, beta_slow=None) == YarnScaling(16.0, 64, 32.0, 1.0, SHARP)
    assert scaling(truncate=False) == YarnScaling(16.0, 64, 8.0, 2.0, SHARP, truncate=False)
    assert scaling(truncate=True) == scaling(truncate=None) == scaling()
    assert args_from_config(
        CONFIG | {"original_max_position_embeddings": 32, "rope_scaling": {"type": "yarn", "factor": 2}}
    ).rope_scaling == YarnScaling(2.0, 32, 32.0, 1.0, 0.1 * math.log(2) + 1)


def test_a_ministral_3_that_says_nothing_has_what_its_class_has() -> None:
    """As in transformers: configuration_ministral3.py."""
    args = args_from_config({"model_type": "ministral3"})
    assert (args.dim, args.hidden_dim, args.n_layers, args.n_heads, args.n_kv_heads) == (4096, 14336, 34, 32, 8)
    assert (args.head_dim, args.vocab_size, args.max_seq_len, args.norm_eps) == (128, 131072, 262144, 1e-5)
    assert (args.rope_theta, args.rope_scaling) == (1e6, YarnScaling(16.0, 16384, 32.0, 1.0, 1.0))
    assert args.llama_4_scaling == Llama4Scaling(16384, 0.1) and set(args.sliding_windows) == {None}
    plain = args_from_config(
        {"model_type": "ministral3", "rope_parameters": {"rope_type": "default"}, "head_dim": None}
    )
    assert plain.rope_scaling is None and plain.llama_4_scaling is None


def test_the_limit_of_the_context_is_max_position_embeddings() -> None:
    assert official(max_position_embeddings=4096).max_seq_len == 4096
    assert official(max_position_embeddings=4096, max_seq_len=512).max_seq_len == 4096
    assert official(max_position_embeddings=None, max_seq_len=512).max_seq_len == 512
    assert official(max_position_embeddings=4096).ignored_keys == ()
    assert "max_position_embeddings must be" in refused(args_from_params, PARAMS | {"max_position_embeddings": -1})


# What cannot be

WRONG = (0, -1, True, "many", [2], math.nan, math.inf)


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("key", ["original_max_position_embeddings", "factor", "beta", "alpha"])
def test_a_number_of_yarn_that_cannot_be_is_refused_by_name(key: str, value: Any) -> None:
    line = refused(args_from_params, PARAMS | {"yarn": YARN | {key: value}})
    assert line.startswith(f"params.json: yarn: {key} must be a positive number")
    other = {"beta": "beta_fast", "alpha": "beta_slow"}.get(key, key)
    for table in ("rope_scaling", "rope_parameters"):
        line = refused(args_from_config, CONFIG | {table: HF_YARN | {other: value}})
        assert line.startswith(f"config.json: {table}: {other} must be a positive number")


@pytest.mark.parametrize("key", ["original_max_position_embeddings", "factor"])
def test_yarn_without_origin_or_factor_is_refused(key: str) -> None:
    for gone in (True, False):
        tables = [
            {k: v for k, v in table.items() if k != key} | ({} if gone else {key: None}) for table in (YARN, HF_YARN)
        ]
        assert refused(args_from_params, PARAMS | {"yarn": tables[0]}) == f"params.json: yarn: {key} is missing"
        line = refused(args_from_config, CONFIG | {"rope_parameters": tables[1]})
        assert line == f"config.json: rope_parameters: {key} is missing"


@pytest.mark.parametrize("value", [-0.1, True, "many", math.nan, math.inf])
def test_a_growth_of_queries_that_cannot_be_is_refused(value: Any) -> None:
    line = refused(args_from_params, PARAMS | {"llama_4_scaling": QUERIES | {"beta": value}})
    assert line.startswith("params.json: llama_4_scaling: beta must be a positive number or 0")
    line = refused(args_from_config, CONFIG | {"rope_parameters": HF_YARN | {"llama_4_scaling_beta": value}})
    assert line.startswith("config.json: rope_parameters: llama_4_scaling_beta must be a positive number or 0")


def test_a_growth_of_queries_without_its_origin_is_refused() -> None:
    assert "original_max_position_embeddings is missing" in refused(
        args_from_params, PARAMS | {"llama_4_scaling": {"beta": 0.1}}
    )
    table = {"rope_type": "default", "llama_4_scaling_beta": 0.1}
    assert "original_max_position_embeddings is missing" in refused(
        args_from_config, CONFIG | {"rope_parameters": table}
    )


@pytest.mark.parametrize("key", ["attention_factor", "mscale", "mscale_all_dim", "truncate"])
def test_other_keys_of_yarn_that_cannot_be_are_refused(key: str) -> None:
    for value in (-1, "many", math.nan):
        assert f"rope_parameters: {key} must be" in refused(
            args_from_config, CONFIG | {"rope_parameters": HF_YARN | {key: value}}
        )


def test_two_spellings_that_differ_are_refused() -> None:
    ours = {"rope_type": "linear", "factor": 2.0}
    assert "yarn and rope_scaling differ" in refused(args_from_params, PARAMS | {"yarn": YARN, "rope_scaling": ours})
    same = {**HF_YARN, "attention_factor": SHARP}
    assert official(yarn=YARN, rope_scaling=same) == official(yarn=YARN)
    other = HF_YARN | {"factor": 8.0}
    assert "differ" in refused(args_from_config, CONFIG | {"rope_scaling": HF_YARN, "rope_parameters": other})
    grows = HF_YARN | {"llama_4_scaling_beta": 0.1}
    assert "differ" in refused(args_from_config, CONFIG | {"rope_scaling": HF_YARN, "rope_parameters": grows})
    line = refused(args_from_config, CONFIG | {"rope_parameters": HF_YARN | {"type": "linear"}})
    assert "rope_type 'yarn' and type 'linear' differ" in line
    line = refused(args_from_config, CONFIG | {"rope_parameters": grows, "llama_4_scaling": QUERIES})
    assert "llama_4_scaling and llama_4_scaling_beta differ" in line


@pytest.mark.parametrize("key", ["yarn", "llama_4_scaling"])
def test_a_table_must_be_one_and_have_known_keys_alone(key: str) -> None:
    sound: dict[str, Any] = YARN if key == "yarn" else QUERIES
    for wrong in (True, 1, "yes", [1]):
        assert f"params.json: {key} must be a table" in refused(args_from_params, PARAMS | {key: wrong})
    assert f"params.json: {key}: 'gamma' is set" in refused(args_from_params, PARAMS | {key: sound | {"gamma": 1}})


def test_bounds_in_the_wrong_order_and_a_base_of_one_are_refused() -> None:
    line = refused(args_from_params, PARAMS | {"yarn": YARN | {"beta": 2}})
    assert line.startswith("params.json: yarn: beta_slow (alpha) 2 must be below beta_fast (beta) 2")
    assert "must be above 1 for YaRN" in refused(args_from_params, PARAMS | {"yarn": YARN, "rope_theta": 1})
    assert refused(args_from_params, PARAMS | {"yarn": YARN | {"factor": 0.5}}) == (
        "params.json: yarn: factor must be at least 1, not 0.5"
    )


@pytest.mark.parametrize(
    "keys",
    [{"yarn": YARN}, {"yarn": YARN | {"apply_scale": False}, "llama_4_scaling": QUERIES}, {"llama_4_scaling": QUERIES}],
)
def test_params_of_a_model_keep_its_scalings(keys: dict[str, Any]) -> None:
    args = official(**keys)
    assert args_from_params(json.loads(json.dumps(params_of(args)))) == args
    strange = args_from_config(CONFIG | {"rope_parameters": HF_YARN | {"attention_factor": 1.7, "truncate": False}})
    assert args_from_params(json.loads(json.dumps(params_of(strange)))) == strange
