"""Which files of a folder are read: every form is found, the better one wins, and incomplete sets are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mistral.checkpoint.checkpoint import open_checkpoint
from tests.support.checkpoint_forms import (
    DENSE,
    HF_FORMS,
    SPARSE,
    forms_of,
    params_of,
    random_tensors,
    refusal,
    write_checkpoint,
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
    "not there": (
        lambda m: m.update({"more": "model-00001-of-00002.safetensors"}),
        "model-00001-of-00002.safetensors: tensor 'more' is missing",
    ),
    "no such file": (lambda m: m.update({"more": "model-3.safetensors"}), "'model-3.safetensors' is missing"),
    "out of the folder": (lambda m: m.update({"more": "../model.safetensors"}), "is not a plain file name"),
    "not a name": (lambda m: m.update({"more": 3}), "no weight_map"),
    "empty": (lambda m: m.clear(), "no weight_map"),
}


@pytest.mark.parametrize("defect", INDEX_CHANGES)
def test_an_index_that_disagrees_with_the_files_is_refused(tmp_path: Path, defect: str) -> None:
    change, reason = INDEX_CHANGES[defect]
    write_checkpoint(tmp_path, DENSE, random_tensors(DENSE), "hf-sharded-index")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    assert reason in refusal(tmp_path)


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
