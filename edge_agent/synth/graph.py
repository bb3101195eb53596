"""An ONNX graph in the making, whose weights go to disk as they come.

The only module that knows the onnx library.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

try:
    import onnx
except ModuleNotFoundError as missing:
    if missing.name != "onnx":
        raise
    raise ImportError(
        "onnx is not installed; install it with: pip install 'edge-slm-agent[synth]' "
        "(from a checkout: pip install '.[synth]')"
    ) from missing

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators: MatMulNBits, GroupQueryAttention, …"""

Array = npt.NDArray[np.generic]
Axis = int | str

_PAGE_BYTES = 4096
_OPSET = 21
_IR_VERSION = 10


class ExternalData:
    """The file beside an .onnx file that holds its weights; written once, from front to back.

    Every tensor starts on a page so that a runtime can map it instead of reading it.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, name: str, array: Array) -> onnx.TensorProto:
        """Write a tensor and return the initializer that points to it."""
        offset = self._file.seek(-self._file.tell() % _PAGE_BYTES, 1)
        self._file.write(np.ascontiguousarray(array).data)
        tensor = onnx.TensorProto(
            name=name,
            dims=array.shape,
            data_type=onnx_type(array.dtype),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", self._name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class Graph:
    """Operators and tensors, in the order in which they were added."""

    def __init__(self, name: str, *, external: ExternalData) -> None:
        self._name = name
        self._external = external
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[Axis]) -> str:
        """Add an input and return its name; an axis is a number or the name of one that varies."""
        self._inputs.append(_value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: npt.DTypeLike, shape: Sequence[Axis]) -> str:
        """Add an output, to be made by some operator, and return its name."""
        self._outputs.append(_value(name, dtype, shape))
        return name

    def weight(self, name: str, array: Array) -> str:
        """Write a tensor to the external file and return its name."""
        self._tensors[name] = self._external.write(name, array)
        return name

    def constant(self, value: int | list[int]) -> str:
        """Return the name of an int64 scalar or vector in the graph itself; equal ones are one tensor."""
        name = f"/constants/{self._name}/{value}"
        self._tensors[name] = onnx.numpy_helper.from_array(np.array(value, np.int64), name)
        return name

    def op(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: str | Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add an operator and return the name of its first output; an input or output left out is ''."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        node = onnx.helper.make_node(kind, inputs, names, name=f"{names[0]}/{kind}", domain=domain, **attributes)
        self._nodes.append(node)
        return names[0]

    def choose(self, condition: str, *, then: Mapping[str, Array], otherwise: Mapping[str, Array]) -> None:
        """Add tensors whose content depends on a condition; both mappings have the same names."""
        self.op(
            "If",
            [condition],
            list(then),
            then_branch=_constants("large", then),
            else_branch=_constants("small", otherwise),
        )

    def inside(self, name: str) -> "Graph":
        """Return an empty graph to be a part of this one; it may use this one's tensors."""
        return Graph(name, external=self._external)

    def repeat(self, times: str, start: str, body: "Graph", output: str) -> str:
        """Run a graph of its own so many times, on a tensor that each time takes from the one before; return the last.

        `body` has the inputs number (int64), go_on (bool) and that tensor, the outputs go_on and that tensor.
        """
        return self.op("Loop", [times, "", start], output, body=body.whole())

    def whole(self) -> onnx.GraphProto:
        """Return the graph as it is now."""
        return onnx.helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, list(self._tensors.values())
        )

    def save(self, path: Path) -> None:
        """Write the graph. Its weights lie in the external file already."""
        graph = self.whole()
        opsets = [onnx.helper.make_opsetid("", _OPSET), onnx.helper.make_opsetid(MICROSOFT, 1)]
        model = onnx.helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="edge-agent-synth"
        )
        path.write_bytes(model.SerializeToString())


def onnx_type(dtype: npt.DTypeLike) -> int:
    """Return ONNX's number of an element type."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _value(name: str, dtype: npt.DTypeLike, shape: Sequence[Axis]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx_type(dtype), shape)


def _constants(name: str, arrays: Mapping[str, Array]) -> onnx.GraphProto:
    """Return a graph without inputs that puts out the arrays. Names inside differ from those outside."""
    nodes, outputs = [], []
    for key, array in arrays.items():
        inner = f"{key}_{name}"
        tensor = onnx.numpy_helper.from_array(array, inner)
        nodes.append(onnx.helper.make_node("Constant", [], [inner], name=f"/{inner}", value=tensor))
        outputs.append(_value(inner, array.dtype, array.shape))
    return onnx.helper.make_graph(nodes, name, [], outputs)
