"""Text to token ids and back: Mistral's own files through mistral-common, `tokenizer.json` through tokenizers.

Both are imported on first use: mistral-common takes half a second, and a folder without a tokenizer is refused at once.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mistral.errors import InputError, one_line
from mistral.places import find_checkpoint
from mistral.text import check_text, read_json
from mistral.tokenizer.chat_template import Template, ToolTokens, official_template, tool_tokens
from mistral.tokenizer.codec import Codec, Piece
from mistral.tokenizer.files import SENTENCEPIECE_NAME, as_path, choice_note, tokenizer_files
from mistral.tokenizer.fill_in_middle import CONTROL, FillInMiddle, official_fim
from mistral.tokenizer.messages import Message, Tool, check_conversation
from mistral.tokenizer.streaming import SPACE, StreamDecoder

if TYPE_CHECKING:
    import tokenizers
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

CONTROL_V2 = (
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
)  # fmt: skip
CONTROL_V7 = (*CONTROL_V2, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
CONTROL_TOKENS = {"v1": (), "v2": CONTROL_V2, "v3": CONTROL_V2, "v7": CONTROL_V7}  # SentencePiece versions
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
PROBE = "a  b\t\n \u00e9\u6f22\U0001f642\U0010fffd "  # a tokenizer that does not give this back is broken
OFFICIAL_FILES = "tekken.json, tokenizer.model.v3 or tokenizer.model"


@dataclass(frozen=True, repr=False)
class Tokenizer:
    """A tokenizer file, loaded: turns text and conversations into token ids, and ids into text.

    `version` is "v1", "v2", "v3" or "v7" for SentencePiece, "v3 tekken" (or later) for tekken.json and "tokenizer.json"
    for the Hugging Face form. `note` is a line for the user where a folder held several files: which was taken, and
    why. `template`, `tool_tokens` and `fim` are None where the file has no chat template, tools or fill-in-the-middle.
    """

    file: Path
    version: str
    vocab_size: int
    bos_id: int
    eos_id: int
    codec: Codec
    template: Template | None = None
    note: str | None = None
    tool_tokens: ToolTokens | None = None
    fim: FillInMiddle | None = None

    def __repr__(self) -> str:
        return f"Tokenizer({self.file.name}: {self.version}, {self.vocab_size} ids)"

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Load the tokenizer of a checkpoint folder, of several the first of `tokenizer_files`.

        Raises InputError if there is none or it is damaged.
        """
        folder = find_checkpoint(as_path(folder))
        found = tokenizer_files(folder)
        if not found:
            raise InputError(f"{folder}: no tokenizer here; add the model's {OFFICIAL_FILES}")
        return replace(cls.from_file(found[0]), note=choice_note(found))

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Load tekken*.json, *.model, *.model.vN or tokenizer.json. Raises InputError if it cannot be used."""
        path = as_path(path)
        _refuse_placeholder(path)
        if path.suffix == ".json":
            load = _load_tekken if "tekken" in path.name else _load_huggingface
        elif SENTENCEPIECE_NAME.fullmatch(path.name):
            load = _load_sentencepiece
        else:
            raise InputError(f"{path}: not a tokenizer by its name; {OFFICIAL_FILES} are")
        try:
            tokenizer = load(path)
            if tokenizer.decode(tokenizer.encode(PROBE)) != PROBE:
                raise InputError(f"{path}: text does not survive encoding; the file is damaged, download it again")
        except InputError:
            raise
        except Exception as error:  # the libraries raise what they like on a damaged file
            raise InputError(f"{path}: not readable as a tokenizer ({one_line(error)}); download it again") from None
        return tokenizer

    @property
    def can_chat(self) -> bool:
        """Whether the file says how a conversation is written (tokenizer.json does not)."""
        return self.template is not None

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """Token ids of `text`. No text becomes a control token: "[INST]" and "</s>" are plain characters.

        Raises InputError for what is not a str, or holds half of a surrogate pair.
        """
        check_text(text)
        return [self.bos_id] * bos + self.codec.encode(text) + [self.eos_id] * eos

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a conversation, in the checkpoint's own template, up to where the assistant's answer begins.

        `tools` are those that the model may call in its answer. Raises InputError for anything but Message and Tool
        objects, and where the template cannot hold the conversation: it must end with a user's message or a tool's
        result, and no assistant's message may be empty.
        """
        check_conversation(messages, tools)
        if self.template is None:
            where = self.file.parent
            raise InputError(f"{self.file}: has no chat template; add the model's {OFFICIAL_FILES} to {where}")
        if not messages or messages[-1].role not in ("user", "tool"):
            raise InputError("the conversation must end with a user's message; add one")
        if tools or any(message.calls or message.role == "tool" for message in messages):
            self.check_tools()
        for number, message in enumerate(messages, 1):
            if message.role == "assistant" and not (message.content or message.calls):
                raise InputError(f"message {number}: an assistant's message is empty; leave it out with its question")
        return self.template(messages, tools)

    def encode_fim(self, prefix: str, suffix: str) -> list[int]:
        """Token ids that ask for what is missing between two texts.

        Raises InputError for what is not a str, and where the tokenizer has no fill-in-the-middle.
        """
        if self.fim is None:
            raise InputError(
                f"{self.file}: has no fill-in-the-middle ({' and '.join(CONTROL)}); use a model made for it, such as"
                " Codestral"
            )
        for text in (prefix, suffix):
            check_text(text)
        return self.fim(prefix, suffix)

    def check_tools(self) -> None:
        """Raise InputError if a conversation in this tokenizer's template cannot have tools."""
        if self.tool_tokens is None:
            raise InputError(f"{self.file}: a {self.version} tokenizer has no tools; v2 and later ones have")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without control tokens; broken UTF-8 becomes U+FFFD.

        Raises InputError for what is not a flat sequence of integers, and for ids that the vocabulary does not have.
        """
        if isinstance(ids, str | bytes) or not hasattr(ids, "__iter__"):
            raise InputError(f"the ids are of type {type(ids).__name__}; pass a list of integers, as encode returns it")
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, after: Sequence[int] = ()) -> StreamDecoder:
        """A decoder for ids that come one by one.

        SentencePiece drops the space before a text's first piece. With the prompt's ids as `after`, what is pushed
        continues the prompt and keeps that space: `decode(after)` and the stream make `decode(after + ids)`. Leave it
        out where a new text begins, as a chat's answer does.
        """
        return StreamDecoder(self.codec, self.piece, begins=all(self.piece(token_id) is None for token_id in after))

    def piece(self, token_id: int) -> Piece:
        """What one id stands for: text with U+2581 for a space, raw bytes, or None for a control token.

        Raises InputError for what is not an integer, and for an id that the vocabulary does not have.
        """
        try:
            token_id = operator.index(token_id)
        except TypeError:
            kind = type(token_id).__name__
            raise InputError(f"an id is of type {kind}; pass a list of integers, as encode returns it") from None
        if not 0 <= token_id < self.vocab_size:
            size = self.vocab_size
            raise InputError(f"{self.file}: has {size} ids, not id {token_id}; use the tokenizer of these weights")
        return self.codec.piece(token_id)


def _refuse_placeholder(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror}); add the model's {OFFICIAL_FILES}") from None
    if not start:
        raise InputError(f"{path}: empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git LFS pointer, not the file itself; run git lfs pull or download it again")


def _load_sentencepiece(path: Path) -> Tokenizer:
    from mistral_common.tokens.tokenizers.base import TokenizerVersion
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

    match = SENTENCEPIECE_NAME.fullmatch(path.name)
    assert match
    if match[1] not in (None, *CONTROL_TOKENS):
        raise InputError(f"{path}: version {match[1]} is not known; use one of {', '.join(CONTROL_TOKENS)}")
    # mistral-common takes every bare tokenizer.model for v1, but Hugging Face folders have later ones under that name.
    raw = SentencePieceTokenizer(path, TokenizerVersion(match[1] or "v1"))
    if match[1] is None and raw.is_special("[INST]"):
        raw = SentencePieceTokenizer(path, TokenizerVersion("v7" if raw.is_special("[SYSTEM_PROMPT]") else "v3"))
    version = raw.version.value
    for name in CONTROL_TOKENS[version]:  # SentencePiece would give <unk> for it
        if not raw.is_special(name):
            raise InputError(f"{path}: has no control token {name}, as {version} needs; add the model's own tokenizer")
    if min(raw.bos_id, raw.eos_id) < 0:
        raise InputError(f"{path}: has no <s> or </s>; add the model's own tokenizer")
    mistral, unknown, unknown_text = _mistral_tokenizer(raw), raw.unk_id, raw.decode([raw.unk_id]).encode()

    def piece(token_id: int) -> str | bytes | None:
        if raw.is_special(token_id):
            return None
        return unknown_text if token_id == unknown else _text_or_byte(raw.id_to_piece(token_id))

    return Tokenizer(
        path, version, raw.n_words, raw.bos_id, raw.eos_id,
        Codec(
            lambda text: raw.encode(text, bos=False, eos=False), piece,
            adds_space=raw.id_to_piece(raw.encode("a", bos=False, eos=False)[0]).startswith(SPACE), mark_each_byte=True,
        ),
        official_template(mistral), tool_tokens=tool_tokens(mistral), fim=official_fim(mistral),
    )  # fmt: skip


def _mistral_tokenizer(raw: SentencePieceTokenizer) -> MistralTokenizer[Any, Any, Any, Any, Any]:
    """As `MistralTokenizer.from_file` builds it, but with the version that `raw` has, whatever its file is called."""
    from mistral_common.protocol.instruct import normalize, validator
    from mistral_common.tokens.tokenizers import instruct
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    kind = getattr(instruct, f"InstructTokenizer{raw.version.value.upper()}")  # such as InstructTokenizerV3
    checks = validator.get_validator(raw.version, validator.ValidationMode.test)
    return MistralTokenizer(kind(raw), checks, normalize.get_normalizer(raw.version))


def _load_tekken(path: Path) -> Tokenizer:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    mistral: MistralTokenizer[Any, Any, Any, Any, Any] = MistralTokenizer.from_file(path)
    raw = mistral.instruct_tokenizer.tokenizer
    assert isinstance(raw, Tekkenizer)
    return Tokenizer(
        path, f"{raw.version.value} tekken", raw.n_words, raw.bos_id, raw.eos_id,
        Codec(
            lambda text: raw.encode(text, bos=False, eos=False),
            lambda token_id: raw.id_to_byte_piece(token_id) if token_id >= raw.num_special_tokens else None,
        ),
        official_template(mistral), tool_tokens=tool_tokens(mistral), fim=official_fim(mistral),
    )  # fmt: skip


def _load_huggingface(path: Path) -> Tokenizer:
    import tokenizers

    decoder = str(read_json(path).get("decoder"))  # one, or a sequence of them
    if "ByteLevel" not in decoder and "ByteFallback" not in decoder:
        raise InputError(f"{path}: its decoder is neither ByteLevel nor ByteFallback; add the model's {OFFICIAL_FILES}")
    raw = tokenizers.Tokenizer.from_file(str(path))
    raw.no_truncation()
    raw.no_padding()
    raw.encode_special_tokens = True  # "</s>" in a text is four characters
    hidden = {token_id for token_id, token in raw.get_added_tokens_decoder().items() if token.special}
    byte_of = _byte_level_alphabet() if "ByteLevel" in decoder else {}

    def piece(token_id: int) -> str | bytes | None:
        token = raw.id_to_token(token_id)
        if token is None or token_id in hidden:
            return None
        if not byte_of:
            return _text_or_byte(token)
        return bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else token.encode()

    def encode(text: str) -> list[int]:
        return list(raw.encode(text, add_special_tokens=False).ids)

    bos, eos = (_huggingface_control(raw, path, key, default) for key, default in (("bos", "<s>"), ("eos", "</s>")))
    adds_space = not byte_of and str(raw.id_to_token(encode("a")[0])).startswith(SPACE)
    return Tokenizer(path, "tokenizer.json", raw.get_vocab_size(), bos, eos, Codec(encode, piece, adds_space))


def _huggingface_control(raw: tokenizers.Tokenizer, path: Path, key: str, default: str) -> int:
    """The id of bos or eos: from tokenizer_config.json, else config.json, else that of the usual token."""
    beside = [path.with_name(name) for name in ("tokenizer_config.json", "config.json")]
    names, numbers = (read_json(file) if file.is_file() else {} for file in beside)
    token, number = names.get(f"{key}_token"), numbers.get(f"{key}_token_id")
    token = token.get("content") if isinstance(token, dict) else token
    number = number[0] if isinstance(number, list) and number else number
    candidates = (raw.token_to_id(token) if isinstance(token, str) else None, number, raw.token_to_id(default))
    found = next((candidate for candidate in candidates if candidate is not None), None)
    if type(found) is not int or found < 0 or raw.id_to_token(found) is None:
        raise InputError(f"{path}: {key}_token is not known; add the model's tokenizer_config.json or {OFFICIAL_FILES}")
    return found


def _byte_level_alphabet() -> dict[str, int]:
    """The 256 characters that stand for bytes in GPT-2's byte-level pieces."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _text_or_byte(piece: str) -> str | bytes:
    match = BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece
