"""The queue of requests that have no row yet, by key. Any thread may add and cancel requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mistral.engine.requests import Request
from mistral.engine.shared_prompts import SharedPrompts
from mistral.model.kv_cache import Snapshot


@dataclass(frozen=True, eq=False)
class Handle:
    """A submitted request. `index` is that of its events; `key` says whose it is, for fair scheduling.

    Requests of different `space`s share no computed prefixes.
    """

    index: int
    request: Request
    key: str = ""
    space: str = ""


class RequestQueue:
    """Waiting requests in the order of arrival, and cancellations since the scheduler last called `news`."""

    def __init__(self) -> None:
        self.prompts = SharedPrompts()
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[Handle, None]] = {}  # by key; no key has an empty entry
        self._new: list[Handle] = []
        self._cancelled: set[Handle] = set()
        self._submitted = self._count = 0

    def __len__(self) -> int:
        """The number of waiting requests."""
        return self._count

    def keys(self) -> set[str]:
        """The keys with waiting requests."""
        with self._lock:
            return set(self._waiting)

    def prompt_tokens(self) -> int:
        """The number of tokens in all waiting prompts."""
        with self._lock:
            return sum(len(handle.request.prompt) for handles in self._waiting.values() for handle in handles)

    def add(self, request: Request, key: str, space: str) -> Handle:
        """Add a request."""
        with self._lock:
            handle = Handle(self._submitted, request, key, space)
            self._waiting.setdefault(key, {})[handle] = None
            self._new.append(handle)
            self._submitted, self._count = self._submitted + 1, self._count + 1
            self.prompts.add(handle.index, request, space)
        return handle

    def cancel(self, handle: Handle) -> None:
        """Mark a request as cancelled."""
        with self._lock:
            self._cancelled.add(handle)

    def news(self) -> tuple[list[Handle], set[Handle]]:
        """The requests that were added, and those that were cancelled, since the last call.

        Cancelled requests no longer read a shared prompt for others.
        """
        with self._lock:
            new, self._new = self._new, []
            cancelled, self._cancelled = self._cancelled, set()
            for handle in cancelled:
                self.prompts.forget(handle.index)
        return new, cancelled

    def remove(self, handle: Handle) -> bool:
        """Remove a request -> whether it was waiting."""
        with self._lock:
            found = handle in self._waiting.get(handle.key, ())
            if found:
                del self._waiting[handle.key][handle]
                self._count -= 1
                if not self._waiting[handle.key]:
                    del self._waiting[handle.key]
        return found

    def in_order(
        self, load: Callable[[str], tuple[int, int]], before: Mapping[str, Sequence[Handle]]
    ) -> Iterator[Handle]:
        """The waiting requests in the order of service: from the key with the least `load`, the oldest first.

        `load` is called again for each request. `before`: requests by key that come before the waiting ones. Requests
        that `news` has not returned yet are left out.
        """
        with self._lock:
            new = set(self._new)
            found = {
                key: [each for each in reversed(handles) if each not in new] for key, handles in self._waiting.items()
            }
        left = {key: handles for key, handles in found.items() if handles}
        for key, handles in before.items():
            left.setdefault(key, []).extend(reversed(handles))
        while left:
            key = min(left, key=lambda each: (load(each), left[each][-1].index))
            yield left[key].pop()
            if not left[key]:
                del left[key]

    def must_wait(self, handle: Handle) -> bool:
        """Whether another request is reading the same prompt."""
        with self._lock:
            return self.prompts.must_wait(handle.index)

    def start(self, handle: Handle) -> Snapshot | None:
        """The snapshot of the same prompt that another request has read, if any."""
        with self._lock:
            return self.prompts.start(handle.index)

    def begin(self, handle: Handle) -> None:
        """Note that a request has got a row."""
        self.remove(handle)
        with self._lock:
            self.prompts.begin(handle.index)

    def end(self, handle: Handle) -> None:
        """Note that a request has ended, with a row or without."""
        self.remove(handle)
        with self._lock:
            self.prompts.forget(handle.index)

    def read(self, handle: Handle, export: Callable[[], Snapshot | None]) -> None:
        """Note that a request has read its prompt; `export` is called if others wait for it."""
        with self._lock:
            wanted = self.prompts.wanted(handle.index)
        snapshot = export() if wanted else None
        with self._lock:
            self.prompts.read(handle.index, snapshot)

    def clear(self) -> None:
        """Remove all requests."""
        with self._lock:
            self._waiting.clear()
            self._new.clear()
            self._cancelled.clear()
            self._count, self.prompts = 0, SharedPrompts()
