"""Every MindSpore operator that the portable backend uses is documented for Ascend as well as for CPU."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import mindspore

from mistral.ops import portable


def operators(source: str) -> set[str]:
    """Names used as `ops.NAME`."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "ops"}


def platforms(operator: object) -> set[str]:
    found = re.search(r"Supported Platforms:\s*``(.+)``", inspect.getdoc(operator) or "")
    assert found, operator
    return set(re.findall(r"\w+", found[1]))


def test_every_operator_is_documented_for_both() -> None:
    names = operators(Path(portable.__file__).read_text())
    assert len(names) > 8
    without = {name for name in names if not {"Ascend", "CPU"} <= platforms(getattr(mindspore.ops, name))}
    assert without == set()


def test_an_operator_for_one_platform_would_be_noticed() -> None:
    assert "CPU" not in platforms(mindspore.ops.rms_norm)
