"""Reads safetensors files: the size of a header in 8 bytes, little-endian, a JSON header, the tensors' bytes.

Two dozen lines spare a dependency. Format: https://huggingface.co/docs/safetensors
"""

import json
import struct
from collections.abc import Mapping
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
