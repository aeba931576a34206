"""Rotary angles against the formula, at whatever position."""

import math

import numpy as np
import pytest

from mistral.errors import InputError
from mistral.model.rope import (
    LinearScaling,
    Llama3Scaling,
    Llama4Scaling,
    YarnScaling,
    rope_angles,
    rope_frequencies,
    yarn_sharpness,
)


@pytest.mark.parametrize("head_dim", [2, 6, 128])
@pytest.mark.parametrize("rope_theta", [1e4, 1e8])
def test_angles_follow_the_formula_for_each_pair(head_dim: int, rope_theta: float) -> None:
    positions = [0, 1, 2, 77]
    cos, sin = rope_angles(np.array(positions), head_dim, rope_theta)
    assert cos.shape == sin.shape == (4, head_dim)
    assert cos.dtype == sin.dtype == np.float32
    for row, position in enumerate(positions):
        for element in range(head_dim):
            angle = position * rope_theta ** (-2 * (element // 2) / head_dim)
            assert cos[row, element] == pytest.approx(math.cos(angle), abs=1e-7)
            assert sin[row, element] == pytest.approx(math.sin(angle), abs=1e-7)


def test_position_zero_turns_nothing() -> None:
    cos, sin = rope_angles(np.array([0]), 8, 1e4)
    assert cos.tolist() == [[1.0] * 8]
    assert sin.tolist() == [[0.0] * 8]


def test_each_position_depends_on_itself_alone() -> None:
    apart = [rope_angles(np.array([p]), 8, 1e4)[0][0] for p in (9, 3, 3)]
    assert np.array_equal(rope_angles(np.array([9, 3, 3]), 8, 1e4)[0], apart)


@pytest.mark.parametrize("position", [32_768, 131_073, 10**7])
def test_trap_7_no_table_of_fixed_length(position: int) -> None:
    """Angles far beyond any table, and exact there: float32 angles would be off by whole degrees."""
    cos, sin = rope_angles(np.array([position]), 4, 1e6)
    for element in range(4):
        angle = position * 1e6 ** (-(element // 2) / 2)
        assert cos[0, element] == pytest.approx(math.cos(angle), abs=1e-6)
        assert sin[0, element] == pytest.approx(math.sin(angle), abs=1e-6)


def test_linear_scaling_divides_every_angle() -> None:
    far = rope_angles(np.array([12]), 8, 1e4, LinearScaling(4.0))
    near = rope_angles(np.array([3]), 8, 1e4)
    np.testing.assert_allclose(far, near, atol=1e-7)


def test_llama3_scaling_keeps_quick_pairs_and_slows_slow_ones() -> None:
    """Turns within 64 positions: 64 / 2 pi = 10.2 of pair 0, then a fourth of the pair before."""
    plain = rope_frequencies(8, 256.0)
    scaled = rope_frequencies(8, 256.0, Llama3Scaling(8.0, 1.0, 4.0, 64))
    assert plain.tolist() == [1, 1 / 4, 1 / 16, 1 / 64]
    turns = 64 / (2 * math.pi) / 4  # 2.55, between 1 and 4
    kept = (turns - 1) / 3
    expected = [1, (kept + (1 - kept) / 8) / 4, 1 / 16 / 8, 1 / 64 / 8]
    np.testing.assert_allclose(scaled, expected, rtol=1e-15)


def test_a_factor_of_one_changes_nothing() -> None:
    plain = rope_frequencies(16, 1e4)
    for scaling in (LinearScaling(1.0), Llama3Scaling(1.0, 1.0, 4.0, 8192), YarnScaling(1.0, 8192)):
        np.testing.assert_allclose(rope_frequencies(16, 1e4, scaling), plain, rtol=1e-15)


@pytest.mark.parametrize("factor", [0.5, 0.0, -2.0, math.inf, math.nan])
def test_a_factor_that_speeds_up_is_refused(factor: float) -> None:
    for make in (LinearScaling, lambda f: Llama3Scaling(f, 1.0, 4.0, 8192), lambda f: YarnScaling(f, 8192)):
        with pytest.raises(InputError, match="factor must be at least 1"):
            make(factor)


@pytest.mark.parametrize("high", [1.0, 0.5, math.nan])
def test_llama3_bounds_in_the_wrong_order_are_refused(high: float) -> None:
    with pytest.raises(InputError, match="must be below high_freq_factor"):
        Llama3Scaling(8.0, 1.0, high, 8192)


# By published model: head_dim, rope_theta, the scaling, and the pairs where its ramp begins and ends
RAMPS = [
    (128, 1e6, YarnScaling(16.0, 16384), (20, 37)),
    (128, 1e9, YarnScaling(16.0, 16384), (13, 25)),
    (128, 1e8, YarnScaling(48.0, 8192), (12, 25)),
    (128, 1e6, YarnScaling(64.0, 4096, 4.0, 1.0, yarn_sharpness(64.0)), (23, 31)),
]


@pytest.mark.parametrize(("head_dim", "rope_theta", "scaling", "ramp"), RAMPS)
def test_yarn_keeps_quick_pairs_slows_slow_ones_and_mixes_between(
    head_dim: int, rope_theta: float, scaling: YarnScaling, ramp: tuple[int, int]
) -> None:
    assert scaling.ramp(head_dim, rope_theta) == ramp
    low, high = ramp
    plain, found = rope_frequencies(head_dim, rope_theta), rope_frequencies(head_dim, rope_theta, scaling)
    for pair in range(head_dim // 2):
        slowed = min(max((pair - low) / (high - low), 0), 1)
        assert found[pair] == pytest.approx(plain[pair] * (1 - slowed + slowed / scaling.factor), rel=1e-12)
    assert found[low] == plain[low] and found[high] == pytest.approx(plain[high] / scaling.factor, rel=1e-15)


def test_yarn_scales_what_is_turned_at_every_position() -> None:
    assert yarn_sharpness(64.0) == pytest.approx(1.415888, abs=5e-7)
    assert yarn_sharpness(1.0) == yarn_sharpness(0.5) == 1 and yarn_sharpness(math.e, 2.0) == pytest.approx(1.2)
    positions = np.array([0, 3, 100_000])
    plain = rope_angles(positions, 16, 100.0, YarnScaling(4.0, 64, 8.0))
    sharp = rope_angles(positions, 16, 100.0, YarnScaling(4.0, 64, 8.0, attention_factor=1.25))
    np.testing.assert_allclose(sharp, 1.25 * np.array(plain), rtol=1e-6)
    assert sharp[0][0].tolist() == [1.25] * 16


def test_yarn_without_rounding_mixes_from_and_to_the_very_pairs() -> None:
    each = 16 / (2 * math.log(100))
    low, high = YarnScaling(4.0, 64, 8.0, 1.0, truncate=False).ramp(16, 100.0)
    assert low == pytest.approx(each * math.log(64 / (16 * math.pi)))
    assert high == pytest.approx(each * math.log(64 / (2 * math.pi)))


def test_yarn_of_an_origin_that_leaves_no_ramp_is_a_step() -> None:
    for origin, base, kept in ((3, 1e4, 1), (1 << 30, 1.5, 8)):
        plain, found = rope_frequencies(16, base), rope_frequencies(16, base, YarnScaling(4.0, origin))
        np.testing.assert_allclose(found / plain, [1.0] * kept + [0.25] * (8 - kept), rtol=1e-12)


@pytest.mark.parametrize(("fast", "slow"), [(1.0, 1.0), (1.0, 32.0), (math.nan, 1.0), (32.0, math.nan)])
def test_yarn_bounds_in_the_wrong_order_are_refused(fast: float, slow: float) -> None:
    with pytest.raises(InputError, match="must be below beta_fast"):
        YarnScaling(4.0, 64, fast, slow)


@pytest.mark.parametrize("base", [1.0, 0.5])
def test_yarn_needs_a_base_above_one(base: float) -> None:
    with pytest.raises(InputError, match="must be above 1 for YaRN"):
        rope_frequencies(16, base, YarnScaling(4.0, 64))


def test_queries_grow_with_each_origin_that_lies_behind_them() -> None:
    positions = np.array([0, 16383, 16384, 32767, 32768, 262143, 10**12])
    found = Llama4Scaling(16384, 0.1).factors(positions)
    assert found.dtype == np.float32
    expected = [1, 1, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3), 1 + 0.1 * math.log(16)]
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-7)
    assert found[-1] == pytest.approx(1 + 0.1 * math.log(1 + 10**12 // 16384), rel=1e-6)


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_a_growth_that_cannot_be_is_refused(beta: float) -> None:
    with pytest.raises(InputError, match="beta must not be negative"):
        Llama4Scaling(16384, beta)
