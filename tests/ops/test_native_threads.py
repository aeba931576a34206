"""The threads of the native backend: the same bits on any number of them, and a processor for each."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.command_line import ROOT
from tests.support.cores import all_cores

# Rows of every matrix, tokens and heads are shared out among threads, evenly or not. Prints a digest of all logits.
JOB = """
import hashlib
from dataclasses import replace

import ml_dtypes
import numpy as np

from mistral.model.args import MoeArgs, ModelArgs
from mistral.model.parameters import parameters
from mistral.model.transformer import Transformer
from mistral.ops.backend import load_backend
from mistral.ops.device import start_device, thread_count
from tests.support.block_products import random_blocks
from tests.support.checkpoint_forms import random_tensors

start_device("CPU")
ops = load_backend("native")
dense = ModelArgs(dim=256, n_layers=2, head_dim=32, hidden_dim=768, n_heads=8, n_kv_heads=2, vocab_size=1000,
                  norm_eps=1e-5, rope_theta=1e4, sliding_windows=(None, 50))
digest = hashlib.sha256()
for args in (dense, replace(dense, moe=MoeArgs(4, 2))):
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in random_tensors(args, 0).items()}
    for kind in (None, "Q8_0", "Q4_0", "Q4_K", "Q6_K"):
        def get(name):
            each = parameters(args)[name]
            stays = kind is None or len(each.shape) < 2 or each.part in ("embedding", "router")
            scale = 1e-4 if str(kind).endswith("K") else 3e-3
            return ops.weight(tensors[name] if stays else random_blocks(kind, *each.shape, scale=scale))

        model = Transformer(args, get, ops)
        cache = model.new_cache()
        for row, capacity in enumerate((9, 80, 300)):
            cache.add(row, capacity)
        ids = np.random.default_rng(1).integers(0, 1000, 400).tolist()
        for seqlens in ([1, 70, 280], [1, 1, 1], [7, 9, 5]):
            logits = model.forward(ids[: sum(seqlens)], seqlens, cache, [0, 1, 2])
            digest.update(logits.asnumpy().tobytes())
print(thread_count(), digest.hexdigest())
"""


def digest(threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", JOB], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=True
    )
    count, found = done.stdout.split()
    assert int(count) == threads
    return found


def test_threads_share_the_work_and_change_no_bit() -> None:
    assert digest(1) == digest(2) == digest(5)


# Prints the processors of this thread, and those of every thread that may use one alone, before and after a product.
PLACES = """
import os
import sys

import numpy as np

from mistral.ops.backend import load_backend
from mistral.ops.device import start_device

start_device("CPU")
ops = load_backend("native")
weight = ops.weight(np.ones((512, 64), np.float32))
own = os.sched_getaffinity(0)
if sys.argv[1] == "others":  # as a container may do it to a program that runs
    own.remove(max(own))
    os.sched_setaffinity(0, own)
ops.linear(ops.tensor(np.ones((3, 64), np.float32)), weight).asnumpy()
assert os.sched_getaffinity(0) == own
masks = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
print(sorted(each for mask in masks if len(mask) == 1 < len(own) for each in mask))
"""


def places(threads: int, *arguments: str) -> list[int]:
    """The processors that are the only ones of a thread after a product on so many threads."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with all_cores():
        done = subprocess.run(
            [sys.executable, "-c", PLACES, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment,
            timeout=300, check=True,
        )  # fmt: skip
    return list(map(int, done.stdout.strip("[]\n").replace(",", "").split()))


def test_as_many_threads_as_processors_have_one_each_and_the_caller_gets_its_own_back() -> None:
    with all_cores():
        processors = sorted(os.sched_getaffinity(0))
    assert places(len(processors), "none") == (processors[1:] if len(processors) > 1 else [])
    assert places(len(processors) + 1, "none") == []
    assert places(1, "none") == []
    if len(processors) > 2:
        assert places(len(processors), "others") == []
