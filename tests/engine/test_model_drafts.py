"""Guesses that a model computes: a smaller one with rows of its own, and a rough copy that shares the row's slots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from mistral.engine import draft_model
from mistral.engine.draft_model import DraftModel, ModelDrafter
from mistral.engine.engine import Engine
from mistral.engine.prefix_slot import PrefixSlot
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import Scheduler, generate_stream
from mistral.engine.self_draft import SelfDraft
from mistral.engine.speculation import NewDrafter, Speculation
from mistral.load import Transformer
from mistral.model import kv_cache
from mistral.model.attention_plan import slot_positions
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from tests.support.checkpoint_forms import random_tensors
from tests.support.drafting import HOW, TEXT, Found, asked, guessing, ids_of, told
from tests.support.small_models import SHAPES

NAMES = ("dense", "interleaved", "moe_windowed")
MUCH = 10**9


@pytest.fixture(scope="module")
def native(ops: Ops) -> Ops:
    return cast(Ops, Native())


def model(name: str, ops: Ops, noise: float = 0.0) -> Transformer:
    """A model of random weights, or one that is nearly the same."""
    random, tensors = np.random.default_rng(1), dict[str, Any]()
    for key, array in random_tensors(SHAPES[name], 5).items():
        wide = array.astype(np.float32) * (4 if key == "tok_embeddings.weight" else 1)
        tensors[key] = wide + random.normal(0, noise * wide.std(), wide.shape).astype(np.float32)
    return Transformer(SHAPES[name], lambda key: ops.weight(tensors[key]), ops)


@pytest.fixture(scope="module")
def targets(native: Ops) -> dict[str, Transformer]:
    return {name: model(name, native) for name in NAMES}


@pytest.fixture(scope="module")
def copies(native: Ops) -> dict[str, Transformer]:
    return {name: model(name, native, 0.05) for name in NAMES}


@pytest.fixture(autouse=True)
def few_spare_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "SPARE", 4)


def computed(kind: str, engine: Engine, copies: dict[str, Transformer], name: str) -> NewDrafter:
    """Guesses by the copy: in the row's own slots, or in rows of its own, or by a model of another shape."""
    if kind == "self":
        return SelfDraft(copies[name], engine).drafter
    return DraftModel(copies[name if kind == "like" else "interleaved"], lambda: MUCH).drafter


@pytest.mark.parametrize("kind", ["self", "like", "unlike"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_same(
    targets: dict[str, Transformer], copies: dict[str, Transformer], name: str, kind: str
) -> None:
    """Greedy and sampled, in company, around the windows; and the drafts of a copy are mostly right."""
    for how in ("greedy", "penalties", "filtered"):
        company = [asked(how, n) for n in range(3)]
        before = told(generate_stream(Engine(targets[name]), company, 5))
        engine = Engine(targets[name])
        guesses = Speculation([computed(kind, engine, copies, name)], always=True)
        scheduler = Scheduler(engine, 7, speculation=guesses)
        for number in range(3):
            scheduler.submit(asked(how, number))
        events = list[Any]()
        while not scheduler.idle:
            events += scheduler.step()
        assert told(iter(events)) == before
        assert scheduler.timings.drafted_tokens > 20
        if how == "greedy" and kind != "unlike":
            assert scheduler.timings.acceptance > 0.5
        assert not engine.cache.rows


def test_portable_answers_are_the_same_within_rounding(ops: Ops) -> None:
    target, copy = model("interleaved", ops), model("interleaved", ops, 0.05)
    before = told(generate_stream(Engine(target), [asked("sampled")]))
    for kind in ("self", "like"):
        engine = Engine(target)
        guesses = Speculation([computed(kind, engine, {"interleaved": copy}, "interleaved")], always=True)
        found = told(generate_stream(engine, [asked("sampled")], speculation=guesses))
        assert ids_of(found[0]) == ids_of(before[0])
        np.testing.assert_allclose([s[1] for s in found[0]], [s[1] for s in before[0]], rtol=0, atol=1e-4)


def held(engine: Engine, row: int) -> dict[int, list[np.ndarray[Any, Any]]]:
    """The keys and values, by layer, of the positions that a row's next token can see; bit for bit."""
    found, cached = {}, engine.cache.rows[row]
    for layer, parts in cached.layers.items():
        slots, window = parts[0].shape[1], engine.args.sliding_windows[layer]
        positions = slot_positions(cached.kv_seqlen, slots)
        oldest = 0 if window is None else cached.kv_seqlen - window + 1
        seen = sorted((p, slot) for slot, p in enumerate(positions.tolist()) if p >= max(0, oldest))
        places = [slot for _, slot in seen]
        found[layer] = [part.asnumpy()[:, places] for part in parts]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_rough_is_left_in_the_cache(
    targets: dict[str, Transformer], copies: dict[str, Transformer], name: str
) -> None:
    """After every step the row holds, bit for bit, what a run without drafts holds after as many tokens."""
    plain, lengths = Scheduler(Engine(targets[name])), dict[int, Any]()
    plain.submit(asked("greedy"))
    while not plain.idle:
        plain.step()
        for row in plain.engine.cache.rows:  # type: ignore[attr-defined]
            lengths[plain.engine.kv_seqlen(row)] = held(cast(Engine, plain.engine), row)
    engine = Engine(targets[name])
    scheduler = Scheduler(engine, speculation=Speculation([SelfDraft(copies[name], engine).drafter], always=True))
    scheduler.submit(asked("greedy"))
    compared = 0
    while not scheduler.idle:
        scheduler.step()
        for row in engine.cache.rows:
            exact = lengths[engine.kv_seqlen(row)]
            for layer, parts in held(engine, row).items():
                for one, other in zip(parts, exact[layer], strict=True):
                    assert one.tobytes() == other.tobytes()
                    compared += one.size
    assert compared and scheduler.timings.accepted_tokens > 3


@pytest.mark.parametrize("kind", ["self", "like"])
def test_conversations_stored_and_parked_rows(
    targets: dict[str, Transformer], copies: dict[str, Transformer], kind: str
) -> None:
    target = targets["interleaved"]
    prompts, answers, prompt = list[list[int]](), dict[int, Found](), TEXT[:20]
    for turn in range(4):
        found = told(generate_stream(Engine(target), [Request(prompt, 9, HOW["sampled"], top=1)]))[0]
        prompts, answers[turn] = [*prompts, prompt], found
        prompt = [*prompt, *ids_of(found)[: 9 - turn], *TEXT[turn : turn + 3]]
    engine, stored = Engine(target), Engine(target)
    slot = PrefixSlot(engine)
    guesses = Speculation([computed(kind, engine, copies, "interleaved")], always=True)
    scheduler = Scheduler(
        stored, prefix_store=PrefixStore(target.args, 10**7),
        speculation=Speculation([computed(kind, stored, copies, "interleaved")], always=True),
    )  # fmt: skip
    for turn, ids in enumerate(prompts):
        request, events = Request(ids, 9, HOW["sampled"], top=1), list[Any]()
        assert told(generate_stream(engine, [replace(request, slot=slot)], 4, speculation=guesses))[0] == answers[turn]
        scheduler.submit(request)
        for step in range(99):
            if scheduler.idle:
                break
            for handle, row in list(scheduler._active.items()):
                if row.can_park and step % 3 == 2:
                    scheduler._parked[handle] = scheduler._active.pop(handle)
                    row.park(stored, keep=bool(step % 2))
            events += scheduler.step()
        assert told(iter(events)) == {turn: answers[turn]}


class Broken(Exception):  # noqa: N818  not an error of ours
    """What goes wrong."""


@pytest.mark.parametrize("kind", ["self", "like"])
@pytest.mark.parametrize("fault", ["raises", "NaN"])
def test_a_model_that_fails_half_way_changes_nothing(
    native: Ops, ops: Ops, targets: dict[str, Transformer], kind: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails once it has written into the slots; the row goes on without drafts, on both backends."""
    for backend, target in ((native, targets["interleaved"]), (ops, model("interleaved", ops))):
        copy, calls = model("interleaved", backend, 0.05), [0]
        before = told(generate_stream(Engine(target), [asked("sampled")]))
        blocks = copy.run_blocks

        def run_blocks(*given: Any, blocks: Any = blocks, calls: list[int] = calls) -> Any:
            calls[0] += 1
            found = blocks(*given)
            if fault == "raises" and calls[0] == 9:
                raise Broken
            return found * np.nan if fault == "NaN" and calls[0] == 9 else found

        monkeypatch.setattr(copy, "run_blocks", run_blocks)
        engine = Engine(target)
        guesses = Speculation([computed(kind, engine, {"interleaved": copy}, "interleaved")], always=True)
        found = told(generate_stream(engine, [asked("sampled")], speculation=guesses))
        assert calls[0] == 9 if fault == "raises" else calls[0] > 9
        assert ids_of(found[0]) == ids_of(before[0])
        np.testing.assert_allclose([s[1] for s in found[0]], [s[1] for s in before[0]], rtol=0, atol=1e-4)
        assert backend is ops or found == before


def test_an_interrupted_draft_leaves_the_row_as_it_was(
    targets: dict[str, Transformer], copies: dict[str, Transformer], native: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a copy guesses: the slot's row goes on exactly from what it holds."""
    target, copy = targets["interleaved"], model("interleaved", native, 0.05)
    engine = Engine(target)
    slot = PrefixSlot(engine)
    request = Request(TEXT[:20], 12, HOW["greedy"], top=1)
    before = told(generate_stream(Engine(target), [request]))[0]
    calls = [0]
    end = engine.cache.end

    def interrupted(metadata: Any) -> None:
        end(metadata)
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine.cache, "end", interrupted)
    stream = generate_stream(
        engine, [replace(request, slot=slot)], speculation=Speculation([SelfDraft(copy, engine).drafter], always=True)
    )
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    kept = slot.cached_ids()
    assert 20 <= len(kept) < 32 and kept == [*TEXT[:20], *ids_of(before)][: len(kept)]
    later = replace(request, prompt=[*kept, 3, 4])
    assert told(generate_stream(engine, [replace(later, slot=slot)])) == told(generate_stream(Engine(target), [later]))
    assert slot.reused == len(kept)


def test_a_smaller_model_reads_what_is_new_and_nothing_twice(targets: dict[str, Transformer]) -> None:
    """Its row goes on after drafts, right and wrong, and with the next prompt that begins alike."""
    target, read = targets["dense"], list[int]()
    drafts = DraftModel(target, lambda: MUCH)
    step = drafts.engine.step

    def counted(work: Any) -> Any:
        read.append(sum(len(piece.ids) for piece in work))
        return step(work)

    drafts.engine.step = counted  # type: ignore[method-assign]
    drafter = ModelDrafter(drafts, TEXT[:20], 60)
    greedy = ids_of(told(generate_stream(Engine(target), [Request(TEXT[:20], 12)]))[0])
    assert drafter.draft(greedy[:1], 4) == greedy[1:5]
    assert read == [21, 1, 1, 1]
    assert drafter.draft(greedy[:6], 3) == greedy[6:9]  # all right, and one more
    assert read[4:] == [2, 1, 1]
    assert drafter.draft([*greedy[:6], 1], 1) != [] and read[7:] == [1]  # wrong from the first on
    assert drafter.draft([*greedy[:6], 1], 40 - 7) and len(read) == 8 + 33
    assert drafter.draft([*greedy[:6], 1] * 8, 9) == []  # no room
    drafter.close()
    drafter.close()
    other = ModelDrafter(drafts, [*TEXT[:20], *greedy[:6], 2, 3], 60)
    del read[:]
    assert len(other.draft([4], 2)) == 2
    assert read == [3, 1]


def test_memory_of_drafts_is_what_is_left(targets: dict[str, Transformer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle rows go first; a row that finds none goes on without drafts, and no row is left behind."""
    monkeypatch.setattr(draft_model, "ANSWER_ROOM", 0)
    target, left = targets["dense"], [10**6]
    drafts = DraftModel(target, lambda: left[0])
    for number in range(3):
        drafter = ModelDrafter(drafts, TEXT[number : number + 10], 30)
        assert len(drafter.draft([1], 4)) == 4
        drafter.close()
    assert len(drafts.engine.cache.rows) == 3
    left[0] = drafts.engine.cache.nbytes(15)
    drafter = ModelDrafter(drafts, TEXT[40:50], 30)
    assert len(drafter.draft([1], 4)) == 4 and len(drafts.engine.cache.rows) == 1
    before = told(generate_stream(Engine(target), [asked("greedy", 1)]))
    guesses = Speculation([drafts.drafter], always=True)
    assert told(generate_stream(Engine(target), [asked("greedy", 1)], speculation=guesses)) == before
    assert len(drafts.engine.cache.rows) == 1
    drafter.close()


def test_the_drafter_that_promises_most_is_used(targets: dict[str, Transformer]) -> None:
    """Beside one that is always wrong, one that is always right is soon the only one that is computed."""
    target = targets["dense"]
    before = told(generate_stream(Engine(target), [replace(asked("greedy"), max_tokens=60)]))
    wrong, right = (guessing(before, share)._new[0] for share in (0.0, 1.0))
    events = generate_stream(
        Engine(target),
        [replace(asked("greedy"), max_tokens=60)],
        speculation=Speculation([wrong, right], always=True),
    )
    steps = [event for event in events if isinstance(event, Generated)]
    assert told(iter(steps)) == before
    later = steps[30:]
    assert sum(event.accepted for event in later) > 3 * sum(event.rejected for event in later)
