"""A partial answer, and its tokens as lines and JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mistral.engine.requests import FinishReason, Generated
from mistral.errors import InputError
from mistral.tokenizer.thoughts import ThoughtStream
from mistral.tokenizer.tokenizer import Tokenizer


@dataclass
class PartialAnswer:
    """The answer to a request so far; `parts` separates thinking from text, if there may be any."""

    parts: ThoughtStream = field(default_factory=lambda: ThoughtStream(None))
    steps: list[Generated] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: InputError | None = None

    @property
    def ids(self) -> list[int]:
        """The ids of the answer."""
        return [step.id for step in self.steps if step.id is not None]

    @property
    def text(self) -> str:
        """The text of the answer, without thoughts."""
        return self.parts.text

    @property
    def thoughts(self) -> str:
        """What the model thought before it."""
        return self.parts.thoughts

    def add(self, step: Generated) -> str:
        """Take one more step of the answer -> what it adds to the text."""
        text, _ = self.parts.push(step.id, step.text)
        self.finish_reason, self.error = step.finish_reason, step.error
        if step.id is not None:
            self.steps.append(step)
        return text


def token_record(step: Generated, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token with its logprob, and the likeliest ones in its place with theirs. None stands for minus infinity."""
    assert step.id is not None and step.logprob is not None
    top = [
        {"id": token, "text": piece_text(tokenizer, token), "logprob": finite(logprob)} for token, logprob in step.top
    ]
    return {"id": step.id, "text": piece_text(tokenizer, step.id), "logprob": finite(step.logprob), "top": top}


def token_line(step: Generated, tokenizer: Tokenizer) -> str:
    """The same as a line for people; nothing for an end without a token."""
    if step.id is None or step.logprob is None:
        return ""
    top = "".join(f"  {logprob:.3f} {piece_text(tokenizer, token)!r}" for token, logprob in step.top)
    line = f"{step.logprob:9.4f} {piece_text(tokenizer, step.id)!r:16}{top}"
    return line + ("" if step.finish_reason else "\n")


def piece_text(tokenizer: Tokenizer, token_id: int) -> str:
    r"""The text of one token; bytes that are no whole character as \xNN, and nothing for a control token."""
    piece = tokenizer.piece(token_id)
    if piece is None:
        return ""
    return piece.decode(errors="backslashreplace") if isinstance(piece, bytes) else piece.replace("\u2581", " ")


def finite(logprob: float) -> float | None:
    """To six decimal places; JSON has no infinity."""
    return round(logprob, 6) if math.isfinite(logprob) else None
