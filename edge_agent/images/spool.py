"""Where the bytes of images lie until no job needs them: one file for each content and each who sent it.

An image belongs to who sent its bytes. Another who sends the same has a file of their own: so nobody uses, counts,
waits for or removes what is another's, and neither an answer nor its time tells what others have sent.

`FOLDER/{owner}.{sha256}` is an image as it was sent, `FOLDER/{owner}.{sha256}.{parts}` what has come of one in so many
parts, `FOLDER/prepared/{row}/` what was decoded for a job; `owner` is made of the client's name, `w` first for a
watch and `r` for a requester. Belongs to the store's thread, which calls `sync` before it commits a row that speaks of
what is here, and before anybody is told of it: so all that came together waits for the disk together. What all this
takes is kept in running totals: a part costs the same however many there are.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base import durable
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.images.part_file import PartFile
from edge_agent.jobs.database import StorageError
from edge_agent.jobs.ids import watch_of

PART_BYTES = 4096
"""What parts of an image take of a disk at least, and so of a quota: a block, however little is in them."""
PIECE_BYTES = 2**20
PREPARED = "prepared"
_NEW = ".new"
_OWNER_DIGITS = 32
_IMAGE = re.compile(r"[rw][0-9a-f]{32}\.[0-9a-f]{64}")
_PARTS = re.compile(r"([rw][0-9a-f]{32}\.[0-9a-f]{64})\.([1-9][0-9]{0,3})")
"""Our files and folders; others' that somebody put there are left alone."""
_SHARED = re.compile(r"[0-9a-f]{64}(\.[1-9][0-9]{0,3})?")
"""An image or the parts of one as version 0.1.0 kept them: without an owner."""


def _named(client: str, sha256: str) -> str:
    """Return the name of the file that holds an image of a client, whatever the client's name is made of."""
    kind = "w" if watch_of(client) else "r"
    return f"{kind}{hashlib.sha256(client.encode()).hexdigest()[:_OWNER_DIGITS]}.{sha256}"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who sends an image: their name, the hashes of all their unfinished jobs need, what names the image to them.

    An image counts once, however many of their jobs need it. `most_bytes` is what theirs may take, where that is not
    what a requester's may.
    """

    client: str
    hashes: set[str]
    field: str
    most_bytes: int | None = None

    def named(self, sha256: str) -> str:
        """Return the name of the file that holds an image of theirs."""
        return _named(self.client, sha256)


class Spool:
    """The images of one agent. `open` it before use.

    `quota_bytes` bounds what images and parts of all requesters take together, and apart from them those of all
    watches; `requester_quota_bytes` what those that one needs do, `image_bytes` one of them. What came of an image in
    parts counts for `part_bytes` at least.
    """

    def __init__(
        self,
        folder: Path,
        *,
        quota_bytes: int,
        requester_quota_bytes: int,
        image_bytes: int,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._requester_quota_bytes = requester_quota_bytes
        self._image_bytes = image_bytes
        self._part_bytes = part_bytes
        self._sizes: dict[str, int] = {}
        self._parts: dict[tuple[str, int], PartFile] = {}
        self._taken: Counter[str] = Counter()
        """Bytes of the disk: of each kind, of each owner, and of each image."""
        self._unsynced: dict[Path, PartFile | None] = {}
        self._shared: set[str] = set()

    def open(self) -> None:
        """Make the folder, take stock of it, and remove what was being written or prepared when the agent died.

        Raises EdgeAgentError STORAGE_FULL when it cannot be written.
        """
        with _storing():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.rmtree(self._folder / PREPARED, ignore_errors=True)
            (self._folder / PREPARED).mkdir(mode=0o700)
            for entry in self._folder.iterdir():
                if entry.name.endswith(_NEW):
                    entry.unlink()
                elif _IMAGE.fullmatch(entry.name):
                    self._set_size(entry.name, entry.stat().st_size)
                elif parts := _PARTS.fullmatch(entry.name):
                    self._recall_parts(entry, parts[1], int(parts[2]))
                elif _SHARED.fullmatch(entry.name):
                    self._shared.add(entry.name)

    def _recall_parts(self, entry: Path, name: str, parts: int) -> None:
        if entry.is_dir():  # of an earlier version: it begins anew
            shutil.rmtree(entry, ignore_errors=True)
            return
        self._parts[name, parts] = PartFile(entry)
        self._take(name, self._cost(self._parts[name, parts]))

    @property
    def used_bytes(self) -> int:
        """What images and parts take of the disk."""
        return self._taken["r"] + self._taken["w"]

    def spare(self, client: str, more_bytes: int) -> bool:
        """Return whether so much more is within a requester's share, though all that lies here of theirs is needed."""
        owner = _named(client, "").partition(".")[0]
        return self._taken[owner] + more_bytes <= self._requester_quota_bytes

    def sync(self) -> None:
        """Wait until the disk has all that was added. Raises OSError; parts it does not take are forgotten then."""
        unsynced, self._unsynced = self._unsynced, {}
        try:
            for file, parts in unsynced.items():
                if parts is None:
                    durable.sync(file)
                elif self._is_here(parts):
                    before_bytes = self._cost(parts)
                    try:
                        parts.sync()
                    finally:
                        self._take(file.name.rpartition(".")[0], self._cost(parts) - before_bytes)
        except OSError:
            self._unsynced = unsynced
            raise

    def _is_here(self, parts: PartFile) -> bool:
        name, _, number = parts.file.name.rpartition(".")
        return self._parts.get((name, int(number))) is parts

    def _take(self, name: str, more_bytes: int) -> None:
        """Count what an image takes, or gives back."""
        for each in (name[0], name.partition(".")[0], name):
            self._taken[each] += more_bytes
            if not self._taken[each]:
                del self._taken[each]

    def _set_size(self, name: str, size_bytes: int | None) -> None:
        self._take(name, (size_bytes or 0) - self._sizes.pop(name, 0))
        if size_bytes is not None:
            self._sizes[name] = size_bytes

    def _cost(self, parts: PartFile) -> int:
        """Return what parts take of a quota."""
        return max(parts.file_bytes, self._part_bytes) if len(parts) else 0

    def has(self, client: str, sha256: str) -> bool:
        """Return whether an image that this client sent is here, whole."""
        return _named(client, sha256) in self._sizes

    def path(self, client: str, sha256: str) -> Path:
        """Return where an image of a client lies."""
        return self._folder / _named(client, sha256)

    def prepared(self, row: int) -> Path:
        """Return the folder for what is decoded for a job."""
        return self._folder / PREPARED / str(row)

    def share(self, sha256: str, holder: Holder) -> None:
        """Let a further job of a requester have an image of theirs, if it is here.

        Raises EdgeAgentError QUOTA_EXCEEDED when that is too much for them.
        """
        if self.has(holder.client, sha256) and sha256 not in holder.hashes:
            self._check_share(self._sizes[holder.named(sha256)], holder)

    def add(self, content: bytes, holder: Holder) -> str:
        """Keep an image; return its hash in hex. One that they have here already is not written again.

        Raises EdgeAgentError STORAGE_FULL, QUOTA_EXCEEDED, or PAYLOAD_TOO_LARGE when it is over `image_bytes`.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        if self.has(holder.client, sha256):
            self.share(sha256, holder)
            return sha256
        self._make_room(len(content), holder)
        self._check_share(len(content), holder)
        new = self._folder / f"image{_NEW}"
        with _storing():
            self._keep(new, holder.named(sha256), _write(new, [content]))
        return sha256

    def add_pieces(self, pieces: Iterable[bytes], size_bytes: int, holder: Holder) -> str:
        """Keep an image that comes in pieces; `size_bytes` is what it takes at most. See `add`.

        Only when it is written its hash is known, and whether its requester had it already.
        """
        self._make_room(size_bytes, holder)
        digest = hashlib.sha256()
        new = self._folder / f"image{_NEW}"
        with _storing():
            written_bytes = _write(new, _hashed(pieces, digest))
            sha256 = digest.hexdigest()
            try:
                if self.has(holder.client, sha256):
                    self.share(sha256, holder)
                else:
                    self._check_share(written_bytes, holder)
                    self._keep(new, holder.named(sha256), written_bytes)
            finally:
                new.unlink(missing_ok=True)
        return sha256

    def _keep(self, new: Path, name: str, size_bytes: int) -> None:
        new.rename(self._folder / name)
        self._unsynced[self._folder] = None
        self._set_size(name, size_bytes)

    def add_part(self, sha256: str, *, part: int, parts: int, content: bytes, holder: Holder) -> bool:
        """Keep part 1 … `parts` of an image; return whether the image is here, whole, with it.

        A part that is here already is replaced. Raises EdgeAgentError STORAGE_FULL, QUOTA_EXCEEDED, PAYLOAD_TOO_LARGE,
        or BAD_IMAGE when the parts together have another hash: they are forgotten then.
        """
        if self.has(holder.client, sha256):
            return True
        if parts == 1:
            if hashlib.sha256(content).hexdigest() != sha256:
                raise EdgeAgentError(Code.BAD_IMAGE, "sha256: is not the hash of the payload")
            self.add(content, holder)
            return True
        name = holder.named(sha256)
        have = self._parts.get((name, parts)) or PartFile(self._folder / f"{name}.{parts}")
        longer_bytes, _ = have.growth_bytes(part, content)
        before_bytes = self._cost(have)
        after_bytes = max(have.file_bytes + have.growth_bytes(part, content)[1], self._part_bytes)
        self._make_room(have.size_bytes + longer_bytes, holder, more_bytes=after_bytes - before_bytes)
        self._check_share(after_bytes - before_bytes, holder)
        with _storing():
            if not len(have):
                self._unsynced[self._folder] = None
            have.add(part, content)
        self._parts[name, parts] = have
        self._unsynced[have.file] = have
        self._take(name, self._cost(have) - before_bytes)
        return len(have) == parts and self._join(name, sha256, parts)

    def _join(self, name: str, sha256: str, parts: int) -> bool:
        have = self._parts[name, parts]
        with _storing():
            digest = hashlib.sha256()
            for piece in have.pieces():
                digest.update(piece)
            if digest.hexdigest() == sha256:
                new = self._folder / f"image{_NEW}"
                self._keep(new, name, _write(new, have.pieces()))
                durable.sync(self._folder)  # before the parts go
            self._drop_parts(name, parts)
        if name not in self._sizes:
            raise EdgeAgentError(Code.BAD_IMAGE, "sha256: the parts together have another hash; send all of them again")
        return True

    def sweep(self, needed: Collection[tuple[str, str]], rows: Collection[int]) -> None:
        """Remove what no job needs: images and parts of a client and hash, decoded images of a job not among these.

        Raises StorageError when the disk does not let us.
        """
        try:
            self._sweep(needed, rows)
        except OSError as error:
            raise StorageError(error.strerror) from error

    def _sweep(self, needed: Collection[tuple[str, str]], rows: Collection[int]) -> None:
        self._give_out_shared(needed)
        names = {_named(client, sha256) for client, sha256 in needed}
        for name in self._sizes.keys() - names:
            (self._folder / name).unlink(missing_ok=True)
            self._set_size(name, None)
        for name, parts in [each for each in self._parts if each[0] not in names]:
            self._drop_parts(name, parts)
        for folder in (self._folder / PREPARED).iterdir():
            if folder.name.isdecimal() and int(folder.name) not in rows:
                shutil.rmtree(folder, ignore_errors=True)

    def _give_out_shared(self, needed: Collection[tuple[str, str]]) -> None:
        """Let everybody whose job needs it have an image that an earlier version kept for all; once, at the start."""
        for client, sha256 in needed if self._shared else ():
            shared, own = self._folder / sha256, self.path(client, sha256)
            if sha256 in self._shared and not own.exists():
                os.link(shared, own)
                self._set_size(own.name, shared.stat().st_size)
        for name in self._shared:
            if "." in name:
                shutil.rmtree(self._folder / name, ignore_errors=True)
            else:
                (self._folder / name).unlink(missing_ok=True)
        self._shared.clear()

    def _drop_parts(self, name: str, parts: int) -> None:
        gone = self._parts.pop((name, parts))
        self._take(name, -self._cost(gone))
        gone.file.unlink(missing_ok=True)

    def _check_share(self, more_bytes: int, holder: Holder) -> None:
        held_bytes = sum(self._taken[holder.named(each)] for each in holder.hashes)
        most_bytes = holder.most_bytes or self._requester_quota_bytes
        if held_bytes + more_bytes > most_bytes:
            most = f"the images of your unfinished jobs may take {most_bytes} bytes here"
            sentence = f"{holder.field}: {most}; send it again when one has ended"
            raise EdgeAgentError(Code.QUOTA_EXCEEDED, sentence, retry_after_s=30.0)

    def _make_room(self, size_bytes: int, holder: Holder, *, more_bytes: int | None = None) -> None:
        """Raise EdgeAgentError when there is none for an image of `size_bytes`; `more_bytes` is what it needs now."""
        if size_bytes > self._image_bytes:
            raise EdgeAgentError(
                Code.PAYLOAD_TOO_LARGE, f"the image is over {self._image_bytes} bytes; send a smaller one"
            )
        more_bytes = size_bytes if more_bytes is None else more_bytes
        if self._taken[holder.named("")[0]] + more_bytes > self._quota_bytes:
            raise EdgeAgentError(
                Code.STORAGE_FULL, "the images of waiting jobs take all room there is for them", retry_after_s=30.0
            )


@contextlib.contextmanager
def _storing() -> Iterator[None]:
    """Turn what the disk says into what a requester is told."""
    try:
        yield
    except OSError as error:
        sentence = f"the device cannot store the image ({error.strerror}); free space there"
        raise EdgeAgentError(Code.STORAGE_FULL, sentence, retry_after_s=60.0) from error


def _hashed(pieces: Iterable[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for piece in pieces:
        digest.update(piece)
        yield piece


def _write(file: Path, pieces: Iterable[bytes]) -> int:
    """Write a file and wait until the disk has it; return its size. Of one that cannot be written nothing stays."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            size_bytes = sum(map(opened.write, pieces))
            opened.flush()
            os.fsync(opened.fileno())
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return size_bytes
