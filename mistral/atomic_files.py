"""Files and folders that are written atomically."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mistral.errors import InputError

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)


def lock(file: int, path: Path | str) -> None:
    """Lock an open file or folder for this process, until it is closed or the process ends.

    Raises InputError, naming `path`, if another process has locked it. Without locks on the file system, a note is
    shown.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path}: another run is writing it; wait for its end, or name another") from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        print(f"note: {path}: no locks on this file system; let no other run write there meanwhile", file=sys.stderr)


def exists(path: Path) -> bool:
    """Whether there is something at a path. Raises InputError where that cannot be known, as of too long a name."""
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"{path}: cannot be accessed ({error.strerror}); name another file") from None


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` when it is complete.

    Raises InputError if it cannot be written.
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
    """A folder to write into, beside `out`; the caller renames it to `out` when complete, otherwise it is removed.

    Files left by a killed run are removed. Raises InputError if `out` exists and is not empty, is being written by
    another run, or cannot be written.
    """
    work, held = out.with_name(f".{out.name}.unfinished"), -1
    try:
        _require_free(out)
        held = _taken(work, out)
        _require_free(out)  # still: another run may just have ended
        for left in work.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    except OSError as error:
        if held >= 0:
            os.close(held)
        raise InputError(f"{out}: cannot be written ({error.strerror}); name another folder") from None
    except InputError:
        if held >= 0:
            _remove(work, held)
        raise
    try:
        yield work
    except OSError as error:
        full = "; free some space, or name a folder elsewhere" if error.errno in (errno.ENOSPC, errno.EFBIG) else ""
        raise InputError(f"{out}: cannot be written ({error.strerror}){full}") from None
    finally:
        _remove(work, held)


def _require_free(out: Path) -> None:
    if exists(out) and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already; name another, or remove it")


def _taken(work: Path, out: Path) -> int:
    """The folder `work`, created if necessary, opened and locked for this process."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        try:
            held = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another run has just ended
            continue
        try:
            lock(held, out)
            if _is(work, held):
                return held
        except BaseException:
            os.close(held)
            raise
        os.close(held)


def _is(work: Path, held: int) -> bool:
    """Whether the open folder still has this name: another run may have renamed or removed it."""
    try:
        return os.path.samestat(os.stat(work), os.fstat(held))
    except FileNotFoundError:
        return False


def _remove(work: Path, held: int) -> None:
    """Remove the folder, if it still has this name, and close it."""
    if _is(work, held):
        shutil.rmtree(work, ignore_errors=True)
    os.close(held)
