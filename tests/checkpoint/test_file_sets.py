"""Which files of a folder are read: every form is found, the better one wins, and incomplete sets are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.formats.safetensors_file import read_safetensors
from tests.support.checkpoint_forms import (
    DENSE,
    HF_FORMS,
    SPARSE,
    forms_of,
    hf_tensors,
    params_of,
    random_tensors,
    refusal,
    write_checkpoint,
    write_safetensors,
)


def test_the_form_is_named(tmp_path: Path) -> None:
    names = {
        form: open_checkpoint(write_checkpoint(tmp_path / form, SPARSE, random_tensors(SPARSE), form)).form
        for form in forms_of(SPARSE)
    }
    assert names == {
        "consolidated.safetensors": "consolidated.safetensors",
        "consolidated-sharded": "consolidated safetensors (3 files)",
        "consolidated.pth": "consolidated.00.pth",
        "consolidated-many.pth": "consolidated.00.pth (3 files)",
        "first-mixtral": "consolidated.00.pt (8 files)",
        "hf": "Hugging Face model.safetensors",
        "hf-sharded": "Hugging Face safetensors (2 files)",
        "hf-sharded-index": "Hugging Face safetensors (2 files)",
        "hf-bin": "Hugging Face pytorch_model.bin",
        "hf-bin-sharded-index": "Hugging Face bin (2 files)",
    }


@pytest.mark.parametrize("hf_form", HF_FORMS)
def test_official_files_win_over_hugging_face_files(tmp_path: Path, hf_form: str) -> None:
    official = random_tensors(DENSE, seed=1)
    write_checkpoint(tmp_path, DENSE, random_tensors(DENSE, seed=2), hf_form)
    write_checkpoint(tmp_path, DENSE, official, "consolidated.pth")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.form == "consolidated.00.pth"
    assert (checkpoint.get("norm.weight") == official["norm.weight"]).all()
    assert len(checkpoint.warnings) == 1 and "beside it is not" in checkpoint.warnings[0]


def test_safetensors_win_over_pickled_files(tmp_path: Path) -> None:
    for seed, form in enumerate(("hf-bin", "hf")):
        write_checkpoint(tmp_path / "hf", DENSE, random_tensors(DENSE, seed), form)
    for seed, form in enumerate(("consolidated.pth", "consolidated-sharded")):
        write_checkpoint(tmp_path / "official", DENSE, random_tensors(DENSE, seed), form)
    assert open_checkpoint(tmp_path / "hf").form == "Hugging Face model.safetensors"
    assert open_checkpoint(tmp_path / "official").form == "consolidated safetensors (3 files)"


def test_hugging_face_files_serve_where_the_official_ones_lack_params(tmp_path: Path) -> None:
    tensors = random_tensors(DENSE)
    write_checkpoint(tmp_path, DENSE, tensors, "consolidated.safetensors")
    (tmp_path / "params.json").unlink()
    write_checkpoint(tmp_path, DENSE, tensors, "hf")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.form == "Hugging Face model.safetensors"
    (warning,) = checkpoint.warnings
    assert warning == "Hugging Face model.safetensors is read, and consolidated.safetensors beside it is not"


@pytest.mark.parametrize(
    "form",
    ["consolidated-sharded", "consolidated-many.pth", "first-mixtral", "hf-sharded", "hf-sharded-index",
     "hf-bin-sharded-index"],
)  # fmt: skip
def test_a_file_that_is_missing_from_a_set_is_named(tmp_path: Path, form: str) -> None:
    write_checkpoint(tmp_path, SPARSE, random_tensors(SPARSE), form)
    first = min(path for path in tmp_path.iterdir() if path.suffix != ".json")
    first.unlink()
    line = refusal(tmp_path)
    assert first.name in line and "missing" in line and "download it" in line


def test_files_of_two_sets_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, DENSE, random_tensors(DENSE), "hf-sharded")
    (tmp_path / "model-00001-of-00009.safetensors").touch()
    assert "two sets, -of-00002 and -of-00009" in refusal(tmp_path)
    (tmp_path / "model-00001-of-00009.safetensors").unlink()
    (tmp_path / "model-00003-of-00002.safetensors").touch()
    assert "model-00003-of-00002.safetensors: its number is not in the set" in refusal(tmp_path)


IndexChange = Callable[[dict[str, object]], object]
INDEX_CHANGES: dict[str, tuple[IndexChange, str]] = {
    "other file": (
        lambda m: m.update({"lm_head.weight": "model-00001-of-00002.safetensors"}),
        "model-00002-of-00002.safetensors: tensor 'lm_head.weight' is not here by the index",
    ),
    "not listed": (lambda m: m.pop("lm_head.weight"), "tensor 'lm_head.weight' is not here by the index"),
    "another file": (
        lambda m: m.update({"lm_head.weight": "model-3.safetensors"}),
        "tensor 'lm_head.weight' is not here by the index",
    ),
    "out of the folder": (lambda m: m.update({"more": "../model.safetensors"}), "is not a plain file name"),
    "not a name": (lambda m: m.update({"more": 3}), "no weight_map"),
    "empty": (lambda m: m.clear(), "no weight_map"),
}


def index_of(folder: Path, change: IndexChange) -> Path:
    """A checkpoint in two files whose index is changed."""
    write_checkpoint(folder, DENSE, random_tensors(DENSE), "hf-sharded-index")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("defect", INDEX_CHANGES)
def test_an_index_that_disagrees_with_the_files_is_refused(tmp_path: Path, defect: str) -> None:
    change, reason = INDEX_CHANGES[defect]
    assert reason in refusal(index_of(tmp_path, change))


INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"
STALE: dict[str, IndexChange] = {
    "a name that no file has": lambda m: m.update({INV_FREQ: "model-00001-of-00002.safetensors"}),
    "any name that no file has": lambda m: m.update({"more": "model-00002-of-00002.safetensors"}),
    "a file that is not here": lambda m: m.update({"more": "model-00003-of-00003.safetensors"}),
}


@pytest.mark.parametrize("stale", STALE)
def test_what_an_index_says_of_tensors_that_nobody_needs_is_of_no_account(tmp_path: Path, stale: str) -> None:
    checkpoint = open_checkpoint(index_of(tmp_path, STALE[stale]))
    assert (checkpoint.get("norm.weight") == random_tensors(DENSE)["norm.weight"]).all()
    assert checkpoint.form == "Hugging Face safetensors (2 files)"


def test_a_file_of_the_index_that_is_missing_is_named_where_it_is_needed(tmp_path: Path) -> None:
    folder = index_of(tmp_path, lambda m: None)
    (folder / "model-00002-of-00002.safetensors").unlink()
    reason = "'model-00002-of-00002.safetensors' is missing, and model.safetensors.index.json lists it; download it"
    assert refusal(folder) == f"{folder}: {reason}"
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert refusal(folder) == f"{folder}: {reason.replace('00002-of', '00001-of')}"


@pytest.mark.parametrize("tables", [(INV_FREQ,), ("model.layers.1.self_attn.rotary_emb.cos_cached", "rope.freqs")])
def test_rotary_tables_in_a_file_and_not_in_its_index_are_left_out(tmp_path: Path, tables: tuple[str, ...]) -> None:
    folder = index_of(tmp_path, lambda m: None)
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        tensors = {key: np.array(tensor.array()) for key, tensor in read_safetensors(folder / name).items()}
        write_safetensors(folder / name, tensors | dict.fromkeys(tables, np.ones(3, np.float32)))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.warnings == (f"tensors ignored: '{tables[0]}' and {2 * len(tables) - 1} more",)


def test_an_index_says_which_of_two_tensors_of_a_name_is_meant(tmp_path: Path) -> None:
    folder = index_of(tmp_path, lambda m: None)
    path = folder / "model-00001-of-00002.safetensors"
    tensors = {key: np.array(tensor.array()) for key, tensor in read_safetensors(path).items()}
    write_safetensors(path, tensors | {"lm_head.weight": np.zeros((30, 16), np.float32)})
    assert (open_checkpoint(folder).get("output.weight") == random_tensors(DENSE)["output.weight"]).all()


@pytest.mark.parametrize("left", ["model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("listed", [(), ("lm_head.weight",), ("model.embed_tokens.weight",)])
def test_of_two_tied_matrices_a_file_may_have_either(tmp_path: Path, left: str, listed: tuple[str, ...]) -> None:
    args = replace(DENSE, tied_embeddings=True)
    tensors = random_tensors(args)
    write_checkpoint(tmp_path, args, tensors, "hf")
    stored = hf_tensors(args, tensors)
    stored[left] = stored.pop("model.embed_tokens.weight")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    write_safetensors(tmp_path / "model-00001-of-00001.safetensors", stored)
    weight_map = dict.fromkeys([*stored, *listed], "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.get("tok_embeddings.weight") == tensors["tok_embeddings.weight"]).all()
    assert "output.weight" not in checkpoint.shapes


@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_encoder_is_called_one(tmp_path: Path, prefix: str) -> None:
    """As models that make embeddings are published: the layers of a decoder, and no head."""
    write_checkpoint(tmp_path, DENSE, random_tensors(DENSE), "hf")
    stored = hf_tensors(DENSE, random_tensors(DENSE))
    del stored["lm_head.weight"]
    renamed = {prefix + name.removeprefix("model."): tensor for name, tensor in stored.items()}
    write_safetensors(tmp_path / "model.safetensors", renamed)
    assert "has no output head (lm_head.weight): an encoder or embedding model, which cannot generate" in refusal(
        tmp_path
    )


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 14483464192\n"


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    def folder(name: str, **files: bytes) -> Path:
        (tmp_path / name).mkdir()
        for file, data in files.items():
            (tmp_path / name / file.replace("_", ".")).write_bytes(data)
        return tmp_path / name

    (tmp_path / "file").touch()
    params = json.dumps(params_of(DENSE)).encode()
    refusals = {
        tmp_path / "none": "none: no such folder",
        tmp_path / "file": "file: is a file; name the folder",
        folder("empty"): "empty: is empty",
        folder("tokenizer", tokenizer_model=b"x"): "tokenizer: no weights (",
        folder("params", params_json=params): "params: no weights beside params.json (",
        folder("weights", consolidated_safetensors=b"x"): "has consolidated.safetensors but no params.json",
        folder("hf", model_safetensors=b"x"): "has Hugging Face model.safetensors but no config.json",
        folder("lfs", params_json=params, consolidated_safetensors=LFS_POINTER): "lfs pull",
        folder("lfs2", params_json=params, consolidated_00_pth=LFS_POINTER): "consolidated.00.pth: is a Git LFS",
        folder("blank", params_json=params, consolidated_00_pth=b""): "consolidated.00.pth: is empty",
        folder("page", params_json=params, consolidated_00_pth=b"<html>" * 99): "not in the zip form",
    }
    (folder("pipe", params_json=params) / "consolidated.safetensors").mkdir()
    refusals[tmp_path / "pipe"] = "consolidated.safetensors: is no file"
    for path, reason in refusals.items():
        assert reason in refusal(path), path


def test_a_tensor_that_is_kept_elsewhere_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    """As DeepSpeed ZeRO-3 saves a model whose parts were not gathered."""
    tensors = random_tensors(DENSE)
    tensors["layers.1.attention.wo.weight"] = np.ones(0, np.float32)
    folder = write_checkpoint(tmp_path, DENSE, tensors, "consolidated.safetensors")
    line = refusal(folder)
    assert "tensor 'layers.1.attention.wo.weight' is empty: it was saved under DeepSpeed ZeRO-3 without" in line
    assert line.endswith("or join the parts with zero_to_fp32.py")
