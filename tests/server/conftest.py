"""Servers that the tests of a process share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mistral.cli.model_options import shipped_checkpoint
from tests.support.local_server import LocalServer, local_server


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    """The small checkpoint, served; nothing is left behind by its tests."""
    with local_server(shipped_checkpoint()) as local:
        yield local
        local.wait_until_idle()
