"""Constants of an OpenVINO model in the making, which lie on disk until it is written, and its writing."""

from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from edge_agent.synth.quantize import ZERO_POINT, Floats, Int4, halved

Array = npt.NDArray[np.generic]

_BYTE_MOST = 127
_LEAST = 1e-3
"""A row of zeros has a scale too, and one that float16 holds."""


class Constants:
    """Makes the constants of one model; their bytes lie in an empty binary file, mapped.

    OpenVINO wants all constants in memory when it writes a model. Mapped pages are memory that the kernel can
    take back at any time, so a model of 2 GB is written on a machine with less. The constants are good for as
    long as this object is.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._maps: list[Array] = []  # OpenVINO does not keep the arrays that it shares

    def floats(self, name: str, array: Floats) -> ov.Node:
        """Return a float32 constant."""
        return self._constant(name, array, array.shape, ov.Type.f32)

    def matrix(self, name: str, matrix: Int4) -> ov.Node:
        """Return a matrix of int4 weights as float32 [rows, columns], in the pattern that NNCF leaves in a model.

        Runtimes recognise it and keep the weights packed: nibbles as u4 [rows, blocks, block_size], minus a
        zero point per block, times a float16 scale per block, reshaped. A block wider than the whole matrix
        shrinks to it. Raises ValueError when blocks do not fill the columns otherwise.
        """
        rows, blocks = matrix.scales.shape
        block_size = matrix.columns // blocks
        if blocks > 1 and block_size != matrix.block_size:
            raise ValueError(
                f"{name} has {matrix.columns} columns, which blocks of {matrix.block_size} do not fill; "
                "OpenVINO knows no padding: choose another block_size"
            )
        packed = matrix.packed[..., : block_size // 2]
        nibbles = self._constant(name, packed, (rows, blocks, block_size), ov.Type.u4)
        zeros = np.full(rows * blocks // 2, ZERO_POINT | ZERO_POINT << 4, np.uint8)
        zero_points = self._constant(f"{name}/zero_point", zeros, (rows, blocks, 1), ov.Type.u4)
        scales = self._constant(f"{name}/scale", matrix.scales.astype(np.float16), (rows, blocks, 1), ov.Type.f16)
        steps = ops.subtract(ops.convert(nibbles, "f16"), ops.convert(zero_points, "f16"))
        weights = ops.reshape(ops.multiply(steps, scales), ints(rows, matrix.columns), special_zero=False)
        return ops.convert(weights, "f32")

    def bytes_matrix(self, name: str, matrix: Floats) -> ov.Node:
        """Return a matrix rounded to int8, with a float16 scale per row, in NNCF's pattern, as float32."""
        scales = halved(np.maximum(np.abs(matrix).max(axis=1, keepdims=True), _LEAST) / _BYTE_MOST)
        rounded = np.clip(np.rint(matrix / scales), -_BYTE_MOST, _BYTE_MOST).astype(np.int8)
        weights = self._constant(name, rounded, rounded.shape, ov.Type.i8)
        steps = self._constant(f"{name}/scale", scales.astype(np.float16), scales.shape, ov.Type.f16)
        return ops.convert(ops.multiply(ops.convert(weights, "f16"), steps), "f32")

    def _constant(self, name: str, array: Array, shape: tuple[int, ...], kind: ov.Type) -> ov.Node:
        tensor = ov.Tensor(self._mapped(array), ov.Shape(shape), kind)
        constant = ov.op.Constant(tensor, shared_memory=True)
        constant.set_friendly_name(name)
        return constant

    def _mapped(self, array: Array) -> Array:
        offset_bytes = self._file.tell()
        self._file.write(np.ascontiguousarray(array).data)
        self._file.flush()
        # "c": OpenVINO refuses to share what cannot be written; nothing ever is.
        self._maps.append(np.memmap(self._file, array.dtype, mode="c", offset=offset_bytes, shape=array.shape))
        return self._maps[-1]


def ints(*values: int) -> ov.Node:
    """Return a vector of int64 constants."""
    return ops.constant(np.array(values, np.int64))


def floats(values: object) -> ov.Node:
    """Return a float32 constant."""
    return ops.constant(np.asarray(values, np.float32))


def input_node(name: str, shape: list[int], kind: ov.Type) -> ov.Node:
    """Return a named input; -1 is a dimension of any length."""
    node = ops.parameter(ov.PartialShape(shape), kind, name=name)
    node.output(0).set_names({name})
    return node


def save(model: ov.Model, path: Path) -> None:
    """Write a model as `path` (.xml) and the .bin beside it. Raises OSError when the disk is full.

    Operators without a name get one that follows from the model alone; those that OpenVINO makes up count the
    operators of the process.
    """
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    try:
        ov.serialize(model, path)
    except RuntimeError as error:
        raise OSError(f"OpenVINO could not write {path}: {error}. Is the disk full?") from error
