"""The chat templates in a folder's files, and whether they are Mistral's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistral.errors import InputError
from mistral.text import decoded, read_json
from mistral.tokenizer.added_tokens import AddedToken
from mistral.tokenizer.end_ids import token_text

JINJA, JSON, TEMPLATE_FOLDER = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
MOST_BYTES = 1 << 20  # of a template
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SYSTEM_PROMPT = "SYSTEM_PROMPT.txt"  # what some models want to be told before everything else
INSTRUCT = re.compile(
    r"(?:^|[-_.])(?:instruct|chat|dpo|sft|rlhf|reasoning|magistral|devstral|it$)(?:$|[-_.])", re.IGNORECASE
)


@dataclass(frozen=True)
class ChatTemplateText:
    """Templates by name, "default" for conversations without tools; `source` describes them for the user."""

    source: str
    templates: Mapping[str, str]

    @property
    def is_mistrals(self) -> bool:
        """Whether it looks like Mistral's own templates, which mistral-common implements exactly."""
        texts = self.templates.values()
        return all("[INST]" in text and "<<SYS>>" not in text and "<|im_" not in text for text in texts)


def read_template(path: Path) -> ChatTemplateText:
    """The template in a file that the user names: jinja2 text, or JSON with "chat_template". Raises InputError."""
    text = _read(path)
    if path.suffix == ".json":
        found = _templates(read_json(path).get("chat_template"), path)
        if found is None:
            raise InputError(f"{path}: has no chat_template; name a file with one")
        return ChatTemplateText(path.name, found)
    if not text.strip():
        raise InputError(f"{path}: empty; name a file with a chat template")
    return ChatTemplateText(path.name, {"default": text})


def find_template(folder: Path) -> ChatTemplateText | None:
    """The templates of a folder: of chat_template.jinja, else tokenizer_config.json, else chat_template.json."""
    more = {}
    if (folder / TEMPLATE_FOLDER).is_dir():
        more = {path.stem: _read(path) for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    if (folder / JINJA).is_file():
        return ChatTemplateText(JINJA, {"default": _read(folder / JINJA), **more})
    for name in ("tokenizer_config.json", JSON):
        path = folder / name
        found = _templates(read_json(path).get("chat_template"), path) if path.is_file() else None
        if found is not None:
            source = name if name == JSON else f"chat_template in {name}"
            return ChatTemplateText(source, found | more)
    return None


def template_source(version: str, official: bool, text: ChatTemplateText | None) -> str | None:
    """The description of the chat template of a folder; None if there is none.

    The folder's own template is used, unless it looks like Mistral's own and the tokenizer's file is `official`: for
    such a file mistral-common implements the template exactly as in training.
    """
    if text and not (official and text.is_mistrals):
        return text.source
    number, _, tekken = version.partition(" ")
    return f"{tekken} {number}".strip() if official else None


def speaks_mistral(folder: Path, size: int, added: Sequence[AddedToken]) -> bool:
    """Whether a model with a SentencePiece file of `size` ids can be assumed to use Mistral's template.

    A model with more tokens than the file, or of another family, was trained with another one.
    """
    configs = [read_json(folder / name) for name in ("config.json", "params.json") if (folder / name).is_file()]
    turns = [token for token in added if token.id >= size and not token.is_padding]
    return not turns and all(config.get("model_type") != "llama" for config in configs)


def special_variables(folder: Path, bos: str, eos: str) -> dict[str, str]:
    """bos_token and similar, from the configuration of a folder; `bos` and `eos` by default."""
    found: dict[str, Any] = {"bos_token": bos, "eos_token": eos}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        table = read_json(folder / name) if (folder / name).is_file() else {}
        found |= {key: token_text(table[key]) for key in SPECIAL if key in table}
    return {key: value for key, value in found.items() if value is not None}


def is_instruct(folder: Path) -> bool:
    """Whether a folder has an instruct model, by its chat template, system prompt, or name.

    The name is that of the folder, the one in its config.json, or that of an entry of the Hugging Face cache.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    absolute = folder.absolute()
    names = [str(config.get("_name_or_path", "")), absolute.name]
    names += [part for part in (*absolute.parts, *folder.resolve().parts) if part.startswith("models--")]
    named = any(INSTRUCT.search(name.rstrip("/").rpartition("/")[2]) for name in names)
    return named or (folder / SYSTEM_PROMPT).is_file() or find_template(folder) is not None


def _templates(entry: object, path: Path) -> dict[str, str] | None:
    """Templates by name, of a text or a list of {name, template}; None where there is none."""
    if entry is None:
        return None
    if isinstance(entry, str):
        found: dict[Any, Any] = {"default": entry}
    elif isinstance(entry, list) and all(isinstance(each, dict) for each in entry):
        found = {each.get("name"): each.get("template") for each in entry}
    else:
        found = dict(entry) if isinstance(entry, dict) else {None: None}
    if not found or not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise InputError(f"{path}: chat_template is no text and no list of named texts; download it again")
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)  # and no more of a device or a pipe
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror}); name a file with a chat template") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"{path}: larger than 1 MiB, so not a chat template; name another file")
    return decoded(data, str(path))
