"""Checksums that came with a checkpoint's files, from wherever a download leaves them.

Lists in the folder: the RELEASE of Mistral's torrents (MD5, in a frame of lines), checklist.chk, SHA256SUMS,
FILE.sha256 and the like. Hugging Face's client keeps what the server said in .cache/huggingface/download/FILE.metadata
of a folder it downloaded to, and in its own cache names the file so: SHA-256 for large files, Git's SHA-1 for small.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}  # by hexadecimal digits
LIST_NAME = re.compile(
    r"RELEASE|checklist\.chk|.*\.(md5|sha1|sha256)|.*(md5|sha1|sha256)sums?(\.txt)?|checksums?(\.\w+)?", re.IGNORECASE
)
LIST_LIMIT = 1 << 20  # bytes of a list
ENTRY = re.compile(r"\b([0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})\b[ \t]+\*?([^\s\u2500-\u257f]+)", re.IGNORECASE)
BSD_ENTRY = re.compile(r"\(([^()\n]+)\)[ \t]*=[ \t]*([0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})\b", re.IGNORECASE)
ALONE = re.compile(r"\s*([0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})\s*", re.IGNORECASE)


class Digest(Protocol):
    """A digest that is fed a file piece by piece, as hashlib's objects are."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Take the file's next bytes in."""

    def hexdigest(self) -> str:
        """The digest of all bytes taken in so far, as hexadecimal digits."""


@dataclass(frozen=True)
class Checksum:
    """The digest that a file has to have, in hexadecimal digits, and who says so.

    `git`: it is the digest of the file as Git stores it, behind a header.
    """

    algorithm: str
    digest: str
    source: str
    git: bool = False

    def begin(self, size: int) -> Digest:
        """A digest of this kind to be fed the file, which has `size` bytes."""
        digest = hashlib.new(self.algorithm, usedforsecurity=False)
        if self.git:
            digest.update(b"blob %d\0" % size)
        return digest


def find_checksums(folder: Path) -> tuple[dict[Path, list[Checksum]], list[str]]:
    """Checksums of each file in the folder, and the names of files that are in a list and not in the folder."""
    found: dict[Path, list[Checksum]] = {}
    absent = dict[str, None]()
    files = {path.name for path in folder.iterdir() if path.is_file()}  # no file may have a name that a list has
    for path in sorted(folder.iterdir()):
        if LIST_NAME.fullmatch(path.name) and path.is_file() and path.stat().st_size <= LIST_LIMIT:
            for name, digest in read_list(path):
                if name in files:
                    found.setdefault(folder / name, []).append(
                        Checksum(ALGORITHMS[len(digest)], digest.lower(), path.name)
                    )
                else:
                    absent[name] = None
        elif path.is_file() and (checksum := huggingface_checksum(path)):
            found.setdefault(path, []).append(checksum)
    return found, list(absent)


def read_list(path: Path) -> list[tuple[str, str]]:
    """File name and digest of each entry of a list."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if alone := ALONE.fullmatch(text):
        return [(path.stem, alone[1])]
    entries = [(match[2], match[1]) for match in ENTRY.finditer(text)]
    entries += [(match[1], match[2]) for match in BSD_ENTRY.finditer(text)]
    return [(Path(name).name, digest) for name, digest in entries]


def huggingface_checksum(path: Path) -> Checksum | None:
    """The checksum that Hugging Face's client has noted of a file that it downloaded; None without one."""
    metadata = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    if metadata.is_file() and metadata.stat().st_size <= LIST_LIMIT:
        lines = metadata.read_text(encoding="utf-8", errors="replace").splitlines()
        tag, source = (lines[1].strip() if len(lines) > 1 else ""), "Hugging Face"
    else:
        real = path.resolve()
        tag, source = (real.name if real.parent.name == "blobs" else ""), "Hugging Face's cache"
    if not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", tag):
        return None
    return Checksum(ALGORITHMS[len(tag)], tag, source, git=len(tag) == 40)
