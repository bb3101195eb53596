"""Where a library keeps what it compiled a model to, when that takes minutes: a folder for each load, all bounded."""

import contextlib
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.registry import on


def keeping(spec: ModelSpec, folder: Path, *, bytes_max: int) -> ModelSpec:
    """Return what to load, told to keep what it compiles in a folder of its own below `folder`.

    Of what others have left there the longest unused is removed until no more than `bytes_max` is left, with what this
    one has; one that is compiled anew adds to it until the next load.
    """
    option = on(spec.backend, spec.device).compiled_option
    if not option or option in spec.options:
        return spec
    identity = f"{spec.path}\0{spec.revision}\0{spec.context_tokens}"
    own = folder / spec.device / hashlib.sha256(identity.encode()).hexdigest()[:16]
    own.mkdir(parents=True, exist_ok=True)
    os.utime(own)
    _bound(own, bytes_max)
    return replace(spec, options={option: str(own), **spec.options})


def _bound(own: Path, bytes_max: int) -> None:
    """Remove the longest unused folders beside `own` that are too much."""
    sizes = {each: _size_bytes(each) for each in sorted(own.parent.iterdir(), key=lambda each: each.stat().st_mtime)}
    surplus_bytes = sum(sizes.values()) - bytes_max
    for other, size_bytes in sizes.items():
        if surplus_bytes > 0 and other != own:
            shutil.rmtree(other, ignore_errors=True)
            surplus_bytes -= size_bytes


def _size_bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a library may replace its files while it compiles
            total += file.stat().st_size
    return total
