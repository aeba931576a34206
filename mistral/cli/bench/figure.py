"""One measured figure, as a line of a table and as a JSON object."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Something measured: the median `value` of its repeats in `unit`, the `least` and the `most` of them.

    `limit`, in the same unit, is what bounds the value, if that is known. `label` is for people; `note` says what the
    limit is, or how the value was measured. `batch` is the number of rows, `prompt` the tokens of each row's prompt.
    """

    figure: str
    label: str
    value: float
    unit: str
    note: str = ""
    batch: int | None = None
    prompt: int | None = None
    limit: float | None = None
    least: float | None = None
    most: float | None = None

    @classmethod
    def speed(
        cls, figure: str, label: str, tokens: int, seconds: Sequence[float], note: str, batch: int, prompt: int,
        limit: float | None = None,
    ) -> Figure:  # fmt: skip
        """The speed, in tokens a second, at which `tokens` took the median of `seconds`."""
        return cls(
            figure, label, tokens / statistics.median(seconds), "tokens/s", note, batch, prompt, limit,
            tokens / max(seconds), tokens / min(seconds),
        )  # fmt: skip

    @property
    def share(self) -> float | None:
        """The value as a fraction of its limit, 1 where it reaches it; None without a limit."""
        return self.value / self.limit if self.limit else None

    def record(self, setting: Mapping[str, str | int]) -> dict[str, str | float | None]:
        """The figure as a JSON object, each number rounded to four digits; `setting` says what was measured on what."""
        fields: dict[str, str | float | None] = {"figure": self.figure, **setting}
        fields |= {"batch": self.batch, "prompt": self.prompt, "value": rounded(self.value), "unit": self.unit}
        fields |= {"limit": rounded(self.limit), "share_of_limit": rounded(self.share), "note": self.note}
        return fields | {"least": rounded(self.least), "most": rounded(self.most)}


def rounded(value: float | None) -> float | None:
    """A number rounded to four significant digits; None stays None."""
    return None if value is None else float(f"{value:.4g}")


def table(figures: Sequence[Figure]) -> list[str]:
    """A line of text for each figure, in columns: label, value, unit, and the share of the limit with the note."""
    cells = []
    for f in figures:
        share = "" if f.share is None else f"{100 * f.share:.0f} % of "
        cells.append((f.label, f"{f.value:.0f}" if f.value >= 1000 else f"{f.value:.3g}", f.unit, share + f.note))
    wide = [max(len(row[column]) for row in cells) for column in range(3)]
    return [f"{a:{wide[0]}}  {b:>{wide[1]}} {c:{wide[2]}}  {d}".rstrip() for a, b, c, d in cells]
