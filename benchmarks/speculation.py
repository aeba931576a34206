"""What drafts gain: tokens a second with them and without, in turns, as JSON lines and a table.

    python benchmarks/speculation.py [--parts tasks,rows,self,fixed,llama] [--rounds 3] [--tokens 160] [--threads 2]

tasks: SmolLM2-135M-Instruct as BF16 and as Q4_K_M quotes from a text, writes texts, a record and a list with a
change, and writes prose. So small a model does not always do as it is told: `editing` in 4 bits is a text
of its own; only the title is put where it should be in both types.
rows: 16 answers in prose at once. self: `--draft self`, on the tasks and on random weights of Mistral 7B's dimensions,
there with an acceptance of 0.9. fixed: random weights of these dimensions, with a drafter that is right with a chance
of 0.8 at each place. These two print beside it the best number of drafts, by what steps take right after. llama:
llama.cpp's own lookup on the same tasks, where the package llama-cpp-python is there.

`python -m tools.fetch_smollm2` fetches the model; the other types of it are made once, in --folder. Both ways must give
the same ids; they take turns of eight steps. What past answers taught is not used: each answer has a space of its own.
A rate counts the tokens after the first, and the time from that on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speculation_tasks import TASKS
from benchmarks.step_costs import SIZES, best_depth, between, step_shares
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.cli.bench.random_checkpoint import random_checkpoint
from mistral.cli.main import main as command_line
from mistral.engine.drafter import Drafter
from mistral.engine.engine import Engine
from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import Scheduler
from mistral.engine.self_draft import SelfDraft
from mistral.engine.speculation import NewDrafter, Speculation
from mistral.llm.draft_files import DraftFiles
from mistral.load import Transformer, load_model
from mistral.ops.library_cache import user_folder
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer
from tools.fetch_smollm2 import smollm2

TYPES = ("BF16", "Q4_K_M")
ROWS = 16
TURN = 8  # steps of one way after another: the first of them is not compared with the one before it
Answer = tuple[list[int], float]


@dataclass(frozen=True)
class Figures:
    """Seconds of both ways, and what drafts came to."""

    tokens: int
    plain: list[float]
    drafted: list[float]
    acceptance: float
    tokens_per_step: float
    drafts_per_step: float = 0.0

    def record(self, **named: object) -> dict[str, object]:
        """As JSON has it; the ratio is the median of the rounds'."""
        ratios = [one / other for one, other in zip(self.plain, self.drafted, strict=True)]
        return {
            **named, "tokens": self.tokens, "plain_tokens_per_second": self._rate(self.plain),
            "drafted_tokens_per_second": self._rate(self.drafted), "ratio": round(statistics.median(ratios), 3),
            "spread": [round(min(ratios), 2), round(max(ratios), 2)],
            "acceptance": round(self.acceptance, 3), "tokens_per_step": round(self.tokens_per_step, 2),
            "drafts_per_step": round(self.drafts_per_step, 2),
        }  # fmt: skip

    def _rate(self, seconds: Sequence[float]) -> float:
        return round(self.tokens / statistics.median(seconds), 2)


class Way:
    """One way to answer: a scheduler with drafts or without, which keeps what it has learnt of steps' times."""

    def __init__(self, engine: Engine, speculation: Speculation | None) -> None:
        self.scheduler, self._spaces = Scheduler(engine, speculation=speculation), 0
        self.ids = dict[int, list[int]]()  # by request
        self.seconds, self.tokens = 0.0, 0  # of the last requests, after their first tokens

    def submit(self, requests: Sequence[Request]) -> None:
        """Begin answers, and compute their first tokens, which do not count."""
        self.ids, self.seconds, self.tokens = {}, 0.0, 0
        for request in requests:
            self._spaces += 1
            self.ids[self.scheduler.submit(request, space=str(self._spaces)).index] = []
        while not (self.scheduler.idle or all(self.ids.values())):
            self._step()

    def run(self, steps: int) -> None:
        """Go on for so many steps, or to the end."""
        begun, before = time.perf_counter(), sum(map(len, self.ids.values()))
        for _ in range(steps):
            if not self.scheduler.idle:
                self._step()
        self.seconds += time.perf_counter() - begun
        self.tokens += sum(map(len, self.ids.values())) - before

    def _step(self) -> None:
        for event in self.scheduler.step():
            if isinstance(event, Generated) and event.id is not None:
                self.ids[event.index].append(event.id)

    def answer(self, request: Request) -> list[int]:
        """The ids of an answer."""
        self.submit([request])
        self.run(request.max_tokens)
        return next(iter(self.ids.values()))


def compare(
    engine: Engine, requests: Sequence[Request], rounds: int, speculation: Speculation | None = None
) -> Figures:
    """Both ways, a few steps in turn, so that a machine whose speed changes is the same for both."""
    ways = plain, drafted = Way(engine, None), Way(engine, speculation or Speculation())
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            way.submit(requests)
        while not all(way.scheduler.idle for way in ways):
            for way in ways if number % 2 else ways[::-1]:
                way.run(TURN)
        assert list(plain.ids.values()) == list(drafted.ids.values()), "drafts changed an answer"
        for way in ways if number else ():  # the first round does not count
            seconds[way].append(way.seconds)
    timings = drafted.scheduler.timings
    drafts = timings.drafted_tokens / max(1, timings.row_steps)
    return Figures(plain.tokens, seconds[plain], seconds[drafted], timings.acceptance, timings.tokens_per_step, drafts)


def best(engine: Engine, right: float, copy: SelfDraft | None = None) -> dict[str, object]:
    """By what steps take right now: the best number of drafts that are right with a chance, and what it gains."""
    shares = step_shares(engine, SIZES, 5, copy)[1]
    drafts, gain = best_depth(between(shares), shares.get(0, 0.0), right)
    taken = {str(tokens): round(share, 2) for tokens, share in shares.items() if tokens}
    return {"best_drafts": drafts, "best_ratio": round(gain, 2), "steps": taken, "copy": round(shares.get(0, 0.0), 2)}


class Fixed(Drafter):
    """Knows the answer, and is right at each place with a chance; it may take the time of another drafter first."""

    def __init__(self, answer: Sequence[int], chance: float, seed: int, other: Drafter | None = None) -> None:
        self.answer, self.chance, self.other = answer, chance, other
        self.random = np.random.default_rng(seed)
        self.computes, self.expected = other is not None, other.expected if other else (chance,)

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        """What follows, with mistakes."""
        if self.other:
            self.other.draft(answer, most)
        known = self.answer[len(answer) : len(answer) + most]
        return [token if self.random.random() < self.chance else token ^ 1 for token in known]


def fixed(answer: Sequence[int], chance: float, other: NewDrafter | None = None) -> Speculation:
    """Drafts of a known acceptance."""
    return Speculation([lambda row: Fixed(answer, chance, row.index, other and other(row))])


def small_model(folder: Path, kind: str) -> Path:
    """SmolLM2 as a type of GGUF file."""
    path = folder / f"SmolLM2-135M-Instruct-{kind}.gguf"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        assert command_line(["quantize", str(smollm2()), str(path), "--type", kind]) == 0
    return path


@dataclass(frozen=True)
class Small:
    """SmolLM2, loaded."""

    path: Path
    model: Transformer
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path, kind: str, threads: int | None) -> Small:
        """One of its types."""
        path = small_model(folder, kind)
        tokenizer = Tokenizer.from_folder(path)
        return cls(path, load_model(path, backend="native", threads=threads), tokenizer)

    def request(self, task: str, tokens: int, seed: int = 0) -> Request:
        """A task, answered greedily; `seed` makes several of it differ."""
        ids = self.tokenizer.encode_chat(said(task, f" Call him number {seed}." if seed else ""))
        return Request(ids, tokens, eos_id=self.tokenizer.end_ids, logprobs=False)


def said(task: str, more: str = "") -> list[Message]:
    """The conversation of a task; `more` is added at its end."""
    *before, last = TASKS[task]
    texts = [*before, last + more]
    return [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)]


def tasks(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """SmolLM2 with suffixes as drafts."""
    for kind in TYPES:
        small = Small.load(options.folder, kind, options.threads)
        for task in TASKS:
            found = compare(Engine(small.model), [small.request(task, options.tokens)], options.rounds)
            yield found.record(part="tasks", model=kind, task=task)


def rows(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """16 answers at once."""
    for kind in TYPES:
        small = Small.load(options.folder, kind, options.threads)
        requests = [small.request("prose", options.tokens, seed) for seed in range(ROWS)]
        yield compare(Engine(small.model), requests, options.rounds).record(part="rows", model=kind, task="prose")


def dimensions(options: argparse.Namespace, bits: int) -> tuple[Engine, Request, list[int]]:
    """Random weights of Mistral 7B's dimensions, a prompt, and its answer."""
    path = random_checkpoint(options.folder, options.shape, options.layers, None if bits == 16 else "Q4_K_M")
    engine = Engine(load_model(path, backend="native", threads=options.threads))
    prompt = np.random.default_rng(0).integers(3, engine.args.vocab_size, 64).tolist()
    request = Request(prompt, options.tokens, logprobs=False)
    return engine, request, Way(engine, None).answer(request)


def fixed_acceptance(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A drafter of acceptance 0.8 on the dimensions of Mistral 7B."""
    for bits in (16, 4):
        engine, request, answer = dimensions(options, bits)
        found = compare(engine, [request], options.rounds, fixed(answer, 0.8))
        named = {"part": "fixed", "model": f"{options.shape}, {options.layers} layers, {bits} bits", "task": "0.8"}
        yield found.record(**named) | best(engine, 0.8)


def own_copy(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """`--draft self` as it is on SmolLM2, and with an acceptance of 0.9 on the dimensions of Mistral 7B."""
    small = Small.load(options.folder, "BF16", options.threads)
    for task in TASKS:
        engine = Engine(small.model)
        files = DraftFiles.open("self", open_checkpoint(small.path), small.tokenizer, 16)
        copy = files.load("native", threads=options.threads)
        speculation = Speculation([files.drafter(copy, engine)])
        found = compare(engine, [small.request(task, options.tokens)], options.rounds, speculation)
        yield found.record(part="self", model="BF16", task=task)
    engine, request, answer = dimensions(options, 16)
    path = random_checkpoint(options.folder, options.shape, options.layers)
    rough = SelfDraft(load_model(path, backend="native", bits=4, threads=options.threads), engine)
    found = compare(engine, [request], options.rounds, fixed(answer, 0.9, rough.drafter))
    named = {"part": "self", "model": f"{options.shape}, {options.layers} layers, 16 bits", "task": "0.9"}
    yield found.record(**named) | best(engine, 0.9, rough)


def llama(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """llama.cpp's lookup on the same tasks."""
    try:
        from llama_cpp import Llama
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
    except ImportError:
        print("note: llama-cpp-python is not there; its lookup is left out", file=sys.stderr)
        return
    for kind in TYPES:
        path = small_model(options.folder, kind)
        tokenizer = Tokenizer.from_folder(path)
        both: list[Any] = [
            Llama(
                str(path), n_ctx=2048, n_threads=options.threads, n_threads_batch=options.threads, verbose=False,
                logits_all=lookup, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=10) if lookup else None,
            )
            for lookup in (False, True)
        ]  # fmt: skip
        for task in TASKS:
            ids, ends = tokenizer.encode_chat(said(task)), set(tokenizer.end_ids)
            seconds: list[list[float]] = [[], []]
            answers: list[list[int]] = [[], []]
            for number in range(options.rounds + 1):
                for way in (0, 1):
                    answers[way], taken = llama_answer(both[way], ids, options.tokens, ends)
                    seconds[way] += [taken] if number else []
            same = answers[0] == answers[1]
            found = Figures(len(answers[0]) - 1, seconds[0], seconds[1], 0.0, 0.0)
            untold = {"acceptance": None, "tokens_per_step": None}
            yield found.record(part="llama.cpp", model=kind, task=task, same_text=same) | untold


def llama_answer(model: Any, prompt: Sequence[int], tokens: int, ends: Container[int]) -> Answer:
    """The ids of a greedy answer of llama.cpp, and seconds from its first token on."""
    model.reset()
    found, begun = list[int](), 0.0
    for token in model.generate(list(prompt), temp=0.0, top_k=1, repeat_penalty=1.0):
        begun = begun or time.perf_counter()
        if token in ends:
            break
        found.append(token)
        if len(found) == tokens:
            break
    return found, time.perf_counter() - begun


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, object]]]] = {
    "tasks": tasks, "rows": rows, "self": own_copy, "fixed": fixed_acceptance, "llama": llama,
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--shape", default="mistral-7b", help="of random weights")
    parser.add_argument("--layers", type=int, default=4, help="of random weights")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", type=Path, default=user_folder() / "bench")
    options = parser.parse_args()
    lines = list[dict[str, object]]()
    for part in options.parts.split(","):
        for line in PARTS[part](options):
            print(json.dumps(line), flush=True)
            lines.append(line)
    print("| part | model | task | plain tokens/s | with drafts | ratio | right | tokens a step |")
    print("|---|---|---|---|---|---|---|---|")
    for line in lines:
        names = ("part", "model", "task", "plain_tokens_per_second", "drafted_tokens_per_second", "ratio", "acceptance")
        print("| " + " | ".join(str(line[name]) for name in (*names, "tokens_per_step")) + " |")


if __name__ == "__main__":
    main()
