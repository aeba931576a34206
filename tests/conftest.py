"""What tests share: MindSpore on the CPU, started once, and small random models."""

from __future__ import annotations

import pytest

from mistral.device import start_device
from mistral.ops import Ops, load_backend
from tests.small_models import SHAPES, SmallModel, build


@pytest.fixture(scope="session")
def ops() -> Ops:
    """The portable backend on the CPU; one thread is fastest on models this small."""
    start_device("CPU", threads=1)
    return load_backend("portable")


@pytest.fixture(scope="session")
def models(ops: Ops) -> dict[str, SmallModel]:
    """A model of each of SHAPES, by its name."""
    return {name: build(args, ops, seed) for seed, (name, args) in enumerate(SHAPES.items())}
