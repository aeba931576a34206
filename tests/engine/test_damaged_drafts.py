"""A draft whose numbers are none touches nothing: neither tokens of its own step nor what comes later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from mistral.engine.drafter import Drafter
from mistral.engine.engine import Engine
from mistral.engine.requests import Generated
from mistral.engine.scheduler import Scheduler, generate_stream
from mistral.engine.speculation import Speculation
from mistral.load import Transformer
from mistral.model import kv_cache
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from tests.support.checkpoint_forms import random_tensors
from tests.support.drafting import asked, ids_of, told
from tests.support.small_models import SHAPES

DAMAGED = 7


@pytest.fixture(scope="module", params=["portable", "native"])
def damaged(request: Any, ops: Ops) -> dict[str, Transformer]:
    """Models whose embedding of one id is not a number."""
    found = {}
    for name in ("dense", "interleaved", "moe_windowed"):
        backend = ops if request.param == "portable" else cast(Ops, Native())
        tensors = {key: array.astype(np.float32) for key, array in random_tensors(SHAPES[name], 3).items()}
        tensors["tok_embeddings.weight"] *= 4
        tensors["tok_embeddings.weight"][DAMAGED] = np.nan
        weights = {key: backend.weight(array) for key, array in tensors.items()}
        found[name] = Transformer(SHAPES[name], weights.__getitem__, backend)
    return found


class Damaging(Drafter):
    """Knows the answer, and puts the damaged id into some of its drafts, beyond where they are right or within it."""

    def __init__(self, answer: Sequence[int], place: int) -> None:
        self.answer, self.place, self.asked = answer, place, 0

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        self.asked += 1
        known = list(self.answer[len(answer) : len(answer) + most])
        if len(answer) >= 4:
            known[min(self.place, len(known)) : self.place + 1] = [DAMAGED]
        return known[:most]


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("shape", ["dense", "interleaved", "moe_windowed"])
def test_a_draft_that_is_not_a_number_changes_nothing(
    damaged: dict[str, Transformer], shape: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "SPARE", 4)
    model, excluded = damaged[shape], (range(DAMAGED, DAMAGED + 1),)
    prompt = [token for token in asked("sampled").prompt if token != DAMAGED]
    request, other = (replace(asked("sampled", n), prompt=prompt[n:], excluded=excluded) for n in range(2))
    before = told(generate_stream(Engine(model), [request, other]))
    drafters: list[Damaging] = []

    def new(row: Any) -> Drafter:
        drafters.append(Damaging(ids_of(before[row.index]), place))
        return drafters[-1]

    found = told(generate_stream(Engine(model), [request, other], speculation=Speculation([new], always=True)))
    for index, steps in before.items():
        assert ids_of(found[index]) == ids_of(steps)
        np.testing.assert_allclose([s[1] for s in found[index]], [s[1] for s in steps], rtol=0, atol=1e-4)
    assert all(0 < drafter.asked < 9 for drafter in drafters)  # no more once they have done damage
    if model.ops.name == "native":
        assert found == before


def test_a_damaged_token_that_is_chosen_is_the_error_that_it_would_be(damaged: dict[str, Transformer]) -> None:
    """Drafts tell it before it is chosen: the tokens before it come, and then the error."""
    model = damaged["interleaved"]
    prompt = [token for token in asked("greedy").prompt if token != DAMAGED]
    free = ids_of(told(generate_stream(Engine(model), [replace(asked("greedy"), prompt=prompt)]))[0])[:3]
    bias = replace(asked("greedy").settings, logit_bias={DAMAGED: 100.0})

    def answered(speculation: Speculation | None) -> list[tuple[Any, ...]]:
        scheduler, events = Scheduler(Engine(model), speculation=speculation), list[Any]()
        scheduler.submit(replace(asked("greedy"), prompt=prompt, settings=bias))
        while not scheduler.idle:
            events += [event for event in scheduler.step() if isinstance(event, Generated)]
        return [(event.id, event.text, event.finish_reason, str(event.error)) for event in events]

    before = answered(None)
    assert before[-1][2] == "error" and "NaN" in before[-1][3] and DAMAGED not in free
    assert answered(Speculation([lambda row: Damaging([DAMAGED, *free], 0)], always=True)) == before
