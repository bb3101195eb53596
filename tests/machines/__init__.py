"""Machines as trees of their files, reconstructed from published sources or recorded.

A machine is a folder with any number of `*.toml` files. Each is a list of

    [[file]]
    path = "proc/cpuinfo"        # below the root, with "/"
    text = "..."                 # or `link`, or `size_bytes` (that many zeros, sparse); none of them: empty
    link = "../../devices/x"     # a symbolic link, relative to the folder of `path`
    mode = "0o660"               # permission bits; 0o644 without it
    source = "https://..."       # where the value is published

Paths may be reached through links that stand earlier in the file.
"""

import os
import tomllib
from pathlib import Path

from hardware.access import Opener

FOLDER = Path(__file__).parent
KEYS = frozenset({"path", "text", "link", "size_bytes", "mode", "source"})


def names():
    """Return the name of every machine."""
    return sorted(folder.name for folder in FOLDER.iterdir() if any(folder.glob("*.toml")))


def entries(name):
    """Yield the `[[file]]` tables of a machine, file by file in the order of their names."""
    for file in sorted((FOLDER / name).glob("*.toml")):
        for entry in tomllib.loads(file.read_text(encoding="utf-8"))["file"]:
            assert entry.keys() <= KEYS, f"{file}: {entry['path']}: unknown {entry.keys() - KEYS}"
            assert entry.get("source"), f"{file}: {entry['path']}: say in `source` where the value is published"
            yield entry


def build(name: str, into: Path) -> Path:
    """Write the tree of a machine below `into` and return its root."""
    root = into / name
    root.mkdir(parents=True)
    for entry in entries(name):
        relative = Path(entry["path"])
        assert not {"..", "/"} & set(relative.parts), entry["path"]
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not os.path.lexists(path), f"{name}: {relative} stands twice"
        if link := entry.get("link"):
            target = (path.parent / link).resolve()
            assert target.is_relative_to(root.resolve()), f"{name}: {relative} leads out of the tree"
            if not target.exists():
                target.mkdir(parents=True)
            path.symlink_to(link)
            continue
        path.write_bytes(entry.get("text", "").encode())
        if size_bytes := entry.get("size_bytes"):
            with path.open("r+b") as file:
                file.truncate(size_bytes)
        path.chmod(int(entry.get("mode", "0o644"), 8))
    return root


def outsider(groups=()):
    """A user in no group: only what everybody may open is open. The nodes' groups are as udev makes them."""

    def group(path):
        if path.stat().st_mode & 0o060 == 0:
            return "root"
        return "video" if path.name.startswith("nv") else "render"

    return Opener(
        user="pi",
        may_open=lambda path: path.stat().st_mode & 0o006 == 0o006,
        group=group,
        groups=lambda: frozenset(groups),
    )
