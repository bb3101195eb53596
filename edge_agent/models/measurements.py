"""The measurements kept of this machine: one JSON file beside the builds, used while machine and library stay the same.

It is a memory aid: what of it cannot be read is as if it were not there, and measured again when somebody asks.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from edge_agent.base import durable
from edge_agent.base.errors import SettingsError
from edge_agent.base.log import get_logger
from edge_agent.engine.registry import backends
from edge_agent.models.choose import Measurement
from hardware.machine import Machine

FILE = "measurements.json"
VERSION = 1
FILE_BYTES_MAX = 2**20
ENTRIES_MAX = 256
"""The oldest go first. A machine has a handful of builds, a disk that moves between machines a few times that."""
CONFIGS = ("config.json", "genai_config.json")
CONFIG_BYTES_MAX = 2**22
GIB = 2**30
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]

log = get_logger()


class StoredMeasurement(BaseModel):
    """What was found best for one model: on a machine, by its fingerprint, with a library, by name and version.

    `model` is a variant of the catalogue, or the `identity` of a folder; `threads` were the compute threads.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    machine: Name
    model: Name
    backend: Name
    device: Name
    library: Name
    threads: Annotated[int, Field(ge=1, le=4096)]
    tokens_per_s: Annotated[float, Field(gt=0, le=1e6)]
    options: Annotated[dict[Name, Annotated[str, StringConstraints(max_length=200)]], Field(max_length=32)]

    @property
    def key(self) -> tuple[str, ...]:
        """What a newer measurement takes the place of: versions do not count, an old library does not come back."""
        return self.machine, self.model, self.backend, self.device


def measured(folder: Path, machine: Machine, libraries: Mapping[str, str]) -> dict[tuple[str, str], Measurement]:
    """Return what holds on this machine with these libraries (by backend), by model and device."""
    here = fingerprint(machine)
    return {
        (each.model, each.device): Measurement(each.tokens_per_s, each.options, each.threads)
        for each in read(folder)
        if each.machine == here and each.library == libraries.get(each.backend)
    }


def read(folder: Path) -> tuple[StoredMeasurement, ...]:
    """Return every measurement in a folder that can be understood, oldest first."""
    path = folder / FILE
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise ValueError(f"it is larger than {FILE_BYTES_MAX} bytes")  # noqa: TRY301 - one way out for all faults
        content = json.loads(raw)
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError(f"it is not of version {VERSION}")  # noqa: TRY301
        entries = content.get("measurements")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError) as error:
        log.warning(
            "measurements.unread", file=str(path), reason=str(error), next="measure again: edge-agent bench --keep"
        )
        return ()
    return tuple(_understood(entries)) if isinstance(entries, list) else ()


def _understood(entries: list[Any]) -> Iterator[StoredMeasurement]:
    for entry in entries[-ENTRIES_MAX:]:
        with contextlib.suppress(ValidationError):  # of another version of ours, or written by hand
            yield StoredMeasurement.model_validate(entry)


def keep(folder: Path, kept: StoredMeasurement) -> Path:
    """Add a measurement, in place of an older one of the same; return the file, which is whole at every moment.

    Raises SettingsError when the folder cannot be written.
    """
    others = [each for each in read(folder) if each.key != kept.key]
    entries = [each.model_dump() for each in (*others, kept)[-ENTRIES_MAX:]]
    text = json.dumps({"version": VERSION, "measurements": entries}, ensure_ascii=False, indent=1)
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        durable.write(path, text)
    except OSError as error:
        raise SettingsError(
            f"models.dir: {path} cannot be written: {error.strerror}; run as the agent's user, or name a folder of "
            "yours with --config"
        ) from error
    return path


def fingerprint(machine: Machine) -> str:
    """Return what stands for a machine: another one as soon as processors, memory, accelerators or drivers change."""
    memory = machine.memory.total_bytes
    facts = {
        "cpu": asdict(machine.cpu),
        "memory_gib": None if memory is None else round(memory / GIB),  # kernels reserve a little more or less
        "accelerators": [
            {name: value for name, value in asdict(each).items() if name not in {"node", "usable", "mend"}}
            for each in machine.accelerators
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def identity(folder: Path) -> str:
    """Return what stands for a model folder: its configuration, and names and sizes of its files.

    Raises SettingsError when it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
            if path.is_file() and not path.name.startswith("."):
                digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        for name in CONFIGS:
            if (folder / name).is_file():
                with (folder / name).open("rb") as file:
                    digest.update(file.read(CONFIG_BYTES_MAX))
    except OSError as error:
        raise SettingsError(f"{folder} cannot be read: {error.strerror}") from error
    return f"sha256:{digest.hexdigest()}"


def installed_libraries() -> dict[str, str]:
    """Return names and versions of the installed libraries, by backend, without loading any."""
    found = {name: ", ".join(_versions(facts.distributions)) for name, facts in backends().items()}
    return {backend: told for backend, told in found.items() if told}


def _versions(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{name} {metadata.version(name)}"
