"""A model used from several threads at once: they take turns, and each gets what it would get alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from mistral.cli.model_options import shipped_checkpoint
from mistral.generate import generate
from mistral.ops import portable
from tests.support.command_line import ROOT
from tests.support.generation import PROMPTS
from tests.support.small_models import SmallModel

# Three threads load a model each, while MindSpore is imported and its device chosen; then all three use the first one.
# Without the lock this ends in a segmentation fault on the portable backend.
JOB = """
import sys, threading
from mistral import Transformer, generate

prompts = [[[1, 9, 8], list(range(1, 30))], [list(range(3, 50))], [[1], [1, 500], [7, 7, 7]]]
models, start = {}, threading.Barrier(3)
own, shared = {}, {}

def work(number):
    start.wait()
    models[number] = Transformer.from_folder(sys.argv[1], backend=sys.argv[2], device="CPU")
    own[number] = generate(prompts[number], models[number], 3)
    start.wait()
    shared[number] = generate(prompts[number], models[0], 6)

threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for found, max_tokens in ((own, 3), (shared, 6)):
    alone = {number: generate(prompts[number], models[1], max_tokens) for number in range(3)}
    print("alike" if found == alone else f"different: {found} {alone}")
"""


@pytest.mark.parametrize("backend", ["portable", "native"])
def test_three_threads_at_once_get_what_each_gets_alone(backend: str) -> None:
    command = [sys.executable, "-X", "faulthandler", "-c", JOB, str(shipped_checkpoint()), backend]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # fastest for a model this small
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alike\nalike\n", "")


def test_two_models_take_turns_too(models: dict[str, SmallModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread is in an operator at a time, whichever model it is of, and whether it computes or makes a cache."""
    inside, most = [], 0

    def watched(name: str) -> Any:
        operator = getattr(portable, name)

        def call(*arguments: Any) -> Any:
            nonlocal most
            inside.append(name)
            most = max(most, len(inside))
            time.sleep(1e-4)
            result = operator(*arguments)
            inside.pop()
            return result

        return call

    for name in ("embed", "new_slots", "attention", "add", "rms_norm", "take"):
        monkeypatch.setattr(portable, name, watched(name))
    found: dict[str, Any] = {}

    def work(name: str) -> None:
        found[name] = generate(PROMPTS, models[name].transformer, 4)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("dense", "windowed")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert most == 1
    monkeypatch.undo()
    for name in ("dense", "windowed"):
        assert found[name] == generate(PROMPTS, models[name].transformer, 4)
