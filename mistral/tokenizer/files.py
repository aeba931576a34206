"""Which file of a folder is its tokenizer, and the file's properties without loading it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mistral.errors import InputError, one_line
from mistral.text import read_json
from mistral.tokenizer.added_tokens import SOURCES, AddedToken, read_added_tokens
from mistral.tokenizer.end_ids import read_end_ids
from mistral.tokenizer.tekken_file import check_config
from mistral.tokenizer.template_files import find_template, speaks_mistral, template_source
from mistral.tokenizer.vocabulary import missing_ids

SENTENCEPIECE_NAME = re.compile(r".*\.model(?:\.(v\d+)(?:m\d+)?)?")
OFFICIAL_FILES = "tekken.json, tokenizer.model.v3 or tokenizer.model"
BARE = 2  # the rank of a tokenizer.model, see `_rank`
_ADDED = re.compile(r'"added_tokens"\s*:\s*')
_START = 1 << 20  # characters at the beginning of a tokenizer.json that have its added tokens


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer's file, the version of its chat template (see `Tokenizer.version`), and its number of ids.

    missing: the ids without a piece; end_ids: those that the files beside it name by number as ends of an answer.
    template: the description of the chat template; None without one.
    """

    file: Path
    version: str
    vocab_size: int
    missing: frozenset[int] = frozenset()
    end_ids: tuple[int, ...] = ()
    template: str | None = None

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template."""
        return self.template is not None


def as_path(path: object) -> Path:
    """A path given as str or Path. Raises InputError for anything else."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"the path is of type {type(path).__name__}; pass it as str or Path")
    return Path(path)


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer files of a folder, the one to load first.

    The order is tekken.json, tokenizer.model.vN (highest N first), a bare tokenizer.model, tokenizer.json. But a
    tokenizer.json that covers more of the model's ids than the first of these comes first: it is the newer file.
    """
    found = [path for path in folder.iterdir() if _rank(path)[0] and path.is_file()]
    found.sort(key=_rank, reverse=True)
    if len(found) > 1 and found[-1].name == "tokenizer.json" and _is_fuller(found[-1], found[0]):
        found.insert(0, found.pop())
    return found


def choice_note(files: Sequence[Path]) -> str | None:
    """A line for the user about which of several `tokenizer_files` is used, and why; None if there is only one."""
    if len(files) < 2:
        return None
    reason = "it has the chat template" if files[0].name == "tokenizer.model" else "it names its version"
    if files[0].name == "tokenizer.json":
        reason = "it has ids that the other has not"
    return f"tokenizer: {files[0].name} taken, not {', '.join(path.name for path in files[1:])} ({reason})"


def model_rows(folder: Path) -> int | None:
    """The number of ids in the vocabulary of the model in a folder; None if no file says it."""
    for name in ("params.json", "config.json"):
        if (folder / name).is_file():
            table = read_json(folder / name)
            inner = table.get("text_config")
            for each in (inner if isinstance(inner, dict) else {}, table):
                rows = each.get("vocab_size")
                if type(rows) is int and 0 < rows <= 1 << 24:
                    return rows
    return None


def _rank(path: Path) -> tuple[int, int, str]:
    """A sort key, larger for files that come first; its first entry is 0 for other files."""
    name = path.name
    if name.startswith("tekken") and path.suffix == ".json":
        return 4, name == "tekken.json", name
    if name.startswith("tokenizer.model") and (match := SENTENCEPIECE_NAME.fullmatch(name)):
        return (3, int(match[1][1:]), name) if match[1] else (2, 0, name)
    return int(name == "tokenizer.json"), 0, name


def read_tokenizer_file(path: Path) -> TokenizerFile:
    """The properties of a tokenizer's file, without loading it. Raises InputError for an unreadable file."""
    try:
        if "tekken" in path.name:
            version, size = check_config(path)
            version, missing, official = f"{version} tekken", frozenset[int](), True
        elif path.suffix == ".json":
            version, known, official = "tokenizer.json", _huggingface_ids(path), False
            size = max(known, default=-1) + 1
            missing = missing_ids(path, size, known)
        else:
            version, start, added = _sentencepiece(path)
            known = {token.id for token in added if token.id >= start}
            size, official = max([start - 1, *known]) + 1, speaks_mistral(path.parent, start, added)
            missing = missing_ids(path, size, known, start)
        template = template_source(version, official, find_template(path.parent))
        ends = read_end_ids(path.parent, None, lambda _: None)
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:  # sentencepiece raises what it likes on a damaged file
        raise InputError(f"{path}: not readable as a tokenizer ({one_line(error)}); download it again") from None
    return TokenizerFile(path, version, size, missing, ends, template)


def _sentencepiece(path: Path, sources: Sequence[str] = SOURCES) -> tuple[str, int, tuple[AddedToken, ...]]:
    """Version and size of a SentencePiece model, and the tokens that the files of these names add."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    match = SENTENCEPIECE_NAME.fullmatch(path.name)
    version = match[1] if match else None
    if version is None:
        has = {name: model.is_control(model.piece_to_id(name)) for name in ("[INST]", "[SYSTEM_PROMPT]")}
        version = ("v7" if has["[SYSTEM_PROMPT]"] else "v3") if has["[INST]"] else "v1"
    return version, int(model.get_piece_size()), read_added_tokens(path.parent, sources)


def _huggingface_ids(path: Path) -> set[int]:
    table = read_json(path)
    vocabulary, added = table["model"]["vocab"], table.get("added_tokens") or []
    ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
    return {*ids, *(token["id"] for token in added)}


def _is_fuller(huggingface: Path, official: Path) -> bool:
    """Whether a tokenizer.json has more of the model's ids than the file beside it with all that was added to it.

    Of a tokenizer.json beside a file that names its version only the added tokens count, which are read in no time.
    """
    try:
        rows = model_rows(official.parent) or 1 << 24
        if "tekken" in official.name:
            size = check_config(official)[1]
        else:
            _, size, added = _sentencepiece(official, [name for name in SOURCES if name != "tokenizer.json"])
            size = max(size, *(token.id + 1 for token in added), 0)
        named = _rank(official)[0] > BARE
        theirs = _added_size(huggingface) if named else max(_huggingface_ids(huggingface), default=-1) + 1
        return min(theirs, rows) > size
    except Exception:  # one of them is damaged: the official one is then tried, and named
        return False


def _added_size(path: Path) -> int:
    """One more than the highest id among the added tokens of a tokenizer.json, which begins with them."""
    with path.open(encoding="utf-8") as file:
        start = file.read(_START)
    match = _ADDED.search(start)
    added = json.JSONDecoder().raw_decode(start, match.end())[0] if match else read_json(path)["added_tokens"]
    return max((token["id"] for token in added), default=-1) + 1
