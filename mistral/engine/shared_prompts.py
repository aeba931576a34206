"""Requests with the same prompt: the first of them reads it, and the others start with a copy of its row."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from mistral.engine.requests import Request
from mistral.model.kv_cache import Snapshot


@dataclass
class SharedPrompt:
    """A prompt of several requests. `waiting`: those that have no row yet; `reader`: the request that reads it.

    `snapshot` is set once the prompt has been read, for as long as requests wait.
    """

    waiting: set[int] = field(default_factory=set)
    reader: int | None = None
    snapshot: Snapshot | None = None


class SharedPrompts:
    """The prompts of waiting requests, by space and ids. Requests are identified by their index."""

    def __init__(self) -> None:
        self._prompts: dict[Hashable, SharedPrompt] = {}
        self._of: dict[int, tuple[Hashable, SharedPrompt]] = {}

    def add(self, index: int, request: Request, space: str = "") -> None:
        """Add a waiting request. One that scores its prompt, or has a row or a snapshot of its own, is not shared."""
        if request.slot or request.start or request.prompt_logprobs or len(request.prompt) < 2:
            return
        key = space, np.asarray(request.prompt, np.int32).tobytes()
        prompt = self._prompts.setdefault(key, SharedPrompt())
        prompt.waiting.add(index)
        self._of[index] = key, prompt

    def must_wait(self, index: int) -> bool:
        """Whether another request is reading the same prompt."""
        _, prompt = self._of.get(index, (None, None))
        return prompt is not None and prompt.reader is not None and prompt.snapshot is None

    def start(self, index: int) -> Snapshot | None:
        """The snapshot that the request may start with; None if the prompt has not been read."""
        _, prompt = self._of.get(index, (None, None))
        return prompt.snapshot if prompt else None

    def begin(self, index: int) -> None:
        """Note that the request has a row. If the prompt has not been read, this request is its reader."""
        if index in self._of:
            prompt = self._of[index][1]
            prompt.waiting.discard(index)
            if prompt.snapshot is None:
                prompt.reader = index
            else:
                self.forget(index)

    def wanted(self, index: int) -> bool:
        """Whether others wait for the prompt that this request has read."""
        _, prompt = self._of.get(index, (None, None))
        return prompt is not None and prompt.reader == index and bool(prompt.waiting)

    def read(self, index: int, snapshot: Snapshot | None) -> None:
        """Note that the request has read its prompt; others that wait may start with `snapshot`."""
        if index in self._of:
            self._of[index][1].snapshot = snapshot
            self.forget(index)

    def forget(self, index: int) -> None:
        """Note that the request has ended, or no longer needs the prompt; if it had not read it, another one will."""
        if index not in self._of:
            return
        key, prompt = self._of.pop(index)
        prompt.waiting.discard(index)
        if prompt.reader == index:
            prompt.reader = None
        if not prompt.waiting:
            prompt.snapshot = None
            if prompt.reader is None:
                self._prompts.pop(key, None)
