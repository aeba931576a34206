"""OpenAI's completions: POST /v1/completions."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mistral.grammar.constraint import Constraint
from mistral.llm.completion import TokenLogprob
from mistral.llm.partial_completion import Prompt
from mistral.server.answers import Answer, Answers, Piece
from mistral.server.api_error import wrong
from mistral.server.asked import Asked, Choosing, read_choosing
from mistral.server.body import read_fields
from mistral.server.chat_completions import FINGERPRINT
from mistral.server.exchange import Exchange, check_model, new_id, service_of
from mistral.server.fields import Fields
from mistral.server.service import Service
from mistral.server.settings import MAX_CHOICES, MAX_TOP, Defaults
from mistral.server.sse import COMMENT, DONE, Chunks, frame
from mistral.server.structure import read_constraint
from mistral.server.token_texts import TokenTexts, finite

DEFAULT_TOKENS = 16  # of OpenAI's specification
MAX_PROMPTS = 2048


@dataclass(frozen=True)
class CompletionRequest:
    """The contents of a request's body. `logprobs` None: none are wanted."""

    prompts: Sequence[str | Sequence[int]]
    suffix: str | None
    choosing: Choosing
    constraint: Constraint | None
    max_tokens: int
    n: int
    best_of: int
    logprobs: int | None
    echo: bool
    stream: bool
    include_usage: bool

    @classmethod
    def read(cls, fields: Fields, defaults: Defaults) -> CompletionRequest:
        """Raises ApiError naming the field that is wrong."""
        most, options = fields.whole("max_tokens"), fields.inner("stream_options")
        if most is None:
            most = DEFAULT_TOKENS if defaults.max_tokens is None else defaults.max_tokens
        n = fields.whole("n", 1, MAX_CHOICES) or 1
        best_of = fields.whole("best_of", 1, MAX_CHOICES) or n
        stream, echo = fields.switch("stream"), fields.switch("echo")
        if best_of < n:
            raise fields.wrong("best_of", f"must be at least n, which is {n}")
        if best_of > n and stream:
            raise fields.wrong("best_of", "is more than n, and only whole answers can be compared; leave out stream")
        suffix = fields.text("suffix") or None
        if suffix and echo:
            raise fields.wrong("echo", "is for prompts without suffix")
        return cls(
            read_prompts(fields), suffix, read_choosing(fields, defaults), read_constraint(fields), most, n, best_of,
            fields.whole("logprobs", 0, MAX_TOP), echo, stream,
            options is not None and options.switch("include_usage"),
        )  # fmt: skip

    def asked(self, service: Service) -> Asked:
        """The answers that it asks for. Takes a while where texts are long. Raises InputError."""
        choosing, several = self.choosing, len(self.prompts) > 1
        names = [f"prompt {number}" if several else "prompt" for number in range(len(self.prompts))]
        return Asked(
            [self._prompt(service, *each) for each in zip(self.prompts, names, strict=True)], choosing.settings,
            self.max_tokens, choosing.stops, self.best_of, self.logprobs is not None or self.best_of > self.n,
            self.logprobs or 0, self.echo and self.logprobs is not None, min_tokens=choosing.min_tokens,
            ignore_eos=choosing.ignore_eos, constraint=self.constraint,
        )  # fmt: skip

    def _prompt(self, service: Service, given: str | Sequence[int], name: str) -> Prompt:
        if self.suffix is None:
            if not isinstance(given, str):
                service.check_ids(given, "prompt")
            return service.text_prompt(given, name)
        if not isinstance(given, str):
            raise wrong("suffix", "needs prompts that are texts")
        ids = service.tokenizer.encode_fim(given, self.suffix)
        return Prompt(name, ids, ids)


def read_prompts(fields: Fields) -> list[str | list[int]]:
    """The prompts: one or several, as text or ids."""
    given = fields.required("prompt")
    if isinstance(given, str):
        return [given]
    items = fields.items("prompt")
    if items and all(map(_is_id, items)):
        return [_ids(items)]
    if not items or len(items) > MAX_PROMPTS:
        raise fields.wrong("prompt", f"must have from 1 to {MAX_PROMPTS} texts")
    for item in items:
        if not isinstance(item, str) and not (isinstance(item, list) and item and all(map(_is_id, item))):
            raise fields.wrong(
                "prompt", "must be a text, a list of texts, a list of token ids, or a list of such lists"
            )
    return [item if isinstance(item, str) else _ids(item) for item in items]


def _is_id(value: object) -> bool:
    whole = (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )
    return whole and value >= 0  # type: ignore[operator]


def _ids(items: Sequence[int | float]) -> list[int]:
    """Ids; 7.0 is accepted as 7."""
    return [int(item) for item in items]


async def completions(request: Request) -> Response:
    """Continue texts, or fill in between two."""
    service, fields = service_of(request), await read_fields(request)
    check_model(service, fields)
    size, defaults = fields.size, service.settings.defaults
    wanted = await service.in_thread(lambda: CompletionRequest.read(fields, defaults), size=size)
    asked = await service.in_thread(lambda: wanted.asked(service), "suffix" if wanted.suffix else "prompt", size)
    exchange = Exchange(request, asked, new_id("cmpl-"))
    writer = CompletionWriter(service, wanted, exchange.id)
    if wanted.stream:
        return await exchange.streamed(writer.frames)
    return await exchange.whole(writer.whole)


class CompletionWriter:
    """Writes answers as completions, whole or in chunks."""

    def __init__(self, service: Service, wanted: CompletionRequest, response_id: str) -> None:
        self._service, self._wanted, self._id, self._created = service, wanted, response_id, int(time.time())
        self._chunks = Chunks(self._head(), "choices", {"usage": None} if wanted.include_usage else {})

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id, "object": "text_completion", "created": self._created, "model": self._service.name,
            "system_fingerprint": FINGERPRINT,
        }  # fmt: skip

    def whole(self, answers: Answers) -> dict[str, Any]:
        """The response: for each prompt its n answers, or of best_of answers the n with the likeliest tokens."""
        chosen, best_of = list[Answer](), self._wanted.best_of
        for i in range(0, len(answers.answers), best_of):
            chosen += sorted(answers.answers[i : i + best_of], key=_unlikely)[: self._wanted.n]
        if best_of == self._wanted.n:
            chosen = answers.answers
        choices = [self._choice(index, answer) for index, answer in enumerate(chosen)]
        return {**self._head(), "choices": choices, "usage": answers.usage.record()}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        table = LogprobTable(self._service.token_texts, self._wanted.logprobs or 0)
        prompt = self._echo(table, answer) if self._wanted.echo else ""
        table.add(answer.logprobs)
        return {
            "index": index, "text": prompt + answer.text,
            "logprobs": None if self._wanted.logprobs is None else table.record(),
            "finish_reason": answer.finish_reason,
        }  # fmt: skip

    def _echo(self, table: LogprobTable, answer: Answer) -> str:
        """The prompt's text, for `echo`; its tokens are then in the table."""
        prompt = self._prompt_text(answer)
        if self._wanted.logprobs is not None:
            table.add_prompt(answer)
        table.offset = len(prompt)
        return prompt

    def _prompt_text(self, answer: Answer) -> str:
        return self._service.tokenizer.decode(answer.prompt.ids)

    async def frames(self, answers: Answers) -> AsyncGenerator[bytes]:
        """The chunks, and where it is wanted the usage."""
        wanted = self._wanted
        tables = [LogprobTable(self._service.token_texts, wanted.logprobs or 0) for _ in answers.answers]
        echoed = set[int]()
        async for pieces in answers.pieces():
            parts = list[bytes]()
            for piece in pieces:
                table, text, answer = tables[piece.index], piece.text, answers.answers[piece.index]
                if wanted.echo and piece.index not in echoed:
                    echoed.add(piece.index)
                    text = await self._service.in_thread(partial(self._echo, table, answer)) + text
                parts.append(self._chunk(table, piece, text))
            yield b"".join(parts) or COMMENT
        usage = frame({**self._head(), "choices": [], "usage": answers.usage.record()}) if wanted.include_usage else b""
        yield usage + DONE

    def _chunk(self, table: LogprobTable, piece: Piece, text: str) -> bytes:
        table.add(piece.logprobs)
        logprobs = None if self._wanted.logprobs is None else table.taken()
        choice = {"index": piece.index, "text": text, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        return self._chunks.frame(choice)


class LogprobTable:
    """The legacy format of log-probabilities: columns of tokens. `offset`: where the next token starts in the text."""

    def __init__(self, texts: TokenTexts, top: int) -> None:
        self._texts, self._top, self.offset = texts, top, 0
        self._clear()

    def _clear(self) -> None:
        self._tokens, self._logprobs, self._offsets = list[str](), list[float | None](), list[int]()
        self._tops = list[dict[str, float] | None]()

    def add_prompt(self, answer: Answer) -> None:
        """Add the prompt's tokens; the first has no log-probability."""
        ids, logprobs = list(answer.prompt.ids), answer.prompt_logprobs
        tops = answer.prompt_tops or [()] * len(logprobs)
        self._add(ids[0], None, ())
        for token_id, logprob, top in zip(ids[1:], logprobs, tops, strict=False):
            self._add(token_id, logprob, top)

    def add(self, logprobs: Sequence[TokenLogprob]) -> None:
        """Tokens of the answer."""
        for token in logprobs:
            self._add(token.id, token.logprob, token.top)

    def _add(self, token_id: int, logprob: float | None, top: Sequence[tuple[int, float]]) -> None:
        text = self._texts.text_of(token_id)
        self._tokens.append(text)
        self._logprobs.append(None if logprob is None else finite(logprob))
        self._offsets.append(self.offset)
        self.offset += self._texts.length(token_id, begins=self.offset == 0)
        if logprob is None or not self._top:
            self._tops.append(None)
            return
        likely = dict[str, float]()
        for other, value in (*top, (token_id, logprob)):
            likely.setdefault(self._texts.text_of(other), finite(value))
        self._tops.append(likely)

    def record(self) -> dict[str, Any]:
        """The columns."""
        return {
            "tokens": self._tokens, "token_logprobs": self._logprobs,
            "top_logprobs": self._tops if self._top else None, "text_offset": self._offsets,
        }  # fmt: skip

    def taken(self) -> dict[str, Any]:
        """The columns, which begin anew."""
        record = self.record()
        self._clear()
        return record


def _unlikely(answer: Answer) -> float:
    """The mean negative log-probability of an answer's tokens."""
    if not answer.logprobs:
        return math.inf
    return -sum(token.logprob for token in answer.logprobs) / len(answer.logprobs)
