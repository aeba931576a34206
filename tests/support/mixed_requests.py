"""Requests of mixed length, temperature, seeds and forms, and clients who send them, or go before their answer ends."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

LONG = "Anna went to the lake. " * 300
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
COMPLETIONS = "/v1/completions"
PATIENCE = 60.0  # seconds
CLIENTS = 12


def mixed_bodies(count: int) -> list[dict[str, Any]]:
    """The bodies of so many requests."""
    drawn, found = random.Random(1), list[dict[str, Any]]()
    for number in range(count):
        body: dict[str, Any] = {"seed": number, "temperature": drawn.choice((0, 0.7, 1.5)), "logprobs": 1}
        body |= {"prompt": LONG[: drawn.choice((5, 40, 400, 3000))], "max_tokens": drawn.choice((1, 7, 25))}
        if number % 5 == 1:
            body |= {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}
        if number % 7 == 2:
            body |= {"n": 2, "presence_penalty": 1.0}
        found.append(body)
    return found


def answered(url: str, body: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """The response to a body."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    found: dict[str, Any] = httpx.post(f"{url}{COMPLETIONS}", json=body, headers=headers, timeout=PATIENCE).json()
    return found


def texts_of(response: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Text, log-probabilities and end of each answer."""
    return [(choice["text"], choice["logprobs"], choice["finish_reason"]) for choice in response["choices"]]


def cached_in(response: Mapping[str, Any]) -> int:
    """Tokens of the prompt that were not computed again."""
    return int(response["usage"]["prompt_tokens_details"]["cached_tokens"])


def in_company(
    url: str, bodies: Sequence[Mapping[str, Any]], keys: Sequence[str], seed: int
) -> list[tuple[int, dict[str, Any]]]:
    """Each body's place and response, sent in a random order by several clients, while others go before their end."""
    order = list(range(len(bodies)))
    random.Random(seed).shuffle(order)
    with disturbed(url, keys[0]), ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda place: answered(url, bodies[place], keys[place % len(keys)]), order))
    return list(zip(order, found, strict=True))


@contextmanager
def disturbed(url: str, key: str = "") -> Iterator[None]:
    """Time in which a client asks again and again for long answers and goes after the first token."""
    done, headers = threading.Event(), {"authorization": f"Bearer {key}"} if key else {}

    def disturb() -> None:
        body = {"prompt": LONG[:500], "max_tokens": 500, "stream": True}
        while not done.is_set():
            with httpx.stream("POST", f"{url}{COMPLETIONS}", json=body, headers=headers, timeout=PATIENCE) as stream:
                next(stream.iter_raw())

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        yield
    finally:
        done.set()
        disturber.join(PATIENCE)
