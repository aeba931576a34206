"""Angles of the rotary position embedding (RoFormer, arXiv:2104.09864), for the positions at hand: no table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rope_angles(
    positions: NDArray[np.int64], head_dim: int, rope_theta: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of the angles by which each pair of a head is rotated.

    Pair i of a head is its elements 2i and 2i + 1 (interleaved, as in the official checkpoints); at position p it is
    rotated by p * rope_theta ** (-2i / head_dim) radians. The angle is formed in float64, so that it is right at any
    position.

    positions: (T,) absolute positions. Returns two (T, head_dim) float32 arrays in which each value stands twice, for
    the two elements of a pair.
    """
    frequencies = rope_theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angles = np.repeat(np.outer(positions.astype(np.float64), frequencies), 2, axis=1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
