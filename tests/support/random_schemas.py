"""Random JSON schemas whose documents are of bounded size, and a model that writes at random within a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random import Generator

from mistral.engine.sampling import SamplingRow, SamplingSettings, Wants, choose
from mistral.grammar.grammar import Grammar

TEXTS = ("a", "é漢", '"quoted"', "two words", "🙂\n", "")
SETTINGS: Sequence[dict[str, Any]] = (
    {},
    {"temperature": 1.0},
    {"temperature": 2.0, "top_p": 0.7},
    {"temperature": 1.0, "top_k": 5, "repetition_penalty": 1.3},
    {"temperature": 0.7, "min_p": 0.1, "presence_penalty": 1.5, "frequency_penalty": -0.5},
)


def random_schema(rng: Generator, depth: int = 3) -> dict[str, Any]:
    """A schema of any kind, with at most so many levels."""
    kinds = ["text", "pattern", "integer", "number", "boolean", "enum", "const", "null"]
    kind = rng.choice([*kinds, *(["object", "array", "any", "object", "array"] if depth else [])])
    if kind == "object":
        names = [f"k{i}é" if i % 2 else f"key {i}" for i in range(rng.integers(0, 4))]
        properties = {name: random_schema(rng, depth - 1) for name in names}
        required = [name for name in names if rng.random() < 0.6]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        least = int(rng.integers(0, 2))
        return {"type": "array", "items": random_schema(rng, depth - 1), "minItems": least, "maxItems": least + 2}
    if kind == "any":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
    return random_leaf(rng, str(kind))


def random_leaf(rng: Generator, kind: str) -> dict[str, Any]:
    """A schema without schemas within."""
    least = int(rng.integers(-50, 50))
    leaves: dict[str, dict[str, Any]] = {
        "text": {"type": "string", "maxLength": int(rng.integers(0, 9))},
        "pattern": {"type": "string", "pattern": str(rng.choice(["^[a-z]{1,4}-[0-9]+$", "^(é|漢)*🙂$", "^x?$"]))},
        "integer": {"type": "integer", "minimum": least, "maximum": least + int(rng.integers(0, 1000))},
        "number": {"type": "number", "minimum": least, "maximum": least + 7.5},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "enum": {"enum": [str(text) for text in rng.choice(TEXTS, 2)] + [None, least, {"a": [1, "é"]}]},
        "const": {"const": {"x": str(rng.choice(TEXTS)), "y": [True]}},
    }
    return leaves[kind]


def written(grammar: Grammar, vocab_size: int, seed: int, most: int = 300, **options: Any) -> tuple[list[int], bool]:
    """Ids chosen within a grammar from random logits, and whether the answer came to its end."""
    assert grammar.table
    rng, ids = np.random.default_rng(seed), list[int]()
    ends = grammar.table.end_ids
    row = SamplingRow(SamplingSettings(**{"seed": seed, **options}), [1], (), ends, 0, grammar.begin())
    while len(ids) < most:
        logits = rng.standard_normal((1, vocab_size)).astype(np.float32)
        (choice,) = choose(logits, [row], [Wants()])
        assert choice.error is None, choice
        if choice.id in ends:
            return ids, True
        ids.append(choice.id)
        row.append(choice.id)
        if row.ended:
            return ids, True
    return ids, False
