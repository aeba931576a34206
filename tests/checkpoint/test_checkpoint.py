"""Opening checkpoint folders: every file form gives the same tensors, and what does not fit is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.parameters import parameters
from tests.support.checkpoint_forms import (
    DENSE,
    OFFICIAL_FORMS,
    SPARSE,
    config_of,
    forms_of,
    hf_tensors,
    params_of,
    random_tensors,
    refusal,
    shapes_of,
    write_checkpoint,
    write_params,
    write_safetensors,
)
from tests.support.torch_file import Array, write_torch_file

TIED = replace(DENSE, tied_embeddings=True)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("args", [DENSE, SPARSE, TIED], ids=["dense", "experts", "tied"])
def test_every_form_gives_the_same_tensors(tmp_path: Path, args: ModelArgs, dtype: type) -> None:
    tensors = random_tensors(args, seed=3, dtype=dtype)
    for form in forms_of(args):
        folder = write_checkpoint(tmp_path / form, args, tensors, form)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.args == args and checkpoint.folder == folder
        assert dict(checkpoint.shapes) == shapes_of(args)
        assert checkpoint.warnings == ()
        assert {checkpoint.file_of(name) for name in tensors} <= set(checkpoint.files)
        for name, tensor in tensors.items():
            array = checkpoint.get(name)
            assert array.dtype == checkpoint.dtype(name) == dtype
            assert array.nbytes == checkpoint.nbytes(name)
            assert array.shape == tensor.shape and (array == tensor).all(), f"{form}: {name}"
            assert not array.flags.writeable


@pytest.mark.parametrize("form", OFFICIAL_FORMS)
def test_official_tensors_are_views_of_the_file(tmp_path: Path, form: str) -> None:
    folder = write_checkpoint(tmp_path, SPARSE, random_tensors(SPARSE), form)
    checkpoint = open_checkpoint(folder)
    for name in checkpoint.shapes:
        assert np.shares_memory(checkpoint.get(name), checkpoint.get(name)), name


def test_hugging_face_copies_q_and_k_only(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, DENSE, random_tensors(DENSE), "hf"))
    copied = [name for name in checkpoint.shapes if not np.shares_memory(checkpoint.get(name), checkpoint.get(name))]
    assert copied == [f"layers.{n}.attention.{w}.weight" for n in (0, 1) for w in ("wq", "wk")]


def test_rotary_rows_by_hand(tmp_path: Path) -> None:
    """One head of 4: Hugging Face turns (0, 2) and (1, 3), Mistral (0, 1) and (2, 3)."""
    args = ModelArgs(2, 1, 4, 2, 1, 1, 3, 1e-5, 1e4, (None,))
    tensors = hf_tensors(args, random_tensors(args))
    rows = np.array([[0, 0], [1, 1], [2, 2], [3, 3]], np.float32)
    tensors["model.layers.0.self_attn.q_proj.weight"] = rows
    write_checkpoint(tmp_path, args, random_tensors(args), "hf")
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert open_checkpoint(tmp_path).get("layers.0.attention.wq.weight")[:, 0].tolist() == [0, 2, 1, 3]


def test_tensors_at_odd_addresses_are_copied_whole(tmp_path: Path) -> None:
    tensors = random_tensors(DENSE)
    write_params(tmp_path, params_of(DENSE))
    path = tmp_path / "consolidated.safetensors"
    write_safetensors(path, tensors)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :])
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in tensors.items():
        assert (checkpoint.get(name) == tensor).all() and checkpoint.get(name).flags.aligned


def test_an_array_outlives_its_checkpoint(tmp_path: Path) -> None:
    tensors = random_tensors(DENSE)
    array = open_checkpoint(write_checkpoint(tmp_path, DENSE, tensors, "consolidated.pth")).get("norm.weight")
    assert (array == tensors["norm.weight"]).all()


OPEN_AND_MEASURE = """
import resource, sys
from mistral.checkpoint import open_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
checkpoint = open_checkpoint(sys.argv[1])
last = checkpoint.get("layers.31.feed_forward.w2.weight")[-1, -1]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(sum(map(checkpoint.nbytes, checkpoint.shapes)), grown / 1024, float(last))
"""


@pytest.mark.parametrize("file", ["consolidated.00.pth", "consolidated.safetensors"])
def test_opening_14_gb_reads_next_to_nothing(tmp_path: Path, file: str) -> None:
    """A sparse file of the size of the 7B model, opened in a fresh process."""
    args = ModelArgs(4096, 32, 128, 14336, 32, 8, 32000, 1e-5, 1e4, (4096,) * 32)
    zero = np.zeros((), ml_dtypes.bfloat16)
    tensors = {name: np.broadcast_to(zero, shape) for name, shape in shapes_of(args).items()}
    write = write_torch_file if file.endswith(".pth") else write_safetensors
    write(tmp_path / file, tensors, sparse=True)
    write_params(tmp_path, params_of(args))
    command = [sys.executable, "-c", OPEN_AND_MEASURE, str(tmp_path)]
    root = Path(__file__).parents[2]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    (tmp_path / file).unlink()
    size, mebibytes, last = output.split()
    assert int(size) > 14e9
    assert float(mebibytes) < 50
    assert float(last) == 0


def test_unknown_keys_and_rotary_tables_are_ignored_with_a_warning(tmp_path: Path) -> None:
    write_params(tmp_path, params_of(DENSE) | {"favourite\ncolour": "blue"})
    tables = {"rope.freqs": np.ones(3, np.float32)}
    tables |= {f"layers.{n}.attention.rotary_emb.inv_freq": np.ones(3, np.int64) for n in (0, 1)}
    write_safetensors(tmp_path / "consolidated.safetensors", random_tensors(DENSE) | tables)
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.shapes.keys() == parameters(DENSE).keys()
    keys, ignored = checkpoint.warnings
    assert keys == r"params.json: keys not known, ignored: 'favourite\ncolour'"
    assert ignored == "tensors ignored: 'rope.freqs' and 2 more"


@pytest.mark.parametrize("form", ["consolidated.safetensors", "consolidated.pth", "hf", "hf-bin"])
def test_a_tied_model_accepts_its_embeddings_again_and_nothing_else(tmp_path: Path, form: str) -> None:
    tensors = random_tensors(TIED)
    again = tensors | {"output.weight": tensors["tok_embeddings.weight"].copy()}
    assert "output.weight" not in open_checkpoint(write_checkpoint(tmp_path, TIED, again, form)).shapes
    again["output.weight"][17, 3] += 1
    line = refusal(write_checkpoint(tmp_path, TIED, again, form))
    assert ("'lm_head.weight'" if "hf" in form else "'output.weight'") in line and "differs from the embeddings" in line


Change = Callable[[dict[str, Array]], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "missing": (lambda t: t.pop("norm.weight"), "tensor 'norm.weight' is missing"),
    "renamed": (lambda t: t.update({"nörm": t.pop("norm.weight")}), "tensor 'norm.weight' is missing"),
    "unexpected": (lambda t: t.update({"layers.2.bias": np.ones(2, np.float32)}), "'layers.2.bias' is not part of"),
    "mis-shaped": (lambda t: t.update({"norm.weight": np.ones((4, 4), np.float32)}), "'norm.weight' has shape (4, 4)"),
    "too long": (lambda t: t.update({"norm.weight": np.ones(17, np.float32)}), "'norm.weight' has shape (17,)"),
    "swapped": (
        lambda t: t.update({k: t[k.translate({49: 50, 50: 49})] for k in list(t) if "layers.0.feed_forward.w" in k}),
        "'layers.0.feed_forward.w1.weight' has shape (16, 20)",
    ),
    "integers": (lambda t: t.update({"norm.weight": np.ones(16, np.int64)}), "'norm.weight' has dtype int64"),
    "hostile name": (lambda t: t.update({"a\nb" * 99: np.ones(2, np.float32)}), r"tensor 'a\nba\nb"),
}


@pytest.mark.parametrize("file", ["consolidated.safetensors", "consolidated.00.pth"])
@pytest.mark.parametrize("defect", CHANGES)
def test_a_tensor_that_does_not_fit_is_named_with_its_file(tmp_path: Path, defect: str, file: str) -> None:
    change, reason = CHANGES[defect]
    tensors = random_tensors(DENSE)
    change(tensors)
    (write_torch_file if file.endswith(".pth") else write_safetensors)(tmp_path / file, tensors)
    write_params(tmp_path, params_of(DENSE))
    line = refusal(tmp_path)
    assert line.startswith(f"{tmp_path / file}: ") and reason in line and len(line) < 400


def test_a_missing_tensor_is_named_as_the_files_name_it(tmp_path: Path) -> None:
    tensors = random_tensors(DENSE)
    del tensors["layers.1.attention.wk.weight"]
    line = refusal(write_checkpoint(tmp_path, DENSE, tensors, "hf-sharded"))
    assert line.startswith(f"{tmp_path / 'model-00001-of-00002.safetensors'} and 1 more: ")
    assert "'model.layers.1.self_attn.k_proj.weight' (the model's layers.1.attention.wk.weight) is missing" in line


def test_stacked_experts_of_another_number_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SPARSE, random_tensors(SPARSE), "first-mixtral")
    write_params(tmp_path, params_of(replace(SPARSE, moe=MoeArgs(4, 2))))
    assert "has shape (3, 16)" in refusal(tmp_path)  # the gate
    write_params(tmp_path, params_of(replace(SPARSE, hidden_dim=10)))
    assert "'layers.0.block_sparse_moe.w1' has shape (60, 16) and params.json asks for (30, 16)" in refusal(tmp_path)


@pytest.mark.parametrize("form", ["consolidated-sharded", "consolidated-many.pth", "first-mixtral", "hf-sharded"])
def test_a_tensor_in_two_files_is_refused(tmp_path: Path, form: str) -> None:
    """Also what tensor-parallel parts look like: the same names in every file."""
    write_checkpoint(tmp_path, SPARSE, random_tensors(SPARSE), form)
    first, second, *_ = sorted(path for path in tmp_path.iterdir() if path.suffix != ".json")
    second.write_bytes(first.read_bytes())
    line = refusal(tmp_path)
    assert line.startswith(f"{second}: tensor '") and f"is in {first.name} too" in line


def test_the_first_mixtral_release_may_repeat_only_equal_tensors_outside_the_layers(tmp_path: Path) -> None:
    tensors = random_tensors(SPARSE)
    write_checkpoint(tmp_path, SPARSE, tensors, "first-mixtral")
    assert set(open_checkpoint(tmp_path).shapes) == set(tensors)
    last = tmp_path / "consolidated.07.pt"
    write_torch_file(last, {"output.weight": tensors["tok_embeddings.weight"]})
    assert refusal(tmp_path).startswith(f"{last}: tensor 'output.weight' is in consolidated.00.pt too")


def test_official_weights_are_read_by_a_config_json_where_that_is_all_they_have(tmp_path: Path) -> None:
    tensors = random_tensors(SPARSE)
    write_checkpoint(tmp_path, SPARSE, tensors, "first-mixtral")
    (tmp_path / "params.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config_of(SPARSE)))
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in tensors.items():
        assert np.array_equal(checkpoint.get(name), tensor)


def test_a_model_of_absurd_size_is_refused_before_its_names_are_made(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SPARSE, random_tensors(SPARSE), "consolidated.safetensors")
    moe = {"num_experts": 1 << 23, "num_experts_per_tok": 2}
    write_params(tmp_path, params_of(SPARSE) | {"moe": moe, "n_layers": 1 << 10})
    assert "more than" in refusal(tmp_path)
