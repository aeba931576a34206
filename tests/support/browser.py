"""A headless browser for the tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.cores import all_cores

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")  # containers have no sandbox and little /dev/shm


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser that is on the machine; none is downloaded. The test fails where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.fail("the tests of the page need a browser: apt install chromium", pytrace=False)
    with ExitStack() as stack:
        with all_cores():
            playwright = stack.enter_context(sync_playwright())
            started = playwright.chromium.launch(executable_path=program, args=[*FLAGS])
        stack.callback(started.close)
        yield started
