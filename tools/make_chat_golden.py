"""Write tests/data/chat_golden.json: conversations in fine-tunes' chat templates, as transformers writes and encodes them.

    python tools/make_chat_golden.py

Needs transformers, jinja2 and sentencepiece (made with 5.24), which need no torch for this. Each case has a template in
the form that a family of models has, a conversation, and what `apply_chat_template` makes of them: the text, and its
ids under a tokenizer of the same kind as the family's. That tokenizer is one of two small ones made here, byte-level and
SentencePiece-like, whose tokenizer.json and tokenizer_config.json lie in the table too.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "chat_golden.json"
TEXTS = ["The cat sat on the mat and the dog ran to town.", "user system assistant Instruction Response", "What is it?"]
CONTROL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "[INST]",
           "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]  # fmt: skip

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' +"
        " message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token"
        " }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif"
        " message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "alpaca": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% set rest = messages[1:]"
        " %}{% else %}Below is an instruction that describes a task.{% set rest = messages %}{% endif %}{{ '\n\n' }}"
        "{%- for message in rest %}{% if message.role == 'user' %}### Instruction:\n{{ message.content | trim }}\n\n"
        "{% else %}### Response:\n{{ message.content | trim }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message ="
        " messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
        "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{"
        " raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if"
        " loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' +"
        " message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  +"
        " content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral_v3": (
        '{%- if messages[0]["role"] == "system" %}\n    {%- set system_message = messages[0]["content"] %}\n    {%- set'
        " loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n{%- if not"
        " tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n{%- set user_messages = loop_messages |"
        ' selectattr("role", "equalto", "user") | list %}\n\n{{- bos_token }}\n{%- for message in loop_messages %}\n    {%-'
        ' if message["role"] == "user" %}\n        {%- if tools is not none and (message == user_messages[-1]) %}\n        '
        '    {{- "[AVAILABLE_TOOLS] [" }}\n            {%- for tool in tools %}\n                {%- set tool ='
        ' tool.function %}\n                {{- \'{"type": "function", "function": {\' }}\n                {%- for key, val'
        ' in tool.items() if key != "return" %}\n                    {%- if val is string %}\n                        {{-'
        " '\"' + key + '\": \"' + val + '\"' }}\n                    {%- else %}\n                        {{- '\"' + key +"
        " '\": ' + val|tojson }}\n                    {%- endif %}\n                    {%- if not loop.last %}\n          "
        '              {{- ", " }}\n                    {%- endif %}\n                {%- endfor %}\n                {{- "}}"'
        ' }}\n                {%- if not loop.last %}\n                    {{- ", " }}\n                {%- else %}\n        '
        '            {{- "]" }}\n                {%- endif %}\n            {%- endfor %}\n            {{-'
        ' "[/AVAILABLE_TOOLS]" }}\n            {%- endif %}\n        {%- if loop.last and system_message is defined %}\n    '
        '        {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}\n        {%- else %}\n        '
        '    {{- "[INST] " + message["content"] + "[/INST]" }}\n        {%- endif %}\n    {%- elif message.tool_calls is'
        ' defined and message.tool_calls is not none %}\n        {{- "[TOOL_CALLS] [" }}\n        {%- for tool_call in'
        " message.tool_calls %}\n            {%- set out = tool_call.function|tojson %}\n            {{- out[:-1] }}\n       "
        '     {{- \', "id": "\' + tool_call.id + \'"}\' }}\n            {%- if not loop.last %}\n                {{- ", " }}\n'
        '            {%- else %}\n                {{- "]" + eos_token }}\n            {%- endif %}\n        {%- endfor %}\n  '
        '  {%- elif message["role"] == "assistant" %}\n        {{- " " + message["content"]|trim + eos_token}}\n    {%- elif'
        ' message["role"] == "tool" %}\n        {{- \'[TOOL_RESULTS] {"content": \' + message.content|string }}\n        {{-'
        " ', \"call_id\": \"' + message.tool_call_id + '\"}[/TOOL_RESULTS]' }}\n    {%- endif %}\n{%- endfor %}\n"
    ),
    "features": (
        "{%- set ns = namespace(count=0) -%}{%- for m in messages -%}{%- if m.role == 'tool' -%}{%- continue -%}{%- endif -%}"
        "{%- set ns.count = ns.count + 1 -%}{{ ns.count }}:{{ m.content | upper }}{% generation %} x{% endgeneration %}"
        "{% if ns.count > 2 %}{% break %}{% endif %}\n{%- endfor -%}{{ messages | length }}{{ pad_token }}"
        "{{ {'a': '<é>', 'b': [1]} | tojson(indent=2) }}{{ 'é' | tojson(ensure_ascii=true) }}{{ unk_token }}"
    ),
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": "What is it?"}],
    "turns": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": " The cat é 漢 🙂  sat\n\non it? "},
        {"role": "assistant", "content": "On the mat."},
        {"role": "user", "content": "And the dog?"},
    ],
    "prefix": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "The cat "}],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Get \"it\"", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}]  # fmt: skip
CALLS = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Pâris"}}}]},
    {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "{\"rain\": true}"},
]  # fmt: skip


def byte_level() -> tokenizers.Tokenizer:
    """A tokenizer in the manner of SmolLM2 and tekken."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=330, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False),
    )
    return raw


def byte_fallback(first_alone: bool) -> tokenizers.Tokenizer:
    """A tokenizer in the manner of Llama and Mistral 7B; a space comes before the first part of a text, or each."""
    pieces = [
        *CONTROL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"acehnostuw.?",
        "▁a",
        "▁t",
        "at",
        "he",
        "▁the",
    ]
    merges = [("▁", "a"), ("▁", "t"), ("a", "t"), ("h", "e"), ("▁t", "he")]
    raw = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    if first_alone:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens(CONTROL)
    return raw


KINDS = {
    "byte_level": byte_level(), "space_each": byte_fallback(False), "space_first": byte_fallback(True),
}  # fmt: skip


def main() -> None:
    """Render and encode every case."""
    cases, files = [], {}
    for kind, raw in KINDS.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        with tempfile.TemporaryDirectory() as folder:
            raw.save(f"{folder}/tokenizer.json")
            files[kind] = json.loads(Path(folder, "tokenizer.json").read_text())
        for name, template in TEMPLATES.items():
            for title, messages in {**CONVERSATIONS, **({"calls": CALLS} if name == "mistral_v3" else {})}.items():
                goes_on = title == "prefix"
                options: dict[str, Any] = {
                    "chat_template": template, "add_generation_prompt": not goes_on, "continue_final_message": goes_on,
                    "tools": TOOLS if title == "calls" else None,
                }  # fmt: skip
                try:
                    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
                except Exception as error:
                    cases.append({"kind": kind, "template": name, "messages": messages, "error": str(error)[:60]})
                    continue
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert ids == tokenizer.apply_chat_template(messages, return_dict=False, **options)
                cases.append(
                    {"kind": kind, "template": name, "title": title, "messages": messages, "text": text, "ids": ids,
                     "tools": options["tools"]}
                )  # fmt: skip
    table = {"tokenizers": files, "templates": TEMPLATES, "cases": cases}
    OUT.write_text(json.dumps(table, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{OUT}: {len(cases)} cases, {sum('error' in case for case in cases)} refused")


if __name__ == "__main__":
    main()
