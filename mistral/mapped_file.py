"""Maps a file into memory for reading, and quotes names of such a file in messages."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

from mistral.errors import InputError
from mistral.text import LFS_POINTER


def quoted(name: str) -> str:
    """A name from a file for an error message: quoted, on one line, at most 100 characters."""
    return repr(name if len(name) <= 100 else name[:100] + "...")


def map_file(path: Path) -> mmap.mmap:
    """Map a file for reading. Raises InputError if it is missing, not a file, empty, or a Git LFS pointer."""
    try:
        if not path.is_file():  # a named pipe would block
            what = "is no file" if path.exists() else "no such file"
            raise InputError(f"{path}: {what}; download it again")
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            what = "does not fit into what the shell lets a program map"
            raise InputError(f"{path}: {what}; raise the limit: ulimit -v unlimited") from None
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    except ValueError:  # what mmap says to an empty file
        raise InputError(f"{path}: is empty; download it again") from None
    if buffer[: len(LFS_POINTER)] == LFS_POINTER:
        raise InputError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
    return buffer
