"""Which rows go into the next micro-batch, and with how many tokens. Pure.

Every stage takes the micro-batches in the order in which the first stage began them, one after the other. So a stage
that waits always waits for the one before it, and the first for a result of the last: nobody can wait in a circle as
long as the first stage stops for a result only while a micro-batch is in flight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GROUP_ROWS = 8  # rows decoded together, from which on more of them cost a stage more time
SHORTEST, LONGEST = 64, 512  # tokens of a chunk that is chosen here
CHUNK_OVERHEAD = 16  # tokens that could be read in the time that a chunk costs whatever its length (measured)


def decode_groups(rows: int, ranks: int) -> int:
    """In how many groups `rows` that are being answered go round, so that no stage waits.

    A group repeats the reading of all weights, which for few rows is all the cost: groups of fewer than `GROUP_ROWS`
    rows gain nothing, and one group it is.
    """
    return max(1, min(ranks, rows // GROUP_ROWS))


def choose_chunk(tokens: int, ranks: int) -> int:
    """Prompt tokens of a micro-batch, for a prompt of `tokens`: a power of two.

    A stage takes a time like c + CHUNK_OVERHEAD for c tokens, and tokens / c + ranks - 1 of these follow each other.
    The sum is least at c = sqrt(tokens * CHUNK_OVERHEAD / (ranks - 1)).
    """
    if ranks == 1:
        return LONGEST
    best = math.sqrt(max(tokens, 1) * CHUNK_OVERHEAD / (ranks - 1))
    return int(min(LONGEST, max(SHORTEST, 2 ** round(math.log2(best)))))


@dataclass(frozen=True)
class RowProgress:
    """Where a row stands: prompt tokens that no micro-batch has had yet, and whether its next token is unknown yet."""

    prompt_left: int
    waits: bool = False


def next_micro_batch(
    rows: Sequence[RowProgress], decoding: int, chunk_size: int, room: int, order: Sequence[int] | None = None
) -> tuple[tuple[int, int], ...]:
    """Which rows go into the next micro-batch, with how many tokens each: (place in `rows`, tokens), in order.

    At most `decoding` rows with the token just sampled, and these first; then prompts, at most `chunk_size` tokens of
    each and `room` of all together. `order`: the places in the order in which prompts take the room.
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
