"""Chat templates of Mistral's own tokenizer versions in jinja, for files that are read without mistral-common.

They write what users, assistants and systems say, as mistral-common does; tools need a tokenizer file of Mistral's
beside the GGUF file. Where a control token stands before a text, SentencePiece puts the space between.
"""

from __future__ import annotations

# What a system says stands before the words of the user whom WHERE picks.
_INST = """\
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] + '\\n\\n' %}{% set talk = messages[1:] %}
{%- else %}{% set system = '' %}{% set talk = messages %}{% endif -%}
{{- bos_token }}
{%- for message in talk %}
{%- if message['role'] == 'user' %}
{{- '[INST]GAP' + (system if WHERE else '') + message['content'] + 'GAP[/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- 'GAP' + message['content'] + eos_token }}
{%- else %}{{ raise_exception('only users, assistants and one system message at the beginning are known') }}
{%- endif %}
{%- endfor %}"""

_SYSTEM_PROMPT = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
{%- elif message['role'] == 'user' %}
{{- '[INST]' + message['content'] + '[/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- message['content'] + eos_token }}
{%- else %}{{ raise_exception('only users, assistants and systems are known') }}
{%- endif %}
{%- endfor %}"""


def official_template_text(version: str) -> str | None:
    """The template of a version, as `Tokenizer.version` has it; None for one that is not known here."""
    number = version.partition(" ")[0]
    if number == "v1":  # which has no control tokens: all is text
        return _INST.replace("GAP", " ").replace("WHERE", "loop.first")
    if number in ("v2", "v3"):
        return _INST.replace("GAP", "").replace("WHERE", "loop.last")
    return _SYSTEM_PROMPT if number in ("v7", "v11", "v13") else None
