"""How a file is cut into what is read of it: tensors that share bytes, and many of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mistral.checkpoint.formats.stored_tensor import StoredTensor
from mistral.cli.info.verify import segments
from tests.support.checkpoint_forms import params_of, random_tensors, write_params
from tests.support.command_line import ARGS, TOKENIZER, CommandLine
from tests.support.torch_file import Record, row_major, tensor_pickle, write_zip


def view(start: int, count: int, stride: int = 1) -> StoredTensor:
    return StoredTensor(Path("x"), None, start, np.dtype(np.float32), (count,), (stride,))


def test_bytes_that_tensors_share_belong_to_one_of_them() -> None:
    tensors = {"a": view(8, 4), "b": view(12, 1), "c": view(16, 4), "none": view(4, 0)}
    found = [(s.start, s.stop, s.tensor, s.member) for s in segments(44, tensors, [(8, 32, 0), (40, 40, 0)], True)]
    assert found == [
        (0, 8, None, None), (8, 12, "a", 0), (12, 16, "a", 0), (16, 24, "c", 0), (24, 32, "c", 0), (32, 44, None, None),
    ]  # fmt: skip


def test_many_views_of_one_storage_are_looked_at_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 views that each reach over half of the file: their segments are as many as their first and last bytes."""
    count = 20_000
    tensors = {f"t{n}": view(4 * n, 2, count) for n in range(count)}
    looked: list[StoredTensor] = []

    def span(tensor: StoredTensor) -> int:
        looked.append(tensor)
        return 4 * (count + 1)

    monkeypatch.setattr("mistral.cli.info.verify.span_of", span)
    found = segments(8 * count, tensors, [(0, 8 * count, 0)], True)
    assert len(looked) == count
    assert len(found) == 2 * count - 1
    assert {s.member for s in found} == {0}
    assert [s.tensor for s in found[:3]] == ["t0", "t1", "t2"]


def test_a_tensor_that_shares_its_bytes_is_not_taken_for_zeros(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = replace(ARGS, tied_embeddings=True)
    tensors = random_tensors(args)
    values = b"".join(tensor.tobytes() for tensor in tensors.values())
    records, offset = [], 0
    for name, tensor in tensors.items():
        records.append(
            Record(name, "FloatStorage", "0", len(values) // 4, offset, tensor.shape, row_major(tensor.shape))
        )
        offset += tensor.size
    records.append(replace(records[0], name="output.weight"))
    write_params(tmp_path, params_of(args))
    pickle = tensor_pickle(records)
    write_zip(tmp_path / "consolidated.00.pth", [("archive/data.pkl", pickle), ("archive/data/0", values)])
    shutil.copy(TOKENIZER, tmp_path)
    done = CommandLine(capsys, monkeypatch)("info", tmp_path, "--verify", "--json")
    assert done.code == 0
    assert json.loads(done.out)["verified"]["notes"] == ["no checksums came with the weights"]
