"""Architectures as params.json and config.json give them, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mistral.checkpoint.args_file import HARMLESS_PARAMS, args_from_params, read_args
from mistral.checkpoint.config_file import HARMLESS_CONFIG, args_from_config
from mistral.checkpoint.keys import MAX_LAYERS, SMALL
from mistral.checkpoint.unsupported import UNSUPPORTED
from mistral.errors import InputError
from mistral.model.args import ModelArgs, MoeArgs


def wide(dim: int, n_layers: int, hidden_dim: int, n_heads: int, **more: Any) -> dict[str, Any]:
    """params.json of an official model; all have heads of 128 and 8 key-value heads."""
    return {
        "dim": dim, "n_layers": n_layers, "head_dim": 128, "hidden_dim": hidden_dim, "n_heads": n_heads,
        "n_kv_heads": 8, "norm_eps": 1e-5,
    } | more  # fmt: skip


EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
INTERLEAVED = [None, 32768, 32768, 32768]
OFFICIAL: dict[str, tuple[dict[str, Any], float, tuple[int | None, ...]]] = {  # params.json, rope_theta, windows
    "7B v0.1": (wide(4096, 32, 14336, 32, vocab_size=32000, sliding_window=4096), 1e4, (4096,) * 32),
    "7B Instruct v0.2": (wide(4096, 32, 14336, 32, vocab_size=32000, rope_theta=1e6), 1e6, (None,) * 32),
    "7B v0.3": (wide(4096, 32, 14336, 32, vocab_size=32768, rope_theta=1e6), 1e6, (None,) * 32),
    "Mixtral 8x7B": (wide(4096, 32, 14336, 32, vocab_size=32000, moe=EXPERTS), 1e6, (None,) * 32),
    "Mixtral 8x22B": (wide(6144, 56, 16384, 48, vocab_size=32768, rope_theta=1e6, moe=EXPERTS), 1e6, (None,) * 56),
    "Codestral 22B": (wide(6144, 56, 16384, 48, vocab_size=32768, rope_theta=1e6), 1e6, (None,) * 56),
    "Nemo 12B": (wide(5120, 40, 14336, 32, vocab_size=131072, rope_theta=1e6), 1e6, (None,) * 40),
    "Large 2 2407": (wide(12288, 88, 28672, 96, vocab_size=32768, rope_theta=1e6), 1e6, (None,) * 88),
    "Ministral 8B": (
        wide(4096, 36, 12288, 32, vocab_size=131072, rope_theta=1e8, _sliding_window=INTERLEAVED),
        1e8,
        (None, 32768, 32768, 32768) * 9,
    ),
}
PARAMS: dict[str, Any] = {
    "dim": 16, "n_layers": 4, "head_dim": 6, "hidden_dim": 20, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 30,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "mistral", "hidden_size": 16, "num_hidden_layers": 4, "intermediate_size": 20,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 30,
}  # fmt: skip


def params(**changes: Any) -> ModelArgs:
    return args_from_params(PARAMS | changes)


def config(**changes: Any) -> ModelArgs:
    return args_from_config(CONFIG | changes)


def refused(read: Any, **changes: Any) -> str:
    """The one line with which a changed file is refused."""
    with pytest.raises(InputError) as caught:
        read(**changes)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 300
    return line


# params.json


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_model_is_read(name: str, tmp_path: Path) -> None:
    table, rope_theta, windows = OFFICIAL[name]
    path = tmp_path / "params.json"
    path.write_text(json.dumps(table))
    args = read_args(path)
    for key in ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size"):
        assert getattr(args, key) == table[key]
    assert (args.rope_theta, args.sliding_windows) == (rope_theta, windows)
    assert args.moe == (MoeArgs(8, 2) if "moe" in table else None)
    assert (args.tied_embeddings, args.max_seq_len, args.ignored_keys) == (False, None, ())


def test_heads_need_not_divide_the_width() -> None:
    table, _, _ = OFFICIAL["Nemo 12B"]
    args = args_from_params(table)
    assert args.head_dim * args.n_heads != args.dim


def test_decimal_strings_are_numbers() -> None:
    args = params(dim="16", n_layers="4.0", norm_eps="1e-06", rope_theta="1000000.0", sliding_window="7")
    assert (args.dim, args.n_layers, args.norm_eps, args.rope_theta) == (16, 4, 1e-6, 1e6)
    assert args.sliding_windows == (7, 7, 7, 7)


def test_harmless_keys_are_accepted_in_silence_and_other_unknown_ones_reported() -> None:
    harmless = {key: 1 for key in HARMLESS_PARAMS} | {"use_biases": False, "causal": True}
    assert params(**harmless).ignored_keys == ()
    args = params(zebra=1, aardvark={"a": []}, max_batch_size=3)
    assert args.ignored_keys == ("aardvark", "zebra")
    assert args == params(), "what is ignored changes nothing"


@pytest.mark.parametrize("key", sorted(UNSUPPORTED))
def test_a_key_that_changes_the_maths_is_refused_by_name_unless_it_is_off(key: str) -> None:
    for value in (True, {"a": 1}, 1, "yes", [1]):
        assert f"params.json: {key} " in refused(params, **{key: value})
        assert f"config.json: {key} " in refused(config, **{key: value})
    assert params(**{key: None}) == params(**{key: False}) == params()


@pytest.mark.parametrize("key", ["quantization", "vision_config", "text_config", "yarn", "vision_encoder"])
def test_what_only_a_hugging_face_config_has_is_refused_by_name(key: str) -> None:
    assert f"config.json: {key} " in refused(config, **{key: {"bits": 4}})


def test_biases_and_two_way_attention_are_refused() -> None:
    assert "use_biases" in refused(params, use_biases=True)
    assert "causal" in refused(params, causal=False)


def test_rope_theta_left_out_is_1e4_with_a_window_and_1e6_without() -> None:
    assert params(sliding_window=4096).rope_theta == 1e4
    assert params(_sliding_window=[None, 5]).rope_theta == 1e4
    assert params().rope_theta == params(sliding_window=None).rope_theta == params(sliding_window=[None]).rope_theta
    assert params().rope_theta == 1e6
    assert params(sliding_window=4096, rope_theta=5e5).rope_theta == 5e5


@pytest.mark.parametrize("key", ["sliding_window", "_sliding_window"])
@pytest.mark.parametrize(
    "value, windows",
    [
        (None, (None,) * 4),
        (7, (7,) * 4),
        ("7", (7,) * 4),
        ([7], (7,) * 4),
        ([None, 7], (None, 7, None, 7)),
        (["3", None, 5], (3, None, 5, 3)),
        ([1, 2, 3, 4, 5, 6], (1, 2, 3, 4)),
    ],
)
def test_every_form_of_a_window_is_read(key: str, value: Any, windows: tuple[int | None, ...]) -> None:
    assert params(**{key: value}).sliding_windows == windows


def test_both_window_keys_are_refused_unless_one_is_null() -> None:
    assert "both set" in refused(params, sliding_window=7, _sliding_window=[None, 7])
    assert params(sliding_window=7, _sliding_window=None).sliding_windows == (7,) * 4


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", True, {}, [], [[7]], ["x"], [0], float("nan"), SMALL + 1])
def test_a_window_that_cannot_be_is_refused(value: Any) -> None:
    assert "sliding_window" in refused(params, sliding_window=value)
    assert "sliding_window" in refused(config, sliding_window=value)


@pytest.mark.parametrize("key", sorted(PARAMS))
@pytest.mark.parametrize("value", [0, -4, 2.5, "many", "", True, [4], {"a": 1}, float("inf"), 1e300, 10**400])
def test_a_dimension_that_cannot_be_is_refused_by_name(key: str, value: Any) -> None:
    assert f"params.json: {key} must be " in refused(params, **{key: value})


@pytest.mark.parametrize("key", ["dim", "n_layers", "hidden_dim", "n_heads", "vocab_size"])
def test_a_missing_dimension_is_refused_by_name(key: str) -> None:
    assert f"{key} is missing" in refused(params, **{key: None})


def test_dimensions_that_do_not_fit_each_other_are_refused() -> None:
    assert "n_kv_heads" in refused(params, n_kv_heads=3)
    assert "head_dim 7 is odd" in refused(params, head_dim=7)


def test_optional_dimensions_have_the_usual_defaults() -> None:
    args = params(head_dim=None, n_kv_heads=None)
    assert (args.head_dim, args.n_kv_heads, args.norm_eps) == (4, 4, 1e-5)


@pytest.mark.parametrize(
    "moe, named",
    [
        (7, "moe"),
        ([], "moe"),
        ({}, "num_experts is missing"),
        ({"num_experts": 2}, "num_experts_per_tok"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok 3 must be from 1 to num_experts 2"),
        ({**EXPERTS, "capacity\nfactor": 1}, r"'capacity\nfactor'"),
    ],
)
def test_experts_that_cannot_be_are_refused(moe: Any, named: str) -> None:
    assert named in refused(params, moe=moe)


def test_tied_embeddings_and_a_context_limit_are_read() -> None:
    args = params(tied_embeddings=True, max_seq_len="128")
    assert args.tied_embeddings and args.max_seq_len == 128
    assert "tied_embeddings" in refused(params, tied_embeddings="yes")
    assert "max_seq_len" in refused(params, max_seq_len=-1)


# config.json


def test_a_hugging_face_config_has_the_defaults_of_its_class() -> None:
    args = config()
    assert (args.head_dim, args.norm_eps, args.rope_theta, args.moe) == (4, 1e-6, 1e4, None)
    args = config(model_type="mixtral")
    assert (args.norm_eps, args.rope_theta, args.moe) == (1e-5, 1e6, MoeArgs(8, 2))
    assert config(model_type="mixtral", num_local_experts=4, num_experts_per_tok=3).moe == MoeArgs(4, 3)


def test_head_dim_null_is_derived_and_a_number_is_kept() -> None:
    assert config(head_dim=None).head_dim == 4
    assert config(head_dim=6).head_dim == 6


def test_rope_parameters_win_and_must_be_plain() -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    assert config(rope_parameters=rope).rope_theta == config(rope_parameters=rope, rope_theta=1e4).rope_theta == 5e5
    assert config(rope_theta="1000000.0").rope_theta == 1e6
    assert config(rope_scaling=None, rope_parameters=None).rope_theta == 1e4
    assert "'longrope'" in refused(config, rope_parameters={"rope_type": "longrope", "rope_theta": 1e6})
    assert "by layer type" in refused(config, rope_parameters={"full_attention": rope, "sliding_attention": rope})
    assert "must be a table" in refused(config, rope_scaling="linear")
    assert "rope_theta" in refused(config, rope_parameters={"rope_theta": -1})


@pytest.mark.parametrize("value", [0.5, "half", "0.5", [1], {}, True, float("nan")])
def test_a_partial_rotary_factor_is_refused_whatever_it_is(value: Any) -> None:
    assert "partial_rotary_factor" in refused(config, partial_rotary_factor=value)
    assert refused(config, rope_parameters={"partial_rotary_factor": value})


def test_a_partial_rotary_factor_of_one_is_the_whole() -> None:
    assert config(partial_rotary_factor=1.0, rope_parameters={"partial_rotary_factor": "1"}) == config()


def test_layer_types_say_which_layers_have_the_window() -> None:
    types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    args = config(model_type="ministral", sliding_window=7, layer_types=types)
    assert args.sliding_windows == (None, 7, 7, None)
    assert "sliding_window is not set" in refused(config, layer_types=types, sliding_window=None)
    assert "3 entries for 4 layers" in refused(config, sliding_window=7, layer_types=types[:3])
    strange: Any
    for strange in (["chunked_attention"] * 4, [None] * 4, [{}] * 4, "full_attention", {"a": 1}):
        assert "layer_types must list" in refused(config, sliding_window=7, layer_types=strange)


def test_a_window_can_be_switched_off() -> None:
    assert config(sliding_window=7).sliding_windows == config(sliding_window=7, use_sliding_window=True).sliding_windows
    assert config(sliding_window=7, use_sliding_window=False).sliding_windows == (None,) * 4
    assert "use_sliding_window" in refused(config, sliding_window=7, use_sliding_window="false")


@pytest.mark.parametrize("kind", ["gemma", "", None, 7, ["mistral"], {"a": "b" * 1000}, "x" * 1000])
def test_another_family_is_refused(kind: Any) -> None:
    assert "model_type" in refused(config, model_type=kind)


def test_another_activation_is_refused() -> None:
    assert "hidden_act 'gelu'" in refused(config, hidden_act="gelu")
    assert "hidden_act" in refused(config, hidden_act=["silu"] * 1000)
    assert config(hidden_act="silu") == config()


def test_a_config_reads_ties_and_limits_and_ignores_what_is_harmless() -> None:
    args = config(tie_word_embeddings=True, max_position_embeddings=64, zebra=1)
    assert (args.tied_embeddings, args.max_seq_len, args.ignored_keys) == (True, 64, ("zebra",))
    harmless = {key: "silu" for key in HARMLESS_CONFIG} | {"model_type": "mistral"}
    assert config(**harmless).ignored_keys == ()


# Hostile files


@pytest.mark.parametrize("read, key", [(params, "n_layers"), (config, "num_hidden_layers")])
def test_layers_without_end_are_refused_at_no_cost(read: Any, key: str) -> None:
    assert read(**{key: MAX_LAYERS}).n_layers == MAX_LAYERS
    tracemalloc.start()
    try:
        for number in (MAX_LAYERS + 1, SMALL, 1e308, 10**300, str(2**24)):
            assert f"{key} must be " in refused(read, **{key: number})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        '"dim"',
        "\ufeff{}",
        "\ufeff",
        "{}",
        '{"dim": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    for name in ("params.json", "config.json"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        assert str(path) in refused(read_args, path=path)


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    assert str(path) in refused(read_args, path=path)
    path.write_bytes(b'{"dim": "\xff"}')
    assert str(path) in refused(read_args, path=path)
    path.write_bytes(b" " * ((1 << 25) + 1))
    assert "32 MiB" in refused(read_args, path=path)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["default", "sliding_attention", "full_attention", "1e400", "nan", 2**24, 10**400, -1, 0, 1.0])
)  # fmt: skip
KEYS = st.sampled_from(
    [*PARAMS, *CONFIG, *sorted(UNSUPPORTED), "moe", "num_experts", "num_experts_per_tok", "num_local_experts",
     "sliding_window", "_sliding_window", "use_sliding_window", "layer_types", "rope_theta", "rope_parameters",
     "rope_scaling", "rope_type", "type", "partial_rotary_factor", "hidden_act", "tied_embeddings", "max_seq_len",
     "tie_word_embeddings", "max_position_embeddings", "norm_eps", "rms_norm_eps", "causal", "use_biases", "yarn",
     "llama_4_scaling", "factor", "beta", "alpha", "original_max_position_embeddings", "attention_factor", "mscale",
     "mscale_all_dim", "vision_encoder", "multimodal", "text_config", "quantization", "quantization_config"]
) | st.text(max_size=8)  # fmt: skip
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
TABLES = st.dictionaries(KEYS, JSON, max_size=8)


@given(TABLES)
@example({"moe": {"num_experts": 2**24, "num_experts_per_tok": 1}})
@example({"yarn": {"factor": 2, "original_max_position_embeddings": 1, "beta": 1e308, "alpha": 5e-324}})
@example(
    {
        "rope_scaling": {
            "type": "yarn",
            "factor": 1e308,
            "original_max_position_embeddings": 1,
            "mscale": 1e308,
            "mscale_all_dim": 1e308,
        }
    }
)
@example({"model_type": "mistral3", "text_config": {"model_type": ["x"]}})
@example({"model_type": ["mistral3"], "architectures": [7]})
@example({"quantization_config": {"quant_method": [1]}, "quantization": {"qformat_weight": {}}})
def test_any_json_object_is_read_or_refused_in_one_line(table: dict[str, Any]) -> None:
    for read, sound in ((args_from_params, PARAMS), (args_from_config, CONFIG)):
        for given_table in (table, sound | table):
            try:
                args = read(given_table)
            except InputError as error:
                assert len(str(error).splitlines()) == 1
            else:
                assert len(args.sliding_windows) == args.n_layers <= MAX_LAYERS
                assert all(window is None or 0 < window <= SMALL for window in args.sliding_windows)
                assert 0 < args.dim <= SMALL and args.rope_theta > 0 and args.head_dim % 2 == 0
