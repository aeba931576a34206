"""A request for answers, independent of the interface that it came by."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mistral.engine.sampling import SamplingSettings
from mistral.errors import InputError
from mistral.grammar.constraint import Constraint
from mistral.llm.partial_completion import Prompt
from mistral.server.fields import Fields, first_given
from mistral.server.settings import MAX_STOP, MAX_STOPS, Defaults

SEEDS = 1 << 31  # those that are drawn are below
LEAST_TOP_P = 1e-9  # stands for 0: the likeliest token alone
TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,17}")  # as it is written
PENALTY = 2.0  # presence and frequency penalties go so far to both sides


@dataclass(frozen=True)
class Asked:
    """Answers to be made: `n` to each prompt.

    max_tokens None: to the end of the context. logprobs: of each token, and of the `top` likeliest ones at its
    position; scores_prompt: of the prompt's tokens, too. is_chat: thinking and calls are separated from text; with
    `one_call`, there is at most one call. min_tokens, ignore_eos, prediction: see `Request`. constraint: the form of
    answers.
    """

    prompts: Sequence[Prompt]
    settings: SamplingSettings
    max_tokens: int | None
    stops: tuple[str, ...] = ()
    n: int = 1
    logprobs: bool = False
    top: int = 0
    scores_prompt: bool = False
    is_chat: bool = False
    one_call: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False
    constraint: Constraint | None = None
    prediction: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """The number of answers in all."""
        return len(self.prompts) * self.n

    @property
    def size(self) -> int:
        """The work before answers can start, in ids; compiling a constraint counts as much work."""
        return sum(len(prompt.ids) for prompt in self.prompts) * self.n + (1 << 20) * (self.constraint is not None)


@dataclass(frozen=True)
class Choosing:
    """The sampling settings in the fields of a request."""

    settings: SamplingSettings = field(default_factory=SamplingSettings)
    stops: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False


def read_choosing(fields: Fields, defaults: Defaults, stop: str = "stop", most_temperature: float = 100.0) -> Choosing:
    """The sampling settings of a request; `stop`: the name of the field of stop strings.

    Raises ApiError naming an invalid field.
    """
    stops = fields.texts(stop)
    if len(stops) > MAX_STOPS or any(len(text) > MAX_STOP for text in stops):
        raise fields.wrong(stop, f"may have {MAX_STOPS} texts of {MAX_STOP} characters at most")
    top_p = fields.number("top_p", 0, 1)
    top_k = fields.whole("top_k", -1)
    repetition = first_given(fields.number("repetition_penalty"), fields.number("repeat_penalty"))
    try:
        chosen = SamplingSettings(
            temperature=_or(fields.number("temperature", 0, most_temperature), defaults.temperature),
            top_p=max(LEAST_TOP_P, _or(top_p, defaults.top_p)),
            top_k=defaults.top_k if top_k is None else max(0, top_k),
            min_p=_or(fields.number("min_p", 0, 1), defaults.min_p),
            repetition_penalty=_or(repetition, defaults.repetition_penalty),
            seed=read_seed(fields, defaults.seed),
            presence_penalty=_or(fields.number("presence_penalty", -PENALTY, PENALTY), 0.0),
            frequency_penalty=_or(fields.number("frequency_penalty", -PENALTY, PENALTY), 0.0),
            logit_bias=read_bias(fields),
        )
    except InputError as error:
        raise fields.wrong(str(error).partition(" ")[0], str(error).partition(" ")[2]) from None
    return Choosing(chosen, stops or defaults.stop, fields.whole("min_tokens") or 0, fields.switch("ignore_eos"))


def read_seed(fields: Fields, default: int | None) -> int:
    """The seed: the request's (OpenAI's or Mistral's field), or the server's, or a random one; -1 means random."""
    seed = first_given(*(fields.whole(name, -(1 << 63), (1 << 64) - 1) for name in ("seed", "random_seed")), default)
    return random.randrange(SEEDS) if seed in (None, -1) else seed % (1 << 64)


def read_bias(fields: Fields) -> dict[int, float]:
    """The logit bias: an object of numbers by id, or a list of pairs."""
    given = fields.any("logit_bias")
    if given is None:
        return {}
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise fields.wrong("logit_bias", "must be an object of numbers from -100 to 100 by token id")
    found = dict[int, float]()
    for token, value in pairs:
        if isinstance(token, bool) or not TOKEN_ID.fullmatch(str(token)):
            raise fields.wrong("logit_bias", f"must have numbers by token id, and {str(token)[:40]!r} is none")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
            raise fields.wrong("logit_bias", f"must have numbers from -100 to 100 by token id, and {token} has not")
        found[int(token)] = float(value)
    return found


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
