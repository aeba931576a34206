"""Run by mpirun: what the tests of the pipeline do on every rank. Arguments: what to do, ranks, folder, and more."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mistral.engine.active_row
import mistral.pipeline.shared_checkpoint
from mistral import Generated, InputError, Prefilled, Request, Transformer, generate, generate_stream
from mistral.atomic_files import replaced
from mistral.engine.drafter import Drafter
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import Scheduler
from mistral.engine.snapshot_file import Saved, read_saved, write_saved
from mistral.engine.speculation import Speculation
from mistral.generate import drive, open_engine, serve
from mistral.model.kv_cache import cache_nbytes
from mistral.pipeline.launch import launched
from mistral.version import __version__
from tests.support.generation import PROMPTS
from tests.support.mpi_cases import DAMAGED, LONG, SHORT, SOUND, Case, results


def tell_pid(folder: Path, rank: int) -> None:
    """Say which process this rank is, in a file that is whole as soon as it is there."""
    with replaced(folder / f"pid-{rank}") as file:
        file.write(str(os.getpid()).encode())


def equal(rank: int, ranks: int, folder: Path, what: str) -> None:
    """Every case, on every rank; and an InputError comes out on all."""
    backend, which = what.split(",")
    (folder / f"{backend}-{ranks}-{rank}.json").write_text(json.dumps(results(folder, ranks, backend, which)))
    model = Transformer.from_folder(folder / "windowed", ranks, backend, device="CPU")
    for bad in (list[int](), [10**6]):
        try:
            generate([bad], model)
        except InputError as error:
            assert "the prompt" in str(error)
        else:
            raise AssertionError("not refused")


def long(rank: int, ranks: int, folder: Path, phase: str) -> None:
    """Read a long prompt, or write a long answer, and say when that has begun."""
    model = Transformer.from_folder(folder / "windowed", ranks, "portable", device="CPU")
    tell_pid(folder, rank)
    if rank:
        serve(model)
        return
    prompt, tokens = (LONG * 10**3, 1) if phase == "prefill" else ([1], 10**7)
    engine = open_engine(model)

    def use() -> None:
        for count, event in enumerate(generate_stream(engine, [Request(prompt, tokens)])):
            if count == 20:
                assert isinstance(event, Prefilled) == (phase == "prefill")
                (folder / "begun").touch()

    drive(engine, use)


def differs(rank: int, ranks: int, folder: Path, whats: str) -> None:
    """Rank 1 has another version, checkpoint, or weights: an InputError on every rank."""
    others = {"checkpoint": "dense", "missing": "missing", "weights": "trained"}
    for what in whats.split(","):
        version = "0.0.0" if what == "version" and rank else __version__
        setattr(mistral.pipeline.shared_checkpoint, "__version__", version)  # noqa: B010  a name that is not exported
        name = others.get(what, "windowed") if rank else "windowed"
        try:
            Transformer.from_folder(folder / name, ranks, "portable", device="CPU")
        except InputError as error:
            (folder / f"{what}-{rank}").write_text(str(error))
            assert "mindspore" not in sys.modules
        else:
            raise AssertionError("not refused")


def shards(rank: int, ranks: int, folder: Path, forms: str) -> None:
    """Each rank has only the files that its layers are in, enough for one way to split and not for another."""
    for form in forms.split(","):
        mine = folder / form / str(rank)
        model = Transformer.from_folder(mine, ranks, "native", device="CPU", pipeline_split="2,2")
        (folder / form / f"{rank}.json").write_text(json.dumps(Case(form, PROMPTS, SHORT).run(model)))
        try:
            Transformer.from_folder(mine, ranks, "native", device="CPU", pipeline_split="3,1")
        except InputError as error:
            (folder / form / f"{rank}.txt").write_text(str(error))
        else:
            raise AssertionError("not refused")


def broken(rank: int, ranks: int, folder: Path, how: str) -> None:
    """One rank fails in one of several ways; the other goes on."""
    how, failing = how.split(",")
    model = Transformer.from_folder(folder / "windowed", ranks, "portable", device="CPU")
    tell_pid(folder, rank)
    if not rank:
        (folder / "begun").touch()
    if rank != int(failing):
        generate([[1]], model, 10**7)
    elif how == "raise":
        model.run_blocks = lambda *_: 1 / 0  # type: ignore[method-assign]
        generate([[1]], model)
    elif how == "memory":
        model.run_blocks = lambda *_: [0] * (1 << 60)  # type: ignore[method-assign]
        generate([[1]], model)
    elif how == "return":
        return
    elif how == "midway":
        model.run_blocks = lambda *_: sys.exit(0)  # type: ignore[method-assign]
        generate([[1]], model)


def kept(rank: int, ranks: int, folder: Path, shape: str) -> None:
    """A conversation of three turns on a row that is kept, saved after the second and gone on with from the file."""
    model = Transformer.from_folder(folder / shape, ranks, "native", device="CPU")
    if rank:
        serve(model)
        return
    engine = open_engine(model)

    def use() -> None:
        first, second = PrefixSlot(engine), PrefixSlot(engine)
        said = []
        for row, more in ((first, LONG[:12]), (first, LONG[12:20]), (second, LONG[20:27]), (first, [])):
            if row is second:
                held = first.export()
                assert held
                write_saved(folder / f"saved-{shape}", Saved("", held), "key")
                snapshot = read_saved(folder / f"saved-{shape}", "key", model.args, model.ops.SLOT_BYTES).snapshot
                assert snapshot
                second.restore(snapshot)
            prompt = row.cached_ids() + more if more else LONG[:7]
            events = generate_stream(engine, [Request(prompt, 3, slot=row)], 5)
            ids = [event.id for event in events if isinstance(event, Generated)]
            said.append({"prompt": prompt, "ids": ids, "shared": row.shared, "reused": row.reused})
        (folder / f"kept-{shape}").write_text(json.dumps(said))
        first.leave()
        second.leave()

    drive(engine, use)


def scheduled(rank: int, ranks: int, folder: Path, shape: str) -> None:
    """Requests that come between steps, one that is cancelled, and one whose logits are not numbers."""
    model = Transformer.from_folder(folder / shape, ranks, "native", device="CPU")
    if rank:
        serve(model)
        return
    engine = open_engine(model)

    def use() -> None:
        scheduler, ids, ends = Scheduler(engine, chunk_size=4), dict[int, list[int]](), dict[int, str]()

        def step() -> None:
            for event in scheduler.step():
                if isinstance(event, Generated):
                    ids.setdefault(event.index, []).extend(() if event.id is None else (event.id,))
                    if event.finish_reason:
                        assert event.index not in ends
                        ends[event.index] = str(event.error or event.finish_reason)

        first, gone = (scheduler.submit(Request(prompt, 6)) for prompt in (PROMPTS[1], LONG[:40]))
        step()
        damaged = scheduler.submit(Request([*PROMPTS[0], DAMAGED, 3], 6, prompt_logprobs=True))
        step()
        scheduler.cancel(gone)
        late = scheduler.submit(Request(PROMPTS[3], 6))
        while not scheduler.idle:
            step()
        assert [handle.index for handle in (first, gone, damaged, late)] == [0, 1, 2, 3]
        found = {"ids": ids, "ends": ends, "rows": len(engine.cache.rows), "stored": stored(engine)}
        found["guessed"] = guessed(engine)
        found["crowded"] = crowded(engine)
        (folder / f"scheduled-{shape}").write_text(json.dumps(found))

    drive(engine, use)


def stored(engine: Engine) -> list[list[object]]:
    """Ids and reused tokens of requests of two keys, twice, with a prefix store; there are fewer rows than requests."""
    store = PrefixStore(engine.args, 10**7)
    scheduler = Scheduler(engine, chunk_size=5, max_rows=2, step_ms=200, prefix_store=store)
    found: list[list[object]] = []
    for _ in range(2):
        ids, cached = dict[int, list[int]](), dict[int, int]()
        handles = [scheduler.submit(Request(SOUND[: 20 + i], 7), key="one" if i == 3 else "many") for i in range(4)]
        while not scheduler.idle:
            for event in scheduler.step():
                if isinstance(event, Generated):
                    ids.setdefault(event.index, []).extend(() if event.id is None else (event.id,))
                else:
                    cached[event.index] = event.cached
        found.append([[ids[handle.index], cached[handle.index]] for handle in handles])
    store.clear()
    return found


class Half(Drafter):
    """Guesses an answer that is known; every third token wrongly, by one that is wrong anyway or by a given one."""

    def __init__(self, answer: Sequence[int], wrong: int | None = None) -> None:
        self.answer, self.wrong = answer, wrong

    def draft(self, answer: Sequence[int], most: int) -> list[int]:
        """See `Drafter`."""
        known = enumerate(self.answer[len(answer) : len(answer) + most], len(answer))
        return [token if place % 3 else self._other(token) for place, token in known]

    def _other(self, token: int) -> int:
        return SOUND[token == SOUND[0]] if self.wrong is None else self.wrong


def guessed(engine: Engine, wrong: int | None = None, worst_allowed: float = 1e-4) -> list[object]:
    """Three answers, sampled, with drafts and without -> whether they are equal, and drafts that were right."""
    how = SamplingSettings(temperature=0.8, repetition_penalty=1.2, seed=3)

    def answers(speculation: Speculation | None) -> tuple[list[list[int]], list[list[float]], int]:
        ids, logprobs, right = [[], [], []], [[], [], []], 0  # type: ignore[var-annotated]
        sound = (range(DAMAGED, DAMAGED + 1),)  # its keys would not be numbers
        requests = [Request(SOUND[: 20 + i], 12, how, excluded=sound) for i in range(3)]
        for event in generate_stream(engine, requests, 5, speculation=speculation):
            if isinstance(event, Generated) and event.id is not None:
                ids[event.index].append(event.id)
                logprobs[event.index].append(event.logprob)
                right += event.accepted
        return ids, logprobs, right

    ids, logprobs, _ = answers(None)
    found = answers(Speculation([lambda row: Half(ids[row.index], wrong)], always=True))
    worst = max(
        abs(a - b) for one, other in zip(logprobs, found[1], strict=True) for a, b in zip(one, other, strict=True)
    )
    return [found[0] == ids, worst <= worst_allowed, found[2] > 0]


def drafts(rank: int, ranks: int, folder: Path, shape: str) -> None:
    """Answers with drafts, of which some are wrong or no numbers, bit for bit; on the native backend."""
    model = Transformer.from_folder(folder / shape, ranks, "native", device="CPU")
    if rank:
        serve(model)
        return
    engine = open_engine(model)

    def use() -> None:
        found = [guessed(engine, wrong, 0.0) for wrong in (None, DAMAGED)]
        (folder / f"drafts-{shape}").write_text(json.dumps({"guessed": found, "rows": len(engine.cache.rows)}))

    drive(engine, use)


def crowded(engine: Engine) -> list[list[int]]:
    """The answers of three rows that memory is too short for at once, two of them with one prompt."""
    setattr(mistral.engine.active_row, "ANSWER_ROOM", 1)  # noqa: B010  a name that is not exported
    tokens = cache_nbytes(engine.args, range(engine.args.n_layers), 1, engine.model.ops.SLOT_BYTES)
    engine._rooms = [replace(room, available=(len(SOUND) + 14) * tokens) for room in engine._rooms]
    found: list[list[int]] = [[], [], []]
    for event in generate_stream(engine, [Request(prompt, 12) for prompt in (SOUND[:20], SOUND, SOUND[:20])], 5):
        if isinstance(event, Generated) and event.id is not None:
            found[event.index].append(event.id)
    return found


if __name__ == "__main__":
    launch = launched()
    assert launch is not None
    works = {"equal": equal, "long": long, "broken": broken, "differs": differs, "shards": shards, "kept": kept,
             "scheduled": scheduled, "drafts": drafts}  # fmt: skip
    works[sys.argv[1]](launch.rank, int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    assert (launch.size == 1) == ("mpi4py" not in sys.modules)
