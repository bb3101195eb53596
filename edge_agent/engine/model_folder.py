"""What a model folder may not say: its files come from somebody else, and libraries do as they say.

onnxruntime-genai loads a shared library that `custom_ops_library` in genai_config.json names, and hands on paths in its
session's and providers' options, some of them of libraries too (src/models/model.cpp of 0.18). mlx-lm runs the Python
file that `model_file` in config.json names (CVE-2026-5843), transformers fetches a kernel when an attention's
implementation is the name of a repository. What onnxruntime and openvino read beside that lies in the folder or is
refused by themselves. So these two files are looked through before any library sees the folder.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from edge_agent.base.errors import Code, EdgeAgentError

CONFIG_BYTES_MAX = 2**22
_RUNS_CODE = frozenset({"customopslibrary", "modelfile"})
"""Keys that name a program, without what is no letter: whatever their case and whatever is between their words."""
_WRITES = frozenset({"enableprofiling"})
_OPTIONS = frozenset({"sessionoptions", "runoptions", "provideroptions"})
"""Tables whose values are handed on to onnxruntime and its providers."""


def check(folder: Path) -> None:
    """Raise EdgeAgentError MODEL_ERROR, naming file and key, when a library would run or read what is not the model's.

    A path to a single file holds no such words. A folder that is not there, or lacks them, is for its loader to refuse.
    """
    for name in ("genai_config.json", "config.json"):
        try:
            with (folder / name).open("rb") as file:
                body = file.read(CONFIG_BYTES_MAX + 1)
        except OSError:
            continue
        if fault := _fault(body):
            raise EdgeAgentError(Code.MODEL_ERROR, f"{name} in {folder} {fault}; it is not loaded: get the model anew")


def _fault(body: bytes) -> str:
    if len(body) > CONFIG_BYTES_MAX:
        return f"is over {CONFIG_BYTES_MAX} bytes"
    try:
        # As pairs: of a key that comes twice some libraries take the first, some the last, some both.
        told = json.loads(body.decode("utf-8-sig"), object_pairs_hook=_Pairs)
        return next((fault for path, value in _walk(told, ()) if (fault := _wrong(path, value))), "")
    except (ValueError, RecursionError):
        return "is not valid JSON"


class _Pairs(list[tuple[str, Any]]):
    """A table of JSON as it stands there."""


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value in a document with the keys that lead to it."""
    yield path, value
    if isinstance(value, _Pairs):
        for key, each in value:
            yield from _walk(each, (*path, key))
    elif isinstance(value, list):
        for each in value:
            yield from _walk(each, path)


def _wrong(path: tuple[str, ...], value: Any) -> str:
    """Return what is wrong with one value; empty when nothing is."""
    words = [re.sub(r"[^a-z0-9]", "", key.casefold()) for key in path]
    last, text = (words[-1] if words else ""), value if isinstance(value, str) else ""
    faults = {
        "names a program to run": last in _RUNS_CODE,
        "has a file written": last in _WRITES,
        "names a file outside of the folder": last.endswith("filename") and not _inside(text),
        "names a place outside of the folder": bool(_OPTIONS.intersection(words)) and _is_place(text),
        "names a repository of code": last.endswith("implementation") and "/" in text,
    }
    return next((f"{fault} ({'.'.join(path)[:200]})" for fault, found in faults.items() if found), "")


def _inside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in name and "\0" not in name


def _is_place(text: str) -> bool:
    """Return whether a text leads somewhere: a name alone is looked up where the system keeps its libraries."""
    return "/" in text or "\\" in text or text == ".."
