"""tekken.json, loaded by mistral-common after its numbers have been checked."""

from __future__ import annotations

import json
import re
import tempfile
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mistral.errors import InputError, one_line
from mistral.text import read_json
from mistral.tokenizer.bounded_process import BoundedProcess, Failed
from mistral.tokenizer.chat_template import official_template, tool_tokens
from mistral.tokenizer.codec import Codec, guarded
from mistral.tokenizer.fill_in_middle import official_fim
from mistral.tokenizer.vocabulary import MOST_IDS, SpecialToken, Vocabulary

# All of Mistral's files have this one; any other is tried in a child process first.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LIMITS = {"default_vocab_size": MOST_IDS, "num_vocab_tokens": MOST_IDS, "default_num_special_tokens": 1 << 16}
MOST_MEDIA = 1 << 16  # of a number about images and sound, of which no text is made
MOST_PATTERN = 4096  # characters
SECONDS, MEMORY = 10.0, 1 << 31
TRIED = ("a  b\t\n \u00e9\u6f22\U0001f642", "a" * 2000, "a" * 30 + "!", " " * 2000, "a b" * 500, "1" * 500 + "\n" * 500)
_CONFIG = re.compile(r'\s*\{\s*"config"\s*:\s*')
_START = 1 << 16  # bytes at the beginning of a tekken.json that have its settings
# What makes the settings at the beginning not the last word: a second one, an escaped letter in a key, media
_MORE = re.compile(rb'"(?:config|audio|image|multimodal)"\s*:|\\u00[4-7][0-9a-fA-F]')


def load_tekken(path: Path) -> Vocabulary:
    """Load a tekken.json. Raises InputError for one whose numbers are out of bounds, and what mistral-common raises."""
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    check_config(path)
    mistral: MistralTokenizer[Any, Any, Any, Any, Any]
    with _without_mark(path) as plain:
        mistral = MistralTokenizer.from_file(plain)
    raw = mistral.instruct_tokenizer.tokenizer
    assert isinstance(raw, Tekkenizer)
    if raw.version.supports_model_settings and raw.model_settings_builder is None:
        version = raw.version.value
        raise InputError(f"{path}: has no model_settings_builder, which {version} needs; download it again")
    special = raw.num_special_tokens
    encode = guarded(path, lambda text: raw.encode(text, bos=False, eos=False))
    return Vocabulary(
        f"{raw.version.value} tekken", raw.n_words, raw.bos_id, raw.eos_id,
        Codec(encode, lambda token_id: raw.id_to_byte_piece(token_id) if token_id >= special else None),
        {raw.id_to_piece(token_id): SpecialToken(token_id) for token_id in range(special)}, encode,
        template=official_template(mistral, path), tool_tokens=tool_tokens(mistral), fim=official_fim(mistral, path),
    )  # fmt: skip


@contextmanager
def _without_mark(path: Path) -> Iterator[Path]:
    """The file, or a copy of it without the byte order mark that mistral-common does not read."""
    with path.open("rb") as file:
        if file.read(3) != BOM_UTF8:
            yield path
            return
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / path.name
            plain.write_bytes(file.read())
            yield plain


def check_config(path: Path) -> tuple[str, int]:
    """The version and the number of ids of a tekken.json. Raises InputError for numbers that no vocabulary has."""
    config = _config(path)
    for name, limit in LIMITS.items():
        value = config.get(name, 0)
        if type(value) is not int or not 0 <= value <= limit:
            raise InputError(f"{path}: {name} is {str(value)[:40]}, not a number up to {limit}; download it again")
    pattern = config.get("pattern")
    if not isinstance(pattern, str) or len(pattern) > MOST_PATTERN:
        raise InputError(
            f"{path}: pattern is no regular expression of up to {MOST_PATTERN} characters; download it again"
        )
    if pattern != PATTERN:
        try:
            BoundedProcess(MEMORY).ask("try_pattern", SECONDS, pattern=pattern, texts=TRIED)
        except Failed as failure:
            raise InputError(f"{path}: its pattern is not usable ({one_line(failure)}); download it again") from None
    return str(config["version"]), config["default_vocab_size"]


def _config(path: Path) -> dict[str, Any]:
    """The settings of a tekken.json; of one that is as Mistral writes it, without reading the vocabulary as JSON."""
    if not path.is_file() or path.stat().st_size > 1 << 26:
        raise InputError(f"{path}: no file of at most 64 MiB; download it again")
    data = path.read_bytes()
    start = data[:_START].decode("utf-8", "ignore")
    match = _CONFIG.match(start)
    if match and len(_MORE.findall(data)) == 1:
        config = json.JSONDecoder().raw_decode(start, match.end())[0]
    else:
        table = read_json(path)
        config = table["config"]
        for name in ("audio", "image", "multimodal"):
            if any(not -MOST_MEDIA <= number <= MOST_MEDIA for number in _numbers(table.get(name))):
                raise InputError(f"{path}: {name} has a number that is out of bounds; download it again")
    if not isinstance(config, dict):
        raise InputError(f"{path}: config is no table; download it again")
    return config


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value, whatever is around them."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict | list):
            left.extend(each.values() if isinstance(each, dict) else each)
        elif isinstance(each, int | float):
            yield each
