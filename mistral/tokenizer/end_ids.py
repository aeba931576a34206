"""The ids that end an answer, from all files of a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mistral.text import read_json
from mistral.tokenizer.vocabulary import MOST_IDS

NUMBERED = ("generation_config.json", "config.json")
NAMED = ("tokenizer_config.json", "special_tokens_map.json")


def read_end_ids(folder: Path, eos_id: int | None, id_of: Callable[[str], int | None]) -> tuple[int, ...]:
    """`eos_id`, if any, then every other id that the files of a folder name as an end of sequence.

    `id_of` returns the id of a token's spelling. Values that are not valid ids are ignored. Raises InputError for a
    file that is not readable as JSON.
    """
    found = [] if eos_id is None else [eos_id]
    for name in (*NUMBERED, *NAMED):
        table = read_json(folder / name) if (folder / name).is_file() else {}
        inner = table.get("text_config")
        for each in (table, inner if isinstance(inner, Mapping) else {}):
            found.extend(_ids(each, id_of))
    return tuple(dict.fromkeys(found))


def token_text(entry: object) -> str | None:
    """The spelling of a token in a configuration: a text, or an object with a text; None for anything else."""
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    return content if isinstance(content, str) else None


def _ids(table: Mapping[str, Any], id_of: Callable[[str], int | None]) -> Iterator[int]:
    numbers = table.get("eos_token_id")
    for number in numbers if isinstance(numbers, list) else [numbers]:
        if type(number) is int and 0 <= number < MOST_IDS:
            yield number
    names = table.get("eos_token")
    for name in names if isinstance(names, list) else [names]:
        text = token_text(name)
        found = None if text is None else id_of(text)
        if found is not None:
            yield found
