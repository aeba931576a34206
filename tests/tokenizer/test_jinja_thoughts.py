"""Thoughts and reasoning effort in templates of jinja2, against mistral-common and its own templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mistral_common.integrations.chat_templates.template_generator import TemplateConfig, build_chat_template
from mistral_common.tokens.tokenizers.base import TokenizerVersion

from mistral.errors import InputError
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_calls import Reply, parse_reply
from tests.support.tool_cases import OTHER, by_library, file, load

V13 = build_chat_template(TemplateConfig(version=TokenizerVersion.v13, thinking_support=True))
OLDER = V13.replace("msg.get('reasoning_content', msg.get('reasoning', none))", "none").replace("reasoning_content", "")
V15 = build_chat_template(
    TemplateConfig(
        version=TokenizerVersion.v15,
        thinking_support=True,
        reasoning_effort_values=("none", "high"),
        reasoning_effort_default="none",
    )
)
SHORT = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
USER = Message("user", "x [THINK]y[/THINK]")


def tokenizer(folder: Path, template: str, kind: str = "v13 tekken") -> Tokenizer:
    (folder / "template.jinja").write_text(template)
    return Tokenizer.from_file(file(kind), folder / "template.jinja")


@pytest.mark.parametrize("template", [V13, OLDER], ids=["reasoning_content", "parts"])
def test_thoughts_are_written_as_the_library_writes_them(tmp_path: Path, template: str) -> None:
    """In a field of their own, or as parts of the content: as the template has them."""
    ours, thought = tokenizer(tmp_path, template), "Hm. [/THINK]"
    assert ours.keeps_thoughts
    for turns in (
        [USER, Message("assistant", "Fine.", thoughts=thought), USER],
        [USER, Message("assistant", "", thoughts=thought), USER],
        [USER, Message("assistant", "", (OTHER,), thoughts=thought), Message.result(OTHER, "1")],
        [USER, Message("assistant", "Fine."), USER],
    ):
        assert ours.encode_chat(turns) == by_library("v13 tekken", turns)
    begun = [USER, Message("assistant", "Fi", thoughts=thought, prefix=True)]
    assert ours.encode_chat(begun) == by_library("v13 tekken", begun)


def test_think_marks_of_a_system_prompt_are_control_tokens(tmp_path: Path) -> None:
    ours = tokenizer(tmp_path, V13)
    turns = [Message.system("a [INST] [THINK]b</s>[/THINK]c"), USER]
    assert ours.encode_chat(turns) == load("v13 tekken").encode_chat(turns)
    text = [Message("system", "[THINK]b[/THINK]"), USER]
    assert 34 not in ours.encode_chat(text)
    with pytest.raises(InputError, match="without"):
        ours.encode_chat([Message.system("[THINK]b"), USER])
    without = tokenizer(tmp_path, V13, "v11 tekken")
    assert without.encode_chat(turns)[:2] == [1, 17] and without.think_tokens is None


def test_reasoning_effort_is_for_templates_of_the_form_of_v15(tmp_path: Path) -> None:
    ours = tokenizer(tmp_path, V15, "v15 tekken")
    for effort in (None, "none", "high"):
        assert ours.encode_chat([USER], (), effort) == load("v15 tekken").encode_chat([USER], (), effort)
    with pytest.raises(InputError, match="templates of version v15 have none there"):
        ours.encode_chat([Message.system("[THINK]a[/THINK]"), USER])
    with pytest.raises(InputError, match=r"reasoning_effort high: the chat template \(template.jinja\) has no"):
        tokenizer(tmp_path, V13).encode_chat([USER], (), "high")


def test_a_template_without_thoughts_loses_them(tmp_path: Path) -> None:
    ours = tokenizer(tmp_path, SHORT)
    assert not ours.keeps_thoughts
    answered = [USER, Message("assistant", "Fine.", thoughts="Hm."), USER]
    assert ours.encode_chat(answered) == ours.encode_chat([USER, Message("assistant", "Fine."), USER])
    with pytest.raises(InputError, match="message 2: an assistant's message is empty"):
        ours.encode_chat([USER, Message("assistant", "", thoughts="Hm."), USER])


def test_a_template_may_begin_the_answer_in_a_thought(tmp_path: Path) -> None:
    ours = tokenizer(tmp_path, SHORT + "{% if add_generation_prompt %}[THINK]{% endif %}")
    assert ours.thinks_after(ours.encode_chat([USER])) and not tokenizer(tmp_path, SHORT).thinks_after([1, 3, 4])


@pytest.mark.parametrize("special", [True, False])
def test_think_tokens_that_a_fine_tune_has_added_are_marks_too(tmp_path: Path, special: bool) -> None:
    """Also where the tokenizer would show them."""
    golden = json.loads((Path(__file__).parents[1] / "data" / "chat_golden.json").read_text(encoding="utf-8"))
    table = next(iter(golden["tokenizers"].values()))
    first = len(table["model"]["vocab"]) + 100
    for number, name in enumerate(("<think>", "</think>")):
        table["added_tokens"].append({
            "id": first + number, "content": name, "special": special, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False,
        })  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": SHORT}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_folder(tmp_path)
    tokens = ours.think_tokens
    assert tokens
    ids = [tokens.begin, *ours.encode("Hm.", bos=False), tokens.end, *ours.encode("Fine.", bos=False)]
    reply = parse_reply(ours, ids)
    assert (reply.text.strip(), reply.thoughts) == ("Fine.", "Hm.")
    assert tokens.begin not in ours.encode("<think>")
    assert parse_reply(ours, ours.encode("<think>a", bos=False)) == Reply("<think>a")
