"""The operator of linear layers with int4 weights."""

from edge_agent.synth.graph import MICROSOFT, Graph
from edge_agent.synth.quantize import Int4

_FLOAT_ACTIVATIONS = 1
_INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level: activations become int8 too; "acc-level-4" in published names."""


def matmul(graph: Graph, source: str, name: str, matrix: Int4, *, int8_activations: bool, output: str = "") -> str:
    """Add a product with a matrix and return its name, `output` or one after the layer's."""
    return graph.op(
        "MatMulNBits",
        [
            source,
            graph.weight(f"{name}.MatMul.weight_Q4", matrix.packed),
            graph.weight(f"{name}.MatMul.weight_scales", matrix.scales),
        ],
        output or f"/{name}/MatMul",
        domain=MICROSOFT,
        N=matrix.rows,
        K=matrix.columns,
        bits=4,
        block_size=matrix.block_size,
        accuracy_level=_INT8_ACTIVATIONS if int8_activations else _FLOAT_ACTIVATIONS,
    )
