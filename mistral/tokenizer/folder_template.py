"""The choice of a chat template: the user's, the folder's own, or that of Mistral's tokenizer file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mistral.tokenizer.chat_template import Template
from mistral.tokenizer.jinja_template import JinjaTemplate
from mistral.tokenizer.template_files import (
    ChatTemplateText,
    find_template,
    read_template,
    special_variables,
    template_source,
)
from mistral.tokenizer.vocabulary import Vocabulary


def choose_template(
    folder: Path, vocabulary: Vocabulary, chat_template: Path | None
) -> tuple[Template | None, str | None]:
    """The template and its description; None and None if there is none.

    A file that the user names comes first; otherwise see `template_source`.
    """
    if chat_template is not None:
        text = read_template(chat_template)
        return _jinja(folder, vocabulary, text), text.source
    found = find_template(folder)
    source = template_source(vocabulary.version, vocabulary.template is not None, found)
    if found and source == found.source:
        return _jinja(folder, vocabulary, found), source
    return vocabulary.template, source


def _jinja(folder: Path, vocabulary: Vocabulary, text: ChatTemplateText) -> JinjaTemplate:
    names = {token.id: name for name, token in vocabulary.specials.items()}
    variables = special_variables(folder, names.get(vocabulary.bos_id, ""), names.get(vocabulary.eos_id, ""))
    return template_with(vocabulary, text, variables)


def template_with(vocabulary: Vocabulary, text: ChatTemplateText, variables: Mapping[str, str]) -> JinjaTemplate:
    """The template with this text; `variables` are bos_token and similar."""
    return JinjaTemplate(
        text.source, text.templates, variables, vocabulary.specials, vocabulary.encode_part, vocabulary.codec.encode,
        vocabulary.encode_whole,
    )  # fmt: skip
