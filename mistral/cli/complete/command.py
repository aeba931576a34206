"""The complete command: one prompt shown as it is continued, or any number of them, each result as it is finished."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.fingerprint import fingerprint
from mistral.checkpoint.quantization import model_args
from mistral.cli import console
from mistral.cli.complete.prompt_file import Prompt, read_prompt, read_prompts
from mistral.cli.complete.result_file import ResultFile
from mistral.cli.console import Board, Progress
from mistral.cli.model_options import Options
from mistral.cli.options import option, text_option
from mistral.cli.session import Session, with_session
from mistral.cli.token_records import Answer, token_line, token_record
from mistral.engine.engine import context_limit
from mistral.engine.prompt_cache import PromptCache
from mistral.engine.requests import Prefilled, Request
from mistral.engine.scheduler import MAX_ROWS, check_prompt, generate_stream
from mistral.errors import InputError
from mistral.pipeline.launch import launched
from mistral.tokenizer.messages import Message
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.tokenizer import Tokenizer

MOST_SAMPLES = 1 << 16


@dataclass(frozen=True)
class Complete(Options):
    """Continue a prompt, fill in between two texts, or complete each line of a file.

    The prompt is --prompt, or standard input. A file given by --input has a JSON object in each line: "prompt", or
    "prompt" and "suffix", or "messages" for the chat template; where wanted an "id", and values of its own for
    max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop, n and logprobs. Results are JSON, one
    a line, in the order in which they are finished; "index" counts the prompts. With --out FILE, a run that was
    interrupted goes on where it stopped when the same command is given again.
    """

    prompt: str | None = text_option("The text to continue, or @FILE; standard input when left out.")
    fim: tuple[str, str] | None = option(
        None, "Fill in between a prefix and a suffix, each a text or @FILE; for models made for it, such as Codestral."
    )
    input: str | None = option(None, "Prompts from this JSONL file, or from standard input for -.")
    out: str | None = option(None, "Write results to this JSONL file, and go on where it ends.")
    instruct: bool = option(False, "Each prompt is a question, put in the checkpoint's own chat template.")
    system: str | None = text_option("With --instruct: what the model is told before, or @FILE.")
    n: int = option(1, "Samples for each prompt.")
    logprobs: int | None = option(
        None, "With each token its logprob, and those of so many of the likeliest ones in its place."
    )
    prompt_cache: str | None = option(
        None, "A file that keeps what was computed of the first prompt; what prompts share with it is not read again."
    )
    batch_size: int = option(
        MAX_ROWS, "Prompts under way at once; the next one takes the place of one that is finished."
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
        if not 1 <= self.n <= MOST_SAMPLES:
            raise InputError(f"--n {self.n}: must be from 1 to {MOST_SAMPLES}")
        if self.logprobs is not None and self.logprobs < 0:
            raise InputError(f"--logprobs {self.logprobs}: must be 0 or more")
        if self.batch_size < 1:
            raise InputError(f"--batch_size {self.batch_size}: must be at least 1")

    @property
    def shows_text(self) -> bool:
        """Whether answers are shown for people to read, and not as JSON."""
        return not (self.json or self.input or self.out)

    def prompts(self) -> list[Prompt]:
        """What is to be completed."""
        if self.input is not None:
            found = read_prompts(self.input)
        elif self.fim is not None:
            prefix, suffix = self.fim
            found = [Prompt("--fim", prefix, suffix, shown={"prompt": prefix, "suffix": suffix})]
        elif self.prompt is not None:
            found = [Prompt("--prompt", self.prompt, shown={"prompt": self.prompt})]
        else:
            found = [read_prompt()]
        return [self._asked(prompt) for prompt in found] if self.instruct else found

    def _asked(self, prompt: Prompt) -> Prompt:
        if prompt.messages:
            return prompt
        if prompt.suffix is not None:
            raise InputError(f"{prompt.where}: a chat template has no place for a suffix; leave out --instruct")
        system = (Message("system", self.system),) if self.system is not None else ()
        return replace(prompt, messages=(*system, Message("user", prompt.text)))

    def run(self) -> None:
        """Read, load, complete."""
        launch = launched()
        prompts = self.prompts() if launch is None or launch.rank == 0 else []
        run = Run(self)
        with_session(self, False, run.complete, lambda *files: run.prepare(prompts, *files))


@dataclass(frozen=True)
class Item:
    """One result to come: sample number `sample` of prompt number `index`. `key`: a digest of all that it rests on."""

    index: int
    sample: int
    prompt: Prompt
    request: Request
    options: Complete
    key: str


def plan(options: Complete, prompts: Sequence[Prompt], checkpoint: Checkpoint, tokenizer: Tokenizer) -> list[Item]:
    """The results that prompts ask for. Raises InputError, naming the prompt, for one that cannot be served."""
    limit = context_limit(checkpoint.args, options.max_context)
    model: list[object] = []
    if options.out is not None:  # what was written before must be of this model; else no file is looked into for it
        model = [fingerprint(checkpoint, model_args(checkpoint, options.bits)), options.precise, options.max_context]
    items = []
    for index, prompt in enumerate(prompts):
        chosen = own_options(options, prompt)
        ids, continued = prompt.encode(tokenizer)
        for sample in range(chosen.n):
            request = Request(
                ids, chosen.max_tokens, replace(chosen.settings(), sample=sample), tokenizer.eos_id,
                TextStream(tokenizer.stream(continued), chosen.stop), top=chosen.logprobs or 0,
            )  # fmt: skip
            asked = [model, ids, chosen.max_tokens, asdict(request.settings), chosen.stop, chosen.logprobs, chosen.n]
            key = hashlib.sha256(json.dumps([asked, prompt.shown]).encode()).hexdigest()[:16]
            items.append(Item(index, sample, prompt, request, chosen, key))
        check_prompt(prompt.where, items[-1].request, checkpoint.args, limit)
    return items


def own_options(options: Complete, prompt: Prompt) -> Complete:
    """The command's options with those of the prompt in their place."""
    if not prompt.options:
        return options
    chosen = replace(options, **prompt.options)
    try:
        chosen.check()
    except InputError as error:
        raise InputError(f"{prompt.where}: {str(error).removeprefix('--')}") from None
    return chosen


class Run:
    """Items on their way to their results."""

    def __init__(self, options: Complete) -> None:
        self.options = options
        self.items: list[Item] = []
        self.total = 0
        self.out: ResultFile | None = None
        self.cache: PromptCache | None = None

    def prepare(self, prompts: Sequence[Prompt], checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
        """Check all prompts, and leave out those whose results are there already."""
        if self.options.prompt_cache is not None:
            self.cache = PromptCache.open(self.options.prompt_cache, checkpoint, self.options.bits)
        self.items = plan(self.options, prompts, checkpoint, tokenizer)
        self.total = len(self.items)
        if self.options.out is not None:
            self.out = ResultFile(self.options.out, {(item.index, item.sample): item.key for item in self.items})
            self.items = [item for item in self.items if (item.index, item.sample) not in self.out.done]
            if self.out.done:
                held = len(self.out.done)
                print(f"note: {self.options.out} has {held} of {self.total} results already", file=sys.stderr)
        if any(item.options.n > 1 and item.options.temperature == 0 for item in self.items):
            print("note: with --temperature 0, all samples of a prompt are the same", file=sys.stderr)

    def complete(self, session: Session) -> None:
        """Complete what is left. Ctrl-C keeps the results so far."""
        try:
            self._complete(session)
        except KeyboardInterrupt:
            if self.options.shows_text:
                print(flush=True)  # below an answer that was cut off
            if self.out is None:
                raise
            kept = f"{len(self.out.done)} of {self.total} results are in {self.options.out}"
            raise KeyboardInterrupt(f"interrupted; {kept}, and the same command goes on") from None
        finally:
            if self.out:
                self.out.close()
        session.report()

    def _complete(self, session: Session) -> None:
        options, answers = self.options, dict[int, Answer]()
        show = shower(len(self.items)) if options.shows_text else None
        reading, finishing = Progress("reading prompts:", "tokens"), Progress("completing:", "results")
        total = sum(len(item.request.prompt) for item in self.items)
        requests = [item.request for item in self.items]
        stream = self.cache.stream if self.cache else generate_stream
        for event in stream(session.engine, requests, options.chunk_size, options.batch_size, session.timings):
            if isinstance(event, Prefilled):
                if len(self.items) <= options.batch_size:
                    reading(session.timings.prefill_tokens, total)
                continue
            reading.clear()
            item, answer = self.items[event.index], answers.setdefault(event.index, Answer())
            answer.add(event)
            if show:
                logprobs = item.options.logprobs is not None
                text = token_line(event, session.tokenizer) if logprobs else event.text
                show(event.index, text, event.finish_reason is not None)
            elif event.finish_reason:
                self._finish(item, answers.pop(event.index), session.tokenizer)
                if self.out:
                    finishing(len(self.out.done), self.total)

    def _finish(self, item: Item, answer: Answer, tokenizer: Tokenizer) -> None:
        result = record(item, answer, tokenizer)
        if self.out:
            self.out.write({**result, "key": item.key})
            self.out.done.add((item.index, item.sample))
        else:
            print(json.dumps(result), flush=True)


def shower(count: int) -> Callable[[int, str, bool], None]:
    """What shows more text of an answer and whether that ends it: a single one as it grows, several in their order."""
    if count > 1:
        return Board([""] * count).add

    def show(index: int, text: str, finished: bool) -> None:
        console.write(text, end="\n" if finished else "")

    return show


def record(item: Item, answer: Answer, tokenizer: Tokenizer) -> dict[str, Any]:
    """A result as JSON has it."""
    result = {
        "index": item.index,
        **item.prompt.shown,
        **({"sample": item.sample} if item.options.n > 1 else {}),
        "text": answer.text,
        "ids": [step.id for step in answer.steps],
        "finish_reason": answer.finish_reason,
    }
    if item.options.logprobs is not None:
        result["logprobs"] = [token_record(step, tokenizer) for step in answer.steps]
    return result
