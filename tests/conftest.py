"""What tests share: MindSpore on the CPU, started once, and small random models."""

from __future__ import annotations

import os

from tests.support.cores import keep_to_one

# Two processes of tests run side by side, and their models are small: one thread each, also in programs that they
# start. What threads change is tested in processes that ask for several.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# MindSpore's threads spin between two operators, and would take the other worker's core. On the worker's own core they
# yield to what computes there, and cost nothing.
if (worker := os.environ.get("PYTEST_XDIST_WORKER", "")[2:]).isdecimal():
    keep_to_one(int(worker))
os.environ["MISTRAL_CONFIG"] = ""  # no settings of whoever runs the tests
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the programs that tests start are compiled by the first of them

from collections.abc import Iterator

import pytest

from mistral.load import Transformer
from mistral.model import kv_cache
from mistral.ops import build as compiled
from mistral.ops.backend import load_backend
from mistral.ops.device import start_device
from mistral.ops.interface import Ops
from tests.support.generation import MAX_TOKENS, PROMPTS, Found, Spy
from tests.support.oracle import oracle_greedy
from tests.support.small_models import SHAPES, SmallModel, build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that both processes are done at about the same time."""
    items.sort(key=lambda item: item.path.parent.name not in ("pipeline", "end_to_end"))


@pytest.fixture(scope="session", autouse=True)
def nothing_compiled() -> Iterator[None]:
    """What "auto" means for small models does not depend on what ran before: portable, as where nothing is compiled.

    Tests of the native backend ask for it by name.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "is_built", lambda: False)
        yield


@pytest.fixture(scope="module")
def all_compiled(nothing_compiled: None) -> Iterator[None]:
    """What "auto" means in a file that asks for this: native, as on most machines after the first run.

    For tests of commands whose arithmetic is not what is tested: it answers several times sooner.
    """
    compiled.build_all([compiled.glue(), compiled.kernels()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "is_built", lambda: True)
        yield


@pytest.fixture(scope="module")
def no_spare_slots() -> Iterator[None]:
    """A rolling cache as in the paper, whose layers have as many slots as their windows are long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "SPARE", 0)
        yield


@pytest.fixture(scope="session")
def ops() -> Ops:
    """The portable backend on the CPU; one thread is fastest on models this small."""
    start_device("CPU", threads=1)
    return load_backend("portable")


@pytest.fixture(scope="session")
def models(ops: Ops) -> dict[str, SmallModel]:
    """A model of each of SHAPES, by its name."""
    return {name: build(args, ops, seed) for seed, (name, args) in enumerate(SHAPES.items())}


@pytest.fixture(scope="session")
def expected(models: dict[str, SmallModel]) -> dict[str, Found]:
    """What the oracle generates greedily with each model: tokens and logprobs per prompt."""
    found = {}
    for name, model in models.items():
        pairs = [oracle_greedy(model.tensors, model.args, prompt, MAX_TOKENS) for prompt in PROMPTS]
        found[name] = ([tokens for tokens, _ in pairs], [logprobs for _, logprobs in pairs])
    return found


@pytest.fixture
def model(models: dict[str, SmallModel]) -> Transformer:
    """The windowed one."""
    return models["windowed"].transformer


@pytest.fixture
def spy(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> Spy:
    """What the windowed model is asked to compute."""
    return Spy(model, monkeypatch)
