"""Answers with guesses and without, which must be the same bit for bit: random requests, guesses, rows and company.

The bytes that a case is given are the seed of all that is random in it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest import mock

import numpy as np

from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.draft_model import DraftModel
from mistral.engine.drafter import Drafter
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.requests import Event, Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.scheduler import Handle, Scheduler, generate_stream
from mistral.engine.self_draft import SelfDraft
from mistral.engine.speculation import NewDrafter, Speculation
from mistral.grammar.constraint import Constraint
from mistral.grammar.grammars import Grammars
from mistral.load import Transformer, load_model
from mistral.model import kv_cache
from mistral.ops.device import start_device
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.drafting import Found, ids_of, told
from tests.support.generation import lettered
from tests.support.random_schemas import random_schema
from tests.support.small_models import DENSE, SHAPES, build
from tools.fuzzing.targets import Target

NAMES = ("dense", "windowed", "interleaved", "moe_windowed", "ministral3")
KINDS = ("knows", "suffixes", "self", "like", "unlike")
MOST_STEPS = 3000
STOPPED = -1  # stands where an answer was cancelled


@dataclass(frozen=True)
class Asked:
    """A request, and the stop strings of its text; None where it has no text."""

    request: Request
    stops: Sequence[str] | None

    def fresh(self, **changed: Any) -> Request:
        """The request, for one run."""
        text = None if self.stops is None else lettered(self.stops)
        return replace(self.request, text=text, **changed)


@dataclass(frozen=True)
class Knows(Drafter):
    """Guesses what the answer is known to be, each token rightly with a chance, and any number of them."""

    known: Sequence[int]
    right: float
    chance: random.Random

    def draft(self, answer: Sequence[int], most: int) -> list[int]:
        """What follows, with mistakes, and more behind its end."""
        found = [*self.known[len(answer) :], 1, 2, 3][: self.chance.randint(0, most)]
        return [token if self.chance.random() < self.right else token ^ 1 for token in found]


class DraftCases:
    """The models of all cases; see `run`."""

    def __init__(self) -> None:
        start_device("CPU", 1)
        ops, noise = cast(Ops, Native()), np.random.default_rng(1)
        self.models, self.copies = dict[str, Transformer](), dict[str, Transformer]()
        for name in NAMES:
            model = build(SHAPES[name], ops, 5)
            rough = {
                key: ops.weight(array + noise.normal(0, 0.05 * array.std(), array.shape).astype(np.float32))
                for key, array in model.tensors.items()
            }
            self.models[name] = model.transformer
            self.copies[name] = Transformer(SHAPES[name], rough.__getitem__, ops)
        self.tokenizer = Tokenizer.from_folder(shipped_checkpoint())
        self.grammars = Grammars(self.tokenizer)
        self.models["schema"] = load_model(shipped_checkpoint(), backend="native")
        self.copies["schema"] = load_model(shipped_checkpoint(), backend="native", bits=4)

    def run(self, data: bytes) -> None:
        """One case. Raises AssertionError where an answer is another with guesses than without."""
        chance = random.Random(data)
        name = chance.choice([*NAMES, "schema"])
        make = self._schema if name == "schema" else small_request
        asked = [make(chance) for _ in range(chance.randint(1, 5))]
        with mock.patch.object(kv_cache, "SPARE", chance.choice([1, 2, 4, 32])):
            model, chunk = self.models[name], chance.choice([3, 64])
            alone = [told(generate_stream(Engine(model), [one.fresh()], chunk))[0] for one in asked]
            found, cancelled = Company(self, name, chance, alone).answers(asked)
        for number, answer in enumerate(alone):
            got, same = found[number], answer
            if number in cancelled and got[-1][-1] == "cancelled":
                got, same = got[:-1], answer[: len(got) - 1]
            assert got == same, f"answer {number} of {len(asked)} by {name} differs"

    def _schema(self, chance: random.Random) -> Asked:
        """An answer that a random schema allows, by the small checkpoint."""
        schema = random_schema(np.random.default_rng(chance.randrange(1 << 30)), 2)
        grammar = self.grammars.grammar(Constraint.json_schema(schema), begins=False)
        prompt = self.tokenizer.encode(chance.choice(["Tom had a red ball.", '{"a": 1}', "1 2 3"]))
        return Asked(
            Request(
                prompt, chance.randint(1, 60), settings_of(chance, 40), self.tokenizer.end_ids, top=2,
                constraint=grammar,
            ),
            None,
        )  # fmt: skip


def settings_of(chance: random.Random, vocab_size: int) -> SamplingSettings:
    """Greedy or sampled, with penalties and filters."""
    return SamplingSettings(
        temperature=chance.choice([0.0, 0.0, 0.3, 0.9, 1.5]), top_p=chance.choice([1.0, 0.9, 0.5]),
        top_k=chance.choice([0, 3, 20]), min_p=chance.choice([0.0, 0.0, 0.05]),
        repetition_penalty=chance.choice([1.0, 1.0, 1.2, 1.6]), presence_penalty=chance.choice([0.0, 0.0, 0.7]),
        frequency_penalty=chance.choice([0.0, 0.0, 0.5, -0.5]), seed=chance.randrange(99), sample=chance.randrange(3),
        logit_bias={chance.randrange(vocab_size): chance.choice([-100.0, 2.0, 5.0])} if chance.random() < 0.3 else {},
    )  # fmt: skip


def small_request(chance: random.Random) -> Asked:
    """A prompt that repeats itself or does not, with any kind of end."""
    size, length = DENSE.vocab_size, chance.randint(1, 50)
    part = [chance.randrange(size) for _ in range(chance.choice([chance.randint(1, 8), length]))]
    ends = [chance.randrange(size), chance.randrange(size)]
    stops = [f"{chance.randrange(size):02},"] if chance.random() < 0.2 else []
    stops += [f"{ends[0]:02},{ends[1]:02}"] if chance.random() < 0.2 else []
    request = Request(
        (part * length)[:length], chance.randint(1, 45), settings_of(chance, size),
        chance.choice([None, ends[0], ends]), logprobs=chance.random() < 0.8, top=chance.choice([0, 2]),
        excluded=(range(20, 22),) if chance.random() < 0.1 else (), min_tokens=chance.choice([0, 0, 3, 10]),
        ignore_eos=chance.random() < 0.1,
    )  # fmt: skip
    return Asked(request, stops)


class Company:
    """Requests that come one by one, with guesses; rows are parked, cancelled, copied and go on with a slot."""

    def __init__(self, cases: DraftCases, name: str, chance: random.Random, alone: Sequence[Found]) -> None:
        self.chance, self.known = chance, [ids_of(answer) for answer in alone]
        self.engine = Engine(cases.models[name])
        speculation = Speculation([], always=chance.random() < 0.5)
        makers: dict[str, NewDrafter] = {
            "knows": lambda row: Knows(self.known[row.index], self.right, chance),
            "suffixes": speculation.own[1],
            "self": SelfDraft(cases.copies[name], self.engine).drafter,
            "like": DraftModel(cases.copies[name], lambda: 10**9).drafter,
            "unlike": DraftModel(cases.models[name if name == "schema" else "dense"], self.engine.spare_bytes).drafter,
        }
        self.right = chance.choice([0.0, 0.5, 0.8, 1.0])
        kinds = chance.sample(KINDS, chance.randint(1, 3))
        speculation._new = [speculation.own[0], *(makers[kind] for kind in kinds)]
        store = PrefixStore(self.engine.args, chance.choice([10**4, 10**7])) if chance.random() < 0.4 else None
        self.slot = PrefixSlot(self.engine) if chance.random() < 0.2 else None
        self.scheduler = Scheduler(
            self.engine, chance.choice([None, 1, 3, 7, 64]), chance.choice([1, 2, 3, 64]), prefix_store=store,
            step_ms=chance.choice([None, 0.5, 50.0]), speculation=speculation,
        )  # fmt: skip
        self.parks, self.cancels = chance.random() < 0.4, chance.choice([0.0, 0.05])

    def answers(self, asked: Sequence[Asked]) -> tuple[dict[int, Found], set[int]]:
        """What is told of each request by its number, and which of them were cancelled."""
        waiting, handles, cancelled, events = list(asked), list[Handle](), set[int](), list[Event]()
        for _ in range(MOST_STEPS):
            if not waiting and self.scheduler.idle:
                break
            if waiting and (self.scheduler.idle or (self.slot is None and self.chance.random() < 0.5)):
                likely = [self.known[len(handles)], [1, 2, 3], []][self.chance.randrange(3)]
                request = waiting.pop(0).fresh(prediction=likely, slot=self.slot)
                handles.append(self.scheduler.submit(request, key=self.chance.choice("ab")))
            self._park()
            if self.chance.random() < self.cancels:
                number = self.chance.randrange(len(handles))
                self.scheduler.cancel(handles[number])
                cancelled.add(number)
            events += self.scheduler.step()
        else:
            raise AssertionError("it does not end")
        assert self.slot or not self.engine.cache.rows, "a row is left"
        return told(iter(events)), cancelled

    def _park(self) -> None:
        rows = self.scheduler._rows
        for handle, row in list(rows.active.items()):
            if self.parks and row.can_park and self.chance.random() < 0.2:
                row.park(self.engine, keep=self.chance.random() < 0.5)
                rows.parked[handle] = rows.active.pop(handle)


def draft_target() -> Target:
    """What compares answers; any bytes are a seed."""
    return Target("drafts", [bytes(range(32))], DraftCases().run)
