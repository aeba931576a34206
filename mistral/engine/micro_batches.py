"""Which rows go into the next micro-batch, and with how many tokens. Pure functions.

Every stage runs the micro-batches in the order in which the first stage started them. So a stage waits only for the one
before it, and the first for a result of the last: there is no deadlock as long as the first stage waits for a result
only while a micro-batch is in flight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GROUP_ROWS = 8  # rows of a decode group from which on more rows take more time
SHORTEST, LONGEST = 64, 512  # limits of a chunk size chosen here, in tokens
CHUNK_OVERHEAD = 16  # the fixed cost of a chunk, in tokens that could be read in that time (measured)


def decode_groups(rows: int, ranks: int) -> int:
    """The number of groups into which `rows` in decode are split, so that no stage of `ranks` waits.

    Each group reads all weights, which is the whole cost for few rows: groups of fewer than `GROUP_ROWS` rows gain
    nothing, so then there is one group.
    """
    return max(1, min(ranks, rows // GROUP_ROWS))


def choose_chunk(tokens: int, ranks: int) -> int:
    """The chunk size for prompts of `tokens` tokens in all: a power of two.

    A stage takes a time proportional to c + CHUNK_OVERHEAD for c tokens, and tokens / c + ranks - 1 of these follow
    each other. Their sum is least at c = sqrt(tokens * CHUNK_OVERHEAD / (ranks - 1)).
    """
    if ranks == 1:
        return LONGEST
    best = math.sqrt(max(tokens, 1) * CHUNK_OVERHEAD / (ranks - 1))
    return int(min(LONGEST, max(SHORTEST, 2 ** round(math.log2(best)))))


@dataclass(frozen=True)
class RowProgress:
    """The progress of a row: prompt tokens not yet in a micro-batch, and whether it waits for its next token."""

    prompt_left: int
    waits: bool = False


def next_micro_batch(
    rows: Sequence[RowProgress], decoding: int, chunk_size: int, room: int, order: Sequence[int] | None = None
) -> tuple[tuple[int, int], ...]:
    """The rows of the next micro-batch: (index in `rows`, tokens), in order.

    First at most `decoding` rows in decode, with one token each; then prompts, at most `chunk_size` tokens of each and
    `room` of all together. `order`: the indices in the order in which prompts get tokens.
    """
    taken: dict[int, int] = {}
    for place, row in enumerate(rows):
        if not row.waits and not row.prompt_left and len(taken) < decoding:
            taken[place] = 1
    for place in range(len(rows)) if order is None else order:
        tokens = min(chunk_size, room, rows[place].prompt_left)
        if tokens > 0 and not rows[place].waits:
            taken[place], room = tokens, room - tokens
    return tuple(sorted(taken.items()))
