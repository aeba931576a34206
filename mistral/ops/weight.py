"""A weight as a backend holds it."""

from __future__ import annotations

from dataclasses import dataclass

from mindspore import Tensor


@dataclass(frozen=True)
class Weight:
    """A dense matrix (out, in) or vector: float32, or on the native backend as in the file."""

    data: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as in the checkpoint."""
        return tuple(self.data.shape)
