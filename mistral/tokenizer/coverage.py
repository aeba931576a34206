"""The ids that only a tokenizer or only a model has, and whether both fit together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from mistral.errors import InputError

# A tokenizer may have some ids that the model has no row for: padding and other tokens that were added, and never
# trained. Mistral's own vocabularies differ by 768 ids and more, so with these bounds none passes for another.
MOST_EXTRA, SHARE = 256, 16


def check_rows(file: Path, size: int, rows: int) -> None:
    """Raise InputError if a tokenizer with `size` ids cannot belong to a model with `rows` ids."""
    if size - rows > min(MOST_EXTRA, rows // SHARE):
        raise InputError(f"{file}: has {size} ids and the model {rows}; it is another model's tokenizer")


def uncovered_runs(size: int, missing: Iterable[int], rows: int, ends: Collection[int] = ()) -> tuple[range, ...]:
    """The ids below `rows` without a piece, as ranges: those from `size` on, and those in `missing`.

    The ids in `ends` are left out: an answer may end with an id that has no piece.
    """
    runs = list[range]()
    for token_id in sorted({token_id for token_id in missing if token_id < rows}.union(range(size, rows))):
        if token_id in ends:
            continue
        if runs and runs[-1].stop == token_id:
            runs[-1] = range(runs[-1].start, token_id + 1)
        else:
            runs.append(range(token_id, token_id + 1))
    return tuple(runs)


def coverage_note(file: Path, size: int, rows: int, uncovered: Sequence[range]) -> str | None:
    """A line for the user about ids that only the model or only the tokenizer has; None where there are none."""
    notes = []
    if count := sum(map(len, uncovered)):
        some = ", ".join(map(_shown, uncovered[:3])) + (", ..." if len(uncovered) > 3 else "")
        notes.append(f"{count} of the model's {rows} ids have no piece in {file.name} ({some}), and are never chosen")
    if size > rows:
        notes.append(
            f"{file.name} has {size} ids and the model {rows}; a text that needs one of {_shown(range(rows, size))} is"
            " refused"
        )
    return f"tokenizer: {'; '.join(notes)}" if notes else None


def _shown(ids: range) -> str:
    return str(ids.start) if len(ids) == 1 else f"{ids.start} to {ids.stop - 1}"
