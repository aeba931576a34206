"""The table of tensors that torch.save pickles, read by an interpreter of the few opcodes it needs.

Python's own unpickler imports and calls what a file names. This one cannot: a name is a constant of this module or is
refused, nothing is looked up or called, and it creates only dictionaries, tuples, strings and numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import ml_dtypes
import numpy as np

from mistral.checkpoint.formats.stored_tensor import MAX_DIMENSIONS, quoted
from mistral.errors import InputError, one_line


@dataclass(frozen=True)
class StorageRecord:
    """A named run of `size` elements; `key` is its file in the archive."""

    dtype: np.dtype[np.generic]
    key: str
    size: int


@dataclass(frozen=True)
class TensorRecord:
    """A strided view of a storage; offset and strides in elements, checked to be inside it."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Function(Enum):
    ORDERED_DICT = "collections.OrderedDict"
    REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
    REBUILD_PARAMETER = "torch._utils._rebuild_parameter"


@dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype[np.generic]


_DTYPES = {
    "BFloat16": ml_dtypes.bfloat16, "Half": "<f2", "Float": "<f4", "Double": "<f8", "Long": "<i8", "Int": "<i4",
    "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?", "ComplexFloat": "<c8", "ComplexDouble": "<c16",
}  # fmt: skip
_NAMES: dict[str, _Function | _StorageType] = {
    **{function.value: function for function in _Function},
    **{f"torch.{name}Storage": _StorageType(np.dtype(dtype)) for name, dtype in _DTYPES.items()},
}
_MAX_STACK = 1 << 16  # torch.save keeps at most some 2,000 values waiting
_MAX_MARKS = 64


def read_tensor_table(data: bytes, source: str) -> dict[str, TensorRecord]:
    """The tensors of one torch.save by name. `data` is `data.pkl`, whose size is already limited.

    Raises InputError naming `source` for anything but a flat dictionary of plain tensors.
    """
    try:
        table = _Interpreter(data).run()
        if not isinstance(table, dict):
            raise _RefusedError("it does not hold a dictionary of tensors")
        for name, record in table.items():
            if not isinstance(record, TensorRecord):
                raise _RefusedError(f"its entry {quoted(name)} is not a tensor")
            _check_bounds(name, record)
    except _RefusedError as error:
        raise InputError(f"{source}: refused: {error}; use the official file or its safetensors form") from None
    except (IndexError, ValueError) as error:
        raise InputError(f"{source}: damaged pickle ({one_line(error)}); download the file again") from None
    return table


class _RefusedError(Exception):
    """The pickle holds something that plain tensors do not need."""


def _check_bounds(name: str, record: TensorRecord) -> None:
    numbers = (record.offset, *record.shape, *record.strides)
    valid = len(record.shape) == len(record.strides) <= MAX_DIMENSIONS
    if not valid or any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers):
        raise _RefusedError(f"tensor {quoted(name)} has no valid shape")
    elements, size = math.prod(record.shape), record.storage.size
    last = record.offset + sum((n - 1) * s for n, s in zip(record.shape, record.strides, strict=True))
    # more elements than the storage has would overlap, and a view of a few bytes could claim any size
    if elements > size or record.offset > size or (elements and last >= size):
        raise _RefusedError(f"tensor {quoted(name)} reaches outside its storage of {size} elements")


class _Interpreter:
    """A stack machine for pickle protocol 2 as torch.save writes it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.stack: list[object] = []
        self.marked: list[list[object]] = []  # the stacks below each open mark
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        if self.take(2) != b"\x80\x02":
            raise _RefusedError("it is not in pickle protocol 2, which torch.save writes unless told otherwise")
        while (opcode := self.take(1)) != b".":
            if (step := _STEPS.get(opcode)) is None:
                raise _RefusedError(f"it uses pickle opcode 0x{opcode.hex()}, which plain tensors do not need")
            step(self)
            if len(self.stack) > _MAX_STACK:
                raise _RefusedError("it piles up more values than any checkpoint needs")
        if len(self.stack) != 1 or self.marked or self.position != len(self.data):
            raise ValueError("it ends too early or too late")
        return self.stack[0]

    def take(self, count: int) -> bytes:
        if self.position + count > len(self.data):
            raise ValueError(f"it breaks off at byte {len(self.data)}")
        self.position += count
        return self.data[self.position - count : self.position]

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def push_tuple(self, count: int) -> None:
        values = [self.stack.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"nothing is memoized as {index}")
        self.push(self.memo[index])

    def open_mark(self) -> None:
        if len(self.marked) >= _MAX_MARKS:
            raise _RefusedError("it nests deeper than any checkpoint needs")
        self.marked.append(self.stack)
        self.stack = []

    def close_mark(self) -> list[object]:
        values, self.stack = self.stack, self.marked.pop()
        return values

    def push_name(self) -> None:
        end = self.data.index(b"\n", self.data.index(b"\n", self.position) + 1)
        name = self.take(end + 1 - self.position).decode("utf-8").rstrip("\n").replace("\n", ".", 1)
        if name not in _NAMES:
            raise _RefusedError(f"it asks for {quoted(name)}, and only plain tensors are read")
        self.push(_NAMES[name])

    def set_items(self, items: list[object]) -> None:
        table = self.stack[-1]
        if not isinstance(table, dict) or len(items) % 2:
            raise ValueError("entries without a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):  # also keeps us from hashing what a hostile file has nested
                raise _RefusedError("a key of its dictionary is not a string")
            if key in table:
                raise _RefusedError(f"{quoted(key)} is there twice")
            table[key] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def build(self) -> None:
        """Attributes: a state_dict carries `_metadata`, which is dropped; anything else is refused."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], dict) or not isinstance(state, dict) or not state.keys() <= {"_metadata"}:
            raise _RefusedError("it sets attributes, which plain tensors do not need")

    def push_storage(self) -> None:
        match self.stack.pop():
            case ("storage", _StorageType(dtype), str() as key, str(), int() as size) if 0 <= size < 1 << 62:
                self.push(StorageRecord(dtype, key, size))
            case _:
                raise _RefusedError("it refers to something that is not a storage of tensors")

    def reduce(self) -> None:
        """A call in the pickle: only the three functions that rebuild tensors are allowed, and each makes a record."""
        arguments, function = self.stack.pop(), self.stack.pop()
        match function, arguments:
            case _Function.ORDERED_DICT, ():
                self.push({})
            case (
                _Function.REBUILD_TENSOR,
                (StorageRecord() as of, int() as at, tuple() as shape, tuple() as strides, bool(), dict() as hooks),
            ) if not hooks:
                self.push(TensorRecord(of, at, shape, strides))
            case _Function.REBUILD_PARAMETER, (TensorRecord() as tensor, bool(), dict() as hooks) if not hooks:
                self.push(tensor)
            case _:
                raise _RefusedError("it calls a function in a way that plain tensors do not need")


_Step = Callable[[_Interpreter], None]
_STEPS: dict[bytes, _Step] = {
    b"(": _Interpreter.open_mark,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(struct.unpack("<i", m.take(4))[0]),
    b"K": lambda m: m.push(m.unsigned(1)),
    b"M": lambda m: m.push(m.unsigned(2)),
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.unsigned(1)), "little", signed=True)),
    b"X": lambda m: m.push(m.take(m.unsigned(4)).decode("utf-8", "surrogatepass")),
    b"}": lambda m: m.push({}),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"t": lambda m: m.push(tuple(m.close_mark())),
    b"q": lambda m: m.memo.__setitem__(m.unsigned(1), m.stack[-1]),
    b"r": lambda m: m.memo.__setitem__(m.unsigned(4), m.stack[-1]),
    b"h": lambda m: m.recall(m.unsigned(1)),
    b"j": lambda m: m.recall(m.unsigned(4)),
    b"s": _Interpreter.set_item,
    b"u": lambda m: m.set_items(m.close_mark()),
    b"b": _Interpreter.build,
    b"c": _Interpreter.push_name,
    b"Q": _Interpreter.push_storage,
    b"R": _Interpreter.reduce,
}
