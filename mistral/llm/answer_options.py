"""The options of answers, checked."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

from mistral.engine.sampling import SamplingSettings
from mistral.errors import InputError
from mistral.grammar.constraint import Constraint

MAX_SEED = 1 << 31  # random seeds are below, which is short enough to type

FORMS = ("json_schema", "regex", "grammar", "choices")  # options for structured output


class AnswerOptions(TypedDict, total=False):
    """Keyword arguments of `generate`, `chat` and `stream`; see `Answering` for their meaning and defaults."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    n: int
    logprobs: int | None
    reasoning_effort: str | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    min_tokens: int
    ignore_eos: bool
    json_schema: object
    regex: str | None
    grammar: str | None
    choices: Sequence[str] | None


@dataclass(frozen=True)
class Answering:
    """The options of answers.

    max_tokens: the most new tokens; None: to the end of the answer or of the context. temperature: 0 takes the
    likeliest token. seed: None or -1 is a random one, which the completion has. stop: an answer ends before any of
    these texts. n: the number of answers to each prompt, which is read once. logprobs: log-probabilities of the tokens,
    and of this many of the likeliest ones. reasoning_effort: for templates of version v15, whether the model thinks
    before it answers, "none" or "high"; None: the template's default. presence_penalty, frequency_penalty and
    logit_bias: as in OpenAI's interface. min_tokens: the least number of tokens. ignore_eos: go on to max_tokens where
    the model ends its answer.

    The form of the answers is at most one of: json_schema, a JSON schema as a dictionary, as JSON text, or a pydantic
    class; regex, a regular expression that the whole answer matches; grammar, in the Lark syntax of llguidance;
    choices, texts of which the answer is one. An answer with finish_reason "length" was cut, and may be only a prefix
    of such a text. Thinking before an answer has no form.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    n: int = 1
    logprobs: int | None = None
    reasoning_effort: str | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    ignore_eos: bool = False
    json_schema: object = None
    regex: str | None = None
    grammar: str | None = None
    choices: Sequence[str] | None = None

    @classmethod
    def of(cls, options: AnswerOptions, single: bool = False, chat: bool = True) -> Answering:
        """The options with their defaults, checked, and with a seed.

        `single`: n must be 1; `chat`: for a conversation, which allows reasoning_effort. Raises InputError for an
        unknown option or an invalid value.
        """
        if unknown := options.keys() - AnswerOptions.__annotations__.keys():
            raise InputError(f"{min(unknown)}: no such option; {', '.join(AnswerOptions.__annotations__)} are")
        self = cls(**options)
        for name, least in (("max_tokens", 0), ("n", 1), ("logprobs", 0), ("min_tokens", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise InputError(f"must be a whole number of at least {least}", option=name, value=value)
        if not all(isinstance(text, str) for text in self.stops):
            raise InputError("must be a text or a list of texts", option="stop")
        if single and self.n != 1:
            raise InputError("a stream has one answer; use generate or chat for more", option="n", value=self.n)
        if not chat and self.reasoning_effort is not None:
            value = self.reasoning_effort
            raise InputError("only a conversation has that; use chat", option="reasoning_effort", value=value)
        drawn = secrets.randbelow(MAX_SEED) if self.seed in (None, -1) else self.seed
        self = replace(self, seed=drawn)
        self.settings(0)
        self.constraint()
        return self

    def constraint(self) -> Constraint | None:
        """The form of the answers, if any. Raises InputError for an invalid one, and for several."""
        given = [name for name in FORMS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"cannot be together with {given[0]}; leave one out", option=given[1])
        if not given:
            return None
        if given[0] == "json_schema":
            return Constraint.json_schema(self.json_schema)
        if self.choices is not None:
            return Constraint.choice(self.choices, "choices")
        return Constraint.regex(self.regex) if self.regex is not None else Constraint.lark(self.grammar or "")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def settings(self, sample: int) -> SamplingSettings:
        """The sampling settings of answer number `sample`. Raises InputError for a value out of range."""
        return SamplingSettings(
            self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty, self.seed or 0, sample,
            self.presence_penalty, self.frequency_penalty, self.logit_bias,
        )  # fmt: skip
