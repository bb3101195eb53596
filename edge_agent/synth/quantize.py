"""Four-bit weights as MatMulNBits of onnxruntime reads them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

ZERO_POINT = 8
"""The nibble that stands for 0 when MatMulNBits is given no zero points: 2**(bits - 1), its default."""


@dataclass(frozen=True, slots=True)
class Int4:
    """A matrix of 4-bit weights: weight = (nibble - 8) x scale of its block.

    `packed` is uint8 [rows, blocks, block_size / 2], two neighbours along the columns per byte, the first in
    the low nibble; `scales` is float32 [rows, blocks], of numbers that float16 holds, so models that keep them
    in either hold the same weights. Rows are outputs; the last block is padded when `columns` does not fill it.
    """

    packed: npt.NDArray[np.uint8]
    scales: Floats
    columns: int

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return len(self.packed)

    @property
    def block_size(self) -> int:
        """Weights that share one scale."""
        return 2 * int(self.packed.shape[-1])

    def split(self, row: int) -> tuple["Int4", "Int4"]:
        """Return the rows before `row` and the others."""
        return (
            Int4(self.packed[:row], self.scales[:row], self.columns),
            Int4(self.packed[row:], self.scales[row:], self.columns),
        )

    def floats(self) -> Floats:
        """Return the matrix as float32 [rows, columns]."""
        nibbles = np.stack([self.packed & 0xF, self.packed >> 4], axis=-1)
        blocks = nibbles.reshape(*self.scales.shape, self.block_size).astype(np.float32) - ZERO_POINT
        matrix: Floats = (blocks * self.scales[..., None]).reshape(self.rows, -1)[:, : self.columns]
        return matrix


def quantize(matrix: Floats, *, block_size: int) -> Int4:
    """Round a float matrix [rows, columns] to int4, symmetric, to the nearest (RTN).

    Of each block the value farthest from 0, with its sign, becomes nibble 0 (= -8), so all 16 steps are used.
    Raises ValueError for weights that are not finite, or beyond half a million.
    """
    rows, columns = matrix.shape
    padded = np.pad(matrix, ((0, 0), (0, -columns % block_size)))
    blocks = padded.reshape(rows, -1, block_size)
    farthest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), axis=-1)
    scales = halved(farthest / -ZERO_POINT)
    steps = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales != 0)
    nibbles = np.clip(np.rint(steps) + ZERO_POINT, 0, 15).astype(np.uint8)
    return Int4(nibbles[..., 0::2] | (nibbles[..., 1::2] << 4), scales[..., 0], columns)


def halved(scales: npt.NDArray[np.floating]) -> Floats:
    """Return the scales rounded to numbers that float16 holds. Raises ValueError when one is too large for it."""
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise ValueError("a weight is no number, or too large for a scale in float16")
    return rounded


def zeros(rows: int, columns: int, *, block_size: int) -> Int4:
    """Return a matrix of nothing but 0."""
    blocks = -(-columns // block_size)
    packed = np.full((rows, blocks, block_size // 2), ZERO_POINT | ZERO_POINT << 4, np.uint8)
    return Int4(packed, np.zeros((rows, blocks), np.float32), columns)
