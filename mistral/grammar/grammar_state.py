"""How far one answer has come in its grammar, and which ids may follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class GrammarState:
    """Belongs to one answer."""

    def forbid(self, scores: NDArray[np.float32]) -> None:
        """Set the scores (V,) of all ids that may not follow to -inf."""
        raise NotImplementedError

    def advance(self, token: int) -> None:
        """Take the next id of the answer. Raises InputError where the grammar's limits of work are reached."""
        raise NotImplementedError

    def ended(self, excluded: Sequence[range] = ()) -> bool:
        """Whether nothing but an end may follow, if the ids in `excluded` may not be chosen."""
        raise NotImplementedError

    def rollback(self, count: int) -> None:
        """Take back the last `count` ids."""
        raise NotImplementedError

    def copy(self) -> GrammarState:
        """The same state for another answer."""
        raise NotImplementedError
