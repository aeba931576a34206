"""config.json by its class: what is there where a key is absent, the Llama class, and scaled rotary angles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mistral.checkpoint.args_file import args_from_params, params_of, read_args
from mistral.checkpoint.config_file import args_from_config
from mistral.errors import InputError
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.rope import LinearScaling, Llama3Scaling

SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 20, "num_attention_heads": 16, "vocab_size": 30,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
# As they lie beside the weights of published models, without what changes nothing
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "Llama 2 7B": (
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
         "intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32,
         "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
         "rope_scaling": None, "tie_word_embeddings": False, "vocab_size": 32000},
        (4096, 32, 32, 128, 1e-5, 1e4, 4096, False, None),
    ),
    "TinyLlama 1.1B": (
        {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "model_type": "llama", "hidden_size": 2048,
         "intermediate_size": 5632, "max_position_embeddings": 2048, "num_attention_heads": 32,
         "num_hidden_layers": 22, "num_key_value_heads": 4, "rms_norm_eps": 1e-05, "rope_scaling": None,
         "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 32000},
        (2048, 22, 4, 64, 1e-5, 1e4, 2048, False, None),
    ),
    "SmolLM2 135M": (
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
         "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False, "num_attention_heads": 9,
         "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_interleaved": False,
         "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152},
        (576, 30, 3, 64, 1e-5, 1e5, 8192, True, None),
    ),
    "Llama 3.2 1B": (
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 64, "hidden_size": 2048,
         "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
         "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": LLAMA3,
         "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256},
        (2048, 16, 8, 64, 1e-5, 5e5, 131072, True, Llama3Scaling(32.0, 1.0, 4.0, 8192)),
    ),
    "Vicuna 7B v1.5 16k": (
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
         "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
         "num_key_value_heads": 32, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 4.0, "type": "linear"},
         "vocab_size": 32000},
        (4096, 32, 32, 128, 1e-5, 1e4, 4096, False, LinearScaling(4.0)),
    ),
}  # fmt: skip


def config(**keys: Any) -> ModelArgs:
    return args_from_config(keys)


def llama(**keys: Any) -> ModelArgs:
    return args_from_config({"model_type": "llama"} | SMALL | keys)


def refused(**keys: Any) -> str:
    """The one line with which a config of the Llama class is refused."""
    with pytest.raises(InputError) as caught:
        llama(**keys)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 300
    return line


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_of_the_llama_class_are_read(name: str) -> None:
    table, expected = PUBLISHED[name]
    a = args_from_config(table)
    found = (a.dim, a.n_layers, a.n_kv_heads, a.head_dim, a.norm_eps, a.rope_theta, a.max_seq_len, a.tied_embeddings)
    assert (*found, a.rope_scaling) == expected
    assert set(a.sliding_windows) == {None}
    assert a.ignored_keys == ()


def test_a_key_that_is_absent_has_the_default_of_its_class() -> None:
    """As in transformers: configuration_mistral.py, _mixtral.py, _ministral.py and _llama.py."""

    def numbers(kind: str) -> tuple[Any, ...]:
        a = config(model_type=kind)
        assert len(a.sliding_windows) == a.n_layers == 32 and len(set(a.sliding_windows)) == 1
        return (a.dim, a.hidden_dim, a.n_heads, a.n_kv_heads, a.head_dim, a.vocab_size, a.norm_eps, a.rope_theta,
                a.sliding_windows[0], a.max_seq_len, a.tied_embeddings, a.moe)  # fmt: skip

    assert numbers("mistral") == (4096, 14336, 32, 8, 128, 32000, 1e-6, 1e4, 4096, 131072, False, None)
    assert numbers("ministral") == numbers("mistral")
    assert numbers("mixtral") == (4096, 14336, 32, 8, 128, 32000, 1e-5, 1e6, None, 131072, False, MoeArgs(8, 2))
    assert numbers("llama") == (4096, 11008, 32, 32, 128, 32000, 1e-6, 1e4, None, 2048, False, None)


def test_a_null_is_not_an_absent_key() -> None:
    for kind in ("mistral", "mixtral", "ministral", "llama"):
        args = config(model_type=kind, sliding_window=None, num_key_value_heads=None, max_position_embeddings=None)
        assert (args.sliding_windows[0], args.n_kv_heads, args.max_seq_len) == (None, 32, None)
    assert config(model_type="mistral", sliding_window=7).sliding_windows == (7,) * 32


def test_a_file_without_its_class_goes_by_its_architecture_or_must_say_the_sizes() -> None:
    assert config(architectures=["LlamaForCausalLM"]) == config(model_type="llama")
    assert config(architectures=["MixtralForCausalLM"]) == config(model_type="mixtral")
    assert config(**SMALL) == config(model_type="mistral", **SMALL)
    tables: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "num_hidden_layers is missing"),
        ({"architectures": ["BertModel"]}, "'BertModel' is an encoder, which cannot generate"),
        ({"architectures": ["GemmaForCausalLM"]}, "'GemmaForCausalLM' is not supported"),
    )
    for table, named in tables:
        with pytest.raises(InputError, match=named):
            args_from_config(table)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert", "nomic_bert"])
def test_an_encoder_is_called_one(kind: str) -> None:
    assert f"model_type '{kind}' is an encoder, which cannot generate text" in refused(model_type=kind)


@pytest.mark.parametrize("key", ["mlp_bias", "attention_bias", "rope_interleaved", "quantization"])
def test_what_another_decoder_has_is_refused_by_name(key: str) -> None:
    assert f"config.json: {key} is set" in refused(**{key: True})
    assert llama(**{key: False}) == llama(**{key: None}) == llama()


def test_another_activation_is_refused_and_swish_is_silu() -> None:
    assert llama(hidden_act="swish") == llama(hidden_act="silu") == llama()
    assert "hidden_act 'gelu_pytorch_tanh'" in refused(hidden_act="gelu_pytorch_tanh")


def test_the_llama_class_has_no_window() -> None:
    """A merge of Mistral models saved as Llama may still have the key; transformers does not look at it."""
    args = llama(sliding_window=4096)
    assert set(args.sliding_windows) == {None}
    assert args.ignored_keys == ("sliding_window",)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_a_scaling_is_read_in_either_spelling(key: str, name: str) -> None:
    assert llama(**{key: {name: "linear", "factor": 2}}).rope_scaling == LinearScaling(2.0)
    assert llama(**{key: {name: "linear", "factor": "2.5"}}).rope_scaling == LinearScaling(2.5)
    table = {**LLAMA3, "factor": "8", "rope_theta": 5e5, name: "llama3"}
    args = llama(**{key: table})
    assert (args.rope_theta, args.rope_scaling) == (5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192))
    assert llama(**{key: {name: "default"}}).rope_scaling is llama(**{key: {}}).rope_scaling is None


def test_a_mistral_model_may_have_a_scaling_too() -> None:
    assert config(model_type="mistral", rope_scaling=LLAMA3).rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)


def test_the_context_before_scaling_is_that_of_the_file_where_the_table_does_not_say() -> None:
    table = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}

    def original(**keys: Any) -> int:
        found = llama(rope_scaling=table, **keys).rope_scaling
        assert isinstance(found, Llama3Scaling)
        return found.original_max_position_embeddings

    assert original() == 2048
    assert original(max_position_embeddings=4096) == 4096
    assert original(max_position_embeddings=4096, original_max_position_embeddings=512) == 512


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "proportional", 7, ["linear"], {"a": 1}])
def test_another_scaling_is_refused_by_name(kind: Any) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        for name in ("type", "rope_type"):
            line = refused(**{key: {name: kind, "factor": 2.0}})
            assert str(kind) in line or "by layer type" in line


UNSOUND = [
    (key, value)
    for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for value in (None, 0, -1, 0.5, True, "many", [2], float("nan"), float("inf"))
    if (key, value) not in (("low_freq_factor", 0.5), ("original_max_position_embeddings", None))  # sound
]


@pytest.mark.parametrize(("key", "value"), UNSOUND)
def test_a_number_of_a_scaling_that_cannot_be_is_refused_by_name(key: str, value: Any) -> None:
    line = refused(rope_scaling=LLAMA3 | {key: value})
    assert line.startswith("config.json: rope_scaling: ") and key in line


@pytest.mark.parametrize("value", [value for key, value in UNSOUND if key == "factor"])
def test_a_linear_factor_that_cannot_be_is_refused(value: Any) -> None:
    assert "rope_scaling: factor " in refused(rope_scaling={"type": "linear", "factor": value})


def test_two_tables_must_agree() -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    assert llama(rope_scaling=linear, rope_parameters=linear).rope_scaling == LinearScaling(2.0)
    assert "differ" in refused(rope_scaling=linear, rope_parameters={"rope_type": "default"})
    assert "differ" in refused(rope_scaling=linear, rope_parameters=linear | {"rope_theta": 5e5})


@pytest.mark.parametrize("scaling", [None, LinearScaling(2.5), Llama3Scaling(8.0, 1.0, 4.0, 8192)])
def test_params_of_a_model_keep_its_scaling(scaling: Any) -> None:
    args = replace(llama(max_position_embeddings=64), rope_scaling=scaling)
    table = json.loads(json.dumps(params_of(args)))
    assert ("rope_scaling" in table) == (scaling is not None)
    assert args_from_params(table) == args


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PUBLISHED["SmolLM2 135M"][0]), encoding="utf-8-sig")
    assert read_args(path).dim == 576
