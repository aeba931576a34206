"""The models written down a second time: NumPy, float64, one sequence, everything recomputed, no cache.

From the papers alone: Mistral 7B (arXiv 2310.06825), Mixtral of Experts (arXiv 2401.04088), RoFormer (arXiv
2104.09864), grouped-query attention (arXiv 2305.13245), RMSNorm (arXiv 1910.07467), SwiGLU (arXiv 2002.05202), position
interpolation (arXiv 2306.15595), YaRN (arXiv 2309.00071), and the scalings of Llama 3.1 and Llama 4 as their code has
them. Slow and plain on purpose: what the
fast code is compared with. Tensors have the names and [out, in] shapes of Mistral's files.

Letters: T positions, D dim, H heads, KV kv heads, d head_dim, V vocab, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.rope import FactorScaling, LinearScaling, RopeScaling, YarnScaling

Matrix = NDArray[np.float64]
Tensors = Mapping[str, NDArray[Any]]


def oracle_logits(tensors: Tensors, args: ModelArgs, ids: Sequence[int]) -> Matrix:
    """Raw logits (T, V) after each of the T ids."""
    w = {name: np.asarray(tensor).astype(np.float64) for name, tensor in tensors.items()}
    x = np.stack([w["tok_embeddings.weight"][i] for i in ids])  # (T, D)
    for n in range(args.n_layers):
        layer = {name.removeprefix(f"layers.{n}."): t for name, t in w.items() if name.startswith(f"layers.{n}.")}
        x = x + attention(
            layer, args, rms_norm(x, layer["attention_norm.weight"], args.norm_eps), args.sliding_windows[n]
        )
        normed = rms_norm(x, layer["ffn_norm.weight"], args.norm_eps)
        x = x + (swiglu(layer, "feed_forward", normed) if args.moe is None else mixture(layer, args.moe, normed))
    x = rms_norm(x, w["norm.weight"], args.norm_eps)
    return x @ w["tok_embeddings.weight" if args.tied_embeddings else "output.weight"].T


def oracle_logprobs(tensors: Tensors, args: ModelArgs, ids: Sequence[int]) -> list[float]:
    """The log-probability of each of ids 1.., given those before it: T - 1 numbers."""
    logits = oracle_logits(tensors, args, ids)
    return [float(log_softmax(logits[t])[ids[t + 1]]) for t in range(len(ids) - 1)]


def oracle_greedy(
    tensors: Tensors, args: ModelArgs, prompt: Sequence[int], max_tokens: int, eos_id: int | None = None
) -> tuple[list[int], list[float]]:
    """At most `max_tokens` likeliest ids, without `eos_id` which ends them, and the log-probabilities of prompt ids 1..
    followed by those of the generated ids.
    """
    ids = list(prompt)
    for _ in range(max_tokens):
        token = int(np.argmax(oracle_logits(tensors, args, ids)[-1]))
        if token == eos_id:
            break
        ids.append(token)
    return ids[len(prompt) :], oracle_logprobs(tensors, args, ids)


def rms_norm(x: Matrix, weight: Matrix, eps: float) -> Matrix:
    """Each row of x (T, D) over the root of its mean square, times weight (D)."""
    return np.stack([row / math.sqrt(float((row * row).mean()) + eps) * weight for row in x])


def softmax(scores: Matrix) -> Matrix:
    """Of one row; -inf gets 0."""
    powers: Matrix = np.exp(scores - scores.max())
    return np.divide(powers, powers.sum())


def log_softmax(scores: Matrix) -> Matrix:
    """Of one row."""
    shifted: Matrix = scores - scores.max()
    return np.subtract(shifted, math.log(np.exp(shifted).sum()))


def speed(pair: int, head_dim: int, rope_theta: float, scaling: RopeScaling | None) -> float:
    """Radians by which a pair turns from one position to the next: theta^(-2i/d), or less for a longer context."""
    plain = math.pow(rope_theta, -2 * pair / head_dim)
    if scaling is None:
        return plain
    if isinstance(scaling, LinearScaling):
        return plain / scaling.factor
    if isinstance(scaling, FactorScaling):
        return plain / scaling.factors[pair]
    if isinstance(scaling, YarnScaling):
        return yarn_speed(plain, pair, head_dim, rope_theta, scaling)
    wavelength = 2 * math.pi / plain
    if wavelength < scaling.original_max_position_embeddings / scaling.high_freq_factor:
        return plain
    if wavelength > scaling.original_max_position_embeddings / scaling.low_freq_factor:
        return plain / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_max_position_embeddings / wavelength - low) / (high - low)
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def yarn_speed(plain: float, pair: int, head_dim: int, rope_theta: float, scaling: YarnScaling) -> float:
    """A pair's speed under YaRN: between the pair that makes beta_fast turns within the origin and that which makes
    beta_slow, the share of the slowed speed grows evenly from 0 to 1.
    """

    def pair_with(
        turns: float,
    ) -> float:  # whose wavelength is the origin over the turns: theta^(2i/d) = origin / 2 pi turns
        return head_dim / 2 * math.log(scaling.original_max_position_embeddings / (2 * math.pi * turns), rope_theta)

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if pair <= first:
        share = 0.0
    elif pair >= last:
        share = 1.0
    else:
        share = (pair - first) / (last - first)
    return plain + share * (plain / scaling.factor - plain)


def sharpness(scaling: RopeScaling | None) -> float:
    """What queries and keys are multiplied by where a context was lengthened."""
    return scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0


def query_factor(position: int, args: ModelArgs) -> float:
    """What the query at a position is multiplied by: it grows with each whole origin that lies behind it."""
    if args.llama_4_scaling is None:
        return 1.0
    origins = position // args.llama_4_scaling.original_max_position_embeddings
    return 1 + args.llama_4_scaling.beta * math.log(1 + origins)


def rotated(head: Matrix, position: int, rope_theta: float, scaling: RopeScaling | None = None) -> Matrix:
    """One head's vector (d,): elements 2i and 2i + 1 turned as a point of the plane by position times their speed."""
    result = np.empty_like(head)
    for i in range(len(head) // 2):
        angle = position * speed(i, len(head), rope_theta, scaling)
        a, b = head[2 * i], head[2 * i + 1]
        result[2 * i] = a * math.cos(angle) - b * math.sin(angle)
        result[2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return result * sharpness(scaling)


def visible(query: int, key: int, window: int | None) -> bool:
    """Whether the query at one position sees the key at another: itself and the window - 1 before it."""
    distance = query - key
    return distance >= 0 and (window is None or distance < window)


def attention(layer: Tensors, args: ModelArgs, x: Matrix, window: int | None) -> Matrix:
    """Grouped-query attention, x (T, D) -> (T, D): heads h of each group of H / KV share the kv head h // (H / KV)."""
    length, d, group = len(x), args.head_dim, args.n_heads // args.n_kv_heads
    q = (x @ layer["attention.wq.weight"].T).reshape(length, args.n_heads, d)
    k = (x @ layer["attention.wk.weight"].T).reshape(length, args.n_kv_heads, d)
    v = (x @ layer["attention.wv.weight"].T).reshape(length, args.n_kv_heads, d)
    mixed = np.zeros((length, args.n_heads, d))
    for h in range(args.n_heads):
        queries = np.stack([rotated(q[t, h], t, args.rope_theta, args.rope_scaling) for t in range(length)])
        queries *= np.array([query_factor(t, args) for t in range(length)])[:, None]
        keys = np.stack([rotated(k[t, h // group], t, args.rope_theta, args.rope_scaling) for t in range(length)])
        scores = queries @ keys.T / math.sqrt(d)  # (T, T)
        for i in range(length):
            row = np.array([scores[i, j] if visible(i, j, window) else -np.inf for j in range(length)])
            mixed[i, h] = softmax(row) @ v[:, h // group]
    return mixed.reshape(length, args.n_heads * d) @ layer["attention.wo.weight"].T


def swiglu(layer: Tensors, name: str, x: Matrix) -> Matrix:
    """w2(silu(w1 x) * w3 x) of the feed-forward of this name."""
    gate = x @ layer[f"{name}.w1.weight"].T
    result: Matrix = (gate / (1 + np.exp(-gate)) * (x @ layer[f"{name}.w3.weight"].T)) @ layer[f"{name}.w2.weight"].T
    return result


def mixture(layer: Tensors, moe: MoeArgs, x: Matrix) -> Matrix:
    """For each token the experts with the largest router logits, weighted by the softmax over those logits alone."""
    rows = []
    for token in x:
        router = layer["feed_forward.gate.weight"] @ token  # (E,)
        chosen = sorted(range(moe.num_experts), key=lambda e: -router[e])[: moe.num_experts_per_tok]
        weights = softmax(router[chosen])
        outs = [swiglu(layer, f"feed_forward.experts.{e}", token[None])[0] for e in chosen]
        rows.append(sum(weight * out for weight, out in zip(weights, outs, strict=True)))
    return np.stack(rows)
