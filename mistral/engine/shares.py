"""Fair shares: the tokens served to each key, so that the key served least comes first."""

from __future__ import annotations


class Shares:
    """Tokens of prompts and answers by key, since the key became active.

    A new key starts with the count of the least served active key: idle time earns no credit. Its earlier count still
    holds while others are active, so that leaving and coming back gains nothing.
    """

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._requests: dict[str, int] = {}  # of each active key

    def come(self, key: str) -> None:
        """Note one more request of a key."""
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
        """Note that a request of a key has ended."""
        self._requests[key] -= 1
        if not self._requests[key]:
            del self._requests[key]

    def add(self, key: str, tokens: int) -> None:
        """Count tokens that were read or generated for a key."""
        self._served[key] = self._served.get(key, 0) + tokens

    def served(self, key: str) -> int:
        """The count of a key."""
        return self._served.get(key, 0)
