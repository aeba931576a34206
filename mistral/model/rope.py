"""Angles of the rotary position embedding (RoFormer, arXiv:2104.09864), computed for given positions without a table.

Each pair of elements of a head is rotated by position * frequency. Where a model's context was extended, a scaling
lowers the frequencies. It may also scale the rotated vectors: queries and keys, so that attention stays as sharp over
more keys (YaRN), or queries alone by their position (Llama 4).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral.errors import InputError


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (arXiv:2306.15595): all frequencies are divided by `factor`.

    Raises InputError for a factor below 1.
    """

    factor: float

    def __post_init__(self) -> None:
        require_factor(self.factor)

    def applied(self, frequencies: NDArray[np.float64], rope_theta: float) -> NDArray[np.float64]:
        """The scaled frequencies (d / 2,), in radians per position."""
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """The scaling of Llama 3.1: high frequencies are kept, low ones divided by `factor`.

    A frequency is high if its pair makes more than `high_freq_factor` turns within `original_max_position_embeddings`
    positions, and low below `low_freq_factor` turns; between the two it is interpolated linearly. Raises InputError for
    inconsistent numbers.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        require_factor(self.factor)
        if not self.low_freq_factor < self.high_freq_factor:
            raise InputError(
                f"low_freq_factor {self.low_freq_factor:g} must be below high_freq_factor {self.high_freq_factor:g}"
            )

    def applied(self, frequencies: NDArray[np.float64], rope_theta: float) -> NDArray[np.float64]:
        """The scaled frequencies (d / 2,), in radians per position."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        scaled: NDArray[np.float64] = (1 - kept) * frequencies / self.factor + kept * frequencies
        return scaled


@dataclass(frozen=True)
class FactorScaling:
    """A divisor for the frequency of each pair of a head, (d / 2,): `rope_freqs.weight` of GGUF files."""

    factors: tuple[float, ...]

    def applied(self, frequencies: NDArray[np.float64], rope_theta: float) -> NDArray[np.float64]:
        """The scaled frequencies (d / 2,), in radians per position."""
        slowed: NDArray[np.float64] = frequencies / np.array(self.factors)
        return slowed


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): high frequencies are kept, low ones divided by `factor`.

    The pair with the (fractional) index corr(r) makes r turns within `original_max_position_embeddings` positions.
    Frequencies of pairs up to corr(`beta_fast`) are kept, those from corr(`beta_slow`) on divided, and between the two
    interpolated linearly in the index. `truncate`: the two indices are rounded outwards. Rotated queries and keys are
    multiplied by `attention_factor`. The scaling is the same at every position. Raises InputError for inconsistent
    numbers.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        require_factor(self.factor)
        if not self.beta_slow < self.beta_fast:
            raise InputError(f"beta_slow (alpha) {self.beta_slow:g} must be below beta_fast (beta) {self.beta_fast:g}")

    def ramp(self, head_dim: int, rope_theta: float) -> tuple[float, float]:
        """The indices of pairs between which frequencies are interpolated. Raises InputError for a base up to 1."""
        if not rope_theta > 1:
            raise InputError(f"rope_theta {rope_theta:g} must be above 1 for YaRN")
        each = head_dim / (2 * math.log(rope_theta))
        origin = math.log(self.original_max_position_embeddings / (2 * math.pi))
        quick, slow = (each * (origin - math.log(turns)) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            quick, slow = math.floor(quick), math.ceil(slow)
        return max(quick, 0), min(slow, head_dim - 1)

    def applied(self, frequencies: NDArray[np.float64], rope_theta: float) -> NDArray[np.float64]:
        """The scaled frequencies (d / 2,), in radians per position."""
        low, high = self.ramp(2 * len(frequencies), rope_theta)
        slowed = np.clip((np.arange(len(frequencies)) - low) / max(high - low, 0.001), 0.0, 1.0)
        scaled: NDArray[np.float64] = (1 - slowed) * frequencies + slowed * frequencies / self.factor
        return scaled


def yarn_sharpness(factor: float, weight: float = 1.0) -> float:
    """YaRN's factor of queries and keys for a context `factor` times as long (arXiv:2309.00071, equation 22)."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


@dataclass(frozen=True)
class Llama4Scaling:
    """Queries are scaled by their position, in steps; keys, and so the cache, are not.

    After the rotation a query at position p is multiplied by 1 + beta ln(1 + floor(p / origin)), where the origin is
    `original_max_position_embeddings`; before the origin this is 1. Raises InputError for a beta that is negative or
    not finite.
    """

    original_max_position_embeddings: int
    beta: float

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise InputError(f"beta must not be negative, and is {self.beta:g}")

    def factors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """The factors (T,) of the queries at positions (T,)."""
        steps = positions // self.original_max_position_embeddings
        return (1 + self.beta * np.log1p(steps.astype(np.float64))).astype(np.float32)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | FactorScaling


def require_factor(factor: float) -> None:
    """Raise InputError for a scaling factor that is below 1 or not finite."""
    if not 1 <= factor < math.inf:
        raise InputError(f"factor must be at least 1, not {factor:g}")


@functools.lru_cache(maxsize=16)  # the same in every step
def rope_frequencies(head_dim: int, rope_theta: float, scaling: RopeScaling | None = None) -> NDArray[np.float64]:
    """Frequencies of the pairs of a head, in radians per position: (head_dim / 2,) float64.

    Without a scaling, that of pair i is rope_theta ** (-2i / head_dim).
    """
    frequencies = rope_theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        frequencies = scaling.applied(frequencies, rope_theta)
    frequencies.setflags(write=False)
    return frequencies


def rope_angles(
    positions: NDArray[np.int64], head_dim: int, rope_theta: float, scaling: RopeScaling | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of the angles by which each pair of a head is rotated.

    Pair i of a head is its elements 2i and 2i + 1 (interleaved, as in the official checkpoints); at position p it is
    rotated by p times its frequency. The angle is computed in float64, so that it is accurate at any position. YaRN's
    factor of queries and keys is applied to the cosines and sines.

    positions: (T,) absolute positions. Returns two (T, head_dim) float32 arrays in which each value is repeated for the
    two elements of its pair.
    """
    angles = np.outer(positions.astype(np.float64), rope_frequencies(head_dim, rope_theta, scaling))
    cos, sin = np.cos(angles), np.sin(angles)
    if isinstance(scaling, YarnScaling):
        cos, sin = scaling.attention_factor * cos, scaling.attention_factor * sin
    return cos.astype(np.float32).repeat(2, axis=1), sin.astype(np.float32).repeat(2, axis=1)
