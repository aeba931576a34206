"""Results in a JSONL file: each is written when finished, so that an interrupted run can be continued."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Mapping
from typing import Any

from mistral.atomic_files import lock
from mistral.errors import InputError
from mistral.text import json_line

BEGINNING = b'{"index": '
Keys = Mapping[tuple[int, int], str]


def remembered_seed(path: str, indices: Collection[int]) -> int | None:
    """The seed that answers to these prompts were drawn with, from the first such result; None without one.

    A result without a seed is of a time when 0 was the seed that was not named.
    """
    try:
        with open(path, "rb") as held:
            for line in held if stat.S_ISREG(os.fstat(held.fileno()).st_mode) else ():
                found = json.loads(line)
                if found["index"] in indices:
                    seed = found.get("seed", 0)
                    return seed if type(seed) is int and seed >= 0 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # what is wrong with the file is said when it is opened to be written
    return None


class ResultFile:
    """A file of results, open for more of them, and locked: no other run can write it meanwhile.

    `done` has the index and sample of each result that it held already.
    """

    def __init__(self, path: str, keys: Keys) -> None:
        """`keys` of all results to come, by index and sample: a digest of what was asked.

        A last line that was not written whole goes. Raises InputError for a file that cannot be written, and for one
        that holds anything but results with these keys, or that another run is writing.
        """
        self.path, self.done = path, set[tuple[int, int]]()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise InputError(f"--out {path}: {error.strerror}; name a file that can be written") from None
        except ValueError:  # such as a NUL in the name
            raise InputError(f"--out {path}: cannot be a file; name one that can be written") from None
        try:
            if stat.S_ISREG(os.fstat(self._file).st_mode):
                lock(self._file, f"--out {path}")
                self._resume(keys)
        except BaseException:
            self.close()
            raise

    def _resume(self, keys: Keys) -> None:
        whole = 0
        with os.fdopen(os.dup(self._file), "rb") as held:
            for number, line in enumerate(held, 1):
                if not line.endswith(b"\n") and line[: len(BEGINNING)] == BEGINNING[: len(line)]:
                    break  # torn
                self._recognise(line, number, keys)
                whole += len(line)
        os.ftruncate(self._file, whole)
        os.lseek(self._file, whole, os.SEEK_SET)

    def _recognise(self, line: bytes, number: int, keys: Keys) -> None:
        where = f"--out {self.path}: line {number}"
        try:
            found = json.loads(line)
            place, key = (found["index"], found.get("sample", 0)), found["key"]
            expected = keys.get(place)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{where} is not a result of this command; name another file") from None
        if key != expected:
            raise InputError(f"{where} answers another prompt, model or setting; name another file") from None
        self.done.add(place)

    def write(self, record: Mapping[str, Any]) -> None:
        """One more result. Raises InputError where it cannot be written, such as on a full disk."""
        rest = memoryview(json_line(record).encode() + b"\n")
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            kept = "results before this one are kept, and the same command goes on"
            raise InputError(f"--out {self.path}: {error.strerror}; {kept}") from None

    def close(self) -> None:
        """Close the file; no more results are written."""
        os.close(self._file)
