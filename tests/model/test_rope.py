"""Rotary angles against the formula, at whatever position."""

import math

import numpy as np
import pytest

from mistral.errors import InputError
from mistral.model.rope import LinearScaling, Llama3Scaling, rope_angles, rope_frequencies


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
    for scaling in (LinearScaling(1.0), Llama3Scaling(1.0, 1.0, 4.0, 8192)):
        np.testing.assert_allclose(rope_frequencies(16, 1e4, scaling), plain, rtol=1e-15)


@pytest.mark.parametrize("factor", [0.5, 0.0, -2.0, math.inf, math.nan])
def test_a_factor_that_speeds_up_is_refused(factor: float) -> None:
    for make in (LinearScaling, lambda f: Llama3Scaling(f, 1.0, 4.0, 8192)):
        with pytest.raises(InputError, match="factor must be at least 1"):
            make(factor)


@pytest.mark.parametrize("high", [1.0, 0.5, math.nan])
def test_llama3_bounds_in_the_wrong_order_are_refused(high: float) -> None:
    with pytest.raises(InputError, match="must be below high_freq_factor"):
        Llama3Scaling(8.0, 1.0, high, 8192)
