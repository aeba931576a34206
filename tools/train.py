"""Train the small checkpoint: a Mixtral in small, on the stories that `tools/corpus.py` makes up.

    python -m tools.train
    python -m tools.train --begin checkpoints/tiny --steps 450 --peak 0.002 --text_seed 3 --facts all

The second run goes on with the weights of the first; its probes ask for all that questions do, not for colours alone.
The forward pass is the package's own `Transformer`; MindSpore differentiates it. The same command gives the same model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fire
import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mistral.checkpoint.args_file import args_from_params
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import uncached
from mistral.model.parameters import parameters
from mistral.model.transformer import Transformer
from mistral.ops import portable
from mistral.ops.device import start_device
from mistral.ops.interface import Ops, Weight
from mistral.tokenizer.tokenizer import Tokenizer
from tools.corpus import COLOURS, TRAIN_SEED, documents, encode_document
from tools.grammar import ANIMALS, FOODS, PLACES, THINGS

PARAMS: dict[str, Any] = {
    "dim": 128,
    "n_layers": 4,
    "head_dim": 32,
    "hidden_dim": 256,
    "n_heads": 4,
    "n_kv_heads": 2,
    "norm_eps": 1e-5,
    "sliding_window": 32,
    "rope_theta": 10000.0,
    "vocab_size": 1024,
    "moe": {"num_experts": 4, "num_experts_per_tok": 2},
}
FACTS = (COLOURS, THINGS, PLACES, ANIMALS, tuple(food.split()[-1] for food in FOODS))  # words that are asked for
RECALL_WEIGHT = 4.0  # such a word counts so much in the loss: a colour is one token in fifty
PROBE = 0.3  # weight of the probe's loss
REPORT_EVERY = 50  # steps
SEGMENT = 200  # steps after which the process starts afresh: MindSpore's operators lose 13 MB of memory a step
BALANCE = 0.01  # weight of the load balancing loss (arXiv:2101.03961, eq. 4)


class RouteRecorder:
    """Remembers what the routers of one forward pass decided, for the load balancing loss."""

    def __init__(self) -> None:
        self.terms: list[Tensor] = []

    def route(self, logits: Tensor, experts_per_token: int) -> tuple[Tensor, NDArray[np.int64]]:
        """As the backend routes; adds experts * sum over experts of (share of tokens * mean probability)."""
        weights, chosen = portable.route(logits, experts_per_token)
        experts = logits.shape[1]
        shares = np.bincount(chosen.reshape(-1), minlength=experts) / chosen.size
        mean_probability = ops.softmax(logits, -1).mean(0)
        self.terms.append(experts * (mean_probability * Tensor(shares.astype(np.float32))).sum())
        return weights, chosen

    def backend(self) -> Ops:
        """The portable backend with this recorder's routing."""
        return cast(Ops, SimpleNamespace(**{**vars(portable), "route": self.route}))


def initial_weights(args: ModelArgs, seed: int) -> dict[str, Parameter]:
    """Normal weights of standard deviation 1 / sqrt(in), less where they feed the residual stream; norms are 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, each in parameters(args).items():
        if each.part == "norms":
            array = np.ones(each.shape)
        else:
            scale = 0.2 if each.part == "embedding" else each.shape[1] ** -0.5
            if each.weight in ("wo", "w2"):
                scale /= (2 * args.n_layers) ** 0.5
            array = rng.normal(0, scale, each.shape)
        weights[name] = Parameter(Tensor(array.astype(np.float32)), name=name)
    return weights


def batches(tokenizer: Tokenizer, tokens: int, text_seed: int) -> Iterator[list[list[int]]]:
    """Whole documents, as many as fit into `tokens`, for ever."""
    batch: list[list[int]] = []
    for document in documents(text_seed):
        ids = encode_document(tokenizer, document)
        if batch and sum(map(len, batch)) + len(ids) > tokens:
            yield batch
            batch = []
        batch.append(ids)


def learning_rates(steps: int, peak: float, warmup: int) -> list[float]:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    rates = [peak * (step + 1) / warmup for step in range(warmup)]
    angles = np.linspace(0, np.pi, max(1, steps - warmup))
    return (rates + list(peak * (0.01 + 0.99 * (1 + np.cos(angles)) / 2)))[:steps]


def next_token_loss(logits: Tensor, batch: list[list[int]], token_weights: NDArray[np.float32]) -> Tensor:
    """Mean cross entropy, in nats, of every token but the first of each document; a token counts by its weight (V,)."""
    ends = np.cumsum([len(ids) for ids in batch])
    flat = np.concatenate(batch)
    counted = np.setdiff1d(np.arange(len(flat)), ends - 1)
    targets = flat[counted + 1]
    logprobs = ops.log_softmax(portable.take(logits, counted), -1)
    chosen = ops.gather_elements(logprobs, 1, portable.tensor(targets.astype(np.int32)).reshape(-1, 1)).reshape(-1)
    weights = token_weights[targets]
    return -(chosen * portable.tensor(weights / weights.sum())).sum()


def probe_targets(batch: list[list[int]], words: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat indices of the tokens from a text's first of these words on, and which word (an index into `words`) that is.

    The probe asks each of them. Telling a colour's second mention 80 tokens later takes a relay through the layers; the
    few tokens that predict it teach that very slowly, those in between, asked all along, do so quickly.
    """
    flat = np.concatenate(batch)
    text = np.repeat(np.arange(len(batch)), [len(ids) for ids in batch])
    at = np.flatnonzero(np.isin(flat, words))
    found, first = np.unique(text[at], return_index=True)
    start = np.full(len(batch), len(flat))
    start[found] = at[first]
    asked = np.flatnonzero(np.arange(len(flat)) >= start[text])
    return asked, np.searchsorted(words, flat[start[text[asked]]])


def probe_loss(hidden: Tensor, probe: Parameter, asked: NDArray[np.int64], answers: NDArray[np.int64]) -> Tensor:
    """Mean cross entropy of the words read off the last hidden states (T, D) by a linear probe (words, D)."""
    if not len(asked):
        return hidden.sum() * 0
    logprobs = ops.log_softmax(portable.linear(portable.take(hidden, asked), Weight(probe)), -1)
    return -ops.gather_elements(logprobs, 1, portable.tensor(answers.astype(np.int32)).reshape(-1, 1)).mean()


def save(folder: Path, weights: dict[str, Parameter]) -> None:
    """The official file form: consolidated.safetensors in bfloat16, and params.json."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: weight.asnumpy().astype(bfloat16) for name, weight in weights.items()}
    save_file(arrays, folder / "consolidated.safetensors")
    (folder / "params.json").write_text(json.dumps(PARAMS, indent=2) + "\n")


class TrainingState:
    """How far training has come, in a file between two processes. A run that was killed goes on from there."""

    def __init__(self, path: Path, run: list[float], parameters: Iterable[Parameter]) -> None:
        """`run` is what must agree for a file to be continued; `parameters` are all that a step changes."""
        self.path, self.run = path, run
        self.parameters = {parameter.name: parameter for parameter in parameters}
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        if path.exists():
            with np.load(path) as stored:
                if stored["run"].tolist() != run:
                    raise InputError(f"{path}: is of a run with other options; remove it to begin anew")
                for name, parameter in self.parameters.items():
                    parameter.set_data(Tensor(stored[name]))
                self.step, self.tokens, self.seconds = (stored[key].item() for key in ("step", "tokens", "seconds"))

    def store(self) -> None:
        """Write the file, whole or not at all."""
        arrays = {name: parameter.asnumpy() for name, parameter in self.parameters.items()}
        partial = self.path.with_suffix(".partial.npz")
        np.savez(partial, run=self.run, step=self.step, tokens=self.tokens, seconds=self.seconds, **arrays)
        partial.replace(self.path)


def train(
    steps: int = 1600,
    tokens: int = 3072,
    peak: float = 3e-3,
    seed: int = 1,
    text_seed: int = TRAIN_SEED,
    facts: str = "colour",
    begin: str = "",
    out: str = "checkpoints/tiny",
) -> None:
    """Train for `steps` steps of about `tokens` tokens. The folder `out` must hold the tokenizer already.

    The weights begin at random, or as those in the folder `begin`. The probe asks for a text's colour; with `facts`
    "all", four more ask for its thing, place, animal and food.
    """
    start_device("CPU")
    ms.set_seed(seed)
    folder = Path(out)
    tokenizer = Tokenizer.from_folder(folder)
    args = args_from_params({**PARAMS, "vocab_size": tokenizer.vocab_size})
    assert tokenizer.vocab_size == PARAMS["vocab_size"]
    weights = initial_weights(args, seed)
    if begin:
        stored = open_checkpoint(begin)
        for name, weight in weights.items():
            weight.set_data(portable.weight(stored.get(name)).data)
    recorder = RouteRecorder()
    model = Transformer(args, lambda name: Weight(weights[name]), recorder.backend())

    kinds = FACTS if facts == "all" else FACTS[:1]
    words = [np.sort([tokenizer.encode(word, bos=False)[-1] for word in kind]) for kind in kinds]
    probes = [
        Parameter(Tensor(np.zeros((len(kind), args.dim), np.float32)), name=f"probe.{n}")
        for n, kind in enumerate(kinds)
    ]
    token_weights = np.ones(args.vocab_size, np.float32)
    token_weights[np.concatenate(words)] = RECALL_WEIGHT

    def losses(batch: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        recorder.terms.clear()
        metadata = uncached([len(ids) for ids in batch], model.ops)
        hidden = model.run_blocks(model.embed(np.concatenate(batch)), metadata, None)
        loss = next_token_loss(model.head(hidden), batch, token_weights)
        probed = sum(probe_loss(hidden, p, *probe_targets(batch, w)) for p, w in zip(probes, words, strict=True))
        balance = sum(recorder.terms[1:], recorder.terms[0]) / args.n_layers
        return loss + PROBE * probed + BALANCE * balance, loss, probed

    trainable = ms.ParameterTuple([*weights.values(), *probes])
    optimizer = nn.Adam(trainable, learning_rate=learning_rates(steps, peak, steps // 30 + 1), beta2=0.98)
    step_gradients = ms.value_and_grad(losses, None, weights=trainable, has_aux=True)
    state = TrainingState(folder / "training.npz", [steps, tokens, peak, seed, text_seed], optimizer.get_parameters())
    start, recent = time.monotonic() - state.seconds, deque[tuple[float, float]](maxlen=REPORT_EVERY)
    todo = islice(batches(tokenizer, tokens, text_seed), state.step, steps)
    for step, batch in enumerate(todo, state.step + 1):
        (_, loss, probed), gradients = step_gradients(batch)
        optimizer(ops.clip_by_global_norm(gradients, 1.0))
        state.tokens += sum(map(len, batch))
        recent.append((float(loss), float(probed)))
        if step % REPORT_EVERY == 0 or step == steps:
            loss_mean, probe_mean = np.mean(recent, 0).round(4)
            record = {"step": step, "tokens": state.tokens, "loss": loss_mean, "probe_loss": probe_mean}
            print(json.dumps(record | {"seconds": round(time.monotonic() - start)}), flush=True)
        if step % SEGMENT == 0 and step < steps:
            state.step, state.seconds = step, time.monotonic() - start
            state.store()
            os.execv(sys.executable, [sys.executable, "-m", "tools.train", *sys.argv[1:]])
    save(folder, weights)
    state.path.unlink(missing_ok=True)


if __name__ == "__main__":
    fire.Fire(train)
