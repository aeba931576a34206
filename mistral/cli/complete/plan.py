"""The results to compute for prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.fingerprint import fingerprint
from mistral.cli.complete.complete_options import CompleteOptions
from mistral.cli.complete.prompt_file import Prompt
from mistral.engine.engine import context_limit
from mistral.engine.requests import Request, check_request
from mistral.errors import InputError
from mistral.grammar.grammar import Grammar
from mistral.grammar.grammars import Grammars
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.thoughts import ThinkTokens, ThoughtStream
from mistral.tokenizer.tokenizer import Tokenizer

LATER = ("presence_penalty", "frequency_penalty", "logit_bias")  # settings that results of before do not know


@dataclass(frozen=True)
class Item:
    """A result to compute: sample number `sample` of prompt number `index`. `key`: a digest of all that it depends on.

    think_tokens: those around thoughts, in a conversation; thinks: the prompt ends within a thought.
    """

    index: int
    sample: int
    prompt: Prompt
    request: Request
    options: CompleteOptions
    key: str
    think_tokens: ThinkTokens | None = None
    thinks: bool = False

    def parts(self) -> ThoughtStream:
        """What takes thoughts out of the answer."""
        return ThoughtStream(self.think_tokens, self.thinks)


def plan(
    options: CompleteOptions, seed: int, prompts: Sequence[Prompt], checkpoint: Checkpoint, tokenizer: Tokenizer
) -> list[Item]:
    """The results that prompts ask for; `seed` is for those that are drawn and have none of their own.

    The request of an answer that goes on to its end has room for one token; see `Engine.answer_rooms`. Raises
    InputError, naming the prompt, for one that cannot be served.
    """
    limit = context_limit(checkpoint.args, options.max_context)
    model: list[object] = []
    if options.out is not None:  # what was written before must be of this model; else no file is looked into for it
        model = [fingerprint(checkpoint, options.bits), options.precise, options.max_context]
    items, excluded, grammars = [], tokenizer.uncovered(), Grammars(tokenizer)
    for index, prompt in enumerate(prompts):
        chosen = own_options(options, prompt)
        chosen = chosen.with_seed(seed) if chosen.draws_seed else chosen
        max_tokens = 1 if chosen.max_tokens is None else chosen.max_tokens
        ids, continued = prompt.encode(tokenizer, chosen.reasoning_effort)
        tokens = tokenizer.think_tokens if prompt.messages else None
        thinks = bool(tokens) and tokenizer.thinks_after(ids)
        grammar = compiled(grammars, prompt, tokenizer.begins_text(continued), tokens, thinks)
        for sample in range(chosen.n):
            request = Request(
                ids, max_tokens, replace(chosen.settings(), sample=sample), tokenizer.end_ids,
                TextStream(tokenizer.stream(continued), chosen.stop, tokens, thinks), top=chosen.logprobs or 0,
                logprobs=chosen.logprobs is not None, excluded=excluded, min_tokens=chosen.min_tokens,
                ignore_eos=chosen.ignore_eos, constraint=grammar,
            )  # fmt: skip
            settings = {name: value for name, value in asdict(request.settings).items() if name not in LATER or value}
            asked = [model, ids, chosen.max_tokens, settings, chosen.stop, chosen.logprobs, chosen.n]
            if prompt.constraint or chosen.min_tokens or chosen.ignore_eos:
                asked += [prompt.constraint and asdict(prompt.constraint), chosen.min_tokens, chosen.ignore_eos]
            key = hashlib.sha256(json.dumps([asked, prompt.shown]).encode()).hexdigest()[:16]
            items.append(Item(index, sample, prompt, request, chosen, key, tokens, thinks))
        check_request(prompt.where, items[-1].request, checkpoint.args, limit)
    return items


def compiled(
    grammars: Grammars, prompt: Prompt, begins: bool, tokens: ThinkTokens | None, thinks: bool
) -> Grammar | None:
    """The grammar of a prompt's answers, if it has one. Raises InputError, naming the prompt, for one too hard."""
    if prompt.constraint is None:
        return None
    try:
        return grammars.grammar(prompt.constraint, begins, tokens, thinks)
    except InputError as error:
        own = prompt.constraint is not prompt.shared  # a key of an object has no dashes
        raise (InputError(str(error)) if own else error).within(prompt.where) from None


def own_options(options: CompleteOptions, prompt: Prompt) -> CompleteOptions:
    """The command's options with those of the prompt in their place."""
    if not prompt.options:
        return options
    chosen = replace(options, **prompt.options)
    try:
        chosen.check()
    except InputError as error:
        raise InputError(f"{prompt.where}: {error}") from None  # the names of a JSON object's keys have no dashes
    return chosen
