"""tokenizer.json, loaded and used in a child process: the library that reads it cannot end or hang this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mistral.errors import InputError, one_line
from mistral.text import read_json
from mistral.tokenizer.added_tokens import AddedToken
from mistral.tokenizer.bounded_process import BoundedProcess, Failed
from mistral.tokenizer.chat_template import ToolTokens
from mistral.tokenizer.codec import Codec, Piece, text_or_byte
from mistral.tokenizer.end_ids import token_text
from mistral.tokenizer.files import OFFICIAL_FILES
from mistral.tokenizer.streaming import SPACE
from mistral.tokenizer.vocabulary import SpecialToken, Vocabulary, missing_ids

MEMORY = 3 << 30  # bytes of address space
LOADING = 60.0  # seconds of processor time
ENCODING, CHARACTERS = 5.0, 50_000  # and for each so many characters a second more


@dataclass(frozen=True)
class TableEncoder:
    """The library's tokenizer in its process: texts to ids."""

    path: Path
    child: BoundedProcess

    def __call__(self, text: str, control: bool = False) -> list[int]:
        """Ids of a text; with `control`, spelled-out control tokens become their ids. Raises InputError."""
        seconds = ENCODING + len(text) / CHARACTERS
        try:
            ids: list[int] = self.child.ask("encode", seconds, path=str(self.path), text=text, control=control)
        except Failed as failure:
            reason = one_line(failure)
            raise InputError(f"{self.path.name}: cannot encode this text ({reason}); shorten or change it") from None
        return ids


def load_huggingface(path: Path) -> Vocabulary:
    """Load a tokenizer.json. Raises InputError for one that cannot be used within the limits of memory and time."""
    table = read_json(path)
    decoder = str(table.get("decoder"))  # one, or a sequence of them
    if "ByteLevel" not in decoder and "ByteFallback" not in decoder:
        raise InputError(f"{path}: its decoder is neither ByteLevel nor ByteFallback; add the model's {OFFICIAL_FILES}")
    child = BoundedProcess(MEMORY, {"operation": "load", "seconds": LOADING, "path": str(path)})
    try:
        loaded = child.ask("load", LOADING, path=str(path))
    except Failed as failure:
        raise InputError(f"{path}: not readable as a tokenizer ({one_line(failure)}); download it again") from None
    pieces: dict[int, str] = dict(loaded["pieces"])
    ids = {name: number for number, name in pieces.items()}
    added = [AddedToken(*entry) for entry in loaded["added"]]
    hidden = {token.id for token in added if token.special}
    specials = {
        token.content: SpecialToken(token.id, token.lstrip, token.rstrip) for token in added if token.is_control
    }
    bos, eos = (_control(ids, path, key, default) for key, default in (("bos", "<s>"), ("eos", "</s>")))
    encode = TableEncoder(path, child)
    byte_level = "ByteLevel" in decoder
    adds_space = not byte_level and pieces.get(next(iter(encode("a")), -1), "").startswith(SPACE)
    size = max(pieces, default=-1) + 1
    return Vocabulary(
        "tokenizer.json", size, bos, eos,
        Codec(encode, table_piece(pieces, hidden, byte_level), adds_space), specials,
        _encode_part(encode, specials), missing_ids(path, size, pieces),
        adds_bos=_adds_bos(path.parent), tool_tokens=tool_tokens_of(ids), encode_whole=partial(encode, control=True),
    )  # fmt: skip


def table_piece(pieces: Mapping[int, str], hidden: set[int], byte_level: bool) -> Callable[[int], Piece]:
    """What an id stands for, of pieces spelled as a tokenizer.json spells them; `hidden` ids stand for no text."""
    byte_of = byte_level_alphabet() if byte_level else {}

    def piece(token_id: int) -> Piece:
        token = pieces.get(token_id)
        if token is None or token_id in hidden:
            return None
        if not byte_level:
            return text_or_byte(token)
        return bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else token.encode()

    return piece


def _encode_part(encode: TableEncoder, specials: Mapping[str, SpecialToken]) -> Callable[[str], list[int]]:
    """What encodes a text behind a control token; some tokenizers put a space before the first part of a text alone."""
    name = next(iter(specials), None)
    if name is None or encode(f"{name}a", control=True)[1:] == encode("a"):
        return encode
    before = encode("\n")

    def encode_part(text: str) -> list[int]:
        ids = encode("\n" + text)
        return ids[len(before) :] if ids[: len(before)] == before else encode(text)

    return encode_part


def _adds_bos(folder: Path) -> bool:
    """Whether a text begins with bos: as tokenizer_config.json says, else unless it is a tokenizer of GPT-2's kind."""
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    says = config.get("add_bos_token")
    return says if isinstance(says, bool) else not str(config.get("tokenizer_class")).startswith("GPT2")


def tool_tokens_of(ids: Mapping[str, int]) -> ToolTokens | None:
    """The control tokens around tool calls, where the vocabulary has Mistral's."""
    calls = ids.get("[TOOL_CALLS]")
    return None if calls is None else ToolTokens(calls, ids.get("[ARGS]"), ids.get("[CALL_ID]"), beside_text=True)


def _control(ids: Mapping[str, int], path: Path, key: str, default: str) -> int:
    """The id of bos or eos: from tokenizer_config.json, else config.json or generation_config.json, else the usual."""
    names = ("tokenizer_config.json", "config.json", "generation_config.json")
    beside: list[dict[str, Any]] = [
        read_json(path.with_name(name)) if path.with_name(name).is_file() else {} for name in names
    ]
    token = token_text(beside[0].get(f"{key}_token"))
    numbers = [table.get(f"{key}_token_id") for table in beside[1:]]
    first = [number[0] if isinstance(number, list) and number else number for number in numbers]
    candidates = (ids.get(token) if token is not None else None, *first, ids.get(default))
    found = next((candidate for candidate in candidates if candidate is not None), None)
    if type(found) is not int or found not in set(ids.values()):
        raise InputError(f"{path}: {key}_token is not known; add the model's tokenizer_config.json or {OFFICIAL_FILES}")
    return found


def byte_level_alphabet() -> dict[str, int]:
    """The 256 characters that stand for bytes in GPT-2's byte-level pieces."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
