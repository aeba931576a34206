"""Write tests/data/chat_golden.json: conversations in chat templates, as transformers writes and encodes them.

    python tools/make_chat_golden.py

Needs transformers and jinja2 (made with 5.24 and 3.1), which need no torch for this. Each case has a template of
tests/data/chat_templates, which are of the forms that families of models have, a conversation, and what
`apply_chat_template` makes of them: the text, and its ids under one of three small tokenizers that are made here, one
byte-level and two SentencePiece-like. Their tokenizer.json lies in the table too.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
TEXTS = ["The cat sat on the mat and the dog ran to town.", "user system assistant Instruction Response", "What is it?"]
CONTROL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>",
           "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
           "[/TOOL_RESULTS]"]  # fmt: skip

TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((DATA / "chat_templates").iterdir())}
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
    table, out = {"tokenizers": files, "cases": cases}, DATA / "chat_golden.json"
    out.write_text(json.dumps(table, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{out}: {len(cases)} cases, {sum('error' in case for case in cases)} refused")


if __name__ == "__main__":
    main()
