"""A child process that handles untrusted data with limits of memory and time; `bounded_process.py` starts it.

It runs as a script and imports nothing of the project. Requests and replies are JSON after eight bytes of length, on
standard input and output. It renders chat templates with jinja2 as transformers does, encodes with a `tokenizer.json`,
and compiles grammars for llguidance. A request that takes too much processor time ends the process, and so may one that
takes too much memory.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    import llguidance
    import tokenizers

MOST_OUTPUT = 16 << 20  # characters of a rendered conversation
MOST_IDS = 1 << 24  # of a text, and of a vocabulary
LOADED: dict[str, tokenizers.Tokenizer] = {}  # by path: what this process has been asked to load
VOCABULARY: list[llguidance.LLTokenizer] = []  # the one that grammars are compiled over


class Refused(Exception):  # noqa: N818  the answer, not an error of this program
    """The data is invalid; the message says why."""


@lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    """A compiled chat template, in the same environment as in transformers."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks answers for training; what is inside is rendered as it stands."""

        tags = {"generation"}  # noqa: RUF012  as the base class has it

        def parse(self, parser: Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: object) -> None:
        raise Refused(str(message))

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return re.sub(r"\\u(e[0-9a-f]{3}|f[0-8][0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(source)


def render(request: Mapping[str, Any]) -> str:
    """The text of a template rendered with variables, at most `MOST_OUTPUT` characters."""
    import jinja2

    parts, length = [], 0
    try:
        for part in compiled(request["template"]).generate(request["variables"]):
            parts.append(part)
            length += len(part)
            if length > MOST_OUTPUT:
                raise Refused(f"it writes more than {MOST_OUTPUT} characters")
    except jinja2.TemplateError as error:
        line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise Refused(f"{error.message or type(error).__name__}{line}") from None
    return "".join(parts)


def load(request: Mapping[str, Any]) -> dict[str, Any]:
    """Load a tokenizer.json -> its pieces by id, and its added tokens."""
    import tokenizers

    with open(request["path"], encoding="utf-8-sig") as file:
        text = file.read()
    table = json.loads(text)
    shown = set()
    for token in table.get("added_tokens") or []:
        if not token["special"] and token["content"][:1] in ("<", "[") and token["content"][-1:] in (">", "]"):
            shown.add(token["id"])
            token["special"] = True  # else a user's text could become it
    raw = tokenizers.Tokenizer.from_str(json.dumps(table) if shown else text)
    raw.no_truncation()
    raw.no_padding()
    LOADED[request["path"]] = raw
    pieces = [(number, piece) for piece, number in raw.get_vocab(with_added_tokens=True).items()]
    if any(number >= MOST_IDS for number, _ in pieces):
        raise Refused("its ids are larger than those of any vocabulary")
    added = [
        [number, token.content, token.special and number not in shown, token.lstrip, token.rstrip]
        for number, token in raw.get_added_tokens_decoder().items()
    ]
    return {"pieces": pieces, "added": added}


def load_table(request: Mapping[str, Any]) -> bool:
    """Load a tokenizer that is not in a tokenizer.json but in the request, under the name of `path`."""
    import tokenizers

    LOADED[request["path"]] = tokenizers.Tokenizer.from_str(json.dumps(request["table"]))
    return True


def encode(request: Mapping[str, Any]) -> list[int]:
    """Ids of a text. With `control`, spelled-out control tokens become their ids; otherwise they are plain text."""
    raw, text = LOADED[request["path"]], request["text"]
    raw.encode_special_tokens = not request["control"]
    ids: list[int] = raw.encode(text, add_special_tokens=False).ids
    if len(ids) > 64 + 16 * len(text.encode()):
        raise Refused("it makes many times the text out of a text")
    return ids


def try_pattern(request: Mapping[str, Any]) -> bool:
    """Split some texts by a tekken.json's regular expression, as tiktoken does."""
    import tiktoken

    encoding = tiktoken.Encoding(
        "tried", pat_str=request["pattern"], mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    for text in request["texts"]:
        encoding.encode(text, disallowed_special=())
    return True


class SingleBytes:
    """A vocabulary of the 256 bytes behind `size` ids, of which some are control tokens that have names."""

    is_tokenizer_wrapper = True

    def __init__(self, size: int, names: Mapping[str, str]) -> None:
        self.tokens = [b""] * size + [bytes([byte]) for byte in range(256)] + [b"\xff</end>"]
        self.size, self.bos_token_id, self.eos_token_id = size, None, size + 256
        self.special_token_ids = [*map(int, names), self.eos_token_id]
        for token, name in names.items():
            self.tokens[int(token)] = b"\xff" + name.encode()

    def __call__(self, text: str | bytes) -> list[int]:
        """The bytes of a text."""
        return [self.size + byte for byte in (text.encode() if isinstance(text, str) else text)]


def learn_names(request: Mapping[str, Any]) -> bool:
    """Learn the names of control tokens, which grammars may ask for."""
    from llguidance import LLTokenizer

    words: Any = SingleBytes(request["size"], request["names"])
    VOCABULARY[:] = [LLTokenizer(words)]
    return True


def compile_grammar(request: Mapping[str, Any]) -> str:
    """Compile a grammar over single bytes, and find what may come first -> what is wrong with it, "" for nothing."""
    from llguidance import LLMatcher, LLParserLimits

    signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # RLIMIT_CPU counts whole seconds
    limits = LLParserLimits(max_lexer_states=request["states"], verbose_errors=False)
    matcher = LLMatcher(VOCABULARY[0], request["grammar"], log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    empty = matcher.is_stopped() and not matcher.is_error()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return "no text but the empty one fits it" if empty else str(matcher.get_error())


OPERATIONS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "render": render, "load": load, "encode": encode, "try_pattern": try_pattern,
    "load_table": load_table,
    "learn_names": learn_names, "compile_grammar": compile_grammar,
}  # fmt: skip


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to a request: {"value": ...}, or {"error": reason, "refused": whether the data itself is invalid}."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + int(request["seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        return {"value": OPERATIONS[request["operation"]](request)}
    except MemoryError:
        return {"error": "it takes too much memory", "refused": True}
    except Refused as error:
        return {"error": str(error), "refused": True}
    except BaseException as error:  # a panic of a Rust library is no Exception
        return {"error": f"{type(error).__name__}: {error}"[:1000], "refused": False}


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    memory, hard = int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        memory = min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    while header := source.read(8):
        request = json.loads(source.read(int.from_bytes(header, "little")))
        reply = json.dumps(answer(request)).encode()
        target.write(len(reply).to_bytes(8, "little") + reply)
        target.flush()


if __name__ == "__main__":
    main()
