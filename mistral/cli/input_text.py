"""Reads the text of a file, or of standard input."""

from __future__ import annotations

import os
import select
import sys

from mistral.errors import InputError
from mistral.pipeline.launch import launched, launcher_input_ended
from mistral.text import decoded, one_kind_of_line_break

STANDARD_INPUT = "-"
MAX_BYTES = 1 << 28  # of a file; a device such as /dev/zero never ends
MOMENT = 0.2  # seconds


def display_name(path: str) -> str:
    """The name of a file in messages; "standard input" for -."""
    return "standard input" if path == STANDARD_INPUT else path


def read_bytes(path: str) -> bytes:
    """The bytes of a file, or of standard input for -, at most `MAX_BYTES`.

    Raises InputError if it cannot be read, or is longer.
    """
    try:
        if path == STANDARD_INPUT:
            launch = launched()
            found = _passed_on() if launch and launch.size > 1 else sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(path, "rb") as file:
                found = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{display_name(path)}: {error.strerror}; name a text file") from None
    except ValueError:  # such as a NUL in the name
        raise InputError(f"{path}: cannot be a file; name a text file") from None
    if len(found) > MAX_BYTES:
        raise InputError(f"{display_name(path)}: longer than {MAX_BYTES >> 20} MiB; give it in parts")
    return found


def _passed_on() -> bytes:
    """What mpirun passes on of its own standard input, whose end it does not."""
    file, found, quiet = sys.stdin.fileno(), bytearray(), 0
    while quiet < 2 and len(found) <= MAX_BYTES:  # what mpirun has read and not passed on yet comes within a moment
        if not select.select([file], [], [], MOMENT)[0]:
            quiet = quiet + 1 if launcher_input_ended() else 0
            continue
        data, quiet = os.read(file, 1 << 16), 0
        if not data:
            break
        found += data
    return bytes(found)


def read_text_file(path: str) -> str:
    r"""The text of the file, or of standard input for -, with \n for any line break and without the last one.

    Raises InputError where it is not UTF-8 or not there.
    """
    return one_kind_of_line_break(decoded(read_bytes(path), display_name(path))).removesuffix("\n")
