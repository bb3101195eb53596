"""The images of a request on its way in: out of the message, into the spool.

What is stored of the request names them by hash alone, however they came.

Files are read here too, before their job is stored. So the sender hears of a wrong name at once, by field; what is seen
is the file as it was when it was asked about, though a camera overwrites it or the agent is killed meanwhile; and a
message is one transaction. The price: a folder on a disk that does not answer holds the store's thread for as long. So
`images.folders` are for the device's own disks; pipes and devices are refused unread, and a file is bounded.
"""

import base64
import binascii
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.images.spool import PIECE_BYTES, Holder, Spool
from edge_agent.jobs.request import Attached, ImageHashPart, ImagePart, Message, Part, Request, TextPart

_SPELLINGS = str.maketrans("-_", "+/", "\r\n\t ")
_DATA = re.compile(r"data:[^,;]{0,127}(?:;[^,;]{1,127}){0,4};base64,", re.IGNORECASE)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def attach(request: Request, *, holder: Holder, spool: Spool, folders: Sequence[Path]) -> Attached:
    """Put the images that came with a requester's request into the spool.

    One that is named by its hash is here when this requester has sent it; what others have sent makes no difference.
    `holder` says who it is and what their other jobs need, and takes in what this one does; `folders` are where `file:`
    URLs may lead. Raises EdgeAgentError, naming the field, when an image cannot be taken.
    """
    if not request.images:
        return Attached(request, {})
    messages = tuple(
        _named(message, replace(holder, field=f"messages.{number}"), spool=spool, folders=folders)
        for number, message in enumerate(request.messages)
    )
    named = request.model_copy(update={"messages": messages})
    hashes = [image.sha256 for image in named.images if isinstance(image, ImageHashPart)]
    return Attached(named, {sha256: spool.has(holder.client, sha256) for sha256 in hashes})


def _named(message: Message, holder: Holder, *, spool: Spool, folders: Sequence[Path]) -> Message:
    if not message.images:
        return message
    parts: list[Part] = []
    for number, part in enumerate(message.content):
        at = f"{holder.field}.content.{number}"
        if isinstance(part, ImagePart):
            sha256 = _take(part.url, replace(holder, field=f"{at}.image_url"), spool=spool, folders=folders)
            holder.hashes.add(sha256)
            parts.append(ImageHashPart(type="image_sha256", sha256=sha256, detail=part.detail))
        elif isinstance(part, ImageHashPart):
            spool.share(part.sha256, replace(holder, field=f"{at}.sha256"))
            holder.hashes.add(part.sha256)
            parts.append(part)
        elif isinstance(part, TextPart):
            parts.append(part)
    return message.model_copy(update={"content": tuple(parts)})


def _take(url: str, holder: Holder, *, spool: Spool, folders: Sequence[Path]) -> str:
    field = holder.field
    if url.startswith("data:"):
        content = _decode(url, field)
        if not is_image(content[:16]):
            raise EdgeAgentError(Code.BAD_IMAGE, f"{field}: holds no JPEG, PNG, WebP, BMP, TIFF or GIF")
        return spool.add(content, holder)
    with opened(_path(url, field), field, folders=folders) as descriptor:
        return spool.add_pieces(_pieces(descriptor), os.fstat(descriptor).st_size, holder)


def _decode(url: str, field: str) -> bytes:
    head = _DATA.match(url)
    if head is None:
        raise EdgeAgentError(Code.BAD_IMAGE, f"{field}: must be base64, as in data:image/jpeg;base64,…")
    # Without line ends and padding, and in the alphabet of MIME: others are as common.
    text = url[head.end() :].translate(_SPELLINGS).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise EdgeAgentError(Code.BAD_IMAGE, f"{field}: its base64 is damaged or cut off") from None


def is_image(head: bytes) -> bool:
    """Return whether a file that begins so may be an image of a kind we take; at least 12 bytes are needed."""
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF87a", b"GIF89a", *_TIFF))
        or (head[:4], head[8:12]) == (b"RIFF", b"WEBP")
    )  # fmt: skip


# Files of the device


def _path(url: str, field: str) -> PurePosixPath:
    refused = EdgeAgentError(Code.BAD_REQUEST, f"{field}: must be of the form file:///folder/name")
    try:
        split = urlsplit(url)
    except ValueError:  # of a host, as in file://[
        raise refused from None
    path = unquote(split.path)
    if split.netloc not in {"", "localhost"} or not path.startswith("/") or "\0" in path or split.query:
        raise refused
    return PurePosixPath(path)


@contextmanager
def opened(path: PurePosixPath, field: str, *, folders: Sequence[Path]) -> Iterator[int]:
    """Open a regular file below one of the folders, following no symbolic link from there on.

    Yields its descriptor. Raises EdgeAgentError: the same sentence for what may not be read and what is not there, so
    that nobody can ask which files a device has.
    """
    refused = EdgeAgentError(
        Code.BAD_IMAGE, f"{field}: names no file below the folders in images.folders of the agent's settings"
    )
    folder = next((each for each in folders if path.is_relative_to(each)), None)
    if folder is None or ".." in path.parts:
        raise refused
    *between, name = path.relative_to(folder).parts or ("",)
    try:
        descriptor = _open_at(folder, between, name)
    except (OSError, ValueError):
        raise refused from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise refused
        yield descriptor
    finally:
        os.close(descriptor)


def _open_at(folder: Path, between: Sequence[str], name: str) -> int:
    """Open step by step: each name is looked up in the folder that was opened before it, whatever moves meanwhile."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in between:
            deeper = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = deeper
        # A pipe would be waited for without O_NONBLOCK.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)


def _pieces(descriptor: int) -> Iterator[bytes]:
    """Yield what a file holds, up to the size it has now: one that grows meanwhile is cut there."""
    left_bytes = os.fstat(descriptor).st_size
    while left_bytes and (piece := os.read(descriptor, min(PIECE_BYTES, left_bytes))):
        left_bytes -= len(piece)
        yield piece
