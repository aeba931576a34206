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
    """A file to write, which takes the place of `path` when it is complete; until then what was there stays.

    Raises InputError where it cannot be written.
    """
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


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A folder to write into, beside `out`, to be renamed to `out` when it is complete; else it is removed at the end.

    Raises InputError where `out` is there already and not empty, or cannot be written.
    """
    work = out.with_name(f".{out.name}.unfinished")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: is there already; name another folder, or remove it")
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); name another folder") from None
    try:
        yield work
    except OSError as error:
        full = "; free some space, or name a folder elsewhere" if error.errno in (errno.ENOSPC, errno.EFBIG) else ""
        raise InputError(f"{out}: cannot be written ({error.strerror}){full}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
