"""What the scripted model of the server's tests writes."""

from __future__ import annotations

from tests.support.tool_cases import load

INST, RESULT, EOS, THINK, END, CALLS, ARGS = 4, 8, 2, 34, 35, 9, 32  # [/INST], [/TOOL_RESULTS] and so on
THOUGHT, NOON = "I need *the* clock.", "It's **noon**!"


def ids(*parts: int | str) -> list[int]:
    """The ids of control tokens and texts."""
    tokenizer = load("v13 tekken")
    return [
        token for part in parts for token in ([part] if isinstance(part, int) else tokenizer.encode(part, bos=False))
    ]
