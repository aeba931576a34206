"""A checkpoint that becomes shorter while a model reads it: one line, whoever notices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import pytest

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.errors import InputError
from mistral.generate import generate
from mistral.load import Transformer, load_model
from mistral.ops.mapped_files import SHORTENED
from tests.support.checkpoint_forms import DENSE, random_tensors, write_checkpoint
from tests.support.command_line import ROOT

pytestmark = pytest.mark.usefixtures("ops")
READ = """
import os, sys
import numpy as np
from mistral.load import Transformer
model = Transformer.from_folder(sys.argv[1], backend=sys.argv[2], device="CPU")
name = sys.argv[1] + "/" + sys.argv[3]

def cut():
    os.truncate(name, 4096)

cache = model.new_cache()
cache.add(0, 8)
metadata = cache.begin([3], [0])
print("loaded", flush=True)
model.run_blocks(model.embed(np.array([1, 2, 3])), metadata, cache, cut)
print("not reached")
"""


def test_a_shorter_file_is_noticed_before_the_next_step(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, DENSE, random_tensors(DENSE), "hf-sharded")
    model = Transformer.from_folder(folder, backend="portable", device="CPU")
    assert generate([[1, 2]], model, max_tokens=1)[0] != [[]]
    assert sorted(path.name for path in model.files.files) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    file = folder / "model-00002-of-00002.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    for call in (lambda: generate([[1, 2]], model, max_tokens=1), lambda: model.forward([1, 2], [2])):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == f"{file}: {SHORTENED}"


def test_what_was_copied_while_loading_is_not_watched(tmp_path: Path) -> None:
    tensors = random_tensors(DENSE, dtype=ml_dtypes.bfloat16)
    folder = write_checkpoint(tmp_path, DENSE, tensors, "consolidated.safetensors")
    model = Transformer.from_folder(folder, backend="portable", device="CPU")
    assert model.files.files == {}
    os.truncate(folder / "consolidated.safetensors", 100)
    assert generate([[1, 2]], model, max_tokens=1)[0] != [[]]


def test_a_file_that_is_shorter_before_it_is_read_is_noticed_too(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, DENSE, random_tensors(DENSE), "consolidated.safetensors")
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "consolidated.safetensors", 100)
    with pytest.raises(InputError, match=f"consolidated.safetensors: {SHORTENED}"):
        load_model(checkpoint, backend="portable", device="CPU")


def test_a_file_that_becomes_shorter_within_a_step_ends_the_process_with_a_line(tmp_path: Path) -> None:
    """Where the kernels read it: their handler knows the file by the address."""
    form = "consolidated.safetensors"
    write_checkpoint(tmp_path, DENSE, random_tensors(DENSE, dtype=ml_dtypes.bfloat16), form)
    command = [sys.executable, "-c", READ, str(tmp_path), "native", form]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "loaded\n"), done.stderr
    assert done.stderr == f"error: {tmp_path / form}: {SHORTENED}\n"


def test_another_bus_error_ends_the_process_as_ever(tmp_path: Path) -> None:
    code = """
import mmap, os, sys
from mistral.ops.mapped_files import MappedFiles
from pathlib import Path
path = Path(sys.argv[1])
def mapped(name):
    (path / name).write_bytes(bytes(8192))
    with (path / name).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
one, other, gone = mapped("one"), mapped("other"), mapped("gone")
MappedFiles({path / "one": one}).guard()
files = MappedFiles({path / "gone": gone})
files.guard()
del files, gone
os.truncate(path / "other", 0)
other[5000]
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (-7, "")
