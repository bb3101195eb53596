"""Model folders that are either whole or not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

Progress = Callable[[int, int], None]
"""Told the number of layers written and of all layers."""


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Give a fresh folder beside `out` to write into; afterwards sync it and give it the name `out`.

    Whatever goes wrong inside removes it again; a killed build leaves `.NAME.*.partial`, which nobody takes
    for a model. Raises FileExistsError, before any work, when `out` is a file or holds something.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield partial
        _sync(partial)
        partial.chmod(0o755)  # mkdtemp lets the owner in only; a daemon may run as another user
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial)
        raise


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file as the published folders have them: UTF-8, four spaces."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=4), encoding="utf-8")


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
