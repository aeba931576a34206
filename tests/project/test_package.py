"""What the wheel takes along: every package by its name, and the mark that the package has types."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    found = {file.parent.relative_to(ROOT).as_posix().replace("/", ".") for file in (ROOT / "mistral").rglob("*.py")}
    assert found == set(SETUPTOOLS["packages"]) - {"mistral.tiny"}


def test_types_are_announced() -> None:
    assert (ROOT / "mistral" / "py.typed").is_file()
    assert "py.typed" in SETUPTOOLS["package-data"]["mistral"]
