"""The folders of compiled libraries, into which no other user can have put a file.

A library's code runs as soon as it is loaded. So a folder is used only if it and its parents belong to this user or
root and nobody else may write there; the same holds for a file in it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path

import platformdirs

from mistral.errors import InputError, setting

NAME = "mistral-mindspore"
KEPT = 24  # most recently used builds of one library that are kept: less than 1 MB each
PORTABLE = f"use {setting('backend')} portable"


def user_folder() -> Path:
    """The folder of this program in the user's cache, which may not exist; XDG_CACHE_HOME moves it."""
    return platformdirs.user_cache_path(NAME, appauthor=False)


def temporary_folder() -> Path | None:
    """The user's own folder in the temporary folder, which may not exist; None if no temporary folder is writable."""
    try:
        return Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"
    except OSError:
        return None


def usable_folders() -> list[Path]:
    """The existing and safe folders to look for libraries in: the user's cache, then the temporary folder."""
    user, temporary = user_folder(), temporary_folder()
    found = [user] if is_safe_path(user) else []
    return [*found, temporary] if temporary and is_private(temporary) else found


def writable_folder() -> Path:
    """The user's cache if it is safe and writable, otherwise the temporary folder; created if necessary.

    Raises InputError, with the remedy, if neither can be used.
    """
    user, temporary = user_folder(), temporary_folder()
    for folder in (user, temporary):
        if folder is None or not folder.is_absolute():  # no home folder is known
            continue
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (is_safe_path(folder) if folder == user else is_private(folder)):
                continue
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    unsafe = user.is_dir() and not is_safe_path(user)
    why = f"{user} belongs to others, or they may write to it" if unsafe else f"cannot write to {user}"
    rest = f"{temporary} cannot be used either" if temporary else "there is no writable temporary folder"
    message = f"{why}, and {rest}; set XDG_CACHE_HOME to a folder of your own, or TMPDIR, or {PORTABLE}"
    raise InputError(message, option="backend", value="native")


def is_safe_path(folder: Path) -> bool:
    """Whether a folder exists and only this user and root can have put files into it.

    Others may write to its parents only if these are sticky: files there can be renamed by their owner alone.
    """
    try:
        real = folder.resolve(strict=True)
        leading = [*folder.absolute().parents, *real.parents]
        return real.is_dir() and is_ours(real) and all(is_ours(each, sticky=True) for each in leading)
    except (OSError, RuntimeError):
        return False


def is_private(folder: Path) -> bool:
    """Whether a folder in the temporary folder belongs to this user alone, and is not a link."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def is_ours(path: Path, sticky: bool = False) -> bool:
    """Whether a file or folder is this user's or root's and no other may write to it. Raises OSError without one.

    A group with write access is accepted if it is the user's own (with the user's id as its id, as many systems make
    it) or root's. `sticky`: others may write to a sticky folder, where they can rename only their own files.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):  # its owner counts; the permissions are those of its target
        return found.st_uid in (0, os.getuid())
    others = found.st_mode & 0o002 or (found.st_mode & 0o020 and found.st_gid not in (0, os.getuid()))
    return found.st_uid in (0, os.getuid()) and (not others or (sticky and bool(found.st_mode & stat.S_ISVTX)))


def is_safe_file(path: Path) -> bool:
    """Whether a library exists, is not a link, and only this user and root can have written it."""
    try:
        return stat.S_ISREG(path.lstat().st_mode) and is_ours(path)
    except OSError:
        return False


def is_whole(path: Path) -> bool:
    """Whether a library is complete, as far as its header says: loading a truncated one can kill the process.

    The last part of an ELF file is its section header table, whose offset is in the file header.
    """
    if not sys.platform.startswith("linux"):
        return True
    with path.open("rb") as file:
        header, size = file.read(64), os.fstat(file.fileno()).st_size
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return False
    order = "little" if header[5] == 1 else "big"
    table, width, count = (int.from_bytes(header[a:b], order) for a, b in ((40, 48), (58, 60), (60, 62)))  # type: ignore[arg-type]
    return bool(table) and table + width * count <= size


def open_new(path: Path) -> int:
    """Open or create a file for writing at `path`, which must not be a link -> its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def move_in(built: Path, path: Path) -> None:
    """Rename a file that was built to its name in the cache, after its bytes are on disk."""
    built.chmod(0o700)
    for each, replace in ((built, True), (path.parent, False)):
        number = os.open(each, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
        if replace:
            os.replace(built, path)


def note_use(path: Path) -> None:
    """Mark a library as just used."""
    with contextlib.suppress(OSError):  # root's, or on a disk that cannot be written
        os.utime(path)


def prune(path: Path, name: str) -> None:
    """Remove old builds of the library `name`; the one at `path` and the most recently used stay, KEPT in all."""
    others = [(each.lstat().st_mtime, each) for each in path.parent.glob(f"{name}-*.so") if each != path]
    for _, old in sorted(others)[: max(0, len(others) + 1 - KEPT)]:
        old.unlink(missing_ok=True)
