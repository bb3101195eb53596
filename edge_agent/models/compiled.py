"""Where a library keeps what it compiled a model to, when compiling takes minutes: one folder, for the last load."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

from edge_agent.engine.backend import ModelSpec

_OPTION = {("openvino", "npu"): "CACHE_DIR"}
"""Settings of libraries that name such a folder, where it is needed: docs.openvino.ai, "OpenVINO GenAI on NPU"."""


def keeping(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Return what to load, told to keep what it compiles in a folder of its own below `folder`.

    What others on that device have left is removed: it has the size of a model, and holds for one context only.
    """
    option = _OPTION.get((spec.backend, spec.device))
    if option is None or option in spec.options:
        return spec
    identity = f"{spec.path}\0{spec.revision}\0{spec.context_tokens}"
    own = folder / spec.device / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if own.parent.is_dir():
        for other in own.parent.iterdir():
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
    return replace(spec, options={option: str(own), **spec.options})
