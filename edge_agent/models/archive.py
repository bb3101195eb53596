"""Builds on their way to places without a network: one plain tar file, or a folder that somebody copied.

An archive holds the manifest first, then the files in its order, each once; other tools can unpack it. It is read
header by header, so that nothing in it decides how much memory is used, where a file goes or how many there are.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from edge_agent.base.durable import sync
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import backend_of, marks
from edge_agent.models import manifest as manifests
from edge_agent.models.build_store import BuildStore, in_words, writing
from edge_agent.models.catalogue import Variant
from edge_agent.models.listing import PLAIN, WantedFile
from edge_agent.models.manifest import (
    CHUNK_BYTES,
    FILES_MAX,
    MANIFEST,
    MANIFEST_BYTES_MAX,
    Manifest,
    StoredFile,
    matched,
)
from edge_agent.models.partial_file import PartialFile
from edge_agent.models.programs import is_named_so, is_program, is_source

BLOCK_BYTES = tarfile.BLOCKSIZE
_FILES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE})
_IMPORT = "import"
_PROGRAM = "{} is a program or may hold one, and a build has none"

Find = Callable[[str], Variant | None]
"""Returns what the catalogue knows of a name."""
Told = Callable[[str, int, int], None]
"""Hears the file at work, and how many of how many bytes are done."""


def export(store: BuildStore, name: str, target: Path, *, told: Told = lambda *_: None) -> Manifest:
    """Write a build into one archive, verified on the way; nothing is left under `target` unless it is whole.

    Raises EdgeAgentError when the build is not here, is damaged, or the archive cannot be written.
    """
    manifest = store.manifest(name)
    if os.path.lexists(target):
        raise EdgeAgentError(Code.BAD_REQUEST, f"{target} exists; remove it or name another file")
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    with writing(target.absolute().parent, advice="name another place for the archive"):
        free_bytes = shutil.disk_usage(target.absolute().parent).free
        if free_bytes < manifest.size_bytes:
            raise EdgeAgentError(
                Code.STORAGE_FULL,
                f"the archive takes {in_words(manifest.size_bytes)} and {in_words(free_bytes)} are free; "
                "name a place on another disk",
            )
        try:
            with part.open("xb") as archive:
                _write(archive, store.folder / name, manifest, told)
            sync(part)
            part.rename(target)
            sync(target.absolute().parent)
        finally:
            part.unlink(missing_ok=True)
    return manifest


def import_archive(
    store: BuildStore, source: Path, *, find: Find, name: str | None = None, told: Told = lambda *_: None
) -> Manifest:
    """Take in an archive; it is in place only when every file of its manifest is there and true.

    `name` is another one than the manifest's, if given. Raises EdgeAgentError: BAD_REQUEST when the archive is refused,
    STORAGE_FULL.
    """
    with _opened(source) as archive:
        sent = _read_manifest(archive)
        files = tuple(file.model_copy(update={"vouched": "archive"}) for file in sent.files)
        kept = tuple(file for file in files if not is_source(file.name))
        manifest = _imported(sent, _plain(name or sent.name), kept, find)
        left = {file.name: file for file in files}
        done_bytes = 0
        with _incoming(store, manifest.name, manifest.size_bytes) as folder:
            while left:
                header = _header(archive)
                file = left.pop(header.name, None)
                if file is None:
                    raise _refused(f"it holds {header.name[:100]!r}, which its manifest does not name or names once")
                if header.size != file.size_bytes:
                    raise _refused(f"{file.name} has {header.size} bytes and not {file.size_bytes}")
                told(file.name, done_bytes, manifest.size_bytes)
                pieces = _pieces(archive, header.size, file.name)
                if is_source(file.name):
                    for _ in pieces:
                        pass
                else:
                    _copy(pieces, folder, _wanted(file))
                    done_bytes += header.size
                _exactly(archive, -header.size % BLOCK_BYTES)
            if any(_exactly(archive, BLOCK_BYTES)):
                raise _refused("it goes on after the last file of its manifest")
            store.publish(folder, manifest)
    return manifest


def import_folder(
    store: BuildStore, source: Path, *, find: Find, name: str | None = None, told: Told = lambda *_: None
) -> Manifest:
    """Take in a folder that holds a build, checked against its manifest and the catalogue where these know it.

    Its name is the build's unless `name` is given. Raises EdgeAgentError: BAD_REQUEST when it is refused, STORAGE_FULL.
    """
    sent = manifests.read(source)
    name = _plain(name or (sent.name if sent else source.resolve().name))
    sizes_bytes = _sizes_bytes(source)
    stated = {file.name: file for file in sent.files} if sent else {}
    if lost := sorted({name for name in stated if not is_source(name)} - sizes_bytes.keys()):
        raise _refused(f"it lacks {', '.join(lost)}, which its manifest names")
    total_bytes = sum(sizes_bytes.values())
    done_bytes = 0
    files = []
    with _incoming(store, name, total_bytes) as folder:
        for each, size_bytes in sizes_bytes.items():
            told(each, done_bytes, total_bytes)
            wanted = (
                _wanted(stated[each]) if each in stated else WantedFile(each, each, size_bytes, None, None, "nobody")
            )
            with _opened(source / each) as file:
                sha256 = _copy(_pieces(file, size_bytes, each), folder, wanted)
            vouched = "archive" if each in stated else "nobody"
            files.append(StoredFile(name=each, size_bytes=size_bytes, sha256=sha256, vouched=vouched))
            done_bytes += size_bytes
        manifest = _imported(sent, name, tuple(files), find)
        store.publish(folder, manifest)
    return manifest


def _imported(sent: Manifest | None, name: str, files: tuple[StoredFile, ...], find: Find) -> Manifest:
    """Return the manifest a build gets here, with the catalogue's word where that knows it."""
    if found := next((file.name for file in files if is_named_so(file.name)), None):
        raise _refused(_PROGRAM.format(found))
    variant = find(name)
    return Manifest(
        name=name,
        repo=sent.repo if sent else variant.repo if variant else None,
        revision=sent.revision if sent else None,
        origin="imported",
        at=datetime.now(UTC),
        files=matched(variant, files),
    )


@contextlib.contextmanager
def _incoming(store: BuildStore, name: str, size_bytes: int) -> Iterator[Path]:
    """Give an empty folder for a build; it is gone afterwards, unless it was published."""
    with store.locked(name):
        store.discard(name, _IMPORT.__eq__)  # of a killed one
        try:
            store.make_room(name, missing_bytes=size_bytes, size_bytes=size_bytes)
            yield store.partial(name, _IMPORT)
        finally:
            store.discard(name, _IMPORT.__eq__)


def _wanted(file: StoredFile) -> WantedFile:
    return WantedFile(file.name, file.name, file.size_bytes, file.sha256, None, file.vouched)


def _copy(pieces: Iterator[bytes], folder: Path, wanted: WantedFile) -> str:
    """Write a file; return its hash. Raises EdgeAgentError BAD_REQUEST when that is not the wanted one."""
    part = PartialFile(folder / wanted.name, wanted)
    with contextlib.closing(part):
        for piece in pieces:
            part.add(piece)
        if not part.is_right():
            raise _refused(f"{wanted.name} has another size or hash than its manifest says: it was spoilt on the way")
        if is_program(folder / wanted.name):
            raise _refused(_PROGRAM.format(wanted.name))
        return part.sha256


def _sizes_bytes(folder: Path) -> dict[str, int]:
    """Return the sizes of a folder's files by name, without hidden ones and Python's.

    Raises EdgeAgentError for what is no file, and for programs.
    """
    try:
        backend_of(folder)
        entries = sorted(folder.iterdir())
        sizes_bytes = {each.name: each.lstat() for each in entries if not each.name.startswith(".")}
    except EdgeAgentError as error:
        raise _refused(f"it holds none of {marks()}") from error
    except OSError as error:
        raise _unreadable(folder, error) from error
    for name, found in sizes_bytes.items():
        if not stat.S_ISREG(found.st_mode):
            raise _refused(f"{name[:100]!r} is a link, a folder or a device; a build has files only")
        if not PLAIN.fullmatch(name):
            raise _refused(f"no file of a build is called {name[:100]!r}")
        if is_named_so(name):
            raise _refused(_PROGRAM.format(name))
    if len(sizes_bytes) > FILES_MAX:
        raise _refused(f"it holds more than {FILES_MAX} files")
    return {name: found.st_size for name, found in sizes_bytes.items() if not is_source(name)}


def _plain(name: str) -> str:
    if not PLAIN.fullmatch(name) or name.startswith("_"):
        raise EdgeAgentError(
            Code.BAD_REQUEST, "a build's name has letters, digits, - . and _ only; give it one with --name"
        )
    return name


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
    except OSError as error:
        raise _unreadable(file, error) from error
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _refused(f"{file} is no file")
        yield opened


def _pieces(file: BinaryIO, size_bytes: int, what: str) -> Iterator[bytes]:
    """Yield so many bytes. Raises EdgeAgentError BAD_REQUEST when there are fewer."""
    left_bytes = size_bytes
    while left_bytes:
        try:
            piece = file.read(min(left_bytes, CHUNK_BYTES))
        except OSError as error:
            raise EdgeAgentError(Code.BAD_REQUEST, f"{what} cannot be read: {error.strerror}; copy it anew") from error
        if not piece:
            raise _refused(f"it ends in the middle of {what}")
        left_bytes -= len(piece)
        yield piece


def _refused(fault: str) -> EdgeAgentError:
    return EdgeAgentError(Code.BAD_REQUEST, f"{fault}; nothing was taken in: copy or export it anew")


def _unreadable(path: Path, error: OSError) -> EdgeAgentError:
    return EdgeAgentError(Code.BAD_REQUEST, f"{path} cannot be read: {error.strerror}; check its path and owner")


# Tar


def _write(archive: BinaryIO, folder: Path, manifest: Manifest, told: Told) -> None:
    body = manifest.encode()
    archive.write(_header_of(MANIFEST, len(body), manifest) + body + bytes(-len(body) % BLOCK_BYTES))
    done_bytes = 0
    for file in manifest.files:
        told(file.name, done_bytes, manifest.size_bytes)
        archive.write(_header_of(file.name, file.size_bytes, manifest))
        _append(archive, folder / file.name, file)
        archive.write(bytes(-file.size_bytes % BLOCK_BYTES))
        done_bytes += file.size_bytes
    archive.write(bytes(2 * BLOCK_BYTES))
    archive.flush()


def _header_of(name: str, size_bytes: int, manifest: Manifest) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = size_bytes
    header.mtime = int(manifest.at.timestamp())
    return header.tobuf(tarfile.GNU_FORMAT)  # one block: names are short, and sizes over 8 GiB have a place in it


def _append(archive: BinaryIO, path: Path, file: StoredFile) -> None:
    digest = hashlib.sha256()
    with _opened(path) as source:
        for piece in _pieces(source, file.size_bytes, file.name):
            digest.update(piece)
            archive.write(piece)
    if digest.hexdigest() != file.sha256:
        raise EdgeAgentError(
            Code.MODEL_MISSING,
            f"{path} differs from its manifest, so it is not exported; see: edge-agent models verify",
        )


def _read_manifest(archive: BinaryIO) -> Manifest:
    header = _parsed(archive)
    if header.name != MANIFEST or header.type not in _FILES or not 0 < header.size <= MANIFEST_BYTES_MAX:
        raise _refused(
            "it does not begin with a manifest, so edge-agent did not write it; unpack it, import the folder"
        )
    body = _exactly(archive, header.size)
    _exactly(archive, -header.size % BLOCK_BYTES)
    return manifests.decode(body)


def _header(archive: BinaryIO) -> tarfile.TarInfo:
    """Read a file's header. Those that go on in another block are refused too: that could be of any size."""
    header = _parsed(archive)
    if header.type not in _FILES:
        raise _refused(f"{header.name[:100]!r} is a link, a folder or a device; a build has files only")
    return header


def _parsed(archive: BinaryIO) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(_exactly(archive, BLOCK_BYTES), "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _refused(f"it is no tar archive, or a damaged one ({error})") from error


def _exactly(archive: BinaryIO, size_bytes: int) -> bytes:
    return b"".join(_pieces(archive, size_bytes, "a header or its manifest"))
