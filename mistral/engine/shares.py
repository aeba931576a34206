"""What each key has been served, so that the one that was served least comes first."""

from __future__ import annotations


class Shares:
    """Tokens by key: those read of its prompts and written of its answers, since it became active.

    A key that comes begins with as much as the least served of those that are there already: what it did not ask for
    before gives it no claim. What it had been served before counts while others are active, so that nobody gains by
    going and coming again.
    """

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._requests: dict[str, int] = {}  # of each active key

    def come(self, key: str) -> None:
        """One more request of a key."""
        if key not in self._requests:
            least = min((self._served[other] for other in self._requests), default=0)
            if not self._requests:
                self._served.clear()
            self._served = {
                other: served for other, served in self._served.items() if other in self._requests or served > least
            }
            self._served[key] = max(least, self._served.get(key, 0))
        self._requests[key] = self._requests.get(key, 0) + 1

    def go(self, key: str) -> None:
        """A request of a key has ended."""
        self._requests[key] -= 1
        if not self._requests[key]:
            del self._requests[key]

    def add(self, key: str, tokens: int) -> None:
        """So many tokens were read or written for a key."""
        self._served[key] = self._served.get(key, 0) + tokens

    def served(self, key: str) -> int:
        """What counts for a key."""
        return self._served.get(key, 0)
