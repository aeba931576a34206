"""A model for plain Python code: texts and conversations to answers, for any number of threads."""

from __future__ import annotations

import atexit
import contextlib
import queue
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack, cast, overload

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.engine.engine import Engine
from mistral.engine.engine_thread import EngineThread
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.requests import Event, Request
from mistral.engine.scheduler import MAX_ROWS, STEP_MS, Handle, Scheduler
from mistral.engine.speculation import Speculation
from mistral.engine.speculation_mode import check_draft, check_mode
from mistral.errors import InputError
from mistral.grammar.grammar import Grammar
from mistral.grammar.grammars import Grammars
from mistral.llm.answer_options import Answering, AnswerOptions
from mistral.llm.completion import Completion
from mistral.llm.draft_files import DraftFiles
from mistral.llm.partial_completion import PartialCompletions, Prompt
from mistral.load import load_model
from mistral.tokenizer.message_json import read_messages
from mistral.tokenizer.messages import Message, Tool
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.tokenizer import Tokenizer

Conversation = Sequence[Message] | Sequence[Mapping[str, object]]
Completions = Completion | list[Completion]
Events = queue.SimpleQueue[tuple[int, Event]]


class LLM:
    """A loaded model; its methods may be called from any thread, and answers are computed in one batch.

    An answer depends only on its own prompt, options and seed. For a pipeline of several ranks, use `Transformer`,
    `open_engine` and `Scheduler`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backend: str = "auto",
        device: str = "auto",
        bits: int = 16,
        threads: int | None = None,
        precise: bool = False,
        lora: str | Path | None = None,
        max_context: int | None = None,
        max_rows: int = MAX_ROWS,
        chat_template: str | Path | None = None,
        step_ms: float = STEP_MS,
        prefix_bytes: int = 0,
        speculate: str = "auto",
        draft: str | Path | None = None,
    ) -> None:
        """Load the model in a folder; the options are those of the command line.

        max_rows: the most answers that are generated at once. step_ms: the time limit of a step while any answer is
        generated, which limits the prompt tokens that it reads. prefix_bytes: memory of the prefix cache. speculate:
        speculative decoding without a draft model. draft: a draft model, which is a smaller checkpoint with the same
        vocabulary, or "self", this model in 4 bits. None of these changes an answer. Raises InputError for what cannot
        be loaded.
        """
        check_mode(speculate)
        check_draft(draft, speculate)
        tokenizer = Tokenizer.from_folder(folder, chat_template)
        files = None
        if draft is not None:
            checkpoint = open_checkpoint(folder, lora)
            files = DraftFiles.open(draft, checkpoint, tokenizer, bits)
        model = load_model(folder, 1, backend, bits, device, threads, precise=precise, lora=lora)
        self.tokenizer = tokenizer.for_rows(model.args.vocab_size)
        self.grammars = Grammars(self.tokenizer)
        drafting = files.load(backend, bits, device, threads, precise) if files else None
        self._engine = Engine(model, max_context)
        computed = files.drafter(drafting, self._engine) if files and drafting else None
        store = PrefixStore(model.args, prefix_bytes) if prefix_bytes else None
        scheduler = Scheduler(
            self._engine, max_rows=max_rows, step_ms=step_ms, prefix_store=store,
            speculation=Speculation.of(speculate, model.ops.name, computed),
        )  # fmt: skip
        self._thread = EngineThread(scheduler)
        atexit.register(self.close)

    @overload
    def generate(self, prompts: str, **options: Unpack[AnswerOptions]) -> Completions: ...

    @overload
    def generate(self, prompts: list[str] | tuple[str, ...], **options: Unpack[AnswerOptions]) -> list[Completions]: ...

    def generate(
        self, prompts: str | list[str] | tuple[str, ...], **options: Unpack[AnswerOptions]
    ) -> Completions | list[Completions]:
        """Continue a text, or each of several; see `Answering` for the options.

        Returns a completion for each prompt, or with n above 1 a list of them. Raises InputError for an invalid prompt
        or option.
        """
        found = self._complete(self.text_prompts(prompts), Answering.of(options, chat=False))
        return found[0] if isinstance(prompts, str) else found

    def chat(self, messages: Conversation, tools: Sequence[Tool] = (), **options: Unpack[AnswerOptions]) -> Completions:
        """Answer a conversation: a list of {"role": ..., "content": ...}, as in chat interfaces, or of Message.

        If the last message is the assistant's with "prefix": True, the model continues it. Thinking before the answer
        is in the completion's `thoughts`. Raises InputError for a conversation that does not fit the model's chat
        template.
        """
        answering = Answering.of(options)
        return self._complete([self.chat_prompt(messages, tools, answering.reasoning_effort)], answering)[0]

    def stream(
        self, prompt: str | Conversation, tools: Sequence[Tool] = (), **options: Unpack[AnswerOptions]
    ) -> Generator[str]:
        """The answer to a text or a conversation, piece by piece. Closing the iterator ends the answer.

        Thinking is left out. Raises InputError, at the first piece, for an invalid prompt or option.
        """
        answering = Answering.of(options, single=True, chat=not isinstance(prompt, str))
        if isinstance(prompt, str):
            prompts = self.text_prompts(prompt)
        else:
            prompts = [self.chat_prompt(prompt, tools, answering.reasoning_effort)]
        partial, events = PartialCompletions(self.tokenizer, prompts, answering), Events()
        with self.submitted(prompts, answering, events.put):
            while partial.missing:
                place, event = events.get()
                text = partial.add(place, event)
                if text:
                    yield text

    def close(self) -> None:
        """Cancel open answers and release the model. May be called again."""
        atexit.unregister(self.close)
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What `AsyncLLM` needs, too

    def text_prompts(self, texts: str | Sequence[str]) -> list[Prompt]:
        """The prompts of one text or several, each to be continued. Raises InputError for anything else."""
        if isinstance(texts, str):
            texts, names = [texts], ["the prompt"]
        else:
            texts = list(texts)
            names = [f"prompt {number}" for number in range(len(texts))]
        prompts = []
        for text, name in zip(texts, names, strict=True):
            try:
                ids = self.tokenizer.encode(text)
            except InputError as error:
                raise error.within(name) from None
            prompts.append(Prompt(name, ids, ids))
        return prompts

    def chat_prompt(self, messages: Conversation, tools: Sequence[Tool], reasoning_effort: str | None = None) -> Prompt:
        """The prompt of a conversation. Raises InputError if the chat template cannot hold it."""
        given = list(messages)
        if not all(isinstance(message, Message) for message in given):
            given = list(read_messages(given))
        turns = cast(list[Message], given)
        ids = self.tokenizer.encode_chat(turns, tools, reasoning_effort)
        continued, tokens = ids if turns[-1].prefix else (), self.tokenizer.think_tokens
        return Prompt("the conversation", ids, continued, tools, tokens, self.tokenizer.thinks_after(ids))

    @contextlib.contextmanager
    def submitted(
        self, prompts: Sequence[Prompt], answering: Answering, put: Callable[[tuple[int, Event]], None]
    ) -> Iterator[None]:
        """Submit requests; `put` is called in the engine's thread with each event and the index of its answer.

        Answers that are not finished at the end of the block are cancelled.
        """
        handles = list[Handle]()
        try:
            for place, request in enumerate(self._requests(prompts, answering)):

                def receive(event: Event, place: int = place) -> None:
                    put((place, event))

                handles.append(self._thread.submit(request, receive, prompts[place // answering.n].name))
            yield
        finally:
            for handle in handles:
                self._thread.cancel(handle)

    def grammars_of(self, prompts: Sequence[Prompt], answering: Answering) -> list[Grammar | None]:
        """The grammar of the answer to each prompt, if any. Raises InputError for an invalid constraint."""
        constraint = answering.constraint()
        if constraint is None:
            return [None] * len(prompts)
        return [
            self.grammars.grammar(
                constraint, self.tokenizer.begins_text(prompt.continued), prompt.think_tokens, prompt.thinks
            )
            for prompt in prompts
        ]

    def _requests(self, prompts: Sequence[Prompt], answering: Answering) -> list[Request]:
        """n requests for each prompt, one after the other."""
        tokenizer, excluded = self.tokenizer, self.tokenizer.uncovered()
        rooms = [answering.max_tokens or 0] * len(prompts)
        if answering.max_tokens is None:
            rooms = self._engine.answer_rooms([len(prompt.ids) for prompt in prompts])
        grammars = self.grammars_of(prompts, answering)
        return [
            Request(
                prompt.ids, room, answering.settings(sample), tokenizer.end_ids,
                TextStream(tokenizer.stream(prompt.continued), answering.stops, prompt.think_tokens, prompt.thinks),
                top=answering.logprobs or 0, logprobs=answering.logprobs is not None, excluded=excluded,
                min_tokens=answering.min_tokens, ignore_eos=answering.ignore_eos, constraint=grammar,
            )
            for prompt, room, grammar in zip(prompts, rooms, grammars, strict=True) for sample in range(answering.n)
        ]  # fmt: skip

    def _complete(self, prompts: Sequence[Prompt], answering: Answering) -> list[Completions]:
        partial, events = PartialCompletions(self.tokenizer, prompts, answering), Events()
        with self.submitted(prompts, answering, events.put):
            while partial.missing:
                partial.add(*events.get())
        return partial.by_prompt()
