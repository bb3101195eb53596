"""The store: the builds on this disk, each a folder that appears whole or not at all.

DIR/<variant>/                 files and .manifest.json
DIR/.partial/<variant>~<key>/  what is on its way: fetched in pieces, imported, or on its way out
DIR/.partial/<variant>.lock    held by whoever changes that build; a lock of the kernel, gone with its process
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.durable import sync
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.models import manifest as manifests
from edge_agent.models.manifest import MANIFEST, Manifest, sha256_of
from edge_agent.settings.load import Settings

PARTIAL = ".partial"
MARGIN_BYTES = 128 * 2**20
"""What a download or import leaves free on the disk, for the queue and the system."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The last is what a FAT card says to a file of 4 GiB."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A build that is whole; `manifest` is None when that file is damaged."""

    name: str
    path: Path
    manifest: Manifest | None


class BuildStore:
    """The builds under one folder. `quota_bytes` bounds them together; None leaves it to the disk."""

    def __init__(self, folder: Path, *, quota_bytes: int | None = None, margin_bytes: int = MARGIN_BYTES) -> None:
        self.folder = folder
        self.quota_bytes = quota_bytes
        self.margin_bytes = margin_bytes

    @classmethod
    def of(cls, settings: Settings) -> "BuildStore":
        """Return the store the settings name."""
        models = settings.models
        return cls(models.dir or settings.agent.state_dir / "models", quota_bytes=models.quota_bytes)

    # What is there

    def installed(self) -> tuple[Installed, ...]:
        """Return the builds by name. Raises EdgeAgentError when the folder cannot be read."""
        found = []
        for path in self._folders(self.folder):
            try:
                manifest = manifests.read(path)
            except EdgeAgentError:  # shown as damaged; verify says why
                found.append(Installed(path.name, path, None))
            else:
                if manifest is not None:
                    found.append(Installed(path.name, path, manifest))
        return tuple(found)

    def partial_bytes(self) -> dict[str, int]:
        """Return how much of which builds is on its way."""
        sizes: dict[str, int] = {}
        for path in self._folders(self.folder / PARTIAL):
            name = path.name.rpartition("~")[0]
            sizes[name] = sizes.get(name, 0) + _size_bytes(path)
        return sizes

    @property
    def size_bytes(self) -> int:
        """What all builds take, those on their way too."""
        return sum(_size_bytes(each.path) for each in self.installed()) + sum(self.partial_bytes().values())

    def manifest(self, name: str) -> Manifest:
        """Return a build's manifest. Raises EdgeAgentError MODEL_MISSING when it is not here or is damaged."""
        manifest = manifests.read(self.folder / name)
        if manifest is None:
            raise EdgeAgentError(
                Code.MODEL_MISSING, f"{name} is not in {self.folder}; fetch it with: edge-agent models pull {name}"
            )
        if manifest.name != name:
            raise EdgeAgentError(
                Code.MODEL_MISSING,
                f"{self.folder / name} was renamed, it holds {manifest.name}; give the folder its name back",
            )
        return manifest

    def path(self, name: str) -> Path:
        """Return a build's folder. Raises EdgeAgentError MODEL_MISSING when it is not here or lacks a file."""
        manifest = self.manifest(name)
        folder = self.folder / name
        for file in manifest.files:
            with contextlib.suppress(OSError):
                found = (folder / file.name).lstat()
                if stat.S_ISREG(found.st_mode) and found.st_size == file.size_bytes:
                    continue
            raise EdgeAgentError(Code.MODEL_MISSING, f"{folder / file.name} is missing or cut; {_anew(name)}")
        return folder

    def verify(self, name: str, told: Callable[[int], None] = lambda _bytes: None) -> Manifest:
        """Hash a build again; `told` hears of each piece that was read.

        Raises EdgeAgentError MODEL_MISSING that names every file which differs.
        """
        manifest = self.manifest(name)
        folder = self.folder / name
        faults = []
        for file in manifest.files:
            try:
                if sha256_of(folder / file.name, told) != file.sha256:
                    faults.append(f"{file.name} differs")
            except OSError as error:
                faults.append(f"{file.name}: {error.strerror}")
        known = {MANIFEST, *(file.name for file in manifest.files)}
        faults += [f"{each} does not belong to it" for each in sorted({path.name for path in folder.iterdir()} - known)]
        if faults:
            raise EdgeAgentError(Code.MODEL_MISSING, f"{name} is damaged: {'; '.join(faults)}; {_anew(name)}")
        return manifest

    # Changes

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: Callable[[int], None] | None = None) -> Iterator[None]:
        """Keep others from changing a build meanwhile.

        When somebody does already, `wait` is called with the process id (0: not known) and their end waited for;
        without it that raises EdgeAgentError MODEL_MISSING.
        """
        with writing(self.folder):
            (self.folder / PARTIAL).mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / PARTIAL / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                said = os.pread(lock, 20, 0)
                pid = int(said) if said.isdigit() else 0
                if wait is None:
                    raise EdgeAgentError(
                        Code.MODEL_MISSING, f"process {pid or '?'} is at work on {name}; wait for it or end it"
                    ) from None
                wait(pid)
                fcntl.flock(lock, fcntl.LOCK_EX)
            with writing(self.folder):
                os.truncate(lock, 0)
                os.pwrite(lock, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(lock)

    def partial(self, name: str, key: str) -> Path:
        """Return a folder for what is on its way, with what an earlier try left in it; call with the build locked."""
        folder = self.folder / PARTIAL / f"{name}~{key}"
        with writing(self.folder):
            folder.mkdir(exist_ok=True)
        return folder

    def discard(self, name: str, which: Callable[[str], bool] = lambda _key: True) -> None:
        """Remove what is on its way under such keys, or under all; call with the build locked."""
        for path in self._folders(self.folder / PARTIAL):
            each, _, key = path.name.rpartition("~")
            if each == name and which(key):
                with writing(self.folder):
                    shutil.rmtree(path)

    def make_room(self, name: str, *, missing_bytes: int, size_bytes: int) -> None:
        """Ask whether so much more fits for a build that will take `size_bytes`.

        Raises EdgeAgentError STORAGE_FULL with what is lacking.
        """
        others = sum(_size_bytes(each.path) for each in self.installed() if each.name != name)
        others += sum(size for each, size in self.partial_bytes().items() if each != name)
        refused = refusal(
            missing_bytes=missing_bytes,
            free_bytes=shutil.disk_usage(self.folder).free,
            margin_bytes=self.margin_bytes,
            size_bytes=size_bytes,
            others_bytes=others,
            quota_bytes=self.quota_bytes,
        )
        if refused:
            raise EdgeAgentError(Code.STORAGE_FULL, f"no room for {name} in {self.folder}: {refused}")

    def publish(self, folder: Path, manifest: Manifest) -> Path:
        """Put a folder that was made by `partial` in its place, for good; call with the build locked.

        Everything is on the disk before the folder appears. A build that stood there is replaced.
        """
        final = self.folder / manifest.name
        with writing(self.folder):
            (folder / MANIFEST).write_bytes(manifest.encode())
            for file in (*(each.name for each in manifest.files), MANIFEST, "."):
                sync(folder / file)
            if os.path.lexists(final):
                final.rename(self._doomed(manifest.name))
            folder.rename(final)
            sync(self.folder)
            self.discard(manifest.name)
        return final

    def remove(self, name: str) -> int:
        """Remove a build and what is on its way of it; return the bytes that were freed.

        Raises EdgeAgentError MODEL_MISSING when there is none or somebody is at work on it.
        """
        final = self.folder / name
        there = any(each.name == name for each in self.installed())
        if not there and name not in self.partial_bytes():
            raise EdgeAgentError(Code.MODEL_MISSING, f"{name} is not in {self.folder}; see: edge-agent models list")
        with self.locked(name), writing(self.folder):
            freed = self.partial_bytes().get(name, 0)
            if there:
                freed += _size_bytes(final)
                final.rename(self._doomed(name))
            self.discard(name)
        return freed

    def _doomed(self, name: str) -> Path:
        return self.folder / PARTIAL / f"{name}~removed-{secrets.token_hex(4)}"

    def _folders(self, folder: Path) -> list[Path]:
        try:
            with os.scandir(folder) as entries:
                found = [Path(each.path) for each in entries if each.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise EdgeAgentError(Code.MODEL_MISSING, f"{folder} cannot be read: {error.strerror}") from error
        return sorted(path for path in found if path.name != PARTIAL)


def refusal(
    *,
    missing_bytes: int,
    free_bytes: int,
    margin_bytes: int,
    size_bytes: int,
    others_bytes: int,
    quota_bytes: int | None,
) -> str | None:
    """Return why a build may not come in, with what to do; None when it may."""
    if missing_bytes + margin_bytes > free_bytes:
        return (
            f"{in_words(missing_bytes)} are still to come, {in_words(margin_bytes)} shall stay free and "
            f"{in_words(free_bytes)} are; remove a build (edge-agent models remove) or set models.dir to a larger disk"
        )
    if quota_bytes is not None and others_bytes + size_bytes > quota_bytes:
        return (
            f"it takes {in_words(size_bytes)}, the other builds {in_words(others_bytes)}, and models.quota_bytes "
            f"allows {in_words(quota_bytes)}; remove a build (edge-agent models remove) or raise the quota"
        )
    return None


@contextlib.contextmanager
def writing(folder: Path, *, advice: str = "run this as the agent's user or set models.dir") -> Iterator[None]:
    """Turn what the disk refuses into an EdgeAgentError with what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise EdgeAgentError(
                Code.STORAGE_FULL,
                f"{folder} takes no more ({error.strerror}); make room or take another disk, then run it again",
            ) from error
        raise EdgeAgentError(
            Code.MODEL_MISSING,
            f"{folder} cannot be written: {error.strerror}; {advice}",
        ) from error


def in_words(size_bytes: int) -> str:
    """Return a size for people, as `2.6 GiB`."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _anew(name: str) -> str:
    return f"get it anew: edge-agent models remove {name}, then edge-agent models pull {name}"


def _size_bytes(folder: Path) -> int:
    """Return the size of a folder's files; what vanishes meanwhile counts nothing."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for each in entries:
            with contextlib.suppress(FileNotFoundError):
                total += each.stat(follow_symlinks=False).st_size
    return total
