"""Run by mpirun: answers with drafts that a model computes on the first rank. Arguments: ranks, a folder for results.

The folder holds two checkpoints: "small" guesses for the one that ships, and "other" has another vocabulary.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mistral import Generated, InputError, Request
from mistral.cli.demo import Demo
from mistral.cli.session import Session, open_files, running
from mistral.engine.draft_model import DraftModel, ModelDrafter
from mistral.engine.drafter import Drafter
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import Scheduler, generate_stream
from mistral.engine.speculation import NewDrafter, Speculation
from mistral.pipeline.launch import launched

TOKENS = 16
Found = list[list[tuple[int, float]]]


def options(ranks: int, draft: object) -> Demo:
    """Those of a command that guesses by a model."""
    return Demo(num_pipeline_ranks=ranks, backend="native", device="CPU", draft=str(draft))


def answers(session: Session, speculation: Speculation | None, slot: PrefixSlot | None = None) -> tuple[Found, int]:
    """Ids and log-probabilities of three answers, or of one in a slot; and how many drafts were right."""
    how = SamplingSettings(temperature=0.8, repetition_penalty=1.2, seed=3)
    texts = ["Tom had a red", "Anna", "This is a test of the cat."]
    prompts = [session.tokenizer.encode(text) for text in (texts[:1] if slot else texts)]
    requests = [Request(prompt, TOKENS, how, slot=slot) for prompt in prompts]
    found: Found = [[] for _ in requests]
    right = 0
    for event in generate_stream(session.engine, requests, 5, speculation=speculation):
        if isinstance(event, Generated) and event.id is not None and event.logprob is not None:
            found[event.index].append((event.id, event.logprob))
            right += event.accepted
    return found, right


def always(session: Session) -> Speculation:
    """Drafts of the session's model alone, whatever they cost."""
    assert session.speculation
    computed: NewDrafter = session.speculation._new[-1]
    return Speculation([computed], always=True)


def compare(session: Session) -> dict[str, Any]:
    """Whether answers with drafts are those without, and how many drafts were right."""
    plain, _ = answers(session, None)
    drafted, right = answers(session, always(session))
    slot = PrefixSlot(session.engine)
    alone = [answers(session, guesses, slot) for guesses in (None, always(session))]
    slot.leave()
    rows = len(session.engine.cache.rows)
    return {"same": [drafted == plain, alone[0][0] == alone[1][0]], "right": [right, alone[1][1]], "rows": rows}


class Wrong(Drafter):
    """Guesses what is hardly ever right."""

    def draft(self, answer: Sequence[int], most: int) -> list[int]:
        """See `Drafter`."""
        return [7] * min(most, 5)


def cancelled(session: Session) -> list[list[bool]]:
    """Whether a slot's next answer is right where the one before was cancelled while its drafts were under way.

    There are two micro-batches, so that a step of the one may be under way when the step of the other has ended.
    """
    engine, found = session.engine, list[list[bool]]()
    engine.num_micro_batches = 2
    prompts = [session.tokenizer.encode(text) for text in ("Tom had a red", "Anna and the")]
    for steps in range(3, 8):
        slot, ids = PrefixSlot(engine), dict[int, list[int]]()
        scheduler = Scheduler(engine, speculation=Speculation([lambda row: Wrong()], always=True))
        handles = [scheduler.submit(Request(prompt, 40, slot=slot if place else None, eos_id=None))
                   for place, prompt in enumerate(prompts)]  # fmt: skip

        def step(scheduler: Scheduler = scheduler, ids: dict[int, list[int]] = ids) -> None:
            for event in scheduler.step():
                if isinstance(event, Generated) and event.id is not None:
                    ids.setdefault(event.index, []).append(event.id)

        for _ in range(steps):
            step()
        under_way = any(row.waits for row in scheduler._active.values() if row.request.slot)
        scheduler.cancel(handles[1])
        later = [*prompts[1], *ids.get(1, []), 5, 6]
        handles.append(scheduler.submit(Request(later, 12, slot=slot)))
        while not scheduler.idle:
            step()
        plain = [answer_ids(engine, prompts[0], 40), answer_ids(engine, later, 12)]
        found.append([under_way, ids[0] == plain[0], ids[2] == plain[1]])
        slot.leave()
    engine.num_micro_batches = None
    return found


def answer_ids(engine: Engine, prompt: list[int], tokens: int) -> list[int]:
    """An answer without drafts."""
    events = generate_stream(engine, [Request(prompt, tokens)])
    return [event.id for event in events if isinstance(event, Generated) and event.id is not None]


def main(ranks: int, folder: Path) -> None:
    """Every kind of model that guesses, on all ranks; then it fails; and one that cannot guess."""
    launch = launched()
    assert launch
    for name, draft in (("self", "self"), ("small", folder / "small")):
        opened = open_files(options(ranks, draft))
        with running(opened) as session:
            assert (session is None) == (launch.rank > 0) == (opened.draft is None)
            if not session:
                continue
            found: dict[str, Any] = {"sound": compare(session)}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(DraftModel, "read", lambda *given: 1 / 0)
                patch.setattr(ModelDrafter, "draft", lambda *given: 1 / 0)
                found["broken"] = compare(session)
            if name == "small":
                found["cancelled"] = cancelled(session)
            (folder / f"{name}.json").write_text(json.dumps(found))
    for name in ("other", "nowhere"):
        try:
            open_files(options(ranks, folder / name))
        except InputError as error:
            (folder / f"{name}-{launch.rank}").write_text(str(error.with_flags()))
        else:
            raise AssertionError("not refused")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
