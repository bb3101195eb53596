"""How long a text a build of onnxruntime-genai computes right, by its configuration and its graph."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.engine.context import ContextBound, windowed

_NODES_BYTES = 64 * 2**20
_ATTENTION = b"\x22\x13GroupQueryAttention"
_WINDOW = re.compile(rb"\x0a\x11local_window_size\x18([\x80-\xff]*[\x00-\x7f])")


def context(folder: Path, model: Mapping[str, Any]) -> ContextBound:
    """Return the longest text that a build computes as its model is meant, by `model` of its genai_config.json.

    A model whose layers see so many tokens back needs a graph that forgets as well: onnxruntime-genai's builder writes
    the window into the configuration alone (0.18), for a runtime that refuses longer prompts. Raises KeyError,
    TypeError, ValueError or OSError.
    """
    most, decoder = int(model["context_length"]), model["decoder"]
    window = int((decoder.get("sliding_window") or {}).get("window_size") or most)
    if 0 < window < most and not _forgets(folder / str(decoder["filename"]), window):
        return windowed(window)
    return ContextBound(most)


def _forgets(graph: Path, window: int) -> bool:
    """Return whether every attention of a graph sees so many tokens back, by the bytes of its nodes.

    Nodes come first in the file, weights after them. A node has its operator in field 4 and an attribute its name in
    field 1 and its whole number in field 3 (onnx.proto).
    """
    with graph.open("rb") as file:
        nodes = file.read(_NODES_BYTES)
    windows = _WINDOW.findall(nodes)
    return bool(windows) and len(windows) == nodes.count(_ATTENTION) and set(windows) == {_varint(window)}


def _varint(number: int) -> bytes:
    """Return a whole number as protobuf writes it, seven bits a byte, the least first."""
    written = b""
    while number > 0x7F:
        written += bytes([number & 0x7F | 0x80])
        number >>= 7
    return written + bytes([number])
