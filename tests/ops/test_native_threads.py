"""The native backend gives the same bits on any number of threads, each tried in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.command_line import ROOT

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
