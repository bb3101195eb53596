"""What of a build is no model but a program: nothing here needs any, so none is taken in."""

import os
import re
from pathlib import Path

HEAD_BYTES = 4096
_SOURCE = re.compile(r".*\.py", re.IGNORECASE)
"""Published builds bring the Python file their configuration was made with; no loader of ours runs it."""
_PROGRAM = re.compile(
    r".*\.(so(\.[0-9]+)*|dll|dylib|pyd|pyc|exe|sh|bat|cmd|ps1|jar|whl|egg|pth|pt|ckpt|pkl|pickle|joblib)"
    r"|pytorch_model.*\.bin|training_args\.bin",
    re.IGNORECASE,
)
"""Libraries, scripts, and what Python unpickles, which runs what stands in it."""
_BEGINNINGS = (
    b"\x7fELF",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
    b"!<arch>\n",
    b"PK\x03\x04",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
)
"""ELF, Mach-O of four kinds and of several at once, static libraries, zip (torch's, jar, whl), torch's older files."""


def is_source(name: str) -> bool:
    """Return whether a file of this name is left out of a build, which is whole without it."""
    return _SOURCE.fullmatch(name) is not None


def is_named_so(name: str) -> bool:
    """Return whether a file of this name is a program, or may hold one."""
    return _PROGRAM.fullmatch(name) is not None


def is_program(file: Path) -> bool:
    """Return whether a file begins like a program, whatever it is called. Raises OSError, also for a symbolic link."""
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as opened:
        head = opened.read(HEAD_BYTES)
    at = int.from_bytes(head[0x3C:0x40], "little")  # microsoft.com, "PE Format"; two bytes alone may be weights
    return head.startswith(_BEGINNINGS) or (head.startswith(b"MZ") and head[at : at + 4] == b"PE\0\0")
