"""Pickles that would run a command, read a file or take all memory if one let them."""

from __future__ import annotations

import functools
import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

from tests.support.torch_file import Record, integer, tensor_opcodes, text

RECORD = Record("w", "FloatStorage", "0", 3, 0, (3,), (1,))
TENSOR = tensor_opcodes(RECORD)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + integer(3) + b"tQ"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
DEEP_TUPLE = b")" + b"\x85" * 300_000


class _Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def _dict_of(value: bytes) -> bytes:
    """A protocol 2 pickle of {"w": value}."""
    return b"\x80\x02}" + text("w") + value + b"s."


def executing(command: str) -> dict[str, bytes]:
    """Pickles that try to run `command`, or something as bad."""
    system = b"cos\nsystem\n" + text(command) + b"\x85R"
    call = _Call(os.system, command)
    pickles = {f"os.system, protocol {protocol}": pickle.dumps({"w": call}, protocol=protocol) for protocol in range(6)}
    pickles |= {
        f"functools.partial, protocol {protocol}": pickle.dumps(_Call(functools.partial(os.system, command)), protocol)
        for protocol in (2, 4)
    }
    code = f"__import__('os').system({command!r})"
    raw = {
        "os.system as the value": _dict_of(system),
        "os.system instead of the dictionary": b"\x80\x02" + system + b".",
        "builtins.eval": _dict_of(b"cbuiltins\neval\n" + text(code) + b"\x85R"),
        "__builtin__.exec": _dict_of(b"c__builtin__\nexec\n" + text(code) + b"\x85R"),
        "STACK_GLOBAL": _dict_of(text("os") + text("system") + b"\x93" + text(command) + b"\x85R"),
        "INST": _dict_of(b"(" + text(command) + b"ios\nsystem\n"),
        "OBJ": _dict_of(b"(cos\nsystem\n" + text(command) + b"o"),
        "NEWOBJ": _dict_of(b"cos\nsystem\n" + text(command) + b"\x85\x81"),
        "EXT1": _dict_of(b"\x82\x01" + text(command) + b"\x85R"),
        "a call among the arguments": _dict_of(REBUILD + b"(" + STORAGE + system + b"))\x89}tR"),
        "a call as a key": b"\x80\x02}" + system + TENSOR + b"s.",
        "a call as a storage": _dict_of(text("x") + system + b"\x86Q"),
        "globals of an allowed function": _dict_of(
            b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n" + text("os") + b"\x85R"
        ),
        "a module through an allowed one": _dict_of(b"ctorch\n_utils.os.system\n" + text(command) + b"\x85R"),
        "torch.load": _dict_of(b"ctorch\nload\n" + text("other.pth") + b"\x85R"),
        "torch.hub.load": _dict_of(b"ctorch.hub\nload\n" + text("a/b") + text("c") + b"\x86R"),
        "OrderedDict's method": _dict_of(b"ccollections\nOrderedDict.fromkeys\n" + text("ab") + b"\x85R"),
        "getattr": _dict_of(b"cbuiltins\ngetattr\n" + REBUILD + text("__globals__") + b"\x86R"),
    }
    return pickles | raw


def misusing() -> dict[str, bytes]:
    """Allowed names and opcodes, used as torch.save never does."""
    huge = b"\x8b" + struct.pack("<I", 4) + b"\xff\xff\xff\x7f"  # LONG4
    state = b"}" + text("__setstate__") + TENSOR + b"s"
    hooks = b"}" + text("hook") + TENSOR + b"s"
    values = {
        "a storage called": b"ctorch\nFloatStorage\n" + integer(10) + b"\x85R",
        "a string called": text("x") + b")R",
        "OrderedDict with arguments": b"ccollections\nOrderedDict\n" + text("ab") + b"\x85R",
        "a string as storage": REBUILD + b"(" + text("x") + integer(0) + b"))\x89}tR",
        "a tensor as storage": REBUILD + b"(" + TENSOR + integer(0) + b"))\x89}tR",
        "too few arguments": REBUILD + b"(" + STORAGE + b"tR",
        "hooks": REBUILD + b"(" + STORAGE + integer(0) + b"))\x89" + hooks + b"tR",
        "a parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n(N\x88}tR",
        "a boolean as size": REBUILD + b"(" + STORAGE + integer(0) + b"\x88\x85" + b"\x88\x85" + b"\x89}tR",
        "attributes of a tensor": TENSOR + state + b"b",
        "attributes of a function": REBUILD + b"}" + text("__code__") + TENSOR + b"sb",
        "attributes of a dictionary": ORDERED_DICT + state + b"b",
        "attributes in slots": ORDERED_DICT + b"N" + state + b"\x86b",
        "a file name as storage": text("../../etc/passwd") + b"Q",
        "a storage of another kind": b"(" + text("module") + b"ctorch\nFloatStorage\n" + text("0") * 2 + b"K\3tQ",
        "a storage of a function": b"(" + text("storage") + REBUILD + text("0") + text("cpu") + b"K\3tQ",
        "a storage of less than nothing": STORAGE.replace(integer(3), integer(-3)),
        "a storage with a tuple for a key": STORAGE.replace(text("0"), b")"),
        "a textual persistent id": b"Ppasswd\n",
        "a number of unlikely length": huge,
        "a string": text("not a tensor"),
        "a dictionary that holds itself": b"}q\0" + text("x") + b"h\0s",
        "a list": b"]",
        "a name without an end": b"ctorch",
        "nothing in the memo": b"h\x07",
        "a tuple from an empty stack": b"\x85\x85\x85\x87\x87",
        "an unopened mark": b"t",
        "an odd number of entries": b"}(" + text("x") + b"u",
        "entries of a tensor": TENSOR + text("a") + TENSOR + b"s",
        "bytes that are no text": b"X\2\0\0\0\xff\xfe",
    }
    pickles = {name: _dict_of(value) for name, value in values.items()}
    pickles |= {
        "attributes of the dictionary": b"\x80\x02" + ORDERED_DICT + text("w") + TENSOR + b"s" + state + b"b.",
        "no dictionary": b"\x80\x02" + TENSOR + b".",
        "nothing": b"\x80\x02.",
        "empty": b"",
        "no end": b"\x80\x02}" + text("w") + TENSOR + b"s",
        "more behind the end": _dict_of(TENSOR) + b".",
        "two values": b"\x80\x02}}.",
        "an open mark": b"\x80\x02(}.",
        "a number as key": b"\x80\x02}" + integer(1) + TENSOR + b"s.",
        "an unhashable key": b"\x80\x02}}" + TENSOR + b"s.",
        "an entry twice": b"\x80\x02}(" + (text("w") + TENSOR) * 2 + b"u.",
        "a second protocol": b"\x80\x02\x80\x02}.",
    }
    return pickles


def bombs() -> dict[str, bytes]:
    """Pickles of at most 4 MiB that ask for far more memory, or for deep recursion."""
    return {
        "memo": _dict_of(b"Nr\xff\xff\xff\x7f"),
        "memo, many": _dict_of(b"N" + b"".join(b"r" + struct.pack("<I", 977 * n) for n in range(600_000))),
        "declared text": _dict_of(b"X\xff\xff\xff\xff"),
        "declared long text": _dict_of(b"\x8d" + b"\xff" * 7 + b"\x7f"),
        "declared bytearray": _dict_of(b"\x96" + b"\0\0\0\0\0\1\0\0"),
        "frame": _dict_of(b"\x95" + b"\0\0\0\0\0\1\0\0"),
        "dictionaries": _dict_of(b"}" * 4_000_000),
        "marks": _dict_of(b"(" * 4_000_000),
        "tuples in tuples": _dict_of(b")" + b"\x85" * 3_000_000),
        "a deep tuple as key": b"\x80\x02}" + DEEP_TUPLE + TENSOR + b"s.",
        "a deep tuple as argument": _dict_of(REBUILD + DEEP_TUPLE + b"R"),
        "a deep tuple as persistent id": _dict_of(DEEP_TUPLE + b"Q"),
        "doubling": _dict_of(b")" + b"q\0h\0\x86" * 500_000),
        "many small tuples": _dict_of((b"(" + b"}" * 60_000 + b"t") * 60),
        "a long number": _dict_of(TENSOR.replace(integer(0), b"\x8a\xff" + b"\x7f" * 255)),
        "a tuple of many sizes": _dict_of(
            REBUILD + b"(" + STORAGE + integer(0) + (b"(" + b"K\2" * 60_000 + b"t") * 2 + b"\x89}tR"
        ),
    }
