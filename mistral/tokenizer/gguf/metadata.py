"""The tokenizer of a GGUF file: its vocabulary, chat template, and end tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mistral.errors import InputError
from mistral.gguf.value import Metadata
from mistral.text import shown
from mistral.tokenizer.files import TokenizerFile, read_tokenizer_file, tokenizer_files
from mistral.tokenizer.gguf.byte_level import load_byte_level
from mistral.tokenizer.gguf.sentencepiece import load_by_scores
from mistral.tokenizer.gguf.tokens import PREFIX, read_tokens
from mistral.tokenizer.template_files import INSTRUCT, MOST_BYTES, ChatTemplateText
from mistral.tokenizer.vocabulary import Vocabulary

TEMPLATE = "tokenizer.chat_template"
LOADERS = {"gpt2": load_byte_level, "llama": load_by_scores}


@dataclass(frozen=True)
class GgufTokenizer:
    """A file's tokenizer, loaded. variables: bos_token and their like, as its chat template, if any, calls them."""

    vocabulary: Vocabulary
    end_ids: tuple[int, ...]
    template: ChatTemplateText | None
    variables: dict[str, str]
    is_instruct: bool


def load_gguf(metadata: Metadata) -> GgufTokenizer:
    """Load the tokenizer of a file. Raises InputError for one that is of another kind, or damaged."""
    require_kind(metadata)
    tokens = read_tokens(metadata)
    vocabulary = LOADERS[metadata.text(f"{PREFIX}model") or ""](tokens)
    template = template_of(metadata)
    return GgufTokenizer(
        vocabulary,
        tokens.end_ids(vocabulary.eos_id),
        template,
        tokens.variables(),
        template is not None or named(metadata),
    )


def describe_gguf(metadata: Metadata) -> TokenizerFile:
    """What a file says of its tokenizer, without loading it."""
    kind, tokens, template = require_kind(metadata), read_tokens(metadata), template_of(metadata)
    eos = tokens.id_of("eos_token_id")
    version = "GGUF, SentencePiece" if kind == "llama" else f"GGUF, {metadata.text(f'{PREFIX}pre') or 'default'}"
    return TokenizerFile(
        metadata.path, version, len(tokens.texts), tokens.unused, () if eos is None else tokens.end_ids(eos),
        template.source if template else None,
    )  # fmt: skip


def require_kind(metadata: Metadata) -> str:
    """The kind of the tokenizer. Raises InputError for one that is not read."""
    kind = metadata.text(f"{PREFIX}model")
    beside = "put the model's own tokenizer file beside it"
    if kind is None:
        raise InputError(f"{metadata.path}: has no tokenizer; {beside}")
    if kind not in LOADERS:
        raise InputError(
            f"{metadata.path}: {PREFIX}model {shown(kind)} is not supported ({' and '.join(LOADERS)} are); {beside}"
        )
    return kind


def template_of(metadata: Metadata) -> ChatTemplateText | None:
    """The chat templates of a file; None without one. Raises InputError for one too large to be one."""
    names = metadata.texts("tokenizer.chat_templates") or []
    found = {"default": metadata.text(TEMPLATE)} | {name: metadata.text(f"{TEMPLATE}.{name}") for name in names}
    texts = {name: text for name, text in found.items() if text}
    if any(len(text.encode()) > MOST_BYTES for text in texts.values()):
        raise metadata.unfit(TEMPLATE, "is larger than 1 MiB")
    return ChatTemplateText(f"chat_template in {metadata.path.name}", texts) if texts else None


def named(metadata: Metadata) -> bool:
    """Whether a file's name, or what it says that the model is called, is that of a model made to be asked."""
    keys = [key for key in ("general.name", "general.finetune") if key in metadata and metadata.values[key].is_text]
    names = [metadata.path.stem, *(metadata.text(key) or "" for key in keys)]
    return any(INSTRUCT.search(name.replace(" ", "-")) for name in names)


def file_beside(metadata: Metadata) -> tuple[Path | None, str | None]:
    """The tokenizer file of Mistral's beside a GGUF file, if it is to be taken, and a line for the user about it.

    It is another model's where it has not as many tokens as the GGUF file says.
    """
    found = [path for path in tokenizer_files(metadata.path.parent) if path.name != "tokenizer.json"]
    if not found:
        return None, None
    value, name = metadata.values.get(f"{PREFIX}tokens"), found[0].name
    count, size = (value.count or 0) if value else 0, read_tokenizer_file(found[0]).vocab_size
    if count in (0, size):
        return found[0], f"tokenizer: {name} taken, not the one in {metadata.path.name} (it is Mistral's own file)"
    return None, f"tokenizer: {name} not taken: it has {size} tokens, and {metadata.path.name} has {count}"
