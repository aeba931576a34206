"""Damaged and hostile checkpoints: refused in one line that names the file, with nothing executed and little memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.formats.stored_tensor import HEADER_LIMIT
from mistral.checkpoint.formats.torch_pickle import TensorRecord, read_tensor_table
from mistral.errors import InputError
from mistral.model.args import ModelArgs, MoeArgs
from tests.support.checkpoint_forms import (
    params_of,
    random_tensors,
    safetensors_header,
    shapes_of,
    write_checkpoint,
    write_params,
)
from tests.support.hostile_pickles import ORDERED_DICT, REBUILD, STORAGE, TENSOR, bombs, executing, misusing
from tests.support.torch_file import records_of, tensor_pickle, text, write_zip

ARGS = ModelArgs(4, 1, 2, 6, 2, 1, 5, 1e-5, 1e4, (None,), moe=MoeArgs(2, 1))
TENSORS = random_tensors(ARGS, seed=5, dtype=ml_dtypes.bfloat16)
PTH, SAFETENSORS = "consolidated.00.pth", "consolidated.safetensors"


def refused(folder: Path, file: str) -> str:
    """The one line with which a folder is refused; it begins with the weight file."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(folder)
    line = str(caught.value)
    assert line.startswith(f"{folder / file}: ") and "\n" not in line and line.isprintable() and len(line) < 500
    return line


def folder_with_pickle(folder: Path, pickled: bytes) -> Path:
    """A folder whose `.pth` has this data.pkl and a storage 0 of 12 bytes."""
    folder.mkdir(exist_ok=True)
    write_zip(folder / PTH, [("x/data.pkl", pickled), ("x/data/0", bytes(12))])
    return write_params(folder, params_of(ARGS))


@pytest.mark.parametrize("attack", executing(""))
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, attack: str) -> None:
    canary = tmp_path / "canary"
    folder = folder_with_pickle(tmp_path, executing(f"touch {canary}")[attack])
    assert "refused" in refused(folder, PTH)
    assert not canary.exists()


def test_the_attacks_would_run_in_an_open_unpickler(tmp_path: Path) -> None:
    """The test above can fail: Python's own pickle runs the command."""
    canary = tmp_path / "canary"
    attacks = executing(f"touch {canary}")
    command = [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"]
    for attack in ("os.system as the value", "os.system, protocol 2", "os.system, protocol 4", "INST", "STACK_GLOBAL"):
        subprocess.run(command, input=attacks[attack])
        assert canary.exists(), attack
        canary.unlink()


@pytest.mark.parametrize("misuse", misusing())
def test_a_pickle_that_is_not_of_tensors_is_refused(tmp_path: Path, misuse: str) -> None:
    line = refused(folder_with_pickle(tmp_path, misusing()[misuse]), PTH)
    assert "data.pkl: refused: " in line or "data.pkl: damaged pickle (" in line


OPEN_ALL = """
import resource, sys
from pathlib import Path
from mistral.checkpoint import open_checkpoint
from mistral.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        open_checkpoint(folder)
        sys.exit(f"{folder} was opened")
    except InputError as error:
        assert str(error).startswith(str(folder)) and str(error).isprintable(), error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def mebibytes_to_refuse(folder: Path) -> int:
    """How far memory grows while a fresh process refuses every folder in `folder`."""
    command = [sys.executable, "-c", OPEN_ALL, str(folder)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_bombs_are_refused_within_300_mib(tmp_path: Path) -> None:
    for name, pickled in bombs().items():
        folder_with_pickle(tmp_path / name, pickled)
    for name, header in json_bombs().items():
        (tmp_path / name).mkdir()
        write_params(tmp_path / name, params_of(ARGS))
        (tmp_path / name / SAFETENSORS).write_bytes(len(header).to_bytes(8, "little") + header)
    assert mebibytes_to_refuse(tmp_path) < 300


def test_a_directory_of_unlikely_size_is_not_read_into_memory(tmp_path: Path) -> None:
    """A sparse file whose end record claims 3 GiB of directory."""
    folder, size = tmp_path / "model", 3 << 30
    folder.mkdir()
    write_params(folder, params_of(ARGS))
    with (folder / PTH).open("wb") as file:
        file.seek(size)
        file.write(b"PK\5\6" + bytes(4) + b"\1\0\1\0" + size.to_bytes(4, "little") + bytes(6))
    assert mebibytes_to_refuse(tmp_path) < 50
    (folder / PTH).unlink()


def json_bombs() -> dict[str, bytes]:
    """Headers of up to 4 MiB that ask for more memory or recursion."""
    entry = b'{"dtype":"F32","shape":%s,"data_offsets":[0,4]}'
    return {
        "json arrays": b'{"a":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}",
        "json objects": b'{"a":' * 500_000 + b"1" + b"}" * 500_000,
        "json unclosed": b"[" * 4_000_000,
        "json empty objects": b'{"a":[' + b"{}," * 1_300_000 + b"{}]}",
        "json long number": b'{"a":' + entry % (b"[" + b"9" * 4_000_000 + b"]") + b"}",
        "json long shape": b'{"a":' + entry % (b"[" + b"2," * 1_900_000 + b"2]") + b"}",
        "json many keys": b"{" + b",".join(b'"%d":1' % n for n in range(350_000)) + b"}",
    }


def boundaries(path: Path) -> list[int]:
    """Where each structure of a weight file begins or ends."""
    raw = path.read_bytes()
    if path.name == SAFETENSORS:
        data = 8 + int.from_bytes(raw[:8], "little")
        ends = [entry["data_offsets"][1] for name, entry in json.loads(raw[8:data]).items() if name[0] != "_"]
        return [0, 8, 8 + data // 2, data, *(data + end for end in ends)]
    with zipfile.ZipFile(path) as archive:
        starts = [info.header_offset for info in archive.infolist()]
        directory = archive.start_dir
    entries = [at for at in range(directory, len(raw)) if raw[at : at + 2] == b"PK"]  # central, zip64 end, locator, end
    return sorted({*starts, *(start + 30 for start in starts), *(start + 64 for start in starts), *entries, len(raw)})


@pytest.mark.parametrize("file", [PTH, SAFETENSORS])
def test_a_file_that_breaks_off_at_any_structure_is_refused(tmp_path: Path, file: str) -> None:
    write_checkpoint(tmp_path, ARGS, TENSORS, "consolidated.pth" if file == PTH else file)
    path = tmp_path / file
    raw, places = path.read_bytes(), boundaries(path)
    assert len(places) > 15
    for size in {place + step for place in places for step in (-1, 0, 1)} & set(range(len(raw))):
        path.write_bytes(raw[:size])
        assert "download it again" in refused(tmp_path, file), size
    path.write_bytes(raw)
    open_checkpoint(tmp_path)


def test_a_safetensors_file_with_more_behind_its_end_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, ARGS, TENSORS, SAFETENSORS)
    with (tmp_path / SAFETENSORS).open("ab") as file:
        file.write(b"\0")
    assert "1 bytes belong to no tensor" in refused(tmp_path, SAFETENSORS)


def write_header(folder: Path, header: dict[str, Any] | bytes) -> Path:
    """A safetensors file of the tensors with another header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    values = b"".join(tensor.tobytes() for tensor in TENSORS.values())
    (folder / SAFETENSORS).write_bytes(len(raw).to_bytes(8, "little") + raw + values)
    return write_params(folder, params_of(ARGS))


NORM = safetensors_header(TENSORS)["norm.weight"]
ENTRIES: dict[str, tuple[Any, str]] = {
    "no entry": (None, "lacks its dtype"),
    "not a table": ([1, 2], "lacks its dtype"),
    "one key more": (NORM | {"more": 1}, "lacks its dtype"),
    "unknown dtype": (NORM | {"dtype": "F4"}, "has dtype 'F4'"),
    "dtype of another type": (NORM | {"dtype": ["BF16"]}, "has dtype"),
    "other dtype of the size": (NORM | {"dtype": "I16"}, "has dtype int16"),
    "8 bits": (NORM | {"dtype": "F8_E4M3"}, "where its shape needs 4"),
    "negative size": (NORM | {"shape": [-4]}, "no valid shape"),
    "fractional size": (NORM | {"shape": [4.0]}, "no valid shape"),
    "boolean size": (NORM | {"shape": [True, 4]}, "no valid shape"),
    "text for a shape": (NORM | {"shape": "4"}, "no valid shape"),
    "nine dimensions": (NORM | {"shape": [1] * 8 + [4]}, "no valid shape"),
    "huge size": (NORM | {"shape": [1 << 61]}, "where its shape needs"),
    "huge product": (NORM | {"shape": [1 << 61] * 8}, "where its shape needs"),
    "beyond 64 bits": (NORM | {"shape": [1 << 64]}, "no valid shape"),
    "reshaped": (NORM | {"shape": [2, 2]}, "has shape (2, 2)"),
    "three offsets": (NORM | {"data_offsets": [0, 1, 2]}, "no valid data_offsets"),
    "negative offset": (NORM | {"data_offsets": [-8, 0]}, "no valid data_offsets"),
    "turned offsets": (NORM | {"data_offsets": NORM["data_offsets"][::-1]}, "has -8 bytes"),
    "overlap": (NORM | {"data_offsets": [n - 2 for n in NORM["data_offsets"]]}, "overlaps"),
    "hole": (NORM | {"data_offsets": [n + 2 for n in NORM["data_offsets"]]}, "hole"),
    "beyond the end": (NORM | {"data_offsets": [1 << 40, (1 << 40) + 8]}, "hole"),
}


@pytest.mark.parametrize("defect", ENTRIES)
def test_a_safetensors_entry_that_cannot_be_is_refused(tmp_path: Path, defect: str) -> None:
    entry, reason = ENTRIES[defect]
    header = safetensors_header(TENSORS)
    header["norm.weight"] = entry
    line = refused(write_header(tmp_path, header), SAFETENSORS)
    assert reason in line
    assert "'norm.weight'" in line or "'output.weight'" in line  # the one behind it, which is then out of place


GOOD = json.dumps(safetensors_header(TENSORS)).encode()
HEADERS = {
    "twice the same": (GOOD[:-1] + b', "norm.weight": 1}', "'norm.weight' is there twice"),
    "an array": (b"[]", "not a JSON object"),
    "no JSON": (b"{", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "nothing": (b"", "not valid JSON"),
    "no tensors": (b"{}", "bytes belong to no tensor"),
    "not a number": (b'{"a": NaN}', "lacks its dtype"),
    "a name of control characters": (GOOD.replace(b"norm.weight", rb"norm\u0000\n\u202e\ud800"), "is missing"),
}


@pytest.mark.parametrize("defect", HEADERS)
def test_a_safetensors_header_that_cannot_be_is_refused(tmp_path: Path, defect: str) -> None:
    header, reason = HEADERS[defect]
    assert reason in refused(write_header(tmp_path, header), SAFETENSORS)


@pytest.mark.parametrize("length", [1 << 22, (1 << 22) + 1, 100_000_000, (1 << 64) - 1])
def test_a_declared_header_length_beyond_the_file_is_refused(tmp_path: Path, length: int) -> None:
    write_params(tmp_path, params_of(ARGS))
    (tmp_path / SAFETENSORS).write_bytes(length.to_bytes(8, "little") + GOOD)
    assert "header" in refused(tmp_path, SAFETENSORS)


def test_a_header_of_unlikely_length_is_not_parsed(tmp_path: Path) -> None:
    write_params(tmp_path, params_of(ARGS))
    raw = GOOD + b" " * (HEADER_LIMIT + 1 - len(GOOD))
    (tmp_path / SAFETENSORS).write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert f"header of {HEADER_LIMIT + 1} bytes" in refused(tmp_path, SAFETENSORS)


def flipped(raw: bytes, flips: list[tuple[float, int]], keep: float) -> bytes:
    """The bytes with some exclusive-ored, cut off at a fraction of their length."""
    changed = bytearray(raw)
    for place, mask in flips:
        changed[int(place * len(raw))] ^= mask
    return bytes(changed[: len(raw) - int((1 - keep) * len(raw))])


FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4)
KEEP = st.one_of(st.just(1.0), st.floats(0, 1))


@settings(max_examples=300, deadline=None)
@given(file=st.sampled_from([PTH, SAFETENSORS]), flips=FLIPS, keep=KEEP)
def test_damaged_bytes_are_refused_or_give_tensors_of_the_right_shapes(
    file: str, flips: list[tuple[float, int]], keep: float
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_checkpoint(Path(name), ARGS, TENSORS, "consolidated.pth" if file == PTH else file)
        (folder / file).write_bytes(flipped((folder / file).read_bytes(), flips, keep))
        try:
            checkpoint = open_checkpoint(folder)
        except InputError as error:
            assert name in str(error) and str(error).isprintable()
            return
        assert dict(checkpoint.shapes) == shapes_of(ARGS)
        for tensor, shape in checkpoint.shapes.items():
            array = checkpoint.get(tensor)
            assert array.shape == shape and array.astype(np.float32).shape == shape


PICKLE = tensor_pickle(records_of(TENSORS))
FRAGMENTS = st.one_of(
    st.sampled_from([REBUILD, STORAGE, TENSOR, ORDERED_DICT, text("w"), b"q\0", b"h\0", b"r\0\0\0\0"]),
    st.sampled_from([bytes([opcode]) for opcode in b"(}t)usbRQNc\x85\x86\x87\x88\x89."]),
    st.integers(0, 255).map(lambda n: bytes([0x4B, n])),
    st.binary(max_size=6),
)


@settings(max_examples=400, deadline=None)
@given(data=st.one_of(st.builds(flipped, st.just(PICKLE), FLIPS, KEEP), st.lists(FRAGMENTS, max_size=60).map(b"".join)))
def test_any_pickle_gives_a_table_of_tensors_or_is_refused(data: bytes) -> None:
    for pickled in (data, b"\x80\x02" + data, b"\x80\x02}" + data + b"."):
        try:
            table = read_tensor_table(pickled, "x.pth")
        except InputError as error:
            assert str(error).startswith("x.pth: ") and str(error).isprintable()
        else:
            assert all(type(name) is str and type(record) is TensorRecord for name, record in table.items())
