"""Rotary angles against the formula, at whatever position."""

import math

import numpy as np
import pytest

from mistral.model.rope import rope_angles


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
