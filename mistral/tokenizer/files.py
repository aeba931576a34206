"""Which file of a folder is its tokenizer, and what the file says of itself without being loaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mistral.errors import InputError, one_line
from mistral.text import read_json

SENTENCEPIECE_NAME = re.compile(r".*\.model(?:\.(v\d+)(?:m\d+)?)?")
_CONFIG = re.compile(r'\s*\{\s*"config"\s*:\s*')
_CONFIG_LIMIT = 1 << 16  # characters at the beginning of a tekken.json that have its settings


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer's file, the version of its chat template, as `Tokenizer.version` has it, and its number of ids."""

    file: Path
    version: str
    vocab_size: int

    @property
    def can_chat(self) -> bool:
        """Whether the file says how a conversation is written."""
        return self.version != "tokenizer.json"


def as_path(path: object) -> Path:
    """A path given as str or Path. Raises InputError for anything else."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"the path is of type {type(path).__name__}; pass it as str or Path")
    return Path(path)


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer files of a folder, the one to load in front.

    tekken.json wins over tokenizer.model.vN (the highest N), that over a bare tokenizer.model, that over
    tokenizer.json: a file that names its version says most.
    """
    found = [path for path in folder.iterdir() if _rank(path)[0] and path.is_file()]
    return sorted(found, key=_rank, reverse=True)


def choice_note(files: Sequence[Path]) -> str | None:
    """A line for the user about which of several `tokenizer_files` was taken, and why; None where there is one."""
    if len(files) < 2:
        return None
    reason = "it has the chat template" if files[0].name == "tokenizer.model" else "it names its version"
    return f"tokenizer: {files[0].name} taken, not {', '.join(path.name for path in files[1:])} ({reason})"


def _rank(path: Path) -> tuple[int, int, str]:
    """A sort key, larger the better a file's name says which tokenizer it is; its first entry is 0 for other files."""
    name = path.name
    if name.startswith("tekken") and path.suffix == ".json":
        return 4, name == "tekken.json", name
    if name.startswith("tokenizer.model") and (match := SENTENCEPIECE_NAME.fullmatch(name)):
        return (3, int(match[1][1:]), name) if match[1] else (2, 0, name)
    return int(name == "tokenizer.json"), 0, name


def read_tokenizer_file(path: Path) -> TokenizerFile:
    """Version and size of a tokenizer's file, without loading it. Raises InputError for one that is not readable."""
    try:
        if "tekken" in path.name:
            version, size = _tekken(path)
        elif path.suffix == ".json":
            version, size = "tokenizer.json", _huggingface_size(path)
        else:
            version, size = _sentencepiece(path)
    except InputError:
        raise
    except Exception as error:  # sentencepiece raises what it likes on a damaged file
        raise InputError(f"{path}: not readable as a tokenizer ({one_line(error)}); download it again") from None
    return TokenizerFile(path, version, size)


def _tekken(path: Path) -> tuple[str, int]:
    with path.open(encoding="utf-8") as file:
        start = file.read(_CONFIG_LIMIT)
    match = _CONFIG.match(start)
    config = json.JSONDecoder().raw_decode(start, match.end())[0] if match else read_json(path)["config"]
    return f"{config['version']} tekken", int(config["default_vocab_size"])


def _sentencepiece(path: Path) -> tuple[str, int]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    match = SENTENCEPIECE_NAME.fullmatch(path.name)
    version = match[1] if match else None
    if version is None:
        has = {name: model.is_control(model.piece_to_id(name)) for name in ("[INST]", "[SYSTEM_PROMPT]")}
        version = ("v7" if has["[SYSTEM_PROMPT]"] else "v3") if has["[INST]"] else "v1"
    return version, int(model.get_piece_size())


def _huggingface_size(path: Path) -> int:
    table = read_json(path)
    vocabulary, added = table["model"]["vocab"], table.get("added_tokens") or []
    pieces = {entry[0] for entry in vocabulary} if isinstance(vocabulary, list) else set(vocabulary)
    return len(pieces | {token["content"] for token in added})
