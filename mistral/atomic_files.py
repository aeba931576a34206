"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mistral.errors import InputError


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is complete; before that there is no trace of it at that name."""
    work = None
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".unfinished", dir=path.parent)
        work = Path(name)
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    except OSError as error:
        reason = error.strerror
        raise InputError(f"{path}: cannot be written ({reason}); free some space, or name another file") from None
    finally:
        if work is not None:
            work.unlink(missing_ok=True)


class unfinished:  # noqa: N801  a context manager, named as it reads
    """A folder beside `out` to write into, which goes away unless it is renamed. InputError where it cannot be."""

    def __init__(self, out: Path) -> None:
        self.out, self.work = out, out.with_name(f".{out.name}.unfinished")

    def __enter__(self) -> Path:
        try:
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise InputError(f"{self.out}: is there already; name another folder, or remove it")
            shutil.rmtree(self.work, ignore_errors=True)  # of a run that was killed
            self.work.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{self.out}: cannot be written ({error.strerror}); name another folder") from None
        return self.work

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        if isinstance(error, OSError):
            full = "; free some space, or name a folder elsewhere" if error.errno in (errno.ENOSPC, errno.EFBIG) else ""
            raise InputError(f"{self.out}: cannot be written ({error.strerror}){full}") from None
