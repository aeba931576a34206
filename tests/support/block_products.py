"""An oracle of the product of weights in blocks with activations, in NumPy, and random blocks.

It follows the definition in mistral/ops/kernels/blocks/activations.h and shares no code with the kernels: whole numbers
of a block are what `BlockQuantized.dense` makes of it where its scales are set to 1 and 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mistral.ops.blocks.block_quantized import SCALES, BlockQuantized
from mistral.ops.blocks.kind import BY_NAME

Array = NDArray[np.float32]
Exact = NDArray[np.float64]


def random_blocks(name: str, rows: int, columns: int, seed: int = 0, scale: float = 0.01) -> BlockQuantized:
    """A matrix of random bytes, whose scales in float16 are normally distributed."""
    kind, draw = BY_NAME[name], np.random.default_rng(seed)
    values = draw.integers(0, 256, (rows, columns // kind.weights * kind.nbytes), dtype=np.uint8)
    made = BlockQuantized(values, kind, (rows, columns))
    for place in range(len(SCALES[name])):
        made = with_scales(made, place, draw.standard_normal((rows, columns // kind.weights)) * scale)
    return made


def with_scales(weight: BlockQuantized, place: int, scales: NDArray[np.float64] | float) -> BlockQuantized:
    """The same numbers under other scales, one for each block: d (place 0) or the scale of the minimum (place 1)."""
    kind, at = weight.kind, SCALES[weight.kind.name][place]
    values = weight.values.copy()
    blocks = values.reshape(len(values), -1, kind.nbytes)
    blocks[:, :, at : at + 2] = np.broadcast_to(scales, blocks.shape[:2]).astype("<f2")[..., None].view(np.uint8)
    return replace(weight, values=values)


def scales_of(weight: BlockQuantized, place: int) -> Array:
    """The scales (rows, blocks) at a place of the blocks."""
    at = SCALES[weight.kind.name][place]
    blocks = weight.values.reshape(len(weight.values), -1, weight.kind.nbytes)
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def rounded_activations(x: Array, size: int, fused: bool) -> tuple[NDArray[np.int64], Array]:
    """x (T, in) as whole numbers (T, blocks, size) and the scales (T, blocks) of blocks of this size.

    `fused`: numbers are rounded once. Without a fused multiply-add, the product with the scale is rounded before.
    """
    blocks = x.reshape(len(x), -1, size)
    largest = np.abs(blocks).max(axis=2)
    with np.errstate(divide="ignore", over="ignore"):
        by = np.where(largest > np.float32(1e-30), np.float32(127) / largest, np.float32(0)).astype(np.float32)
    products = blocks.astype(np.float64) * by[..., None]  # exact
    if not fused:
        products = products.astype(np.float32).astype(np.float64)
    return np.rint(products).astype(np.int64), largest / np.float32(127)  # half of a whole number goes to the even one


@dataclass(frozen=True)
class Product:
    """`values` (T, out), and for each the sum of the magnitudes that were added."""

    values: Array
    magnitudes: Exact


def product(x: Array, weight: BlockQuantized, fused: bool = True) -> Product:
    """x (T, in) times the transpose of weight (out, in), whose numbers are finite; see `rounded_activations`."""
    size, places = weight.kind.weights, range(len(SCALES[weight.kind.name]))
    numbers, x_scales = rounded_activations(x, size, fused)
    y, magnitudes = np.zeros((len(x), weight.shape[0]), np.float32), np.zeros((len(x), weight.shape[0]))
    parts = []  # whole numbers (out, blocks, size) and their scales (out, blocks): of d, then of the minimum
    for place in places:
        alone = weight
        for other in places:
            alone = with_scales(alone, other, float(other == place))
        parts.append((alone.dense().reshape(len(y[0]), -1, size).astype(np.float64), scales_of(weight, place)))
    for b in range(numbers.shape[1]):
        for integers, scales in parts:
            sums = (numbers[:, b].astype(np.float64) @ integers[:, b].T).astype(np.float32)  # exact, then rounded
            added = sums.astype(np.float64) * (scales[None, :, b] * x_scales[:, b, None])
            y, magnitudes = (added + y).astype(np.float32), magnitudes + np.abs(added)
    return Product(y, magnitudes)
