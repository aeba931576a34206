"""Text to token ids and back: Mistral's own files through mistral-common, `tokenizer.json` through tokenizers.

Libraries are imported on first use: mistral-common takes half a second, and a folder without a tokenizer is refused at
once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from mistral.errors import InputError, one_line, setting
from mistral.gguf.model_files import read_metadata
from mistral.gguf.value import Metadata
from mistral.places import find_checkpoint
from mistral.text import check_text
from mistral.tokenizer.chat_template import NO_SYSTEM_THOUGHTS, Template, ToolTokens
from mistral.tokenizer.codec import Codec, Piece
from mistral.tokenizer.coverage import check_rows, coverage_note, uncovered_runs
from mistral.tokenizer.end_ids import read_end_ids
from mistral.tokenizer.files import (
    OFFICIAL_FILES,
    SENTENCEPIECE_NAME,
    as_path,
    choice_note,
    model_rows,
    tokenizer_files,
)
from mistral.tokenizer.fill_in_middle import CONTROL, FillInMiddle
from mistral.tokenizer.folder_template import choose_template, template_with
from mistral.tokenizer.gguf.metadata import file_beside, load_gguf
from mistral.tokenizer.huggingface_file import load_huggingface
from mistral.tokenizer.jinja_template import JinjaTemplate
from mistral.tokenizer.messages import Message, Tool, check_conversation
from mistral.tokenizer.sentencepiece_file import load_sentencepiece
from mistral.tokenizer.streaming import StreamDecoder
from mistral.tokenizer.tekken_file import load_tekken
from mistral.tokenizer.template_files import is_instruct, read_template
from mistral.tokenizer.thoughts import MARKS, ThinkState, ThinkTokens, system_parts
from mistral.tokenizer.vocabulary import Vocabulary

PROBE = "a  b\t\n \u00e9\u6f22\U0001f642\U0010fffd "  # a tokenizer that does not give this back is broken


@dataclass(frozen=True, repr=False)
class Tokenizer:
    """A tokenizer file, loaded: turns text and conversations into token ids, and ids into text.

    `version` is "v1", "v2", "v3" or "v7" for SentencePiece, "v3 tekken" (or later) for tekken.json and "tokenizer.json"
    for the Hugging Face form. `end_ids` end an answer; `eos_id` is the first of them. `rows` is the number of ids that
    the model beside the file has, None if that is not known. `note` is a line for the user if a folder has several
    files: which is used, and why. `template`, `tool_tokens` and `fim` are None without a chat template, tools or
    fill-in-the-middle; `template_source` describes the template, and `is_instruct` says whether the folder has an
    instruct model.
    """

    file: Path
    version: str
    vocab_size: int
    bos_id: int
    eos_id: int
    codec: Codec
    vocabulary: Vocabulary
    end_ids: tuple[int, ...]
    rows: int | None = None
    template: Template | None = None
    note: str | None = None
    tool_tokens: ToolTokens | None = None
    fim: FillInMiddle | None = None
    template_source: str | None = None
    is_instruct: bool = False

    def __repr__(self) -> str:
        return f"Tokenizer({self.file.name}: {self.version}, {self.vocab_size} ids)"

    @classmethod
    def from_folder(cls, folder: str | Path, chat_template: str | Path | None = None) -> Tokenizer:
        """Load the tokenizer of a checkpoint folder, of several the first of `tokenizer_files`; or that of a GGUF file.

        `chat_template`: a file with a template to use in place of the folder's own. Raises InputError if there is no
        tokenizer, or it or the template is damaged.
        """
        folder = find_checkpoint(as_path(folder))
        if folder.is_file():
            return cls.from_gguf(read_metadata(folder), chat_template)
        found = tokenizer_files(folder)
        if not found:
            raise InputError(f"{folder}: no tokenizer here; add the model's {OFFICIAL_FILES}")
        return replace(cls.from_file(found[0], chat_template), note=choice_note(found))

    @classmethod
    def from_gguf(cls, metadata: Metadata, chat_template: str | Path | None = None) -> Tokenizer:
        """Load the tokenizer of a GGUF file, or the file of Mistral's beside it, where it has as many tokens.

        `chat_template` and errors as for `from_folder`.
        """
        beside, note = file_beside(metadata)
        if beside is not None:
            return replace(cls.from_file(beside, chat_template), note=note)
        loaded, path = load_gguf(metadata), metadata.path
        vocabulary = loaded.vocabulary
        text = loaded.template if chat_template is None else read_template(as_path(chat_template))
        template = None if text is None else template_with(vocabulary, text, loaded.variables)
        tools = vocabulary.tool_tokens if template is None or template.writes_calls else None
        tokenizer = cls(
            path, vocabulary.version, vocabulary.size, vocabulary.bos_id, vocabulary.eos_id, vocabulary.codec,
            vocabulary, loaded.end_ids, None, template, note, tools, None,
            text.source if text else None, loaded.is_instruct,
        )  # fmt: skip
        if tokenizer.decode(vocabulary.codec.encode(PROBE)) != PROBE:
            raise InputError(f"{path}: text does not survive encoding; the file is damaged, download it again")
        return tokenizer

    @classmethod
    def from_file(cls, path: str | Path, chat_template: str | Path | None = None) -> Tokenizer:
        """Load tekken*.json, *.model, *.model.vN or tokenizer.json, and what the files beside it say of it.

        Raises InputError if it cannot be used.
        """
        path = as_path(path)
        _refuse_placeholder(path)
        if path.suffix == ".json":
            load = load_tekken if "tekken" in path.name else load_huggingface
        elif SENTENCEPIECE_NAME.fullmatch(path.name):
            load = load_sentencepiece
        else:
            raise InputError(f"{path}: not a tokenizer by its name; {OFFICIAL_FILES} are")
        try:
            vocabulary = load(path)
            tokenizer = cls._of(path, vocabulary, None if chat_template is None else as_path(chat_template))
            if tokenizer.decode(vocabulary.codec.encode(PROBE)) != PROBE:
                raise InputError(f"{path}: text does not survive encoding; the file is damaged, download it again")
        except (InputError, ImportError, MemoryError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the libraries raise what they like on a damaged file
            raise InputError(f"{path}: not readable as a tokenizer ({one_line(error)}); download it again") from None
        return tokenizer

    @classmethod
    def _of(cls, path: Path, vocabulary: Vocabulary, chat_template: Path | None) -> Tokenizer:
        folder, specials = path.parent, vocabulary.specials
        ends = read_end_ids(folder, vocabulary.eos_id, lambda name: specials[name].id if name in specials else None)
        template, source = choose_template(folder, vocabulary, chat_template)
        tools = vocabulary.tool_tokens
        if isinstance(template, JinjaTemplate) and not template.writes_calls:
            tools = None
        return cls(
            path, vocabulary.version, vocabulary.size, vocabulary.bos_id, vocabulary.eos_id, vocabulary.codec,
            vocabulary, ends, model_rows(folder), template, None, tools, vocabulary.fim, source, is_instruct(folder),
        )  # fmt: skip

    @property
    def can_chat(self) -> bool:
        """Whether the folder says how a conversation is written."""
        return self.template is not None

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """Token ids of `text`. No text becomes a control token: "[INST]" and "</s>" are plain characters.

        With `bos` it begins with bos, unless the tokenizer's configuration says that no text does. Raises InputError
        for what is not a str, or holds half of a surrogate pair, and for a text that needs a token the model has not.
        """
        check_text(text)
        begin = [self.bos_id] * (bos and self.vocabulary.adds_bos)
        return self._embeddable(begin + self.codec.encode(text) + [self.eos_id] * eos)

    def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), reasoning_effort: str | None = None
    ) -> list[int]:
        """Token ids of a conversation, in the checkpoint's own chat template, up to the start of the answer.

        `tools` are those that the model may call in its answer. The answer continues a last message of the assistant
        with `prefix`. `reasoning_effort`: "none" or "high", if the template supports it. Raises InputError for anything
        but Message and Tool objects, and where the template cannot hold the conversation: it must end with a user's
        message, a tool's result or such a prefix, and no other assistant's message may be empty.
        """
        check_conversation(messages, tools)
        self.check_chat()
        assert self.template
        if reasoning_effort is not None:
            self.check_reasoning_effort(reasoning_effort)
        if messages and messages[-1].prefix and not self._says_something(messages[-1]):
            messages = messages[:-1]  # nothing has been answered yet
        if not messages or not (messages[-1].role in ("user", "tool") or messages[-1].prefix):
            raise InputError("the conversation must end with a user's message; add one")
        if tools or any(message.calls or message.role == "tool" for message in messages):
            self.check_tools()
        for number, message in enumerate(messages, 1):
            if message.role == "assistant" and not self._says_something(message):
                raise InputError(f"message {number}: an assistant's message is empty; leave it out with its question")
            if message.prefix and (message.role != "assistant" or message.calls or number < len(messages)):
                raise InputError(f"message {number}: prefix is for the last message, an assistant's text; leave it out")
        return self._embeddable(self.template(messages, tools, reasoning_effort))

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
        return self._embeddable(self.fim(prefix, suffix))

    def check_chat(self) -> None:
        """Raise InputError, with the remedy, if there is no chat template."""
        if self.template is None:
            remedy = f"name one by {setting('chat_template')} FILE"
            if self.version == "tokenizer.json":
                remedy = f"add the model's {OFFICIAL_FILES} to {self.file.parent}, or {remedy}"
            raise InputError(f"{self.file}: has no chat template; {remedy}")

    def check_tools(self) -> None:
        """Raise InputError if a conversation in this tokenizer's template cannot have tools."""
        if isinstance(self.template, JinjaTemplate):
            if not self.template.takes_tools:
                raise InputError(f"the chat template ({self.template_source}) has no place for tools; leave them out")
        elif self.tool_tokens is None:
            raise InputError(f"{self.file}: a {self.version} tokenizer has no tools; v2 and later ones have")

    def check_reasoning_effort(self, effort: object) -> None:
        """Raise InputError if this tokenizer's template does not support reasoning_effort."""
        known = self.template.reasoning_efforts if self.template else ()
        if not known:
            which = self.template_source or self.version
            reason = f"the chat template ({which}) has no such setting, as those of version v15 have; leave it out"
            raise InputError(reason, option="reasoning_effort", value=effort)
        if effort not in known:
            raise InputError(f"must be one of {', '.join(known)}", option="reasoning_effort", value=effort)

    def check_system(self, text: str) -> None:
        """Raise InputError for a system prompt whose [THINK] the template cannot write, or has no end."""
        if self.template and MARKS.search(text) and self.template.system_thoughts != "text":
            if self.template.system_thoughts == "refused":
                raise InputError(NO_SYSTEM_THOUGHTS)
            system_parts(text)

    @property
    def think_tokens(self) -> ThinkTokens | None:
        """The control tokens around thinking; None if there are none."""
        return self.vocabulary.think_tokens

    @property
    def keeps_thoughts(self) -> bool:
        """Whether the template includes the assistant's thinking of earlier messages."""
        return self.template is not None and self.template.keeps_thoughts

    def thinks_after(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends within thinking, so that the answer starts there."""
        return ThinkState(self.think_tokens).after(prompt).inside

    def _says_something(self, message: Message) -> bool:
        return bool(message.content or message.calls or (message.thoughts and self.keeps_thoughts))

    def uncovered(self) -> tuple[range, ...]:
        """The ids of the model, as ranges, that have no piece and end no answer: they must not be sampled."""
        return uncovered_runs(self.vocab_size, self.vocabulary.missing, self.rows or 0, self.end_ids)

    def for_rows(self, rows: int) -> Tokenizer:
        """The tokenizer for a model with `rows` ids. Raises InputError if it cannot belong to that model."""
        check_rows(self.file, self.vocab_size, rows)
        return replace(self, rows=rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user: which file is used, and which of the model's ids it does not cover."""
        covered = self.rows and coverage_note(self.file, self.vocab_size, self.rows, self.uncovered())
        return tuple(note for note in (self.note, covered) if note)

    def stands_for(self, token_id: int) -> bool:
        """Whether an id has a piece, or is a control token."""
        return 0 <= token_id < self.vocab_size and token_id not in self.vocabulary.missing

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without control tokens and ids that no piece stands for; broken UTF-8 becomes U+FFFD.

        Raises InputError for what is not a flat sequence of integers, and for ids that neither the vocabulary nor the
        model has.
        """
        if isinstance(ids, str | bytes) or not hasattr(ids, "__iter__"):
            raise InputError(f"the ids are of type {type(ids).__name__}; pass a list of integers, as encode returns it")
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, after: Sequence[int] = ()) -> StreamDecoder:
        """An incremental decoder.

        SentencePiece drops the space before a text's first piece. With the prompt's ids as `after`, what is pushed
        continues the prompt and keeps that space: `decode(after)` and the stream make `decode(after + ids)`. Leave it
        out where a new text begins, as a chat's answer does.
        """
        return StreamDecoder(self.codec, self._remembered, begins=self.begins_text(after))

    def begins_text(self, after: Sequence[int]) -> bool:
        """Whether what follows these ids is the beginning of a text, as `stream` has it."""
        return all(self._remembered(token_id) is None for token_id in after)

    def piece(self, token_id: int) -> Piece:
        """The piece of an id: text with U+2581 for a space, raw bytes, or None for a control token or an unused id.

        Raises InputError for what is not an integer, and for an id that neither the vocabulary nor the model has.
        """
        try:
            token_id = operator.index(token_id)
        except TypeError:
            kind = type(token_id).__name__
            raise InputError(f"an id is of type {kind}; pass a list of integers, as encode returns it") from None
        known = 0 <= token_id < self.vocab_size
        if not known and not 0 <= token_id < max(self.rows or 0, 0, *(end + 1 for end in self.end_ids)):
            size = self.vocab_size
            raise InputError(f"{self.file}: has {size} ids, not id {token_id}; use the tokenizer of these weights")
        return self.codec.piece(token_id) if self.stands_for(token_id) else None

    @cached_property
    def _remembered(self) -> Callable[[int], Piece]:
        """`piece`, remembered for integers: answers have the same ids again and again."""
        found = cache(self.piece)
        return lambda token_id: found(token_id) if type(token_id) is int else self.piece(token_id)

    def _embeddable(self, ids: list[int]) -> list[int]:
        """The ids. Raises InputError, naming the token, where the model has no row for one of them."""
        if self.rows is not None and ids and (worst := max(ids)) >= self.rows:
            name = next((name for name, token in self.vocabulary.specials.items() if token.id == worst), None)
            shown = repr(name if name is not None else self.codec.piece(worst))
            raise InputError(
                f"the prompt needs the token {shown[:80]} (id {worst}), and the model has {self.rows} ids; use the"
                " tokenizer of these weights, or leave that token out"
            )
        return ids


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
