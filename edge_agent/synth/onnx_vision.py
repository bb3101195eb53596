"""What a vision model has before its decoder, as two ONNX graphs for onnxruntime-genai.

    pixel_values, image_sizes ─ encoder ─ 2 x 2 patches to a token ─ rows, separators ─ projector ─ image_features
    input_ids, image_features ─ embedding; features, in their order, where an id is below 0 ─ inputs_embeds

An image is its overview and then its tiles in rows, padded to as many tiles as the image with the most has.
"""

import numpy as np

from edge_agent.synth.graph import Graph
from edge_agent.synth.onnx_encoder import EncoderWriter
from edge_agent.synth.shape import Shape
from edge_agent.synth.vision import PREFIX, TILE_PIXELS, TOKENS
from edge_agent.synth.weights import EMBEDDING, Weights


def write_embedding(graph: Graph, *, shape: Shape, weights: Weights) -> None:
    """Add the embedding of tokens."""
    ids = graph.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    features = graph.input("image_features", np.float32, ["num_image_tokens", shape.hidden_size])
    table = graph.weight(EMBEDDING, weights.floats(EMBEDDING, (shape.vocab_size, shape.hidden_size)))
    words = graph.op("Clip", [ids, graph.constant(0), graph.constant(shape.vocab_size - 1)], "/words")
    embedded = graph.op("Gather", [table, words], "/words/embedded")
    graph.op("Less", [ids, graph.constant(0)], "/images")
    graph.op("NonZero", ["/images"], "/images/places")
    places = graph.op("Transpose", ["/images/places"], "/images/rows", perm=[1, 0])
    embeds = graph.op("ScatterND", [embedded, places, features], "inputs_embeds")
    graph.output(embeds, np.float32, ["batch_size", "sequence_length", shape.hidden_size])


def write_vision(graph: Graph, *, hidden_size: int, encoder: EncoderWriter) -> None:
    """Add everything from pixels to features."""
    width, token_size = encoder.vision.width, encoder.vision.token_size
    pixels = graph.input("pixel_values", np.float32, ["num_images", "max_num_crops", 3, "height", "width"])
    sizes = graph.input("image_sizes", np.int64, ["num_images", 2])
    tiles = graph.op("Reshape", [pixels, graph.constant([-1, 3, TILE_PIXELS, TILE_PIXELS])], "/vision/pixels")
    patches = encoder.write(tiles)
    row_end = graph.weight(f"{PREFIX}sub_GN", encoder.floats("sub_GN", 1, 1, token_size))
    between = graph.weight(f"{PREFIX}glb_GN", encoder.floats("glb_GN", 1, token_size))
    tokens = _tokens(graph, patches, pixels, width)
    arranged = _arranged(graph, tokens, sizes, token_size, row_end, between)
    inner = encoder.linear(arranged, "proj0", token_size, hidden_size)
    projected = encoder.linear(graph.op("Gelu", [inner], "/vision/proj0/gelu"), "proj2", hidden_size, hidden_size)
    features = graph.op("Identity", [projected], "image_features")
    graph.output(features, np.float32, ["num_image_tokens", hidden_size])


def _tokens(graph: Graph, patches: str, pixels: str, width: int) -> str:
    """Join 2 x 2 patches: [images, tiles, 12, 12, 4 width]."""
    apart = graph.op("Reshape", [patches, graph.constant([-1, TOKENS, 2, TOKENS, 2, width])], "/vision/apart")
    beside = graph.op("Transpose", [apart], "/vision/beside", perm=[0, 1, 3, 2, 4, 5])
    graph.op("Shape", [pixels], "/vision/images", start=0, end=2)
    graph.op("Concat", ["/vision/images", graph.constant([TOKENS, TOKENS, 4 * width])], "/vision/tokens/shape", axis=0)
    return graph.op("Reshape", [beside, "/vision/tokens/shape"], "/vision/tokens")


def _arranged(graph: Graph, tokens: str, sizes: str, token_size: int, row_end: str, between: str) -> str:
    """Put the tokens of all images one after the other, each in rows as one reads: [tokens, 4 width]."""
    grids = graph.op("Div", [sizes, graph.constant(TILE_PIXELS)], "/vision/grids")
    graph.op("Shape", [sizes], "/vision/images/count", start=0, end=1)
    images = graph.op("Squeeze", ["/vision/images/count"], "/vision/images/number")
    nothing = graph.op("Slice", [between, graph.constant([0]), graph.constant([0])], "/vision/nothing")
    body = graph.inside("image")
    image = body.input("image", np.int64, [])
    body.output(body.op("Identity", [body.input("go_on", np.bool_, [])], "goes_on"), np.bool_, [])
    before = body.input("before", np.float32, ["tokens_before", token_size])
    tiles = body.op("Gather", [tokens, image], "tiles", axis=0)
    grid = body.op("Gather", [grids, image], "grid", axis=0)
    parts = [
        _rows(body, "parts", tiles, first=1, grid=grid, row_end=row_end, token_size=token_size),
        between,
        _rows(body, "overview", tiles, first=0, grid=body.constant([1, 1]), row_end=row_end, token_size=token_size),
    ]
    after = body.op("Concat", [before, *parts], "after", axis=0)
    body.output(after, np.float32, ["tokens_after", token_size])
    return graph.repeat(images, nothing, body, "/vision/arranged")


def _rows(body: Graph, name: str, tiles: str, *, first: int, grid: str, row_end: str, token_size: int) -> str:
    """Lay tiles [tiles, 12, 12, size] side by side in their grid (rows, columns): [tokens and row ends, size]."""
    number = body.op("ReduceProd", [grid], f"{name}/number", keepdims=1)
    end = body.op("Add", [number, body.constant([first])], f"{name}/end")
    chosen = body.op("Slice", [tiles, body.constant([first]), end], f"{name}/tiles")
    in_grid = body.op("Concat", [grid, body.constant([TOKENS, TOKENS, token_size])], f"{name}/grid", axis=0)
    apart = body.op("Reshape", [chosen, in_grid], f"{name}/apart")
    beside = body.op("Transpose", [apart], f"{name}/beside", perm=[0, 2, 1, 3, 4])
    side = body.op("Mul", [grid, body.constant([TOKENS])], f"{name}/side")
    joined = body.op("Concat", [side, body.constant([token_size])], f"{name}/joined/shape", axis=0)
    rows = body.op("Reshape", [beside, joined], f"{name}/joined")
    height = body.op("Slice", [side, body.constant([0]), body.constant([1])], f"{name}/height")
    ends_shape = body.op("Concat", [height, body.constant([1, token_size])], f"{name}/ends/shape", axis=0)
    ends = body.op("Expand", [row_end, ends_shape], f"{name}/ends")
    ended = body.op("Concat", [rows, ends], f"{name}/ended", axis=1)
    return body.op("Reshape", [ended, body.constant([-1, token_size])], f"{name}/tokens")
