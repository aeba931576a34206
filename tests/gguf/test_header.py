"""GGUF headers, sound and hostile: one line about what is wrong, little memory, and what sound files say."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from mistral.errors import InputError
from mistral.gguf.cursor import MOST_TEXTS
from mistral.gguf.header import read_gguf
from mistral.gguf.model_files import read_model
from mistral.gguf.value import STRING

UINT32, ARRAY = 4, 9


def text(value: bytes) -> bytes:
    """A text as a header has it."""
    return struct.pack("<Q", len(value)) + value


def value(key: bytes, kind: int, data: bytes) -> bytes:
    """A key and its value."""
    return text(key) + struct.pack("<I", kind) + data


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """What a header says of a tensor; the inner axis first."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def made(
    values: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), data: int = 64, version: int = 3,
    counts: tuple[int, int] | None = None, alignment: int = 32,
) -> bytes:  # fmt: skip
    """A file of these parts, with `data` bytes of tensors."""
    counts = counts or (len(tensors), len(values))
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*values, *tensors))
    return header + b"\0" * (-len(header) % alignment) + bytes(range(256)) * (data // 256) + bytes(data % 256)


TWICE = value(b"a", UINT32, struct.pack("<I", 1))
STRINGS = struct.pack("<IQ", STRING, MOST_TEXTS + 1) + bytes(8 * (MOST_TEXTS + 1))
DAMAGED = {
    "version 1": (made(version=1), "is GGUF of version 1, and 2 and 3 are read; convert the model again"),
    "version 4": (made(version=4), "is GGUF of version 4, and 2 and 3 are read; use a later release"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is for big-endian processors"),
    "short": (b"GGUF\3\0", "truncated in its header"),
    "no counts": (b"GGUF\3\0\0\0\1", "truncated in its header"),
    "tensors": (made(counts=(1 << 60, 0)), f"has {1 << 60} tensors in its header"),
    "values": (made(counts=(0, 1 << 60)), f"has {1 << 60} values in its header"),
    "key": (made((struct.pack("<Q", 1 << 40),)), f"has a key of {1 << 40} bytes in its header"),
    "key beyond": (made((struct.pack("<Q", 60000),)), "truncated in its header"),
    "odd key": (made((value(b"\xff", UINT32, bytes(4)),)), "has a key that is not UTF-8 text in its header"),
    "text": (made((value(b"a", STRING, struct.pack("<Q", 1 << 40)),)), "truncated in its header"),
    "text of 2^64": (made((value(b"a", STRING, struct.pack("<Q", (1 << 64) - 1)),)), "truncated in its header"),
    "value type": (made((value(b"a", 13, b""),)), "has a value of type 13, 'a', in its header"),
    "list type": (made((value(b"a", ARRAY, struct.pack("<IQ", 99, 1)),)), "has a value of type 99, 'a', in its"),
    "nested": (made((value(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1)),)), "has a list of lists, 'a', in its header"),
    "numbers": (made((value(b"a", ARRAY, struct.pack("<IQ", UINT32, 1 << 60)),)), "truncated in its header"),
    "texts": (made((value(b"a", ARRAY, struct.pack("<IQ", STRING, 1 << 60)),)), "has lists of more than"),
    "many texts": (made((value(b"a", ARRAY, STRINGS),)), f"has lists of more than {MOST_TEXTS} texts in its header"),
    "few texts": (made((value(b"a", ARRAY, struct.pack("<IQ", STRING, 9999)),)), "truncated in its header"),
    "key twice": (made((TWICE, TWICE)), "has the key 'a' twice in its header"),
    "tensor twice": (made((), (tensor(b"t", (1,)), tensor(b"t", (1,), 0, 32))), "has the tensor 't' twice in its"),
    "axes": (made((), (tensor(b"t", (1, 1, 1, 1, 1)),)), "tensor 't' has 5 axes"),
    "no axes": (made((), (tensor(b"t", ()),)), "tensor 't' has 0 axes"),
    "empty": (made((), (tensor(b"t", (4, 0)),)), "tensor 't' has no valid shape and place"),
    "huge": (made((), (tensor(b"t", (1 << 40, 1 << 40)),)), "tensor 't' has no valid shape and place"),
    "type": (made((), (tensor(b"t", (1,), 4),)), "tensor 't' is of type 4, which is not known"),
    "blocks": (made((), (tensor(b"t", (33,), 8),)), "tensor 't' has rows of 33 weights, which are no whole blocks of"),
    "beyond": (made((), (tensor(b"t", (17,)),)), "truncated in tensor 't', 4 bytes short or more"),
    "offset": (made((), (tensor(b"t", (1,), 0, 1 << 40),)), "truncated in tensor 't'"),
    "odd": (made((), (tensor(b"t", (1,), 0, 4),)), "tensor 't' is not aligned to 32 bytes"),
    "overlap": (made((), (tensor(b"t", (9,)), tensor(b"u", (1,), 0, 32))), "tensor 'u' overlaps the one before it"),
    "alignment": (made((value(b"general.alignment", UINT32, struct.pack("<I", 24)),)), "must be a power of two"),
    "alignment 0": (made((value(b"general.alignment", UINT32, bytes(4)),)), "must be a power of two"),
    "alignment 2^31": (
        made((value(b"general.alignment", UINT32, struct.pack("<I", 1 << 31)),)),
        "is 2147483648 and must be a power of two from 8 to 16777216",
    ),
    "alignment of 64 bits": (
        made((value(b"general.alignment", 10, struct.pack("<Q", 32)),)),
        "'general.alignment' is of type 10 and must be of type 4 (uint32)",
    ),
    "alignment text": (made((value(b"general.alignment", STRING, text(b"32")),)), "'general.alignment' is no number"),
    "nothing": (b"", "is empty"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "page": (b"<html>Not found</html>", "is no GGUF file: is a file of text"),
    "ggml": (b"tjgg" + bytes(60), "is no GGUF file: is a file of before GGUF, which is not read"),
    "zip": (b"PK\3\4" + bytes(60), "is no GGUF file: is an archive"),
    "safetensors": (struct.pack("<Q", 20) + b'{"a":1}' + bytes(20), "is no GGUF file: is a safetensors file by what"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    data, message = DAMAGED[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(InputError) as error:
        read_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert message in str(error.value)
    assert peak < 4 << 20


def test_a_file_cut_anywhere_in_its_header_or_tensors_is_refused(tmp_path: Path) -> None:
    """Every prefix of a small file."""
    values = (value(b"a", STRING, text(b"b")), value(b"c", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"d") * 2))
    whole = made(values, (tensor(b"t", (16,)),))
    path = tmp_path / "m.gguf"
    for length in range(4, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="truncated"):
            read_gguf(path)
    path.write_bytes(whole)
    assert read_gguf(path).tensors["t"].nbytes == 64


def written(path: Path, write: Callable[[gguf.GGUFWriter], None]) -> Path:
    """A file of the gguf package's."""
    writer = gguf.GGUFWriter(path, "llama")
    write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_and_tensors_are_what_the_gguf_package_has_written(tmp_path: Path) -> None:
    def write(writer: gguf.GGUFWriter) -> None:
        for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
            getattr(writer, f"add_{kind}")(kind, 100)
        writer.add_float32("float32", 1e-5)
        writer.add_float64("float64", 0.1)
        writer.add_bool("bool", True)
        writer.add_string("text", "h\u00e9")
        writer.add_array("texts", ["a", "", "\u6f22"])
        writer.add_array("floats", [0.5, 1.5])
        writer.add_array("flags", [True, False])
        writer.add_custom_alignment(64)
        writer.add_tensor("a.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
        writer.add_tensor("b.weight", np.arange(4, dtype=np.float16))

    file = read_gguf(written(tmp_path / "m.gguf", write))
    metadata = file.metadata
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        assert metadata.number(kind) == 100
    assert (metadata.number("float32"), metadata.number("float64"), metadata.number("bool")) == (1e-5, 0.1, True)
    assert (metadata.text("text"), metadata.texts("texts")) == ("h\u00e9", ["a", "", "\u6f22"])
    assert [list(metadata.numbers(key)) for key in ("floats", "flags")] == [[0.5, 1.5], [True, False]]  # type: ignore[arg-type]
    assert (metadata.text("absent"), metadata.texts("absent"), metadata.number("absent")) == (None, None, None)
    place = file.tensors["a.weight"]
    assert (place.kind.name, place.shape, place.start % 64, file.tensors["b.weight"].kind.name) == (
        "F32",
        (2, 3),
        0,
        "F16",
    )
    assert np.frombuffer(file.buffer, "<f4", 6, place.start).tolist() == [0, 1, 2, 3, 4, 5]
    for read, key, message in (
        (metadata.text, "bool", "'bool' is no text"),
        (metadata.texts, "text", "'text' is no list of texts"),
        (metadata.number, "texts", "'texts' is no number"),
        (metadata.numbers, "texts", "'texts' is no list of numbers"),
    ):
        with pytest.raises(InputError, match=message):
            read(key)


def test_version_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(made((value(b"a", UINT32, struct.pack("<I", 7)),), version=2))
    assert read_gguf(tmp_path / "m.gguf").metadata.number("a") == 7


def part(number: int, count: int, name: bytes, total: int = 2) -> bytes:
    """One file of a set."""
    values = tuple(
        value(key, UINT32, struct.pack("<I", each))
        for key, each in ((b"split.no", number), (b"split.count", count), (b"split.tensors.count", total))
    )
    return made(values, (tensor(name, (16,)),))


def test_a_set_of_files_is_one_model_whichever_is_named(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(part(0, 2, b"t"))
    second.write_bytes(part(1, 2, b"u"))
    for path in (first, second):
        model = read_model(path)
        assert ([file.path for file in model.files], model.path) == ([first, second], first)
        assert {name: file.path for name, (file, _) in model.tensors.items()} == {"t": first, "u": second}
    for content, message in (
        (part(0, 2, b"u"), "is not part 2 by its split.no"),
        (part(1, 3, b"u"), "is one of 3 files by its split.count"),
        (part(1, 2, b"t"), "tensor 't' is in m-00001-of-00002.gguf too"),
    ):
        second.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_model(first)
    second.write_bytes(part(1, 2, b"u"))
    first.write_bytes(part(0, 2, b"t", total=3))
    with pytest.raises(InputError, match="its files have 2 tensors and should have 3"):
        read_model(first)
    second.unlink()
    with pytest.raises(InputError, match=r"m-00002-of-00002.gguf: missing, 1 of 2 files are; download it"):
        read_model(first)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(InputError, match=r"is one of 2 files by its split.count; name it NAME-00001-of-0000N.gguf"):
        read_model(tmp_path / "renamed.gguf")
