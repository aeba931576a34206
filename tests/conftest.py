"""What tests share: MindSpore on the CPU, started once, and small random models."""

from __future__ import annotations

import pytest

from mistral.load import Transformer
from mistral.ops.backend import load_backend
from mistral.ops.device import start_device
from mistral.ops.interface import Ops
from tests.support.generation import MAX_TOKENS, PROMPTS, Found, Spy
from tests.support.oracle import oracle_greedy
from tests.support.small_models import SHAPES, SmallModel, build


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
