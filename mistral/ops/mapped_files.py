"""Memory-mapped files that a model reads its weights from, and what happens when one is truncated.

Reading a mapping beyond the end of its file raises SIGBUS, which ends a process without a message. So lengths are
checked before each step, and, where the kernels are loaded, their signal handler writes an error.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mistral.errors import InputError
from mistral.ops import build

SHORTENED = "was shortened while in use; put the whole file back and start again"


@dataclass(frozen=True)
class MappedFiles:
    """Mapped files by path."""

    files: Mapping[Path, mmap.mmap]

    def require_whole(self) -> None:
        """Raise InputError for a file that is shorter than its mapping. Takes about a microsecond per file."""
        for path, buffer in self.files.items():
            if buffer.size() < len(buffer):
                raise InputError(f"{path}: {SHORTENED}")

    def guard(self) -> None:
        """Let the kernels' signal handler end the process with an error and code 2 if a file is truncated while read.

        This holds as long as the files are mapped. Raises InputError if the kernels cannot be built.
        """
        library = build.kernels().load(lambda path: ctypes.CDLL(str(path)))
        for path, buffer in self.files.items():
            address = ctypes.c_size_t(np.frombuffer(buffer, np.uint8).ctypes.data)
            shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
            message = f"error: {shown}: {SHORTENED}\n".encode(errors="replace")
            if library.guard_mapping(address, ctypes.c_size_t(len(buffer)), message):
                weakref.finalize(buffer, library.release_mapping, address).atexit = False
