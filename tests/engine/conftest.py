"""The engine's tests run on the native backend, which does a step of these small models several times sooner.

What an engine asks of a backend is the same for both. The arithmetic of each has tests of its own, in tests/ops and
tests/model, and what is generated on the portable one in tests/end_to_end.
"""

from __future__ import annotations

from typing import cast

import pytest

from mistral.ops.device import start_device
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from tests.support.small_models import SHAPES, SmallModel, build


@pytest.fixture(scope="session")
def ops() -> Ops:
    """The native backend with activations and a cache in float32, as the oracle has them."""
    start_device("CPU", threads=1)
    return cast(Ops, Native(precise=True))


@pytest.fixture(scope="session")
def models(ops: Ops) -> dict[str, SmallModel]:
    """A model of each of SHAPES, by its name."""
    return {name: build(args, ops, seed) for seed, (name, args) in enumerate(SHAPES.items())}
