"""Files of tools: what is taken, and one line for everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mistral.errors import InputError
from mistral.tokenizer.messages import Message, Tool
from mistral.tokenizer.tool_file import load_tools
from tests.support.tool_cases import load

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
BARE = {"name": "a", "description": "What a does", "parameters": SCHEMA}
WHOLE = {"type": "function", "function": {"name": "b", "parameters": SCHEMA, "strict": True}}


def write(folder: Path, content: Any) -> Path:
    path = folder / "tools.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_whole_and_bare_functions_are_taken(tmp_path: Path) -> None:
    tools = load_tools(write(tmp_path, [BARE, WHOLE, {"name": "c", "parameters": None, "description": None}]))
    assert tools == (Tool("a", "What a does", SCHEMA), Tool("b", "", SCHEMA), Tool("c", "", {}))
    assert load_tools(write(tmp_path, BARE)) == tools[:1]
    assert load_tools(write(tmp_path, b"\xef\xbb\xbf" + json.dumps([BARE]).encode())) == tools[:1]
    assert load("v3").encode_chat([Message("user", "x")], tools)


@pytest.mark.parametrize(
    ("content", "defect"),
    [
        ("", "not JSON"),
        ("[", "not JSON"),
        ("7", "holds no list of tools"),
        ("[]", "holds no list of tools"),
        (b"[\xff]", "not UTF-8 at byte 1; save it as UTF-8"),
        ("[" * 100_000, "more than 64 levels deep"),
        ("[" * 70 + "]" * 70, "more than 64 levels deep"),
        ("[" + "9" * 5000 + "]", "a number of 5000 digits"),
        ("[NaN]", "NaN is not a JSON number"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ('[{"name": "a", "name": "b"}]', "key 'name' is there twice"),
        (" " * (1 << 20) + "[]", "larger than 1 MiB"),
        ([BARE, 7], "tool 2: is a number, not an object"),
        ([BARE, None], "tool 2: is missing, not an object"),
        ([{"type": "web_search"}], 'tool 1: its "type" is not "function"'),
        ([{"type": "function"}], 'tool 1: its "function" is missing'),
        ([{"type": ["function"], "function": BARE}], 'tool 1: its "type" is not'),
        ([{"function": [BARE]}], 'tool 1: its "function" is a list'),
        ([{"description": "x"}], 'tool 1: its "name" must be 1 to 64 letters'),
        ([BARE | {"name": 5}], 'tool 1: its "name" must be'),
        ([BARE | {"name": "a\n"}], 'tool 1: its "name" must be'),
        ([BARE | {"name": "a" * 65}], 'tool 1: its "name" must be'),
        ([BARE | {"description": 5}], r'tool 1: \(a\) its "description" is a number, not a text'),
        ([BARE | {"parameters": []}], r'tool 1: \(a\) its "parameters" is a list, not a JSON schema'),
        ([BARE | {"parameters": {"type": "thing"}}], r'tool 1: \(a\) its "parameters" is not a JSON schema: .*thing'),
        ([BARE, WHOLE, BARE], "tool 3: the name a is that of tool 1; rename one of them"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line_that_names_the_file(tmp_path: Path, content: Any, defect: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=defect) as caught:
        load_tools(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert len(line) < len(str(path)) + 400


def test_a_device_without_end_is_one_line() -> None:
    with pytest.raises(InputError, match=r"/dev/zero: larger than 1 MiB"):
        load_tools("/dev/zero")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="not readable") as caught:
            load_tools(path)
        assert str(caught.value).startswith(f"{path}: ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "function", "name", "description", "parameters", "properties", "enum", "$ref"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(value=st.lists(json_values, max_size=3) | json_values)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_gives_tools_that_can_be_used_or_one_line(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path, value)
    try:
        tools = load_tools(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
    else:
        assert load("v3").encode_chat([Message("user", "x")], tools)
