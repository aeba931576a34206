"""Where compiled libraries are kept: folders in which nobody else can have put a file.

A library's code runs as soon as it is loaded. So a folder is used only if it and all that lead to it belong to this
user or root and nobody else may write there, and a file in it only if that holds for the file, too.
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
KEPT = 24  # builds of one library that stay, those last used: less than 1 MB each
PORTABLE = f"use {setting('backend')} portable"


def user_folder() -> Path:
    """The folder of this program in the user's cache, whether it is there or not; XDG_CACHE_HOME moves it."""
    return platformdirs.user_cache_path(NAME, appauthor=False)


def temporary_folder() -> Path | None:
    """The user's own folder among temporary files, whether it is there or not; None where none can be written."""
    try:
        return Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"
    except OSError:
        return None


def usable_folders() -> list[Path]:
    """The folders to look for libraries in that are there and safe: the user's cache, then the temporary folder."""
    user, temporary = user_folder(), temporary_folder()
    found = [user] if is_safe_path(user) else []
    return [*found, temporary] if temporary and is_private(temporary) else found


def writable_folder() -> Path:
    """The user's cache if it is safe and can be written, else the temporary folder; made where it does not exist.

    Raises InputError, with the remedy, if neither can be had.
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
    """Whether a folder is there and only this user and root can have put anything into it.

    Folders that lead to it may be written by others only if nobody can rename what is another's there (sticky).
    """
    try:
        real = folder.resolve(strict=True)
        leading = [*folder.absolute().parents, *real.parents]
        return real.is_dir() and is_ours(real) and all(is_ours(each, sticky=True) for each in leading)
    except (OSError, RuntimeError):
        return False


def is_private(folder: Path) -> bool:
    """Whether a folder among temporary files is one of this user's alone, and no link."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def is_ours(path: Path, sticky: bool = False) -> bool:
    """Whether a file or folder is this user's or root's and no other may write to it. Raises OSError without one.

    A group that may is accepted if it is the user's own (of the user's number, as many systems make it) or root's.
    `sticky`: others may write to a folder where they can rename only what is theirs.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):  # of whom, says its owner; who may write is asked of where it leads
        return found.st_uid in (0, os.getuid())
    others = found.st_mode & 0o002 or (found.st_mode & 0o020 and found.st_gid not in (0, os.getuid()))
    return found.st_uid in (0, os.getuid()) and (not others or (sticky and bool(found.st_mode & stat.S_ISVTX)))


def is_safe_file(path: Path) -> bool:
    """Whether a library is there, no link, and only this user and root can have written it."""
    try:
        return stat.S_ISREG(path.lstat().st_mode) and is_ours(path)
    except OSError:
        return False


def is_whole(path: Path) -> bool:
    """Whether a library has all its bytes, as far as its header tells: loading one cut short can end the process.

    The last part of an ELF file is the table of its sections, whose place the header has.
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
    """A file to write at `path`, which no link may stand for -> its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def move_in(built: Path, path: Path) -> None:
    """Give a file that was built its name in the cache, after all its bytes are on the disk."""
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
    """Make a library one of the last used."""
    with contextlib.suppress(OSError):  # root's, or on a disk that cannot be written
        os.utime(path)


def prune(path: Path, name: str) -> None:
    """Remove builds of the library `name` beside the one at `path`: all but the KEPT last used."""
    others = [(each.lstat().st_mtime, each) for each in path.parent.glob(f"{name}-*.so") if each != path]
    for _, old in sorted(others)[: max(0, len(others) + 1 - KEPT)]:
        old.unlink(missing_ok=True)
