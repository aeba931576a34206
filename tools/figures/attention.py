"""Figures of attention: what a window lets through, and what heads share."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mistral.checkpoint.args_file import args_from_params
from mistral.model.args import ModelArgs
from mistral.model.attention_plan import visible
from mistral.model.kv_cache import RollingCache
from mistral.ops.interface import Ops
from tools.figures.canvas import BLUE, GREY, MUTED, ORANGE, PALE, PALE_ORANGE, Canvas

# name: dim, n_layers, head_dim, hidden_dim, n_heads, n_kv_heads
MODELS = {
    "Mistral 7B": (4096, 32, 128, 14336, 32, 8),
    "Mistral Nemo 12B": (5120, 40, 128, 14336, 32, 8),
    "Mixtral 8x22B": (6144, 56, 128, 16384, 48, 8),
    "Mistral Large 2": (12288, 88, 128, 28672, 96, 8),
}


def influence(mask: NDArray[np.bool_], layers: int) -> NDArray[np.bool_]:
    """Which tokens (T,) can have told which (T,) anything, after so many layers of one mask (T, T)."""
    return np.linalg.matrix_power(mask.astype(np.int64), layers) > 0


def sliding_window(window: int = 4, n_layers: int = 3, tokens: int = 11) -> Canvas:
    """The mask of one layer, and how far back the last token sees through several."""
    canvas = Canvas(440, f"Sliding window: W = {window}, {n_layers} layers")
    positions = np.arange(tokens)
    mask, causal = visible(positions, positions, window), visible(positions, positions, None)
    size, left, top = 27, 58, 96
    canvas.text(left + tokens * size / 2, 64, "key", colour=MUTED)
    canvas.text(left - 4, top - 11, "query", colour=MUTED, align="right")
    for i in positions:
        canvas.text(left + (i + 0.5) * size, top - 11, str(i), colour=MUTED)
        canvas.text(left - 12, top + (i + 0.5) * size, str(i), colour=MUTED)
        for j in positions:
            colour = BLUE if mask[i, j] else PALE_ORANGE if causal[i, j] else PALE
            canvas.cell(left + j * size, top + i * size, size, size, colour)
    canvas.legend(left, 416, [(BLUE, "visible"), (PALE_ORANGE, "too far back"), (PALE, "in the future")])
    draw_cone(canvas, mask, n_layers, left=428, top=128)
    return canvas


def draw_cone(canvas: Canvas, mask: NDArray[np.bool_], n_layers: int, left: float, top: float) -> None:
    """Every way by which earlier tokens reach the last one, layer upon layer."""
    last, step, rise = len(mask) - 1, 34, 74
    canvas.text(left + last * step / 2, 64, f"what token {last} can know after {n_layers} layers", colour=MUTED)
    cones = [influence(mask, n_layers - level)[last] for level in range(n_layers + 1)]
    height = [top + (n_layers - level) * rise for level in range(n_layers + 1)]
    for level in range(n_layers):
        for i, j in np.argwhere(mask & cones[level + 1][:, None]):
            start, end = (left + j * step, height[level] - 11), (left + i * step, height[level + 1] + 11)
            canvas.line([start, end], "#7FB2D5", 1)
    for level, cone in enumerate(cones):
        for j in range(last + 1):
            canvas.cell(left + j * step - 13, height[level] - 12, 26, 24, BLUE if cone[j] else PALE, j)
        name = "input" if level == 0 else f"after layer {level - 1}"
        canvas.text(left - 12, height[level] - 23, name, size=11, colour=MUTED, align="left")
    back = last - int(np.argmax(cones[0]))
    oldest = left + (last - back) * step
    canvas.brace(oldest, left + last * step, height[0] + 24, f"{back} back = n_layers * (W - 1)")


def model_args(name: str) -> ModelArgs:
    """The part of a model's architecture that its cache depends on."""
    keys = ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads")
    return args_from_params(dict(zip(keys, MODELS[name], strict=True)) | {"vocab_size": 32000})


class Float32Slots:
    """All of a backend that sizes depend on."""

    SLOT_BYTES = 4


def cache_bytes(args: ModelArgs, tokens: int = 1) -> int:
    """Cache of a row of so many tokens, in all layers."""
    return RollingCache(args, range(args.n_layers), cast("Ops", Float32Slots())).nbytes(tokens)


def in_units(count: int) -> str:
    """A size as text."""
    if count >= 2**30:
        return f"{count / 2**30:g} GiB"
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"


def grouped_query(heads: int = 8, kv_heads: int = 2) -> Canvas:
    """Query heads that share key and value heads, and what this saves in real models."""
    canvas = Canvas(340, "Grouped-query attention")
    step, left, colours = 44, 44, (BLUE, ORANGE)
    group = heads // kv_heads
    canvas.text(24, 72, f"{heads} query heads", align="left", colour=MUTED)
    canvas.text(24, 250, f"{kv_heads} key and value heads: only these are cached", align="left", colour=MUTED)
    for head in range(heads):
        shared = head // group
        x, kv_x = left + head * step, left + (shared * group + (group - 1) / 2) * step
        canvas.line([(x, 124), (kv_x, 196)], colours[shared], 2)
        canvas.cell(x - 19, 90, 38, 34, colours[shared], f"q{head}")
    for shared in range(kv_heads):
        kv_x = left + (shared * group + (group - 1) / 2) * step
        canvas.cell(kv_x - 44, 192, 88, 34, colours[shared], f"k{shared}, v{shared}")
    args, tokens = model_args("Mistral 7B"), 4096
    shared_size, whole_size = (in_units(cache_bytes(a, tokens)) for a in (args, replace(args, n_kv_heads=args.n_heads)))
    canvas.text(24, 288, f"Mistral 7B, a row of {tokens} tokens:", align="left")
    canvas.text(24, 308, f"a cache of {shared_size} instead of {whole_size}", align="left")
    draw_cache_sizes(canvas, left=420, top=72)
    return canvas


def draw_cache_sizes(canvas: Canvas, left: float, top: float) -> None:
    """Bars of bytes per token, with the key and value heads a model has and with as many as it has query heads."""
    canvas.text(left, top, "cache of one token in all layers, float32", align="left", colour=MUTED)
    sizes = {}
    for name in MODELS:
        args = model_args(name)
        sizes[name] = cache_bytes(args), cache_bytes(replace(args, n_kv_heads=args.n_heads))
    scale = 256 / max(whole for _, whole in sizes.values())
    y = top + 26
    for name, (shared, whole) in sizes.items():
        args = model_args(name)
        counts = f"{args.n_heads} query heads on {args.n_kv_heads}"
        canvas.text(left, y, f"{name}: {counts}", align="left")
        for offset, size, colour in ((10, shared, BLUE), (24, whole, GREY)):
            canvas.cell(left, y + offset, size * scale, 13, colour)
            canvas.text(left + size * scale + 6, y + offset + 7, in_units(size), size=11, align="left", colour=MUTED)
        y += 54
    canvas.legend(left, y + 4, [(BLUE, "as it is"), (GREY, "if each query head had its own")])
