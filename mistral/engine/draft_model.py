"""Draft tokens of a smaller model with the same vocabulary, which has rows of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mistral.engine.active_row import ANSWER_ROOM, ActiveRow
from mistral.engine.drafter import Drafter
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot, common_prefix
from mistral.engine.step_budget import LEAST, StepBudget
from mistral.engine.work import Work
from mistral.errors import InputError
from mistral.model.transformer import Transformer

CHUNK = 512  # tokens that it reads in a step
MOST_IDLE = 4  # rows that are kept for later prompts with a common prefix


class DraftModel:
    """A draft model for the rows of another engine. Its rows outlive requests, for the next turn of a conversation.

    As with the prefix cache, only requests of the same space reuse a row.
    """

    def __init__(
        self, model: Transformer, spare_bytes: Callable[[], int], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`spare_bytes`: returns the bytes that the other engine leaves free. `clock`: seconds."""
        self.engine, self._spare, self._clock = Engine(model), spare_bytes, clock
        self._idle = list[tuple[str, PrefixSlot]]()
        self._budget = StepBudget(1.0)

    def drafter(self, row: ActiveRow) -> Drafter:
        """The drafter of a row; see `NewDrafter`."""
        return ModelDrafter(self, row.request.prompt, row.capacity, row.handle.space)

    def take(self, prompt: Sequence[int], capacity: int, space: str) -> PrefixSlot:
        """A slot that is prepared for a prompt. Raises InputError if memory is short."""
        alike = [each for each in self._idle if each[0] == space]
        found = max(alike, key=lambda each: common_prefix(each[1].cached_ids(), prompt), default=None)
        if found and common_prefix(found[1].cached_ids(), prompt):
            self._idle.remove(found)
            slot = found[1]
        else:
            slot = PrefixSlot(self.engine)
        try:
            self.admit(capacity, 0)
            slot.begin(prompt, capacity, None)
        except InputError:
            slot.leave()
            raise
        return slot

    def admit(self, capacity: int, before: int) -> None:
        """Raise InputError if there is too little memory for a row of `capacity` tokens that had `before`.

        Idle rows are released first.
        """
        needed = self.engine.cache.nbytes(capacity) - self.engine.cache.nbytes(before)
        while self._idle and self.engine.row_bytes + needed > self._spare():
            self._idle.pop(0)[1].leave()
        if self.engine.row_bytes + needed > self._spare():
            raise InputError("there is no memory for the drafts of this row; it goes on without")

    def give_back(self, slot: PrefixSlot, space: str) -> None:
        """Keep the slot of an ended row for a later one of its space."""
        self._idle.append((space, slot))
        if len(self._idle) > MOST_IDLE:
            self._idle.pop(0)[1].leave()

    def read(self, slot: PrefixSlot, tokens: Sequence[int], seconds: float | None) -> int:
        """Read tokens into a slot, for about `seconds` (None: no limit) -> how many were read."""
        count = len(tokens)
        if seconds is not None:
            self._budget.seconds = seconds
            count = self._budget.tokens(0, count) if seconds > 0 else 0
        begun = self._clock()
        for start in range(0, count, CHUNK):
            part = tokens[start : min(count, start + CHUNK)]
            slot.cached_ids().extend(part)
            self.engine.step([Work(slot.row, part, "none")])
        if count:
            self._budget.add(0, count, self._clock() - begun)
        return count


class ModelDrafter(Drafter):
    """See `Drafter`. Its slot holds prompt, answer and the last draft, and is rewound over rejected tokens."""

    computes = True

    def __init__(self, source: DraftModel, prompt: Sequence[int], capacity: int, space: str = "") -> None:
        limit = source.engine.context_limit
        self._source, self._prompt, self._space = source, prompt, space
        self._most = capacity if limit is None else min(capacity, limit)
        self._slot: PrefixSlot | None = None
        self._capacity = self._answered = 0  # of the slot; length of the answer at the last draft

    def catch_up(self, answer: Sequence[int], seconds: float | None) -> bool:
        """See `Drafter.catch_up`. The last few tokens are left to the step of the first draft."""
        known = len(self._prompt) + len(answer)
        if known >= self._most or (self._answered and len(answer) - self._answered <= LEAST):
            return True
        slot = self._ready(answer, known + 1)
        unread = self._known(answer, len(slot.cached_ids()))[:-1]
        return len(unread) <= LEAST or len(unread) - self._source.read(slot, unread, seconds) <= LEAST

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        """The model's likeliest tokens, one after the other."""
        known = len(self._prompt) + len(answer)
        most = min(most, self._most - known)
        if most < 1:
            return []
        slot = self._ready(answer, known + most)
        engine, tokens, found = self._source.engine, self._known(answer, len(slot.cached_ids())), list[int]()
        while len(found) < most:
            for start in range(0, len(tokens), CHUNK):
                part = tokens[start : start + CHUNK]
                last = start + CHUNK >= len(tokens)
                slot.cached_ids().extend(part)
                logits = engine.step([Work(slot.row, part, "last" if last else "none")])[0]
            found.append(int(logits[0].argmax()))
            tokens = found[-1:]
        self._answered = len(answer)
        return found

    def _ready(self, answer: Sequence[int], needed: int) -> PrefixSlot:
        """The slot, which holds a proper prefix of prompt and answer. Raises InputError if memory is short."""
        capacity = max(self._capacity, min(self._most, needed + ANSWER_ROOM) if needed > self._capacity else 0)
        if self._slot is None:
            self._slot = self._source.take(self._known(answer, 0), capacity, self._space)
        else:
            if capacity > self._capacity:
                self._source.admit(capacity, self._capacity)
            held = self._slot.cached_ids()
            same = min(len(held), len(self._prompt) + self._answered)
            same += common_prefix(held[same:], self._known(answer, same))
            same = min(same, len(self._prompt) + len(answer) - 1)
            del held[self._source.engine.resume(self._slot.row, same, capacity) :]
        self._capacity = capacity
        return self._slot

    def _known(self, answer: Sequence[int], start: int) -> list[int]:
        """Prompt and answer from index `start` on."""
        behind = start - len(self._prompt)
        return list(answer[behind:]) if behind >= 0 else [*self._prompt[start:], *answer]

    def close(self) -> None:
        """Keep the row for a prompt with a common prefix."""
        slot, self._slot = self._slot, None
        if slot:
            self._source.give_back(slot, self._space)
