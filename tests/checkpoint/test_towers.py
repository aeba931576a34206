"""Models that read images or audio too, as text: their decoder under every spelling, their towers left alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mistral.checkpoint.args_file import args_from_params
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.config_file import args_from_config
from mistral.checkpoint.lora import open_adapter
from mistral.checkpoint.weight_memory import stage_nbytes
from mistral.errors import InputError
from mistral.pipeline.shared_checkpoint import identity, require_files
from tests.support.adapters import peft_tensors, random_factors, write_peft
from tests.support.checkpoint_forms import (
    DENSE,
    Array,
    config_of,
    params_of,
    random_tensors,
    refusal,
    tower_tensors,
    wrapped,
    write_checkpoint,
    write_safetensors,
)
from tests.support.command_line import ARGS, TOKENIZER, CommandLine, write_model

VISION = {"vision_encoder": {"hidden_size": 8}}
NOTE = "images are not read; text only"
TIED = replace(DENSE, tied_embeddings=True)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def outer(name: str) -> str:
    """The name under a class that has its decoder as `language_model`."""
    return f"language_model.{name}"


def inner(name: str) -> str:
    """The name under a class whose model has it as `language_model`."""
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


@pytest.mark.parametrize("spelling", [outer, inner])
@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("form", ["hf", "hf-sharded-index", "hf-bin"])
@pytest.mark.parametrize("args", [DENSE, TIED], ids=["dense", "tied"])
def test_both_spellings_of_a_wrapped_decoder_are_read(
    tmp_path: Path, args: Any, form: str, prefix: str, spelling: Any
) -> None:
    def change(tensors: dict[str, Array]) -> dict[str, Array]:
        towers = {} if form == "hf-bin" else tower_tensors(True, prefix)
        return {spelling(name): tensor for name, tensor in tensors.items()} | towers

    tensors = random_tensors(args, seed=4)
    write_checkpoint(tmp_path, args, tensors, form, change)
    (tmp_path / "config.json").write_text(json.dumps(wrapped(config_of(args))))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.args == args and checkpoint.warnings[0] == NOTE
    for name, tensor in tensors.items():
        assert np.array_equal(checkpoint.get(name), tensor), name
    assert checkpoint.towers == ({} if form == "hf-bin" else {"images": 60, "audio": 30})


def test_official_towers_are_told_of_once_and_take_nothing(tmp_path: Path) -> None:
    tensors = random_tensors(DENSE, dtype=ml_dtypes.bfloat16)
    plain = open_checkpoint(write_checkpoint(tmp_path / "plain", DENSE, tensors, "consolidated.safetensors"))
    towers = {name: each for name, each in tower_tensors(False).items() if not name.startswith("mm_")}
    folder = write_checkpoint(
        tmp_path / "towers", DENSE, tensors, "consolidated.safetensors", lambda found: towers | found
    )
    (folder / "params.json").write_text(json.dumps(params_of(DENSE) | VISION))
    found = open_checkpoint(folder)
    assert found.args == plain.args and repr(found.args) == repr(plain.args)
    assert found.warnings == (NOTE,) and found.towers == {"images": 4 * 30}
    assert stage_nbytes(found, range(2)) == stage_nbytes(plain, range(2))
    assert found.shapes == plain.shapes


def test_a_tower_without_its_table_is_left_alone_too(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path, DENSE, random_tensors(DENSE), "hf", lambda found: found | tower_tensors(True, "model.")
    )
    assert set(open_checkpoint(folder).warnings) == {NOTE, "audio is not read; text only"}


def test_a_table_without_its_tower_is_noted(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, DENSE, random_tensors(DENSE), "consolidated.safetensors")
    (folder / "params.json").write_text(json.dumps(params_of(DENSE) | {"multimodal": {"whisper_model_args": {}}}))
    assert open_checkpoint(folder).warnings == ("audio is not read; text only",)


@pytest.mark.parametrize("name", ["vision_encoder", "language_model.x", "vision_towers.x", "tower.vision_tower.y",
                                  "model.layers.0.vision_tower.w", "audio_model.z"])  # fmt: skip
def test_anything_else_is_refused_as_ever(tmp_path: Path, name: str) -> None:
    def change(tensors: dict[str, Array]) -> dict[str, Array]:
        return tensors | {name: np.ones(3, np.float32)}

    for form in ("hf", "consolidated.safetensors"):
        folder = write_checkpoint(tmp_path / form, DENSE, random_tensors(DENSE), form, change)
        assert f"tensor {name!r} is not part of the model" in refusal(folder)


def test_one_tensor_under_two_spellings_is_refused(tmp_path: Path) -> None:
    def change(tensors: dict[str, Array]) -> dict[str, Array]:
        return tensors | {"language_model.model.norm.weight": tensors["model.norm.weight"]}

    folder = write_checkpoint(tmp_path, DENSE, random_tensors(DENSE), "hf", change)
    assert "'language_model.model.norm.weight' is not part" in refusal(folder)


@pytest.mark.parametrize("spelling", [outer, inner])
def test_what_is_missing_is_called_as_the_files_would_call_it(tmp_path: Path, spelling: Any) -> None:
    def change(tensors: dict[str, Array]) -> dict[str, Array]:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        return {spelling(name): tensor for name, tensor in tensors.items()}

    write_checkpoint(tmp_path, DENSE, random_tensors(DENSE), "hf", change)
    (tmp_path / "config.json").write_text(json.dumps(wrapped(config_of(DENSE))))
    assert repr(spelling("model.layers.1.mlp.up_proj.weight")) in refusal(tmp_path)


@pytest.mark.parametrize("form", ["hf", "consolidated.safetensors"])
def test_a_tower_that_is_cut_off_is_one_line(run: CommandLine, tmp_path: Path, form: str) -> None:
    towers = {name: each for name, each in tower_tensors(form == "hf").items() if "audio" not in name}
    folder = write_checkpoint(tmp_path / "m", ARGS if form != "hf" else replace(ARGS, sliding_windows=(5, 5)),
                              random_tensors(ARGS), form, lambda found: found | towers)  # fmt: skip
    shutil.copy(TOKENIZER, folder)
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-7])
    assert run("complete", folder, "--prompt", "a").error == (
        f"{file}: truncated in tensor {list(towers)[-1]!r}, 7 bytes short; download it again"
    )


def test_the_bytes_of_a_tower_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in a file of its own, which another rank has: nothing here asks for it."""
    tensors, towers = random_tensors(DENSE), tower_tensors(False)
    folder = write_checkpoint(tmp_path, DENSE, {**tensors}, "consolidated-sharded", dict)
    last = sorted(folder.glob("*.safetensors"))[-1]
    rest = dict(list(tensors.items())[-8:])
    whole = open_checkpoint(folder)
    in_last = {name: tensors[name] for name in whole.shapes if whole.file_of(name) == last}
    assert rest and in_last
    write_safetensors(folder / "consolidated-00003-of-00003.safetensors", in_last | towers)
    before = open_checkpoint(folder)
    data = bytearray(last.read_bytes())
    data[-10:] = bytes(10)  # a change within the tower
    last.write_bytes(data)
    after = open_checkpoint(folder)
    monkeypatch.setattr("mistral.pipeline.shared_checkpoint.version", lambda _: "1")
    assert identity(before) == identity(after)
    require_files(after, range(2))


def test_info_tells_them_apart_and_quantize_leaves_them_out(run: CommandLine, tmp_path: Path) -> None:
    args = replace(ARGS, sliding_windows=(5, 5))
    folder = write_model(tmp_path / "model", args)
    change = random_tensors(args)
    write_checkpoint(folder, args, change, "consolidated.safetensors", lambda found: found | tower_tensors(False))
    (folder / "params.json").write_text(json.dumps(params_of(args) | VISION))
    found = json.loads(run("info", folder, "--json").out)
    assert found["towers"] == {"images": 4 * 30, "audio": 30} and found["notes"][0] == NOTE
    assert found["bytes"] == sum(tensor.nbytes for tensor in change.values())
    lines = run("info", folder).out.splitlines()
    assert "not loaded    0.0 MB of tensors for images" in lines and f"note: {NOTE}" in lines
    assert run("quantize", folder, tmp_path / "out.gguf").code == 0
    out = open_checkpoint(tmp_path / "out.gguf")
    assert out.towers == {} and out.warnings == () and out.shapes.keys() == change.keys()
    done = run("complete", folder, "--prompt", "a", "--max_tokens=1", "--temperature=0")
    assert done.code == 0 and done.err.count(NOTE) == 1


# Settings


def test_the_tie_inside_counts_and_the_outer_one_does_not() -> None:
    for tied in (False, True):
        args = args_from_config(wrapped(config_of(replace(DENSE, tied_embeddings=tied))))
        assert args.tied_embeddings == tied and args.ignored_keys == ()


@pytest.mark.parametrize(
    ("kind", "architecture", "tower"),
    [
        ("mistral3", "Mistral3ForConditionalGeneration", "images"),
        ("llava", "LlavaForConditionalGeneration", "images"),
        ("voxtral", "VoxtralForConditionalGeneration", "audio"),
    ],
)
def test_a_wrapper_is_known_by_its_type_or_its_class(kind: str, architecture: str, tower: str) -> None:
    inside = config_of(DENSE)
    for outside in ({"model_type": kind}, {"architectures": [architecture]}):
        args = args_from_config({**outside, "text_config": inside, "zebra": 1})
        assert args == DENSE and args.towers == (tower,) and args.ignored_keys == ("zebra",)
        for missing in ({}, {"text_config": None}, {"text_config": "mistral"}):
            with pytest.raises(InputError, match=r"config\.json: text_config, which describes the decoder, is missing"):
                args_from_config(outside | missing)
        with pytest.raises(InputError, match=r"config.json: text_config: hidden_size must be"):
            args_from_config({**outside, "text_config": inside | {"hidden_size": -1}})
    with pytest.raises(InputError, match="text_config is set"):
        args_from_config({**inside, "text_config": inside})


def test_a_decoder_inside_that_says_nothing_of_its_class_has_the_usual_one() -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2}
    assert args_from_config({"model_type": "mistral3", "text_config": sizes}).hidden_dim == 14336
    assert args_from_config({"model_type": "llava", "text_config": sizes}).hidden_dim == 11008
    voxtral = args_from_config({"model_type": "voxtral", "text_config": sizes})
    assert (voxtral.hidden_dim, voxtral.rope_theta, voxtral.head_dim) == (8192, 1e8, 128)


@pytest.mark.parametrize("key", ["vision_encoder", "multimodal", "audio"])
def test_a_tower_in_params_json_is_a_table(key: str) -> None:
    for value in (None, False):
        assert args_from_params(params_of(DENSE) | {key: value}).towers == ()
    assert args_from_params(params_of(DENSE) | {key: {"a": 1}}).towers == ("audio" if key == "audio" else "images",)
    for wrong in (True, 1, "yes", [1]):
        with pytest.raises(InputError, match=f"params.json: {key} must be a table"):
            args_from_params(params_of(DENSE) | {key: wrong})


@pytest.mark.parametrize("spelling", [outer, inner])
def test_an_adapter_of_a_wrapped_model_is_read(tmp_path: Path, spelling: Any) -> None:
    factors, start = random_factors(DENSE), "base_model.model."
    lora = write_peft(tmp_path / "lora", DENSE, factors)
    wanted = {name: delta.factors()[1] for name, delta in open_adapter(lora, DENSE).deltas.items()}
    tensors = peft_tensors(DENSE, factors)
    renamed = {start + spelling(name.removeprefix(start)): each for name, each in tensors.items()}
    write_safetensors(lora / "adapter_model.safetensors", renamed)
    found = open_adapter(lora, DENSE).deltas
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name].factors()[1], b) for name, b in wanted.items())
    write_safetensors(lora / "adapter_model.safetensors", renamed | tensors)
    with pytest.raises(InputError, match="is there under another name too"):
        open_adapter(lora, DENSE)
