"""Caches in files: what comes back is what was saved, for the model that computed it, and nothing else."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.fingerprint import fingerprint
from mistral.checkpoint.formats.safetensors_file import read_metadata
from mistral.engine.snapshot_file import FORMAT, Saved, is_saved, open_saved, read_saved, write_saved
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import Snapshot, Stored
from tests.support.checkpoint_forms import DENSE, random_tensors, write_checkpoint

pytestmark = pytest.mark.usefixtures("no_spare_slots")  # so that short texts go round

ARGS = replace(DENSE, sliding_windows=(None, 4))
KEY = "0123"


def snapshot(tokens: int = 6, written: int | None = None, dtype: type = np.float32, args: ModelArgs = ARGS) -> Snapshot:
    written = tokens if written is None else written
    random = np.random.default_rng(1)
    layers = dict[int, tuple[Stored, Stored]]()
    for layer, window in enumerate(args.sliding_windows):
        shape = (args.n_kv_heads, tokens if window is None or written <= window else window, args.head_dim)
        layers[layer] = (random.integers(0, 99, shape).astype(dtype), random.integers(0, 99, shape).astype(dtype))
    return Snapshot(tuple(range(tokens)), written, layers)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_saved(tmp_path / "saved", Saved("été", snapshot()), KEY)
    return tmp_path / "saved"


def refused(path: Path, slot_bytes: int = 4, args: ModelArgs = ARGS, key: str = KEY) -> str:
    with pytest.raises(InputError) as caught:
        read_saved(path, key, args, slot_bytes)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "download" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(("tokens", "written"), [(1, 1), (3, 3), (6, 6), (8, 9)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_what_was_saved_comes_back(tmp_path: Path, tokens: int, written: int, dtype: type) -> None:
    path, held = tmp_path / "saved", snapshot(tokens, written, dtype)
    write_saved(path, Saved('"\0été', held), KEY)
    found = read_saved(path, KEY, ARGS, np.dtype(dtype).itemsize)
    assert found.text == '"\0été' and found.snapshot
    assert (found.snapshot.ids, found.snapshot.written) == (held.ids, held.written)
    for layer, parts in held.layers.items():
        for one, other in zip(parts, found.snapshot.layers[layer], strict=True):
            assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["saved"]


def test_a_text_alone_can_be_saved(tmp_path: Path) -> None:
    write_saved(tmp_path / "saved", Saved("x", None), KEY)
    assert read_saved(tmp_path / "saved", KEY, ARGS, 4) == Saved("x", None)


def test_other_readers_of_safetensors_can_read_it(file: Path) -> None:
    tensors = load_file(str(file))
    assert tensors["ids"].tolist() == [*range(6)] and tensors["layers.1.keys"].shape == (2, 4, 6)


# Which files are refused


def test_another_checkpoint_or_another_backend_is_told_of(file: Path) -> None:
    assert "another checkpoint" in refused(file, key="4567")
    assert "another backend or precise" in refused(file, 2)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, ARGS, random_tensors(ARGS), "consolidated.safetensors")
    assert "no saved cache" in refused(tmp_path / "consolidated.safetensors")
    for name, contents in (("empty", b""), ("text", b"hello, this is a note"), ("zip", b"PK\3\4" * 9)):
        (tmp_path / name).write_bytes(contents)
        assert "name another file" in refused(tmp_path / name)
    for path in (tmp_path, tmp_path / "missing", Path("/dev/full"), Path("/dev/zero")):
        assert "no such file" in (message := refused(path)) or "is no file" in message


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.9, 0.999])
def test_every_truncated_file_is_refused(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    refused(file)


def test_every_changed_byte_is_found(file: Path) -> None:
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(start, len(data), 61):
        data[place] ^= 1
        file.write_bytes(data)
        assert "checksum" in refused(file)
        data[place] ^= 1


def rewrite(file: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    """The same file with other contents, and a checksum that is right."""
    from mistral.checkpoint.formats.safetensors_file import write_header
    from mistral.engine.snapshot_file import checksum

    tensors, metadata = dict[str, Any](load_file(str(file))), read_metadata(file)
    change(tensors, metadata)
    with file.open("wb") as out:
        forms = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
        write_header(out, forms, metadata | {"crc32": str(checksum(tensors))})
        for array in tensors.values():
            out.write(np.ascontiguousarray(array).tobytes())


HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, str]], Any]] = {
    "an id too large": lambda t, m: t.update(ids=np.array([0, 1, 2, 3, 4, 30])),
    "an id below 0": lambda t, m: t.update(ids=np.array([0, 1, 2, 3, 4, -1])),
    "more ids": lambda t, m: t.update(ids=np.arange(7)),
    "no ids": lambda t, m: t.pop("ids"),
    "ids in rows": lambda t, m: t.update(ids=np.arange(6).reshape(2, 3)),
    "ids of bytes": lambda t, m: t.update(ids=np.arange(6).astype(np.uint8)),
    "no text": lambda t, m: t.pop("text"),
    "text that is not UTF-8": lambda t, m: t.update(text=np.array([0xE9], np.uint8)),
    "a layer too few": lambda t, m: t.pop("layers.1.keys"),
    "a layer too many": lambda t, m: t.update({"layers.2.keys": t["layers.1.keys"]}),
    "another window": lambda t, m: t.update({"layers.1.keys": t["layers.0.keys"]}),
    "other heads": lambda t, m: t.update({"layers.0.values": t["layers.0.values"][:1]}),
    "another dtype": lambda t, m: t.update({"layers.0.values": t["layers.0.values"].astype(np.int64)}),
    "more written": lambda t, m: m.update(written="99"),
    "less written": lambda t, m: m.update(written="5"),
    "a negative number": lambda t, m: m.update(written="-6"),
    "no number": lambda t, m: m.pop("written"),
    "a number of no end": lambda t, m: m.update(written="9" * 5000),
    "other digits": lambda t, m: m.update(written="٦"),
    "another format": lambda t, m: m.update(format="mistral-mindspore cache 3"),
}


def test_a_cache_of_an_earlier_version_is_refused_and_may_be_written_over(file: Path) -> None:
    rewrite(file, lambda tensors, metadata: metadata.update(format="mistral-mindspore cache 1"))
    assert refused(file) == "was saved by an earlier version of this program; delete it, or name another file"
    write_saved(file, Saved("new", None), KEY)
    assert read_saved(file, KEY, ARGS, 4).text == "new"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_does_not_hold_together_is_refused(file: Path, name: str) -> None:
    rewrite(file, lambda tensors, metadata: None)
    read_saved(file, KEY, ARGS, 4)
    rewrite(file, HOSTILE[name])
    refused(file)


def test_metadata_that_are_no_texts_are_refused(file: Path) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for metadata in ([1], {"format": 1}, {"format": FORMAT, "checkpoint": KEY}):
        header = json.loads(data[8 : 8 + length]) | {"__metadata__": metadata}
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        refused(file)


# Writing


def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    for path in (tmp_path / "note", tmp_path, Path("/dev/full")):
        with pytest.raises(InputError, match="exists and is not a saved cache"):
            write_saved(path, Saved("", None), KEY)
    assert (tmp_path / "note").read_text() == "mine" and not Path("/dev/full").is_file()


def test_a_file_of_the_same_kind_is_and_a_link_stays_one(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    write_saved(link, Saved("new", None), "4567")
    assert link.is_symlink() and read_saved(file, "4567", ARGS, 4).text == "new"


@pytest.mark.parametrize("name", ["no/such/folder/x", "a\0b", "x" * 300])
def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="name another file"):
        write_saved(tmp_path / name, Saved("", snapshot()), KEY)


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    """What a full disk is like: writing fails from there on."""
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_file_as_it_was(file: Path) -> None:
    before = file.read_bytes()
    with file_size_limit(1000), pytest.raises(InputError, match="free some space"):
        write_saved(file, Saved("x" * 5000, snapshot()), KEY)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


# Which checkpoint


def test_a_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    """By their weights, too: two trainings of one architecture have the same headers. Not by the folder's name."""
    found = []
    for name, args, seed in (("a", ARGS, 0), ("b", ARGS, 0), ("c", ARGS, 1), ("d", replace(ARGS, rope_theta=5.0), 0)):
        write_checkpoint(tmp_path / name, args, random_tensors(args, seed), "consolidated.safetensors")
        checkpoint = open_checkpoint(tmp_path / name)
        found.append(fingerprint(checkpoint))
    assert found[0] == found[1] and len(set(found)) == 3


def test_what_is_saved_is_known_by_its_header(file: Path) -> None:
    assert is_saved(file) and not is_saved(file.parent)
    open_saved(file, KEY)
