"""Chat templates of Mistral's own tokenizer versions in jinja, for files that are read without mistral-common.

They write what users, assistants and systems say, as mistral-common does; tools need a tokenizer file of Mistral's
beside the GGUF file.
"""

from __future__ import annotations

_LAST_SYSTEM = """\
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] + '\\n\\n' %}{% set talk = messages[1:] %}
{%- else %}{% set system = '' %}{% set talk = messages %}{% endif -%}
"""
"""The system's words stand before those of the last user, or of the first one."""

_INST = """\
{{- bos_token }}
{%- for message in talk %}
{%- if message['role'] == 'user' %}
{{- 'OPEN' + (system if WHERE else '') + message['content'] + 'CLOSE' }}
{%- elif message['role'] == 'assistant' %}
{{- 'BEFORE' + message['content'] + eos_token }}
{%- else %}{{ raise_exception('only users, assistants and one system message at the beginning are known') }}
{%- endif %}
{%- endfor %}"""

_V7 = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- '[SYSTEM_PROMPT]GAP' + message['content'] + '[/SYSTEM_PROMPT]' }}
{%- elif message['role'] == 'user' %}
{{- '[INST]GAP' + message['content'] + '[/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- 'GAP' + message['content'] + eos_token }}
{%- else %}{{ raise_exception('only users, assistants and systems are known') }}
{%- endif %}
{%- endfor %}"""


def official_template_text(version: str) -> str | None:
    """The template of a version, as `Tokenizer.version` has it; None for one that is not known here."""
    number, _, tekken = version.partition(" ")
    gap = "" if tekken else " "
    if number in ("v1", "v2", "v3"):
        opened = {"v1": "[INST] ", "v2": "[INST] "}.get(number, f"[INST]{gap}")
        closed = {"v1": " [/INST]"}.get(number, "[/INST]")
        where = "loop.first" if number == "v1" else "loop.last"
        text = _LAST_SYSTEM + _INST.replace("OPEN", opened).replace("CLOSE", closed).replace("WHERE", where)
        return text.replace("BEFORE", gap)
    return _V7.replace("GAP", gap) if number in ("v7", "v11", "v13") else None
