"""API keys: which one a caller has."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from mistral.server.api_error import ApiError

NO_KEY = ""  # the name of callers where no key is needed


class ApiKeys:
    """The API keys of a server. A key is identified by its number, and is in no message and no log."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def name_of(self, headers: Mapping[str, str]) -> str:
        """The name of the caller's key: "key1" and so on. Raises ApiError if a key is needed and none is right.

        The time does not depend on the given key: its digest is compared with all others in constant time.
        """
        if not self._digests:
            return NO_KEY
        given = headers.get("x-api-key", "")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip()
        digest, name = hashlib.sha256(given.encode()).digest(), None
        for number, known in enumerate(self._digests, 1):
            if hmac.compare_digest(digest, known):
                name = f"key{number}"
        if name is None:
            what = "is wrong" if given else "is missing; send it as Authorization: Bearer KEY, or as x-api-key"
            raise ApiError(401, f"the API key {what}", code="invalid_api_key")
        return name
