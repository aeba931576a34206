"""Angles of the rotary position embedding (RoFormer, arXiv:2104.09864), for the positions at hand: no table.

A model whose context was lengthened turns its pairs more slowly: a scaling says how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral.errors import InputError


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (arXiv:2306.15595): every pair turns `factor` times as slowly.

    Raises InputError for a factor below 1.
    """

    factor: float

    def __post_init__(self) -> None:
        require_factor(self.factor)

    def applied(self, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
        """The frequencies (d / 2,), in radians for each position, as they are used."""
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """The scaling of Llama 3.1: pairs that turn quickly stay, slow ones turn `factor` times as slowly.

    A pair is quick that makes more than `high_freq_factor` turns within `original_max_position_embeddings` positions,
    and slow below `low_freq_factor` turns; between the two, both frequencies are mixed in proportion. Raises InputError
    for numbers that do not go together.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        require_factor(self.factor)
        if not self.low_freq_factor < self.high_freq_factor:
            raise InputError(
                f"rope_scaling: low_freq_factor {self.low_freq_factor:g} must be below high_freq_factor"
                f" {self.high_freq_factor:g}"
            )

    def applied(self, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
        """The frequencies (d / 2,), in radians for each position, as they are used."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        scaled: NDArray[np.float64] = (1 - kept) * frequencies / self.factor + kept * frequencies
        return scaled


@dataclass(frozen=True)
class FactorScaling:
    """A factor for each pair of a head, by which it turns more slowly, as GGUF files have it: (d / 2,)."""

    factors: tuple[float, ...]

    def applied(self, frequencies: NDArray[np.float64], rope_theta: float | None = None) -> NDArray[np.float64]:
        """The frequencies (d / 2,), in radians for each position, as they are used."""
        slowed: NDArray[np.float64] = frequencies / np.array(self.factors)
        return slowed


RopeScaling = LinearScaling | Llama3Scaling | FactorScaling


def require_factor(factor: float) -> None:
    """Raise InputError for a factor of a scaling that is below 1 or no number."""
    if not 1 <= factor < math.inf:
        raise InputError(f"rope_scaling: factor must be at least 1, not {factor:g}")


def rope_frequencies(head_dim: int, rope_theta: float, scaling: RopeScaling | None = None) -> NDArray[np.float64]:
    """Radians by which each pair of a head turns from one position to the next: (head_dim / 2,) in float64.

    Without a scaling, pair i turns by rope_theta ** (-2i / head_dim).
    """
    frequencies = rope_theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return frequencies if scaling is None else scaling.applied(frequencies)


def rope_angles(
    positions: NDArray[np.int64], head_dim: int, rope_theta: float, scaling: RopeScaling | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of the angles by which each pair of a head is rotated.

    Pair i of a head is its elements 2i and 2i + 1 (interleaved, as in the official checkpoints); at position p it is
    rotated by p times its frequency. The angle is formed in float64, so that it is right at any position.

    positions: (T,) absolute positions. Returns two (T, head_dim) float32 arrays in which each value stands twice, for
    the two elements of a pair.
    """
    frequencies = rope_frequencies(head_dim, rope_theta, scaling)
    angles = np.repeat(np.outer(positions.astype(np.float64), frequencies), 2, axis=1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
