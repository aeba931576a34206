"""Servers that the tests of a process share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mistral.cli.model_options import shipped_checkpoint
from mistral.server import mailbox
from tests.support.local_server import LocalServer, local_server
from tests.support.scripted_model import write_scripted
from tests.support.thinking_script import ARGS, CALLS, END, EOS, INST, NOON, RESULT, THINK, THOUGHT, ids
from tests.support.tool_cases import file


@pytest.fixture(scope="session", autouse=True)
def told_at_once() -> Iterator[None]:
    """Events are told as soon as the loop can: how many come together depends on nothing but the machine then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailbox, "MOST", 0.0)
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    """The small checkpoint, served; nothing is left behind by its tests."""
    with local_server(shipped_checkpoint()) as local:
        yield local
        local.wait_until_idle()


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A model that thinks and then calls a tool, and answers once there is a result."""
    chains = ids(INST, THINK, THOUGHT, END, CALLS, "now", ARGS, "{}", EOS), ids(RESULT, NOON, EOS)
    folder = write_scripted(tmp_path_factory.mktemp("thinker") / "thinker", file("v13 tekken"), *chains)
    with local_server(folder, "portable") as local:
        yield local
        local.wait_until_idle()
