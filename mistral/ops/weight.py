"""A weight as a backend holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Weight:
    """A matrix (out, in) or vector: a float32 tensor, or on the native backend a note of where it lies."""

    data: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as in the checkpoint."""
        return tuple(self.data.shape)
