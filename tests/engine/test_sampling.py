"""Sampling against answers worked out by hand on a few ids, and against the laws that every row keeps."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks import sampling as benchmark
from mistral.engine.distribution import FEW, float32_weights, keep_min_p, keep_top_p, top_k, top_p
from mistral.engine.sampling import (
    Choice,
    SamplingRow,
    SamplingSettings,
    Wants,
    choose,
    likeliest,
    log_softmax,
    sampler,
    target_logprob,
    target_logprobs,
)
from mistral.errors import InputError

PROBS = [0.5, 0.3, 0.15, 0.05]
LAST = math.nextafter(1.0, 0.0)  # the largest number a generator draws


class Fixed:
    """A generator that draws the same number every time, and counts."""

    def __init__(self, number: float) -> None:
        self.number, self.draws = number, 0

    def random(self) -> float:
        self.draws += 1
        return self.number


def use(row: SamplingRow, number: float) -> Fixed:
    row.generator = generator = Fixed(number)  # type: ignore[assignment]
    return generator


def logits_of(probs: list[float]) -> npt.NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        return np.log(np.array([probs], np.float32))


def draw_at(probs: list[float], number: float, **options: Any) -> int:
    row = SamplingRow(SamplingSettings(**{"temperature": 1.0, **options}), [])
    use(row, number)
    return int(sampler(logits_of(probs), [row])[0][0])


def shares(probs: list[float], **options: Any) -> list[float]:
    """The share of the unit interval of draws that each id has."""
    counts = Counter(draw_at(probs, (n + 0.5) / 1000, **options) for n in range(1000))
    return [counts[i] / 1000 for i in range(len(probs))]


def reachable(probs: list[float], **options: Any) -> list[int]:
    return [i for i, share in enumerate(shares(probs, **options)) if share]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.685, 0.247, 0.062, 0.007]),  # squares over their sum 0.365
        ({"temperature": 2.0}, [0.379, 0.294, 0.208, 0.120]),  # square roots over their sum 1.8657
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.49}, [1, 0, 0, 0]),
        ({"top_p": 0.51}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.79}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.81}, [0.526, 0.316, 0.158, 0]),  # over 0.95
        ({"top_p": 0.96}, [0.5, 0.3, 0.15, 0.05]),
        ({"min_p": 0.11}, [0.526, 0.316, 0.158, 0]),  # at least 0.055
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        # After top_k the first id alone has 0.625 of what is left: enough for top_p 0.6, which needed two before.
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
        # After the temperature it has 0.685; before, 0.5.
        ({"temperature": 0.5, "top_p": 0.6}, [1, 0, 0, 0]),
        ({"temperature": 2.0, "top_p": 0.6}, [0.563, 0.437, 0, 0]),
        ({"temperature": 0.5, "min_p": 0.1}, [0.735, 0.265, 0, 0]),  # ratios 1, 0.36, 0.09, 0.01
        ({"top_p": 0.96, "min_p": 0.2}, [0.526, 0.316, 0.158, 0]),
    ],
)
def test_filters_leave_the_shares_worked_out_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    assert shares(PROBS, **options) == pytest.approx(expected, abs=0.0011)


def test_filters_follow_the_probabilities_and_keep_the_lowest_ids_among_equals() -> None:
    probs = [0.05, 0.5, 0.15, 0.3]
    assert reachable(probs, top_k=2) == reachable(probs, top_p=0.7) == reachable(probs, min_p=0.5) == [1, 3]
    equal = [0.25] * 4
    assert reachable(equal, top_k=3) == [0, 1, 2]
    assert reachable(equal, top_p=0.5) == [0, 1]  # reached exactly: no third
    assert reachable(equal, top_p=0.51) == [0, 1, 2]
    assert reachable([0.1, 0.3, 0.3, 0.3], top_k=2) == [1, 2]
    assert reachable(equal, min_p=1.0) == [0, 1, 2, 3]


def test_a_filter_that_removes_nothing_changes_no_draw() -> None:
    for number in np.linspace(0, LAST, 50):
        plain = draw_at(PROBS, number)
        assert plain == draw_at(PROBS, number, top_k=4) == draw_at(PROBS, number, top_p=0.9999)


@pytest.mark.parametrize(
    ("logits", "seen", "penalty", "expected"),
    [
        ([2.0, 1.5, -1.0, -2.0], (), 2.0, 0),
        ([2.0, 1.5, -1.0, -2.0], (0,), 2.0, 1),  # 2 / 2 < 1.5
        ([2.0, 1.5, -1.0, -2.0], (0, 0, 0), 1.3, 0),  # once, however often it occurs: 1.538 > 1.5
        ([-1.0, -1.5, -3.0, -4.0], (0,), 2.0, 1),  # -1 * 2 < -1.5
        ([2.0, 1.5, -1.0, -2.0], (0, 1, 2, 3), 2.0, 0),
        ([1.0, 2.0, 1.5, 0.0], (2,), 0.5, 2),  # below 1 it rewards: 1.5 / 0.5
        ([0.5, 0.4, 0.0, -1.0], (0,), 2.0, 1),  # 0.25 < 0.4
    ],
)
def test_repetition_penalty_divides_positive_and_multiplies_negative_logits(
    logits: list[float], seen: tuple[int, ...], penalty: float, expected: int
) -> None:
    row = SamplingRow(SamplingSettings(repetition_penalty=penalty), seen)
    assert sampler(np.array([logits], np.float32), [row])[0].tolist() == [expected]


def test_repetition_penalty_comes_before_temperature_and_counts_appended_ids() -> None:
    logits = np.array([[2.0, 1.5, -1.0, -2.0]], np.float32)
    row = SamplingRow(SamplingSettings(temperature=1.0, top_k=1, repetition_penalty=2.0), [3])
    assert sampler(logits, [row])[0].tolist() == [0]
    assert sampler(logits, [row])[0].tolist() == [0]  # the sampler itself appends nothing
    row.append(0)
    assert sampler(logits, [row])[0].tolist() == [1]
    # exp(2/2), exp(1.5), exp(-1), exp(-2) over their sum 7.7034 at temperature 1
    row = SamplingRow(SamplingSettings(temperature=1.0, repetition_penalty=2.0), [0])
    for number, expected in ((0.352, 0), (0.354, 1), (0.934, 1), (0.936, 2), (0.981, 2), (0.984, 3)):
        use(row, number)
        assert sampler(logits, [row])[0].tolist() == [expected]


def test_logprobs_are_of_the_raw_logits() -> None:
    given = SamplingSettings(temperature=0.3, top_p=0.6, top_k=1, min_p=0.5, repetition_penalty=1.01)
    ids, logprobs = sampler(logits_of(PROBS), [SamplingRow(given, [0, 1])])
    assert ids.tolist() == [0]
    assert ids.dtype == np.int64
    assert logprobs.dtype == np.float32
    assert logprobs[0] == pytest.approx(math.log(0.5), abs=1e-6)


def test_log_softmax_of_known_probabilities() -> None:
    logits = np.stack([logits_of(PROBS)[0], logits_of([0.25] * 4)[0]]) + np.float32(3)
    result = log_softmax(logits)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.log([PROBS, [0.25] * 4]), atol=1e-6)
    np.testing.assert_array_equal(log_softmax(logits[1]), result[1])
    huge = np.array([3e38, 3e38, -3e38, -np.inf], np.float32)
    np.testing.assert_allclose(log_softmax(huge), [-math.log(2), -math.log(2), -np.inf, -np.inf], rtol=1e-6)


def test_greedy_takes_the_lowest_id_on_ties_and_draws_nothing() -> None:
    row = SamplingRow(SamplingSettings(seed=5), [])
    generator = use(row, LAST)
    assert sampler(np.array([[1.0, 7.0, 7.0, 7.0]], np.float32), [row])[0].tolist() == [1]
    assert generator.draws == 0


def test_a_sampled_token_costs_one_draw() -> None:
    row = SamplingRow(SamplingSettings(temperature=1.0, top_k=1, top_p=0.5, min_p=0.1), [])
    generator = use(row, 0.5)
    sampler(logits_of(PROBS), [row])
    assert generator.draws == 1


def test_the_last_draw_gives_a_real_id_of_positive_probability() -> None:
    assert draw_at(PROBS, LAST) == 3
    assert draw_at([0.25] * 4, 0.25) == 1  # [0.25, 0.5) is its share
    assert draw_at([0.5, 0.5, 0.0, 0.0], LAST) == 1
    assert draw_at([0.0, 0.0, 0.5, 0.5], 0.0) == 2
    assert draw_at([0.1] * 10, LAST) == 9  # 0.1 added up ten times is less than 1
    assert draw_at(PROBS, 1.0) == 3  # no generator gives 1, and rounding up to it would still be safe


@pytest.mark.parametrize(
    "options", [{"temperature": 1e-6}, {"temperature": 5e-324}, {"temperature": 1e-6, "top_p": 0.5}]
)
def test_tiny_temperatures_are_greedy(options: dict[str, Any]) -> None:
    logits = np.array([[-3e38, 1.0, 1.001, -np.inf], [3e38, 2e38, 0.0, -3e38]], np.float32)
    rows = [SamplingRow(SamplingSettings(**options), []) for _ in range(2)]
    assert all(sampler(logits, rows)[0].tolist() == [2, 0] for _ in range(20))


def test_extreme_options_overflow_nothing() -> None:
    logits = np.array([[3e38, -3e38, -np.inf, 1.0]], np.float32)
    for temperature in (0.0, 5e-324, 1.0, 1e308):
        for penalty in (5e-324, 1e-300, 1e300):
            for number in (0.0, 0.5, LAST):
                row = SamplingRow(SamplingSettings(temperature=temperature, repetition_penalty=penalty), [0, 1, 2, 3])
                use(row, number)
                ids, logprobs = sampler(logits, [row])
                assert ids[0] in (0, 1, 3)
                assert not np.isnan(logprobs[0])


@pytest.mark.parametrize(
    ("bad", "said"), [([0, np.nan], "hold NaN"), ([0, np.inf], r"hold \+inf"), ([-np.inf, -np.inf], "hold only -inf")]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_distribution_are_refused(bad: list[float], said: str, temperature: float) -> None:
    logits = np.array([[0.0, 0.0], bad], np.float32)
    rows = [SamplingRow(SamplingSettings(temperature=temperature), []) for _ in range(2)]
    with pytest.raises(InputError, match=said):
        sampler(logits, rows)
    with pytest.raises(InputError, match=said):
        log_softmax(logits)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_frequencies_follow_the_distribution(temperature: float) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1.5, (1, 12)).astype(np.float32)
    row = SamplingRow(SamplingSettings(temperature=temperature, seed=11), [])
    draws = 20_000
    counts = np.bincount([sampler(logits, [row])[0][0] for _ in range(draws)], minlength=12)
    expected = np.exp(log_softmax(logits[0] / temperature).astype(np.float64)) * draws
    assert float(((counts - expected) ** 2 / expected).sum()) < 31.26  # chi-square, 11 degrees of freedom, p = 0.001


def texts(row_settings: list[SamplingSettings], steps: int = 30) -> list[list[int]]:
    """Ids that rows draw from the same stream of logits."""
    rng = np.random.default_rng(0)
    rows = [SamplingRow(s, [1, 2]) for s in row_settings]
    out: list[list[int]] = [[] for _ in rows]
    for _ in range(steps):
        logits = np.repeat(rng.normal(0, 1, (1, 50)).astype(np.float32), len(rows), axis=0)
        for ids, row, token in zip(out, rows, sampler(logits, rows)[0].tolist(), strict=True):
            ids.append(token)
            row.append(token)
    return out


def test_seed_and_sample_decide_the_draws() -> None:
    base = SamplingSettings(temperature=1.0, seed=7)
    [first] = texts([base])
    assert texts([base, base]) == [first, first]
    others = [replace(base, seed=8), replace(base, sample=1), replace(base, seed=2**32), replace(base, seed=7 + 2**32)]
    different = texts([*others, replace(base, seed=0), replace(base, seed=0, sample=1), replace(base, seed=2**200)])
    assert len({tuple(ids) for ids in [first, *different]}) == 8


def test_greedy_ignores_the_seed() -> None:
    assert len({tuple(ids) for ids in texts([SamplingSettings(seed=s, sample=s) for s in range(5)])}) == 1


def test_the_draws_stay_the_same_from_release_to_release() -> None:
    assert texts([SamplingSettings(temperature=1.0, seed=42, sample=3)], steps=6) == [[42, 20, 23, 27, 2, 43]]


finite_logits = arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=st.floats(-50, 50, width=32)
)
options = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 5.0]),
    top_p=st.floats(1e-6, 1.0),
    top_k=st.integers(0, 45),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.1, 10),
    seed=st.integers(0, 2**70),
    sample=st.integers(0, 9),
)


@settings(max_examples=150, deadline=None)
@given(finite_logits, options, st.data())
def test_a_row_is_the_same_in_any_batch_and_at_any_place(
    logits: npt.NDArray[np.float32], option: SamplingSettings, data: st.DataObject
) -> None:
    vocab = logits.shape[1]
    each = [replace(option, sample=i) for i in range(len(logits))]
    seen = data.draw(st.lists(st.integers(0, vocab - 1), max_size=5))
    together = [SamplingRow(s, seen) for s in each]
    order = data.draw(st.permutations(range(len(logits))))
    moved = [SamplingRow(each[i], seen) for i in order]
    for _ in range(2):
        ids, logprobs = sampler(logits, together)
        moved_ids, moved_logprobs = sampler(np.asfortranarray(logits[order]), moved)
        assert ids[order].tolist() == moved_ids.tolist()
        assert logprobs[order].tolist() == moved_logprobs.tolist()
    alone = SamplingRow(each[0], seen)
    first = [sampler(logits[:1], [alone]) for _ in range(2)][-1]
    assert (first[0][0], first[1][0]) == (ids[0], logprobs[0])
    assert logprobs.tolist() == log_softmax(logits)[np.arange(len(ids)), ids].tolist()


@settings(max_examples=150, deadline=None)
@given(finite_logits, options, st.floats(0, LAST), st.data())
def test_only_ids_that_can_occur_are_given(
    logits: npt.NDArray[np.float32], option: SamplingSettings, number: float, data: st.DataObject
) -> None:
    impossible = data.draw(st.sets(st.integers(0, logits.shape[1] - 1), max_size=logits.shape[1] - 1))
    logits[:, sorted(impossible)] = -np.inf
    rows = [SamplingRow(option, []) for _ in logits]
    for row in rows:
        use(row, number)
    ids, logprobs = sampler(logits, rows)
    assert not impossible & set(ids.tolist())
    assert np.isfinite(logprobs).all()


weights = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1)).map(
    lambda w: w / w.max() if w.any() else w + 1
)


@settings(max_examples=200, deadline=None)
@given(weights, st.floats(1e-9, 0.9999))
def test_top_p_is_the_smallest_set_that_reaches_p(given_weights: npt.NDArray[np.float64], p: float) -> None:
    order = sorted(range(len(given_weights)), key=lambda i: (-given_weights[i], i))
    total, running, expected = math.fsum(given_weights), 0.0, []
    for i in order:
        expected.append(i)
        running += given_weights[i]
        if abs(running / total - p) < 1e-12:
            return  # rounding decides
        if running > p * total:
            break
    kept = top_p(given_weights, p)
    assert set(np.flatnonzero(kept)) == {i for i in expected if given_weights[i] > 0}
    assert (kept[expected] == given_weights[expected]).all()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, math.inf, "1", None, True, 10**400]),
        ("top_p", [0, -1, 1.01, math.nan, "0.8", None]),
        ("top_k", [-1, 2.0, "3", None, True]),
        ("min_p", [-0.1, 1.1, math.nan, None]),
        ("repetition_penalty", [0, -1, math.inf, math.nan, None]),
        ("seed", [-1, 1.5, "x", None, True]),
        ("sample", [-1, 0.0]),
    ],
)
def test_options_out_of_range_are_refused_by_name(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError, match=f"^{name} must be a .* not "):
            SamplingSettings(**{name: value})


def test_options_accept_whole_numbers_and_numpy_scalars() -> None:
    SamplingSettings(temperature=1, top_p=1, min_p=0, repetition_penalty=2, seed=2**100)
    scalars: dict[str, Any] = {"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.uint32(1)}
    SamplingSettings(**scalars)


def test_the_likeliest_ids_come_in_order_the_lowest_first_among_equals() -> None:
    logits = np.array([0.5, 2.0, -1.0, 2.0, 0.5, -np.inf], np.float32)
    scores = log_softmax(logits)
    for count in (0, 1, 2, 3, 5, 6, 9):
        found = likeliest(logits, count)
        assert [token for token, _ in found] == [1, 3, 0, 4, 2, 5][:count]
        assert [logprob for _, logprob in found] == [float(scores[token]) for token, _ in found]
    assert [target_logprob(logits, token) for token in range(6)] == scores.tolist()
    with pytest.raises(InputError, match="NaN"):
        likeliest(np.array([np.nan, 1], np.float32), 1)


def large_logits(vocab: int, spread: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """Logits (V,) with a few peaks, some equal ones, and some ids that are impossible."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, vocab).astype(np.float32)
    logits[rng.integers(0, vocab, 5)] += np.float32(spread)
    logits[rng.integers(0, vocab, 50)] = logits[rng.integers(0, vocab, 5)].max()
    logits[rng.integers(0, vocab, 50)] = -np.inf
    return logits


def exact_weights(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    scores = logits.astype(np.float64)
    return np.asarray(np.exp((scores - scores.max()) / temperature))


def sampled(logits: npt.NDArray[np.float32], numbers: Sequence[float], **options: Any) -> list[int]:
    """The ids that a row draws at each number."""
    row, found = SamplingRow(SamplingSettings(**{"temperature": 1.0, **options}), []), []
    for number in numbers:
        use(row, number)
        found.append(choose(logits[None], [row], [Wants()])[0].id)
    return found


BUSY: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.5},
    {"temperature": 1.0, "top_k": 50, "repetition_penalty": 1.1},
    {"temperature": 1.0, "min_p": 0.02},
    {"temperature": 2.0, "top_p": 0.99, "min_p": 1e-5},
    {"temperature": 1e-31},
]


@pytest.mark.parametrize("vocab", [4999, 32768])
def test_a_large_row_is_the_same_in_any_company_layout_and_thread(vocab: int) -> None:
    logits = np.stack([large_logits(vocab, spread, seed=i) for i, spread in enumerate((0.3, 1, 3, 1, 0.3, 2, 3))])
    wants = [Wants(logprob=True, top=i) for i in range(len(BUSY))]

    def rows() -> list[SamplingRow]:
        return [SamplingRow(SamplingSettings(seed=i, **option), range(i, vocab, 9)) for i, option in enumerate(BUSY)]

    def alone(i: int) -> list[Choice]:
        row = rows()[i]
        return [choose(logits[i : i + 1], [row], [wants[i]])[0] for _ in range(3)]

    together = rows()
    expected = [choose(logits, together, wants) for _ in range(3)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(alone, range(len(BUSY)))) == [list(each) for each in zip(*expected, strict=True)]
    odd_bytes = np.frombuffer(b"\0" + logits.tobytes(), np.uint8)[1:]
    at_odd_bytes = odd_bytes.view(np.float32).reshape(logits.shape)
    wide = np.repeat(logits, 2, axis=1)
    for other in (np.asfortranarray(logits), wide[:, ::2], logits[:, ::-1].copy()[:, ::-1], at_odd_bytes):
        again = rows()
        assert [choose(other, again, wants) for _ in range(3)] == expected
    order = [3, 0, 6, 5, 1, 4, 2]
    moved = [rows()[i] for i in order]
    for each in expected:
        assert choose(logits[order], moved, [wants[i] for i in order]) == [each[i] for i in order]


def test_a_damaged_row_gets_an_error_and_touches_no_other() -> None:
    good = large_logits(3000, 2)
    bad = np.stack([good] * 4)
    bad[0, 7], bad[2, 9], bad[3] = np.nan, np.inf, -np.inf
    rows = [SamplingRow(SamplingSettings(temperature=1.0, top_p=0.8, seed=4), []) for _ in bad]
    generators = [use(row, 0.3) for row in rows]
    wants = [Wants(logprob=True, top=2)] * 4
    fault = "logits hold {}: the checkpoint's weights are damaged or overflow; check its files (`info` with `verify`)"
    [expected] = sampled(good, [0.3], top_p=0.8)
    found = choose(bad, rows, wants)
    assert [choice.id for choice in found] == [-1, expected, -1, -1]
    held = ("NaN", "+inf", "only -inf")
    assert [found[i] for i in (0, 2, 3)] == [Choice(-1, error=fault.format(what)) for what in held]
    assert found[1] == Choice(expected, target_logprob(good, expected), likeliest(good, 2))
    assert [generator.draws for generator in generators] == [0, 1, 0, 0]


def test_only_what_is_wanted_is_given_and_it_is_of_the_raw_logits() -> None:
    logits = np.stack([large_logits(3000, 2, seed) for seed in range(4)])
    rows = [SamplingRow(SamplingSettings(temperature=0.3, repetition_penalty=3.0), range(3000)) for _ in logits]
    wants = [Wants(), Wants(logprob=True), Wants(top=3), Wants(logprob=True, top=1)]
    found = choose(logits, rows, wants)
    for choice, wanted, row in zip(found, wants, logits, strict=True):
        assert choice.logprob == (target_logprob(row, choice.id) if wanted.logprob else None)
        assert choice.top == likeliest(row, wanted.top)
        assert choice.error is None
    again = [SamplingRow(row.settings, range(3000)) for row in rows]
    assert [choice.id for choice in choose(logits, again, [Wants()] * 4)] == [choice.id for choice in found]


@pytest.mark.parametrize("spread", [0.01, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_of_a_large_row_is_the_smallest_set_that_reaches_p(spread: float, p: float) -> None:
    logits = large_logits(20_000, spread)
    exact = exact_weights(logits, 0.7)
    order = np.argsort(-logits, kind="stable")  # the lowest ids among equals
    running = np.cumsum(exact[order]) / math.fsum(exact)
    count = int(np.searchsorted(running, p)) + 1
    heavy = running[count] - running[count - 1] > 1.001 / FEW  # such ids are compared in float64, others in float32
    nudge = 1e-9 if heavy else 1e-5
    # Besides p, just below and just above the share of a whole number of ids.
    shares = {p: count, running[count - 1] * (1 - nudge): count, running[count - 1] * (1 + nudge): count + 1}
    for share, wanted in shares.items():
        kept = float32_weights(logits, float(logits.max()), 0.7)
        before = kept.copy()
        keep_top_p(kept, logits, 0.7, min(share, LAST))
        ids = np.flatnonzero(kept)
        assert (kept[ids] == before[ids]).all()
        assert set(ids) == set(order[: wanted if heavy else len(ids)])
        error = 1e-12 if heavy else 3e-6
        assert running[len(ids) - 1] >= share * (1 - error)
        assert len(ids) == 1 or running[len(ids) - 2] <= share * (1 + error)


def test_equal_logits_keep_the_lowest_ids_of_a_large_row() -> None:
    equal = np.zeros(10_000, np.float32)
    assert sampled(equal, [0.0, LAST], top_p=0.25) == [0, 2499]
    assert sampled(equal, [0.0, LAST], top_k=40) == [0, 39]
    assert sampled(equal, [0.0, 0.5, LAST], min_p=1.0) == [0, 5000, 9999]


@pytest.mark.parametrize("spread", [0.1, 2.0])
@pytest.mark.parametrize("min_p", [0.9, 0.2, 1e-3, 1e-9, 1e-300])
def test_min_p_keeps_the_ids_whose_float64_weights_reach_it(spread: float, min_p: float) -> None:
    logits = large_logits(20_000, spread)
    exact = exact_weights(logits)
    nearest = float(exact[np.abs(exact - min_p).argmin()])
    for bound in (min_p, nearest, math.nextafter(nearest, 0), min(1.0, math.nextafter(nearest, 1))):
        kept = float32_weights(logits, float(logits.max()), 1.0)
        keep_min_p(kept, logits, 1.0, bound)
        assert (np.flatnonzero(kept) == np.flatnonzero((exact >= bound) & (exact > 0))).all()


@pytest.mark.parametrize("k", [1, 2, 50, 300, 1100, 5000, 19_999, 20_000, 30_000])
def test_top_k_of_a_large_row_is_that_of_a_sort(k: int) -> None:
    for logits in (large_logits(20_000, 1), np.round(large_logits(20_000, 1)), np.sort(large_logits(20_000, 1))):
        assert (top_k(logits, k) == np.sort(np.argsort(-logits, kind="stable")[:k])).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1e31},  # beyond what float32 can take
        {"top_p": 0.95},
        {"top_p": 0.3, "min_p": 0.01},
        {"min_p": 0.01},
        {"top_k": 100},
        {"top_k": 3000, "top_p": 0.9},
    ],
)
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_draws_from_a_large_row_follow_the_cumulative_weights(options: dict[str, Any], spread: float) -> None:
    logits = large_logits(10_000, spread)
    weights = exact_weights(logits, options.get("temperature", 1.0))
    order = np.argsort(-logits, kind="stable")
    weights[order[options.get("top_k", len(logits)) :]] = 0
    running = np.cumsum(weights[order]) / weights.sum()
    weights[order[int(np.searchsorted(running, options.get("top_p", 1.0))) + 1 :]] = 0
    weights[weights < options.get("min_p", 0)] = 0
    cumulative = np.cumsum(weights) / weights.sum()
    numbers = np.linspace(0, LAST, 101)
    for number, found in zip(numbers, sampled(logits, numbers.tolist(), **options), strict=True):
        assert weights[found] > 0
        # Sums of float32 weights move the borders of ids by less than this.
        assert cumulative[found] > number - 1e-6
        assert cumulative[found] - weights[found] / weights.sum() <= number + 1e-6
    possible = np.flatnonzero(weights)
    assert sampled(logits, [0.0], **options) == [possible[0]]
    last = sampled(logits, [LAST], **options)[0]
    assert weights[last] > 0 and cumulative[last] > 1 - 1e-9


@pytest.mark.parametrize("options", [{}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_extreme_temperatures_of_a_large_row_overflow_nothing(options: dict[str, Any]) -> None:
    logits = np.zeros(2 * FEW, np.float32)
    logits[:4] = [-3e38, 3e38, -np.inf, 2e38]
    for temperature in (5e-324, 1e-39, 1e-6, 1.0, 1e29):  # the next score is 1e38 lower
        assert sampled(logits, [0.0, 0.5, LAST], temperature=temperature, **options) == [1, 1, 1]
    last = FEW - 1 if "top_p" in options else 2 * FEW - 1
    for temperature in (1e308, 1.7e308):  # all weights are 1, but for that of an impossible id
        assert sampled(logits, [0.0], temperature=temperature, **options)[0] in (0, 1)
        assert abs(sampled(logits, [LAST], temperature=temperature, **options)[0] - last) <= 1


def test_every_id_of_a_large_row_can_be_drawn() -> None:
    logits = np.random.default_rng(2).normal(0, 0.5, FEW + 300).astype(np.float32)  # more than are drawn one by one
    cumulative = np.cumsum(exact_weights(logits))
    middles = (cumulative - exact_weights(logits) / 2) / cumulative[-1]
    assert sampled(logits, middles.tolist()) == list(range(len(logits)))


@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 20.0])
def test_logprobs_of_a_large_row_are_those_of_float64(spread: float) -> None:
    logits = large_logits(30_000, spread)
    exact = logits.astype(np.float64) - logits.max() - math.log(math.fsum(exact_weights(logits)))
    found = log_softmax(logits)
    np.testing.assert_allclose(found, exact, rtol=1.2e-7, atol=3e-8)
    targets = np.array([0, 5, int(logits.argmax()), 29_999])
    assert target_logprobs(np.stack([logits] * 4), targets).tolist() == found[targets].tolist()
    assert [target_logprob(logits, int(target)) for target in targets] == found[targets].tolist()
    assert likeliest(logits, 3)[0][1] == found.max()


def test_target_logprobs_take_one_id_of_each_row() -> None:
    logits = np.stack([large_logits(500, 1, seed) for seed in range(6)])
    found = target_logprobs(logits, list(range(6)))
    assert found.dtype == np.float32
    assert found.tolist() == np.diag(log_softmax(logits)[:, :6]).tolist()
    assert target_logprobs(logits[:0], []).tolist() == []
    logits[4, 3] = np.nan
    with pytest.raises(InputError, match="logits hold NaN"):
        target_logprobs(logits, list(range(6)))


def test_a_penalty_takes_each_seen_id_once_and_leaves_the_logits_alone() -> None:
    logits = large_logits(3000, 2)
    before = logits.copy()
    row = SamplingRow(SamplingSettings(repetition_penalty=2.0), [1, 1])
    for _ in range(20):  # each choice is penalised once, and for good
        expected = before.astype(np.float64)
        seen = np.unique(np.array(row.seen))
        expected[seen] = np.where(expected[seen] > 0, expected[seen] / 2, expected[seen] * 2)
        [choice] = choose(logits[None], [row], [Wants()])
        assert choice.id == int(expected.argmax())
        row.append(choice.id)
        row.append(choice.id)
    assert (logits == before).all()


def test_the_benchmark_measures_each_setting_with_and_without_logprobs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "ROWS", (1, 4))
    monkeypatch.setattr(benchmark, "VOCABULARIES", (300, 5000))
    monkeypatch.setattr("sys.argv", ["sampling.py", "--json", "--repeats", "2"])
    benchmark.main()
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({(record["vocabulary"], record["rows"], record["settings"]) for record in records}) == 2 * 2 * 4
    assert all(record["ms"] > 0 and record["ms_with_logprobs"] > 0 for record in records)
    monkeypatch.setattr("sys.argv", ["sampling.py", "--repeats", "1"])
    benchmark.main()
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(records)


# ---- ids that may not be chosen


def test_an_excluded_id_is_never_chosen_and_log_probabilities_are_those_of_the_model() -> None:
    logits = logits_of(PROBS)
    greedy = SamplingRow(SamplingSettings(), [], (range(1),))
    found = choose(logits, [greedy], [Wants(logprob=True, top=4)])[0]
    assert found.id == 1
    assert found.logprob == pytest.approx(math.log(0.3), abs=1e-6)
    assert [token_id for token_id, _ in found.top] == [0, 1, 2, 3]
    assert found.top[0][1] == pytest.approx(math.log(0.5), abs=1e-6)
    assert np.array_equal(logits, logits_of(PROBS)), "the caller's logits stay as they are"


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.4}, {"min_p": 0.1}, {"repetition_penalty": 1.5}])
def test_draws_share_out_the_ids_that_are_left(options: dict[str, Any]) -> None:
    row = SamplingRow(SamplingSettings(**{"temperature": 1.0, **options}), [0], (range(1), range(2, 3)))
    drawn = {number: draw for number, draw in ((n, use(row, n / 50) and choose_one(row)) for n in range(50))}
    assert set(drawn.values()) <= {1, 3}
    if not options:  # 0.3 and 0.05 are left, so 6 of 7 draws
        assert sum(token_id == 1 for token_id in drawn.values()) == 43


def choose_one(row: SamplingRow) -> int:
    return choose(logits_of(PROBS), [row], [Wants()])[0].id


@pytest.mark.parametrize("size", [4, FEW + 100])
def test_no_id_of_a_large_or_a_small_vocabulary_is_drawn_where_excluded(size: int) -> None:
    logits = np.random.default_rng(0).standard_normal((1, size)).astype(np.float32)
    row = SamplingRow(SamplingSettings(temperature=2.0), [], (range(2), range(size - 1, size)))
    assert {choose(logits, [row], [Wants()])[0].id for _ in range(200)} <= set(range(2, size - 1))


def test_where_every_id_that_may_be_chosen_is_impossible_the_row_has_an_error() -> None:
    logits = np.array([[0.0, -math.inf]], np.float32)
    row = SamplingRow(SamplingSettings(), [], (range(1),))
    assert choose(logits, [row], [Wants()])[0].error == (
        "logits hold only -inf: the checkpoint's weights are damaged or overflow; check its files"
        " (`info` with `verify`)"
    )
