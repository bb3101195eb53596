"""Safetensors files, read and written: the header's size (8 bytes, little-endian), the header, the tensors' bytes.

Few lines spare a dependency. Format: https://huggingface.co/docs/safetensors
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edge_agent.synth.quantize import Floats

_DTYPES = {"F16": "<f2", "F32": "<f4"}


def read(path: Path) -> Mapping[str, Floats]:
    """Return the tensors of a file by name, as float32.

    Raises ValueError for a file that is no safetensors file or holds another type than F16 and F32.
    """
    content = path.read_bytes()
    try:
        (header_bytes,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + header_bytes])
        body = memoryview(content)[8 + header_bytes :]
        return {
            name: np.frombuffer(body[slice(*entry["data_offsets"])], _DTYPES[entry["dtype"]])
            .reshape(entry["shape"])
            .astype(np.float32)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is no safetensors file of F16 or F32 tensors: {error!r}") from error


def write(path: Path, shapes: Mapping[str, tuple[int, ...]], tensor: Callable[[str], Floats]) -> None:
    """Write tensors of these shapes as float32, each asked for by its name when its turn comes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in shapes:
            file.write(np.ascontiguousarray(tensor(name), "<f4").data)
