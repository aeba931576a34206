"""The options of the complete command, and the prompts that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mistral.cli.complete.prompt_file import Prompt, read_prompt, read_prompts
from mistral.cli.input_text import read_text_file
from mistral.cli.model_options import Options
from mistral.cli.options import CHOICE, FORM, MACHINE, OUTPUT, fixed, option, text_option
from mistral.cli.session import EFFORTS
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import MAX_ROWS
from mistral.errors import InputError
from mistral.grammar.constraint import Constraint
from mistral.tokenizer.messages import Message

MOST_SAMPLES = 1 << 16


@dataclass(frozen=True)
class CompleteOptions(Options):
    """What a completion takes; a line of a JSONL file may have values of its own for some of it."""

    max_tokens: int | None = option(  # type: ignore[assignment]  # None: to the end
        None,
        "New tokens for each prompt, at most; up to the end of the answer or of the context when left out.",
        CHOICE,
    )
    prompt: str | None = text_option("The text to continue, or @FILE; standard input when left out.")
    fim: tuple[str, str] | None = option(
        None, "Fill in between a prefix and a suffix, each a text or @FILE; for models made for it, such as Codestral."
    )
    input: str | None = option(None, "Prompts from this JSONL file, or from standard input for -.", file=True)
    out: str | None = option(None, "Write results to this JSONL file, and go on where it ends.", OUTPUT, file=True)
    instruct: bool = option(False, "Each prompt is a question, put in the checkpoint's own chat template.")
    chat_template: str | None = option(None, "A file with the chat template to use in place of the checkpoint's own.")
    system: str | None = text_option("With --instruct: the system prompt, or @FILE.")
    reasoning_effort: str | None = option(
        None, "With --instruct: whether the model thinks before it answers, none or high; templates of v15 alone.",
        choices=EFFORTS,
    )  # fmt: skip
    json_schema: str | None = option(None, "Each answer is JSON by the schema in this file.", FORM, file=True)
    regex: str | None = text_option("Each answer matches this regular expression as a whole, or that in @FILE.", FORM)
    grammar: str | None = option(None, "Each answer is of the grammar in this file, in Lark syntax.", FORM, file=True)
    presence_penalty: float = option(
        0.0, "Above 0, tokens that are in the answer become less likely; from -2 to 2.", CHOICE
    )
    frequency_penalty: float = option(
        0.0, "Above 0, tokens become less likely with each time they are in the answer; from -2 to 2.", CHOICE
    )
    min_tokens: int = option(0, "New tokens for each prompt, at least.", CHOICE)
    ignore_eos: bool = option(False, "Go on where the model ends its answer, up to --max_tokens.", CHOICE)
    logit_bias: Mapping[str, float] | None = fixed(None)  # of a line of a file
    n: int = option(1, "Samples for each prompt.", OUTPUT)
    logprobs: int | None = option(
        None, "The log-probability of each token, and of this many of the likeliest ones at its position.", OUTPUT
    )
    prompt_cache: str | None = option(
        None,
        "A file for the cache of the first prompt; prompts reuse the prefix that they share with it.",
        file=True,
    )
    batch_size: int = option(
        MAX_ROWS, "Most prompts in the batch at once; the next one takes the place of a finished one.", MACHINE
    )

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is loaded."""
        super().check()
        given = [f"--{name}" for name in ("prompt", "fim", "input") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{given[1]}: cannot be together with {given[0]}; leave one out")
        if self.fim is not None and self.instruct:
            raise InputError("--instruct: a chat template has no place for --fim; leave one out")
        if self.system is not None and not self.instruct:
            raise InputError("--system: needs --instruct")
        if self.reasoning_effort is not None and not (self.instruct or self.input):
            raise InputError("only a conversation has that; add --instruct", option="reasoning_effort")
        if not 1 <= self.n <= MOST_SAMPLES:
            raise InputError(f"must be from 1 to {MOST_SAMPLES}", option="n", value=self.n)
        if self.logprobs is not None and self.logprobs < 0:
            raise InputError("must be 0 or more", option="logprobs", value=self.logprobs)
        if self.min_tokens < 0:
            raise InputError("must be 0 or more", option="min_tokens", value=self.min_tokens)
        forms = [f"--{name}" for name in ("json_schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(forms) > 1:
            raise InputError(f"{forms[1]}: cannot be together with {forms[0]}; leave one out")
        if self.batch_size < 1:
            raise InputError("must be at least 1", option="batch_size", value=self.batch_size)

    @property
    def shows_text(self) -> bool:
        """Whether answers are shown for people to read, and not as JSON."""
        return not (self.json or self.input or self.out)

    def prompts(self) -> list[Prompt]:
        """The prompts that the options name, in order. Raises InputError for a file or line that has none."""
        if self.input is not None:
            found = read_prompts(self.input)
        elif self.fim is not None:
            prefix, suffix = self.fim
            found = [Prompt("--fim", prefix, suffix, shown={"prompt": prefix, "suffix": suffix})]
        elif self.prompt is not None:
            found = [Prompt("--prompt", self.prompt, shown={"prompt": self.prompt})]
        else:
            found = [read_prompt()]
        constraint = self.constraint()
        if constraint:
            found = [replace(each, constraint=each.constraint or constraint, shared=constraint) for each in found]
        return [self._asked(prompt) for prompt in found] if self.instruct else found

    def constraint(self) -> Constraint | None:
        """The form that all answers must have, if any. Raises InputError for a file that is none."""
        try:
            if self.json_schema is not None:
                return Constraint.json_schema(read_text_file(self.json_schema))
            if self.grammar is not None:
                return Constraint.lark(read_text_file(self.grammar))
        except InputError as error:
            where = f"{'--json_schema' if self.json_schema is not None else '--grammar'}"
            raise error if error.option else error.within(where) from None
        return None if self.regex is None else Constraint.regex(self.regex)

    def settings(self) -> SamplingSettings:
        """The sampling settings that the options make up. Raises InputError for one out of range."""
        bias = {_id(token): value for token, value in (self.logit_bias or {}).items()}
        return replace(
            super().settings(), presence_penalty=self.presence_penalty, frequency_penalty=self.frequency_penalty,
            logit_bias=bias,
        )  # fmt: skip

    def _asked(self, prompt: Prompt) -> Prompt:
        if prompt.messages:
            return prompt
        if prompt.suffix is not None:
            raise InputError(f"{prompt.where}: a chat template has no place for a suffix; leave out --instruct")
        system = (Message.system(self.system),) if self.system is not None else ()
        return replace(prompt, messages=(*system, Message("user", prompt.text)))


def _id(token: str) -> int:
    """The id that is a key of a JSON object. Raises InputError for any other key."""
    if not token.isascii() or not token.isdigit() or len(token) > 9:
        raise InputError(f"logit_bias must have ids as its keys, not {token[:40]!r}")
    return int(token)
