"""The image encoder of Phi-3.5-vision as a part of an ONNX graph: CLIP, or a small stand-in for it.

CLIP's operators are those that onnxruntime's optimizer makes of an exported one. The published builds have all its
matrices in int4 but queries, keys and values, as the sizes of their files tell (445 MB for processors, 282 MB for
CUDA in float16).
"""

from dataclasses import dataclass

import numpy as np

from edge_agent.synth.graph import MICROSOFT, Graph
from edge_agent.synth.onnx_matmul import matmul
from edge_agent.synth.quantize import Floats, quantize
from edge_agent.synth.vision import PATCH_PIXELS, PATCHES, PREFIX, VisionShape
from edge_agent.synth.weights import Weights

_EPSILON = 1e-5
_QUICK_GELU = 1.702
"""CLIP's activation is x * sigmoid(1.702 x)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderWriter:
    """Writes what leads from the pixels of tiles to their patches."""

    graph: Graph
    vision: VisionShape
    weights: Weights
    block_size: int
    int8_activations: bool

    def write(self, tiles: str) -> str:
        """Add everything from tiles [tiles, 3, 336, 336] to patches [tiles, 576, width]; return their name."""
        patches = self._patches(tiles)
        return self._clip(patches) if self.vision.layers else self._stand_in(patches)

    def linear(self, source: str, name: str, inputs: int, outputs: int) -> str:
        """Add a layer with a bias and return its name; its matrix is int4 beside a true CLIP."""
        product = self._product(source, name, inputs, outputs)
        return self.graph.op("Add", [product, self._bias(name, outputs)], f"/{PREFIX}{name}/biased")

    def floats(self, name: str, *shape: int) -> Floats:
        """Return a tensor of the vision part."""
        return self.weights.floats(PREFIX + name, shape)

    def _patches(self, tiles: str) -> str:
        graph, width = self.graph, self.vision.width
        kernel = [PATCH_PIXELS, PATCH_PIXELS]
        filters = self._weight("patch", width, 3, *kernel)
        seen = graph.op("Conv", [tiles, filters], "/vision/patch/Conv", strides=kernel, kernel_shape=kernel)
        rows = graph.op("Reshape", [seen, graph.constant([0, width, PATCHES**2])], "/vision/patch/rows")
        return graph.op("Transpose", [rows], "/vision/patches", perm=[0, 2, 1])

    def _stand_in(self, patches: str) -> str:
        graph, width = self.graph, self.vision.width
        placed = graph.op("Add", [patches, self._positions()], "/vision/placed")
        inner = self.linear(self._norm(placed, "ln"), "fc1", width, 4 * width)
        added = self.linear(graph.op("Gelu", [inner], "/vision/fc1/gelu"), "fc2", 4 * width, width)
        return graph.op("Add", [placed, added], "/vision/encoded")

    def _clip(self, patches: str) -> str:
        graph, layers = self.graph, self.vision.layers
        normed = stream = self._norm(self._with_class(patches), "pre")
        normed = self._norm(normed, "layers.0.ln1")
        for layer in range(layers):
            prefix = f"layers.{layer}."
            attended = self._attention(normed, prefix)
            normed, stream = self._add_and_norm(stream, attended, f"{prefix}out", f"{prefix}ln2")
            fed = self._mlp(normed, prefix)
            if layer + 1 < layers:
                normed, stream = self._add_and_norm(stream, fed, f"{prefix}fc2", f"layers.{layer + 1}.ln1")
            else:
                biased = graph.op("Add", [fed, self._bias(f"{prefix}fc2", self.vision.width)], "/vision/last/biased")
                stream = graph.op("Add", [stream, biased], "/vision/last/stream")
        ends = [graph.constant([1]), graph.constant([self.vision.positions]), graph.constant([1])]
        return graph.op("Slice", [stream, *ends], "/vision/encoded")

    def _with_class(self, patches: str) -> str:
        """Put the class token before a tile's patches and add the positions."""
        graph, width = self.graph, self.vision.width
        graph.op("Shape", [patches], "/vision/tiles", start=0, end=1)
        graph.op("Concat", ["/vision/tiles", graph.constant([1, width])], "/vision/class/shape", axis=0)
        first = graph.op("Expand", [self._weight("class", 1, width), "/vision/class/shape"], "/vision/class/expanded")
        both = graph.op("Concat", [first, patches], "/vision/class/before", axis=1)
        return graph.op("Add", [both, self._positions()], "/vision/placed")

    def _attention(self, normed: str, prefix: str) -> str:
        """Return what the heads saw, without the bias of the output."""
        width = self.vision.width
        mixed = self.graph.op(
            "Attention",
            [normed, self._weight(f"{prefix}qkv.w", width, 3 * width), self._bias(f"{prefix}qkv", 3 * width)],
            f"/vision/{prefix}mixed",
            domain=MICROSOFT,
            num_heads=self.vision.heads,
        )
        return self._product(mixed, f"{prefix}out", width, width)

    def _mlp(self, normed: str, prefix: str) -> str:
        """Return what the MLP adds, without the last bias."""
        width = self.vision.width
        inner = self.linear(normed, f"{prefix}fc1", width, 4 * width)
        gelu = self.graph.op("QuickGelu", [inner], f"/vision/{prefix}gelu", domain=MICROSOFT, alpha=_QUICK_GELU)
        return self._product(gelu, f"{prefix}fc2", 4 * width, width)

    def _add_and_norm(self, stream: str, addition: str, layer: str, norm: str) -> tuple[str, str]:
        """Add a layer's product and bias to the residual stream; return the normed sum and the sum."""
        width = self.vision.width
        normed, added = f"/vision/{norm}/normed", f"/vision/{norm}/stream"
        inputs = [stream, addition, *self._scale_and_shift(norm), self._bias(layer, width)]
        self.graph.op("SkipLayerNormalization", inputs, [normed, "", "", added], domain=MICROSOFT, epsilon=_EPSILON)
        return normed, added

    def _norm(self, source: str, name: str) -> str:
        inputs = [source, *self._scale_and_shift(name)]
        return self.graph.op("LayerNormalization", inputs, f"/vision/{name}/normed", axis=-1, epsilon=_EPSILON)

    def _scale_and_shift(self, name: str) -> list[str]:
        return [self._weight(f"{name}.w", self.vision.width), self._bias(name, self.vision.width)]

    def _product(self, source: str, name: str, inputs: int, outputs: int) -> str:
        if not self.vision.layers:
            return self.graph.op(
                "MatMul", [source, self._weight(f"{name}.w", inputs, outputs)], f"/{PREFIX}{name}/MatMul"
            )
        matrix = quantize(self.floats(f"{name}.w", inputs, outputs).T, block_size=self.block_size)
        return matmul(self.graph, source, PREFIX + name, matrix, int8_activations=self.int8_activations)

    def _positions(self) -> str:
        return self._weight("pos", self.vision.positions, self.vision.width)

    def _bias(self, name: str, size: int) -> str:
        return self._weight(f"{name}.b", size)

    def _weight(self, name: str, *shape: int) -> str:
        return self.graph.weight(PREFIX + name, np.ascontiguousarray(self.floats(name, *shape)))
