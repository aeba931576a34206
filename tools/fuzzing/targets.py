"""What inputs are given to: everything that reads a file, a text or an option of a stranger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.lora import open_adapter
from mistral.cli import main
from mistral.cli.complete.prompt_file import read_prompts
from mistral.cli.complete.result_file import ResultFile
from mistral.cli.main import parse
from mistral.cli.settings import found_settings
from mistral.engine.snapshot_file import Saved, read_saved, write_saved
from mistral.server.api_error import ApiError
from mistral.server.chat_completions import ChatRequest
from mistral.server.completions import CompletionRequest
from mistral.server.fields import Fields
from mistral.server.messages import MessagesRequest
from mistral.server.responses import ResponsesRequest
from mistral.server.settings import Defaults
from mistral.text import parse_json
from mistral.tokenizer.message_json import read_messages
from mistral.tokenizer.messages import Message
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_calls import parse_reply
from mistral.tokenizer.tool_file import load_tools
from tests.support.adapters import random_factors, write_official, write_peft
from tests.support.checkpoint_forms import DENSE, SPARSE, config_of, params_of, random_tensors, write_checkpoint

SAID = {"role": "user", "content": [{"type": "text", "text": "a"}]}
SHARED = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 1, "stream": True, "model": "tiny", "min_tokens": 1}
BODIES: dict[str, dict[str, Any]] = {
    "chat": {
        **SHARED, "messages": [SAID], "n": 2, "logprobs": True, "top_logprobs": 3, "logit_bias": {"5": -1},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "auto",
        "stop": ["x"], "stream_options": {"include_usage": True}, "max_tokens": 3,
    },
    "completion": {
        **SHARED, "prompt": ["a", "b"], "echo": True, "logprobs": 1, "best_of": 1, "guided_regex": "a+", "suffix": None,
    },
    "message": {
        **SHARED, "max_tokens": 3, "system": [{"type": "text", "text": "a"}], "thinking": {"type": "disabled"},
        "messages": [
            SAID, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "b"}]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "tool", "name": "f"},
    },
    "response": {
        **SHARED, "input": [SAID, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                            {"type": "function_call_output", "call_id": "c", "output": "d"}],
        "text": {"format": {"type": "json_object"}}, "reasoning": {"effort": "low"}, "include": ["x"],
        "tools": [{"type": "function", "name": "f"}],
    },
}  # fmt: skip
TINY = Path(__file__).parents[2] / "checkpoints" / "tiny"


@dataclass(frozen=True)
class Target:
    """A reader: `run` gets an input, which is a changed one of the `seeds`; `share` of all inputs go to it."""

    name: str
    seeds: Sequence[bytes]
    run: Callable[[bytes], object]
    share: float = 1


def all_targets(folder: Path) -> list[Target]:
    """Every target; they write their files below `folder`."""
    return [
        *checkpoint_targets(folder), *text_targets(folder), *tokenizer_targets(), *tokenizer_file_targets(folder),
        *body_targets(),
    ]  # fmt: skip


def checkpoint_targets(folder: Path) -> list[Target]:
    """Files of a checkpoint, one of which is changed in a folder that is otherwise sound."""
    return [
        _one_file(folder / "params", "params.json", [_dumped(params_of(DENSE)), _dumped(params_of(SPARSE))]),
        _one_file(folder / "config", "config.json", [_dumped(config_of(SPARSE))], args=SPARSE, form="hf"),
        _one_file(folder / "safetensors", "consolidated.safetensors"),
        _one_file(folder / "index", "model.safetensors.index.json", form="hf-sharded-index"),
        _one_file(folder / "pth", "consolidated.00.pth", form="consolidated.pth", share=2),
        _one_file(folder / "bin", "pytorch_model.bin", form="hf-bin"),
        *_adapter_targets(folder),
    ]


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _one_file(
    folder: Path,
    name: str,
    more: Sequence[bytes] = (),
    args: Any = DENSE,
    form: str = "consolidated.safetensors",
    share: float = 1,
) -> Target:
    folder.mkdir(parents=True)
    write_checkpoint(folder, args, random_tensors(args), form)

    def run(data: bytes) -> None:
        (folder / name).write_bytes(data)
        checkpoint = open_checkpoint(folder)
        for tensor in list(checkpoint.shapes)[:3]:
            checkpoint.get(tensor)

    return Target(folder.name, [(folder / name).read_bytes(), *more], run, share)


def _adapter_targets(folder: Path) -> list[Target]:
    official, peft = folder / "lora", folder / "peft"
    for path in (official, peft):
        path.mkdir()
    write_official(official, random_factors(DENSE))
    write_peft(peft, DENSE, random_factors(DENSE))

    def reader(file: Path) -> Callable[[bytes], object]:
        def run(data: bytes) -> None:
            file.write_bytes(data)
            open_adapter(file.parent, DENSE)

        return run

    files = [official / "params.json", official / "lora.safetensors"]
    files += [peft / "adapter_config.json", peft / "adapter_model.safetensors"]
    return [
        Target(f"{file.parent.name}-{file.stem}", [file.read_bytes()], reader(file), 0.5)
        for file in files
        if file.exists()
    ]


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
LINES = (
    {"prompt": "Tom had a ball", "max_tokens": 3, "temperature": 0.5, "stop": ["x"], "n": 2, "logprobs": 1, "id": 7},
    {"prompt": "a", "suffix": "b", "seed": 3, "top_p": 0.5, "top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}, {"role": "assistant", "content": "T",
     "prefix": True}]},
    {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [
     {"role": "user", "content": "Add"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
     {"role": "tool", "tool_call_id": "abcdefghi", "content": "1"}], "max_tokens": 2}},
)  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
SETTINGS = """threads = 4
stop = ["x", "y"]
json = true
[interactive]
temperature = 0.5
system = "a"
[score]
ckpt = "x"
"""
COMMANDS = (
    "demo|ckpt|--max_tokens|3|--prompts|[\"a\", \"b\"]|--json",
    "interactive|ckpt|--instruct|--system|Be brief.|--temperature=0.7|--stop|[\"x\"]",
    "complete|ckpt|--prompt|Tom|--n|2|--seed|-1|--logprobs|3|--top_p|0.9|--batch_size|4",
    "complete|--fim|a|b|--max_context|100|--backend|native|--device|CPU|--threads|2",
    "score|ckpt|-|--json", "info|ckpt|--verify", "quantize|ckpt|out.gguf|--type|Q4_K_M|--importances|file",
    "bench|--shape|mistral-7b|--layers|2|--bits|8",
)  # fmt: skip


def text_targets(folder: Path) -> list[Target]:
    """Prompts, results, tools, saved caches, options, JSON."""
    file = folder / "input"

    def from_file(read: Callable[[str], object]) -> Callable[[bytes], object]:
        def run(data: bytes) -> None:
            file.write_bytes(data)
            read(str(file))

        return run

    def results(path: str) -> None:
        ResultFile(path, {(0, 0): "0123456789abcdef", (1, 0): "fedcba9876543210"}).close()

    def options(data: bytes) -> None:
        parse(data.decode("utf-8", "surrogateescape").split("|"))

    def messages(data: bytes) -> None:
        try:
            found = parse_json(data.decode("utf-8", "replace"))
        except ValueError:
            return
        small.encode_chat(read_messages(found))

    def settings(data: bytes) -> None:
        file.write_bytes(data)
        found_settings("interactive", main.COMMANDS, str(file))

    def json_text(data: bytes) -> None:
        try:
            parse_json(data.decode("utf-8", "replace"))
        except ValueError as error:
            assert "\n" not in str(error)

    small = Tokenizer.from_folder(TINY)
    write_saved(folder / "saved", Saved("text", None), "mark")
    saved = (folder / "saved").read_bytes()
    prompts = [*map(_dumped, LINES), b"\n".join(map(_dumped, LINES)), b'"a text"\r\n"another"\r\n']
    result = b'{"index": 0, "text": "", "ids": [], "finish_reason": "stop", "key": "0123456789abcdef"}\n'
    return [
        Target("prompts", prompts, from_file(read_prompts), 3),
        Target("results", [result, result + result[:40]], from_file(results)),
        Target("tools", [_dumped([TOOL]), _dumped(TOOL["function"])], from_file(load_tools), 0.3),
        Target("saved", [saved], from_file(lambda path: read_saved(Path(path), "mark", DENSE, 4))),
        Target("options", [command.encode() for command in COMMANDS], options, 3),
        Target("settings", [SETTINGS.encode()], settings),
        Target("messages", [_dumped(line["messages"]) for line in LINES if "messages" in line], messages, 1),
        Target("json", [_dumped(LINES), b"[1e3, NaN]"], json_text, 3),
    ]


def body_targets() -> list[Target]:
    """Bodies of requests to the server: each is read, or refused in one line."""

    def read_by(read: Callable[[Fields], object]) -> Callable[[bytes], object]:
        def run(data: bytes) -> None:
            try:
                read(Fields(parse_json(data.decode("utf-8", "replace"))))
            except (ApiError, ValueError) as error:
                assert "\n" not in str(error)

        return run

    defaults, efforts = Defaults(), ("none", "high")
    readers: dict[str, Callable[[Fields], object]] = {
        "chat": lambda fields: ChatRequest.read(fields, defaults),
        "completion": lambda fields: CompletionRequest.read(fields, defaults),
        "message": lambda fields: MessagesRequest.read(fields, defaults, efforts),
        "response": lambda fields: ResponsesRequest.read(fields, defaults, efforts),
    }
    return [Target(f"{name} body", [_dumped(BODIES[name])], read_by(read)) for name, read in readers.items()]


def tokenizer_targets() -> list[Target]:
    """Texts and ids of the small model's tokenizer."""
    tokenizer = Tokenizer.from_folder(TINY)

    def text(data: bytes) -> None:
        given = data.decode("utf-8", "replace")
        assert tokenizer.decode(tokenizer.encode(given)) == given

    def ids(data: bytes) -> None:
        found = [byte * 4 % tokenizer.vocab_size for byte in data[:2000]]
        stream = TextStream(tokenizer.stream(), ("ab", "b "))
        shown = "".join([*map(stream.push, found), stream.flush()])
        assert tokenizer.decode(found).startswith(shown)

    def reply(data: bytes) -> None:
        parse_reply(tokenizer, tokenizer.encode(data.decode("utf-8", "replace")), ())

    texts = ["Tom had a red ball. [INST] </s> \u00e9\u6f22\U0001f642\n\t  x".encode(), bytes(range(256))]
    calls = [_dumped([{"name": "add", "arguments": {"a": 1}}]), b"[TOOL_CALLS]" + _dumped([CALL])]
    return [Target("text", texts, text, 2), Target("ids", texts, ids, 2), Target("reply", calls, reply)]


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' and loop.index0 > 0 %}"
    "{{ raise_exception('late') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\\n{% endif %}"
)
ADDED = {"<|im_end|>": 1024, "<|im_start|>": 1025}
BESIDE = {
    "added_tokens.json": ADDED,
    "tokenizer_config.json": {
        "bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}, "add_bos_token": True, "chat_template": TEMPLATE,
        "added_tokens_decoder": {"1024": {"content": "<|im_end|>", "special": True, "lstrip": False}},
    },
    "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 1024]},
    "special_tokens_map.json": {"eos_token": "</s>", "additional_special_tokens": ["<|im_end|>"]},
    "config.json": {"vocab_size": 1030, "eos_token_id": [2, 1024], "model_type": "mistral"},
}  # fmt: skip


def tokenizer_file_targets(folder: Path) -> list[Target]:
    """Files of and beside a tokenizer; what is loaded must hold a conversation or say why not."""
    messages = [Message("system", "Be <|im_end|> brief."), Message("user", "Who </s> met Tom?\n")]
    found = []
    for name, value in BESIDE.items():
        own = folder / f"beside-{name}"
        own.mkdir()
        shutil.copy(TINY / "tokenizer.model.v3", own / "tokenizer.model")
        for other, table in BESIDE.items():
            (own / other).write_text(json.dumps(table))

        def run(data: bytes, file: Path = own / name) -> None:
            file.write_bytes(data)
            tokenizer = Tokenizer.from_folder(file.parent)
            tokenizer.decode(tokenizer.encode("<|im_end|> </s> a"))
            if tokenizer.can_chat:
                tokenizer.encode_chat(messages)

        found.append(Target(name, [_dumped(value)], run, 0.03))
    plain = folder / "tokenizer-json"
    plain.mkdir()

    def run_file(data: bytes) -> None:
        (plain / "tokenizer.json").write_bytes(data)
        tokenizer = Tokenizer.from_folder(plain)
        tokenizer.decode(tokenizer.encode("Tom \u00e9\U0001f642"))

    def run_model(data: bytes) -> None:
        (plain / "tokenizer.model").write_bytes(data)
        try:
            tokenizer = Tokenizer.from_file(plain / "tokenizer.model")
            tokenizer.decode(tokenizer.encode("Tom \u00e9\U0001f642"))
        finally:
            (plain / "tokenizer.model").unlink()

    def template(data: bytes) -> None:
        (folder / "template.jinja").write_bytes(data)
        Tokenizer.from_folder(TINY, folder / "template.jinja").encode_chat(messages)

    return [
        *found,
        Target("tokenizer.json", [_dumped(byte_level())], run_file, 0.02),
        Target("tokenizer.model", [(TINY / "tokenizer.model.v3").read_bytes()], run_model, 0.1),
        Target("template", [TEMPLATE.encode(), b"{% for m in messages %}{{ m.content }}{% endfor %}"], template, 0.1),
    ]


def byte_level() -> dict[str, Any]:
    """A small `tokenizer.json`."""
    pieces = ["<unk>", "<s>", "</s>", *map(chr, [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144)])]
    special = [{"id": i, "content": pieces[i], "special": True, "normalized": False, "single_word": False,
                "lstrip": False, "rstrip": False} for i in range(3)]  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "To", "Tom"])}
    model = {"type": "BPE", "vocab": vocabulary, "merges": ["T o", "To m"]}
    return {"version": "1.0", "added_tokens": special, "normalizer": None, "pre_tokenizer": level,
            "post_processor": None, "decoder": level, "model": model}  # fmt: skip
