"""The arguments of a step, checked. Each function raises an InputError that says what to pass."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mistral.errors import InputError


def flat_integers(name: str, values: ArrayLike, stop: int) -> NDArray[np.int64]:
    """`values` as an array (n,) of integers from 0 to `stop` - 1; `name` is the argument's name."""
    must = f"{name} must be one flat sequence of integers from 0 to {stop - 1}, not"
    found = _flat(must, values)
    if found.size and _outside(found, stop):
        raise InputError(f"{must} one with {next(n for n in found.tolist() if not 0 <= n < stop)} in it")
    return found


def prompt_ids(name: str, ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """The ids (T,) of a prompt; the errors mention the tokenizer, whose mistake they may be."""
    found = _flat(f"{name} must be one flat sequence of integers from 0 to {vocab_size - 1}, not", ids)
    if not found.size:
        raise InputError(f"{name} is empty: give it at least the id that begins a sequence")
    if _outside(found, vocab_size):
        raise InputError(f"{name} has an id outside the vocabulary of {vocab_size}: is it this model's tokenizer?")
    return found


def token_ids(name: str, ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """`ids` as an array (T,) of at least one id of the vocabulary."""
    found = flat_integers(name, ids, vocab_size)
    if not found.size:
        raise InputError(f"{name} must hold at least one token")
    return found


def tokens_per_row(seqlens: Sequence[int], tokens: int) -> tuple[int, ...]:
    """`seqlens` as (B,) whole numbers of at least 1 that add up to `tokens`."""
    found = _integers(seqlens)
    if not found or min(found) < 1 or sum(found) != tokens:
        raise InputError(
            "seqlens must be a whole number of at least 1 for each row, and these must add up to the"
            f" {tokens} tokens of input_ids, not {_shown(seqlens)}"
        )
    return found


def row_numbers(rows: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """`rows` as the numbers (B,) of rows of a cache, one for each of `count` seqlens; 0, 1, ... for None."""
    if rows is None:
        return tuple(range(count))
    found = _integers(rows)
    if len(found) != count:
        raise InputError(f"rows must be {count} numbers of rows, one for each of seqlens, not {_shown(rows)}")
    return found


def _flat(must: str, values: ArrayLike) -> NDArray[np.int64]:
    """`values` as an array (n,) of any integers; `must` is the start of the message if they are something else."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{must} sequences of different lengths") from None
    if array.ndim == 1 and not array.size:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"{must} {_kind(array)}")
    if array.ndim != 1:
        raise InputError(f"{must} {f'an array of shape {array.shape}' if array.ndim else 'a single number'}")
    return array.astype(np.int64, copy=False)


def _outside(found: NDArray[np.int64], stop: int) -> bool:
    """Whether one of the integers is not from 0 to `stop` - 1 (as unsigned numbers, negative ones are the largest)."""
    return bool(found.view(np.uint64).max() >= stop)


def _integers(values: Any) -> tuple[int, ...]:
    """The values as integers; an empty tuple if one is not a whole number."""
    try:
        return tuple(map(operator.index, values))
    except TypeError:
        return ()


def _kind(array: NDArray[Any]) -> str:
    """A description of an array that does not hold integers."""
    if array.dtype.kind in "US":
        return "text: encode it first, as tokenizer.encode(text) does"
    if array.dtype.kind != "O":
        return f"one of {array.dtype.name}"
    others = [type(value).__name__ for value in array.flat if not isinstance(value, int)]
    return f"one with {others[0]} in it" if others else "one of numbers so large"


def _shown(value: object) -> str:
    text = repr(list(value) if isinstance(value, range) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
