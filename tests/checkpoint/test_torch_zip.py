"""The reader of torch.save's files: what the real torch wrote, and archives that are not as they should be."""

from __future__ import annotations

import math
import re
import shutil
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.formats.stored_tensor import HEADER_LIMIT, StoredTensor
from mistral.checkpoint.formats.torch_zip import read_torch_zip
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from tests.support.checkpoint_forms import params_of, write_params
from tests.support.torch_file import Array, Record, tensor_pickle, write_torch_file, write_zip

PTH = Path(__file__).parents[1] / "data" / "pth"
ARGS = ModelArgs(8, 1, 4, 12, 2, 1, 16, 1e-5, 1e4, (None,))
SAVED_SHAPES = {
    "tok_embeddings.weight": (16, 8),
    "layers.0.attention.wq.weight": (8, 8),
    "layers.0.attention.wk.weight": (4, 8),
    "layers.0.attention.wv.weight": (4, 8),
    "layers.0.attention.wo.weight": (8, 8),
    "layers.0.attention_norm.weight": (8,),
    "layers.0.ffn_norm.weight": (8,),
    "layers.0.feed_forward.w1.weight": (12, 8),
    "layers.0.feed_forward.w2.weight": (8, 12),
    "layers.0.feed_forward.w3.weight": (12, 8),
    "norm.weight": (8,),
    "output.weight": (16, 8),
}  # in the order in which they were saved


def saved_values() -> dict[str, Array]:
    """What tools/make_pth_fixtures.py put into its files."""
    return {
        name: (((7 * np.arange(math.prod(shape)) + 11 * t) % 251 - 125) / 16).reshape(shape)
        for t, (name, shape) in enumerate(SAVED_SHAPES.items())
    }


def folder_with(tmp_path: Path, fixture: str, args: ModelArgs = ARGS) -> Path:
    shutil.copy(PTH / fixture, tmp_path / "consolidated.00.pth")
    return write_params(tmp_path, params_of(args))


@pytest.mark.parametrize(
    ("fixture", "dtype"),
    [
        ("bf16.pth", ml_dtypes.bfloat16),
        ("fp16.pth", np.float16),
        ("fp32.pth", np.float32),
        ("one_storage.pth", ml_dtypes.bfloat16),
        ("state_dict.pth", ml_dtypes.bfloat16),
        ("no_checksum.pth", ml_dtypes.bfloat16),
    ],
)
def test_reads_what_torch_saved(tmp_path: Path, fixture: str, dtype: type) -> None:
    checkpoint = open_checkpoint(folder_with(tmp_path, fixture))
    for name, values in saved_values().items():
        array = checkpoint.get(name)
        assert array.dtype == dtype and array.shape == values.shape
        assert (array.astype(np.float64) == values).all(), name


def test_reads_an_output_that_shares_the_storage_of_tied_embeddings(tmp_path: Path) -> None:
    tied = ModelArgs(8, 1, 4, 12, 2, 1, 16, 1e-5, 1e4, (None,), tied_embeddings=True)
    checkpoint = open_checkpoint(folder_with(tmp_path, "tied.pth", tied))
    assert "output.weight" not in checkpoint.shapes
    values = saved_values()["tok_embeddings.weight"]
    assert (checkpoint.get("tok_embeddings.weight").astype(np.float64) == values).all()


@pytest.mark.parametrize(
    ("fixture", "reason"),
    [
        ("legacy.pth", "old form"),
        ("nested.pth", "'model' is not a tensor"),
        ("int64.pth", "'norm.weight' has dtype int64"),
        ("float8.pth", "_rebuild_tensor_v3"),
        ("protocol4.pth", "protocol 2"),
    ],
)
def test_refuses_what_torch_can_save_but_is_no_plain_checkpoint(tmp_path: Path, fixture: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"^[^\n]*consolidated.00.pth: [^\n]*{re.escape(reason)}[^\n]*$"):
        open_checkpoint(folder_with(tmp_path, fixture))


def read_one(path: Path, record: Record, storage: bytes | int, *more: tuple[str, bytes | int]) -> StoredTensor:
    """Write and read a file of one tensor."""
    write_zip(path, [("x/data.pkl", tensor_pickle([record])), *more, (f"x/data/{record.key}", storage)])
    return read_torch_zip(path)[record.name]


def test_a_view_at_an_offset_with_strides_is_mapped_in_place(tmp_path: Path) -> None:
    record = Record("w", "FloatStorage", "7", 20, 3, (3, 4), (1, 4))
    array = read_one(tmp_path / "a.pth", record, np.arange(20, dtype="<f4").tobytes()).array()
    assert (array == 3 + np.arange(16).reshape(4, 4)[:, :3].T).all()
    assert not array.flags.owndata and not array.flags.writeable


@pytest.mark.parametrize(
    "record",
    [
        Record("w", "FloatStorage", "0", 20, 0, (3, 7), (7, 1)),
        Record("w", "FloatStorage", "0", 20, 9, (3, 4), (4, 1)),
        Record("w", "FloatStorage", "0", 20, 0, (3, 4), (9, 1)),
        Record("w", "FloatStorage", "0", 20, -1, (3, 4), (4, 1)),
        Record("w", "FloatStorage", "0", 20, 11, (3, 4), (-4, 1)),
        Record("w", "FloatStorage", "0", 20, 0, (3, 4), (4,)),
        Record("w", "FloatStorage", "0", 20, 0, (-3, -4), (4, 1)),
        Record("w", "FloatStorage", "0", 20, 0, (1 << 40, 1 << 40), (0, 0)),
        Record("w", "FloatStorage", "0", 20, 1 << 70, (3, 4), (4, 1)),
        Record("w", "FloatStorage", "0", 20, 1 << 50, (0, 4), (4, 1)),
        Record("w", "FloatStorage", "0", 20, 0, (1,) * 9, (1,) * 9),
    ],
)
def test_refuses_a_tensor_outside_its_storage(tmp_path: Path, record: Record) -> None:
    with pytest.raises(InputError, match=r"a\.pth: data\.pkl: refused: tensor 'w'"):
        read_one(tmp_path / "a.pth", record, bytes(80))


@pytest.mark.parametrize("size", [19, 21, 1 << 40])
def test_refuses_a_storage_of_another_size_than_declared(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match=r"a\.pth: tensor 'w' has 80 bytes"):
        read_one(tmp_path / "a.pth", Record("w", "FloatStorage", "0", size, 0, (3,), (1,)), bytes(80))


def test_refuses_a_tensor_without_data(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    pickled = tensor_pickle([Record("w", "FloatStorage", "../data.pkl", 3, 0, (3,), (1,))])
    write_zip(path, [("x/data.pkl", pickled), ("x/data/0", bytes(12))])
    with pytest.raises(InputError, match=r"a\.pth: tensor 'w' has no data"):
        read_torch_zip(path)


RECORD = Record("w", "FloatStorage", "0", 3, 0, (3,), (1,))


def test_refuses_another_byte_order(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="byte order"):
        read_one(tmp_path / "a.pth", RECORD, bytes(12), ("x/byteorder", b"big"))


def test_refuses_a_member_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'x/data/0' is there twice"):
        read_one(tmp_path / "a.pth", RECORD, bytes(12), ("x/data/0", bytes(12)))


def test_refuses_two_pickles(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data\.pkl"):
        read_one(tmp_path / "a.pth", RECORD, bytes(12), ("y/data.pkl", tensor_pickle([RECORD])))


def test_refuses_a_pickle_of_unlikely_size(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.pth", [("x/data.pkl", HEADER_LIMIT + 1)])
    with pytest.raises(InputError, match="too many for a model"):
        read_torch_zip(tmp_path / "a.pth")


def test_refuses_a_compressed_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", tensor_pickle([RECORD]))
        archive.writestr("x/data/0", bytes(12))
    with pytest.raises(InputError, match=r"a\.pth: its member 'x/data\.pkl' is compressed"):
        read_torch_zip(tmp_path / "a.pth")


def test_refuses_members_that_share_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    write_zip(path, [("x/data.pkl", tensor_pickle([RECORD])), ("x/data/0", bytes(12)), ("x/data/1", bytes(12))])
    raw = path.read_bytes()
    # the directory's entry of data/0: its size (twice) in the zip64 field, behind the name
    at = raw.rindex(b"x/data/0") + len("x/data/0") + 4
    for size in (13 + 24, 1 << 62):
        path.write_bytes(raw[:at] + size.to_bytes(8, "little") * 2 + raw[at + 16 :])
        with pytest.raises(InputError, match=r"'x/data/0' is not where the directory says, or overlaps"):
            read_torch_zip(path)


def test_refuses_a_directory_entry_that_points_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    write_zip(path, [("x/data.pkl", tensor_pickle([RECORD])), ("x/data/0", bytes(12))])
    raw = path.read_bytes()
    at = raw.rindex(b"x/data/0") + len("x/data/0") + 4 + 16
    path.write_bytes(raw[:at] + (3).to_bytes(8, "little") + raw[at + 8 :])
    with pytest.raises(InputError, match=r"a\.pth: its member 'x/data[^']*' is not where the directory says"):
        read_torch_zip(path)


def test_refuses_a_member_that_has_another_name_at_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    write_zip(path, [("x/data.pkl", tensor_pickle([RECORD])), ("x/data/0", bytes(12))])
    path.write_bytes(path.read_bytes().replace(b"x/data/0", b"x/data/1", 1))
    with pytest.raises(InputError, match=r"'x/data/0' is not where the directory says"):
        read_torch_zip(path)


def test_a_wrong_checksum_of_the_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    write_torch_file(path, {"w": np.zeros(3, np.float32)})
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"\x89ccollections", b"\x88ccollections"))  # still a valid pickle
    with pytest.raises(InputError, match=r"a\.pth: the checksum of 'archive/data\.pkl'"):
        read_torch_zip(path)


def test_a_storage_beyond_4_gib_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    large = np.broadcast_to(np.float32(0), (1 << 15, (1 << 15) + 1))  # 4 GiB and 128 KiB
    write_torch_file(path, {"large": large, "behind": np.broadcast_to(np.float32(0), (3,))}, sparse=True)
    tensors = read_torch_zip(path)
    for tensor in tensors.values():
        with path.open("r+b") as file:
            file.seek(tensor.start + tensor.nbytes - 4)
            file.write(np.float32(1.5).tobytes())
    assert tensors["large"].array()[-1, -2:].tolist() == [0, 1.5]
    assert tensors["behind"].array().tolist() == [0, 0, 1.5]
    path.unlink()


END = b"PK\5\6" + bytes(18)


@pytest.mark.parametrize("data", [END, b"x" + END, END + b"x", b"x" * 40 + END, END * 2, END[:-1]])
def test_an_archive_without_members_is_no_file_of_torch(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "consolidated.00.pth").write_bytes(data)
    with pytest.raises(InputError, match=r"consolidated\.00\.pth: (no data\.pkl in it|not in the zip form)"):
        read_torch_zip(tmp_path / "consolidated.00.pth")


def test_an_archive_that_is_changed_anywhere_in_its_directory_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    write_torch_file(path, {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), np.float16)})
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            at = len(data) - int(random.integers(1, 420))
            way = random.integers(3)
            if way == 0:
                data[at] = random.integers(256)
            elif way == 1:
                del data[at : at + int(random.integers(1, 30))]
            else:
                data[at:at] = random.bytes(int(random.integers(1, 30)))
        path.write_bytes(data)
        try:
            for tensor in read_torch_zip(path).values():
                tensor.array().tobytes()
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200


def test_bytes_that_are_seen_as_two_types_are_refused(tmp_path: Path) -> None:
    """torch.save writes no such file; the views of one would lie across each other's elements."""
    records = [
        Record("a", "FloatStorage", "0", 6, 0, (6,), (1,)),
        Record("b", "ByteStorage", "0", 24, 1, (5,), (1,)),
    ]
    path = tmp_path / "consolidated.00.pth"
    write_zip(path, [("archive/data.pkl", tensor_pickle(records)), ("archive/data/0", bytes(24))])
    with pytest.raises(InputError, match="tensor 'b' sees another's bytes as another type; save the two apart"):
        read_torch_zip(path)


def test_a_tensor_at_an_odd_byte_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    values = np.arange(7, dtype=np.float32)
    with zipfile.ZipFile(path, "w") as archive:  # without padding
        pickle = tensor_pickle([Record("a", "FloatStorage", "0", 7, 1, (3,), (2,))])
        archive.writestr("a/data.pkl", pickle)
        archive.writestr("a/data/0", values.tobytes())
    tensor = read_torch_zip(path)["a"]
    assert tensor.start % 4
    assert tensor.array().tolist() == [1, 3, 5]
