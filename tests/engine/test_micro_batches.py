"""The schedule: layers shared out, micro-batches made, and who does what when, for any counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.timetable import Link, bubble_share, idle_share, predicted_seconds, timetable
from mistral.engine.micro_batches import LONGEST, SHORTEST, RowProgress, choose_chunk, decode_groups, next_micro_batch
from mistral.engine.requests import Generated, Prefilled, Request
from mistral.engine.scheduler import generate_stream
from mistral.engine.work import Outcome, Sampling, Work
from mistral.errors import InputError
from mistral.model.kv_cache import Snapshot
from mistral.pipeline.split import balance_layers, parse_split, split_layers
from tests.support.small_models import DENSE

# Layers


@given(st.integers(1, 40), st.integers(1, 12))
def test_equal_layers_without_a_head_are_split_by_quotient_and_remainder(n_layers: int, ranks: int) -> None:
    if ranks <= n_layers:
        assert balance_layers([1.0] * n_layers, 0, ranks) == split_layers(n_layers, ranks)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=8), st.floats(0, 30), st.integers(1, 5))
def test_no_split_has_a_faster_slowest_rank(costs: list[float], head: float, ranks: int) -> None:
    if ranks > len(costs):
        return
    found = balance_layers(costs, head, ranks)
    assert [layer for part in found for layer in part] == list(range(len(costs))) and all(found)

    def slowest(parts: Sequence[range]) -> float:
        times = [sum(costs[layer] for layer in part) for part in parts]
        return max([*times[:-1], times[-1] + head])

    def ways(start: int, left: int) -> list[list[range]]:
        if left == 1:
            return [[range(start, len(costs))]]
        stops = range(start + 1, len(costs) - left + 2)
        return [[range(start, stop), *rest] for stop in stops for rest in ways(stop, left - 1)]

    assert slowest(found) <= min(map(slowest, ways(0, ranks))) * (1 + 1e-9)


def test_a_large_head_takes_layers_from_the_last_rank() -> None:
    assert list(map(len, balance_layers([1.0] * 40, 2.46, 2))) == [21, 19]
    assert list(map(len, balance_layers([1.0] * 32, 0.6, 2))) == [16, 16]


def test_a_split_by_hand() -> None:
    assert parse_split("20,12", 32, 2) == [range(20), range(20, 32)]
    for wrong in ("20", "20,13", "32,0", "33,-1", "a,b", "", "16,8,8", "20;12"):
        with pytest.raises(InputError, match=r"^pipeline_split .*2 numbers of layers, each at least 1.*32"):
            parse_split(wrong, 32, 2)


# Micro-batches

ROWS = st.lists(st.builds(RowProgress, st.integers(0, 20), st.booleans()), max_size=12)


@given(ROWS, st.integers(0, 12), st.integers(1, 9), st.integers(1, 30))
def test_a_micro_batch_takes_what_is_ready_and_no_more(
    rows: list[RowProgress], decoding: int, chunk_size: int, room: int
) -> None:
    picked = dict(next_micro_batch(rows, decoding, chunk_size, room))
    answering = [place for place, row in enumerate(rows) if not row.waits and not row.prompt_left]
    reading = [place for place, row in enumerate(rows) if not row.waits and row.prompt_left]
    assert not any(rows[place].waits for place in picked)
    assert [place for place in picked if place in answering] == answering[:decoding]
    read = {place: tokens for place, tokens in picked.items() if place in reading}
    assert all(0 < tokens <= min(chunk_size, rows[place].prompt_left) for place, tokens in read.items())
    assert sum(read.values()) == min(room, sum(min(chunk_size, rows[place].prompt_left) for place in reading))


def test_few_rows_go_round_in_one_group() -> None:
    assert [decode_groups(rows, 2) for rows in (0, 1, 8, 15, 16, 256)] == [1, 1, 1, 1, 2, 2]
    assert [decode_groups(rows, 4) for rows in (16, 31, 32, 64)] == [2, 3, 4, 4]


@given(st.integers(1, 10**6), st.integers(2, 16))
def test_chunks_are_shorter_for_more_ranks_and_longer_for_longer_prompts(tokens: int, ranks: int) -> None:
    found = choose_chunk(tokens, ranks)
    assert SHORTEST <= found <= LONGEST and found & (found - 1) == 0
    assert choose_chunk(tokens, ranks + 1) <= found <= choose_chunk(2 * tokens, ranks)
    assert choose_chunk(tokens, 1) == LONGEST


# Who does what when


class Stages:
    """An engine over stages that compute nothing: each takes messages from a queue, in an order drawn at random.

    A stage may act only when its queue holds something, as a rank that waits; nobody acting while results are due is a
    deadlock. Sampled ids are 0, 1, 2, ... of each row.
    """

    def __init__(self, ranks: int, micro_batches: int | None, random: np.random.Generator) -> None:
        self.num_pipeline_ranks, self.num_micro_batches, self.random = ranks, micro_batches, random
        self.context_limit, self.args, self.model = None, DENSE, self
        self.queues: list[list[tuple[int, list[Work]]]] = [[] for _ in range(ranks + 1)]  # the last: results
        self.done: list[list[int]] = [[] for _ in range(ranks)]
        self.seen: dict[int, int] = {}
        self.most, self.tickets, self.capacities = 0, 0, dict[int, int]()

    def check_capacity(self, capacity: int) -> None:
        pass

    def join(self, capacity: int, sampling: Sampling | None = None, reserved: int | None = None) -> int:
        row = len(self.seen)
        self.seen[row], self.capacities[row] = 0, capacity
        return row

    def export(self, row: int, ids: Sequence[int], copy: bool = True) -> Snapshot:
        while any(self.queues[1:-1]):  # the stages do what they have been told before
            self.act(next(stage for stage in range(1, self.num_pipeline_ranks) if self.queues[stage]))
        return Snapshot(tuple(ids), len(ids), {})

    def restore(
        self,
        snapshot: Snapshot,
        kv_seqlen: int,
        capacity: int,
        sampling: Sampling | None = None,
        reserved: int | None = None,
    ) -> tuple[int, int]:
        row = self.join(capacity, sampling)
        self.seen[row] = kv_seqlen
        return row, kv_seqlen

    def leave(self, row: int) -> None:
        del self.capacities[row]

    def submit(self, work: list[Work]) -> int:
        ticket, self.tickets = self.tickets, self.tickets + 1
        self.done[0].append(ticket)
        self.queues[1].append((ticket, work))
        self.most = max(self.most, sum(map(len, self.queues)))
        for stage in self.random.integers(1, self.num_pipeline_ranks + 1, 4).tolist():
            self.act(stage)
        return ticket

    def act(self, stage: int) -> None:
        if stage < self.num_pipeline_ranks and self.queues[stage]:
            ticket, work = self.queues[stage].pop(0)
            self.done[stage].append(ticket)
            self.queues[stage + 1].append((ticket, work))

    def collect(self, ticket: int) -> list[Outcome]:
        last = self.queues[self.num_pipeline_ranks]
        while not last:
            waiting = [stage for stage in range(1, self.num_pipeline_ranks) if self.queues[stage]]
            assert waiting, "everybody waits"
            self.act(int(self.random.choice(waiting)))
        found, work = last.pop(0)
        assert found == ticket, "results come in the order of their micro-batches"
        outcomes = []
        for piece in work:
            self.seen[piece.row] += len(piece.ids)
            assert self.seen[piece.row] <= self.capacities[piece.row]
            outcomes.append(Outcome((), self.seen[piece.row] % 40, 0.0) if piece.sample else Outcome())
        return outcomes


@settings(deadline=None)
@given(
    st.integers(2, 6),
    st.one_of(st.none(), st.integers(1, 9)),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 5)), max_size=30),
    st.one_of(st.none(), st.integers(1, 20)),
    st.integers(1, 30),
    st.integers(0, 99),
)
def test_every_stage_does_every_micro_batch_once_in_order_and_nobody_waits_for_ever(
    ranks: int, micro_batches: int | None, rows: list[tuple[int, int]], chunk: int | None, max_rows: int, seed: int
) -> None:
    engine = Stages(ranks, micro_batches, np.random.default_rng(seed))
    requests = [Request([1] * length, tokens) for length, tokens in rows]
    events = list(generate_stream(engine, requests, chunk, max_rows))  # type: ignore[arg-type]
    assert engine.done == [list(range(engine.tickets))] * ranks
    assert engine.most <= (micro_batches or ranks + 1) and engine.capacities == {}
    for index, (length, tokens) in enumerate(rows):
        read = [e.done for e in events if isinstance(e, Prefilled) and e.index == index]
        ids = [e.id for e in events if isinstance(e, Generated) and e.index == index]
        assert read == sorted(read) and read[-1] == length
        wanted: list[int | None] = [(length + i) % 40 for i in range(tokens)]
        assert ids == (wanted or [None])


def test_groups_of_rows_go_round_side_by_side() -> None:
    """32 rows on 2 stages are 2 groups; in each, every row's token follows the one before."""
    engine = Stages(2, None, np.random.default_rng(0))
    sizes: list[int] = []
    submit = engine.submit

    def spied(work: list[Work]) -> int:
        sizes.append(len(work))
        return submit(work)

    engine.submit = spied  # type: ignore[method-assign]
    list(generate_stream(engine, [Request([1], 9)] * 32))  # type: ignore[arg-type]
    assert sizes[3:-3] == [16] * (len(sizes) - 6)


# Time


@given(st.integers(1, 9), st.integers(1, 20))
def test_equal_stages_idle_for_the_share_of_the_formula(stages: int, micro_batches: int) -> None:
    seconds = np.ones((stages, micro_batches))
    starts = timetable(seconds)
    np.testing.assert_allclose(idle_share(seconds, starts), bubble_share(stages, micro_batches), atol=1e-12)


def test_chunks_of_512_allow_1_78_times_the_speed_on_two_stages() -> None:
    """A prompt of 4096 tokens: with n chunks, 2 n / (n + 1)."""
    seconds = np.array([[2.0] * 3, [1.0] * 3, [2.0] * 3])
    assert timetable(seconds).tolist() == [[0, 2, 4], [2, 4, 6], [3, 5, 7]]
    starts = timetable(np.full((2, 8), 0.5))
    np.testing.assert_allclose(8 / (starts + 0.5).max(), 2 * 8 / 9)


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
def test_a_stage_starts_when_it_is_free_and_its_work_is_there(
    stages: int, micro_batches: int, in_flight: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    seconds, moves = random.random((stages, micro_batches)), random.random(stages).tolist()
    starts = timetable(seconds, moves, in_flight)
    ends = starts + seconds
    assert (starts[:, 1:] >= ends[:, :-1] - 1e-12).all()
    for stage in range(1, stages):
        assert (starts[stage] >= ends[stage - 1] + moves[stage - 1] - 1e-12).all()
    for k in range(micro_batches):
        assert (ends[-1, : k + 1] + moves[-1] > starts[0, k]).sum() - 1 < in_flight


def test_a_slow_link_delays_and_more_micro_batches_hide_it() -> None:
    link = Link(1e-4, 1e9)
    near, far = Link(0, float("inf")), replace(link, bandwidth=1e7)
    assert predicted_seconds([1.0], 3, 8e6, far) == 3
    assert predicted_seconds([1.0, 1.0], 4, 8e6, near) == 5
    np.testing.assert_allclose(predicted_seconds([1.0, 1.0], 4, 8e6, link), 5 + 0.0081)
    one, two = (predicted_seconds([1.0, 1.0], 40, 8e6, far, groups) / 40 for groups in (1, 4))
    assert one > 2.7 and two < 1.1
