"""The requester's side of images: inside the request while they fit, else named by hash and uploaded in parts."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.protocol.messages import HEADER_BYTES, PAYLOAD_BYTES_MAX

PART_BYTES_MAX = 512 * 1024
"""Of an upload, where the broker takes more: what comes on a slow link between two parts need not wait long."""
TOPIC_BYTES = 256
"""Room for the topic and an upload's user properties in a packet."""


def read(images: object) -> list[bytes]:
    """Return the bytes of images, each given as bytes or as a path. Raises EdgeAgentError BAD_REQUEST, OSError."""
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise EdgeAgentError(Code.BAD_REQUEST, "images: must be a list of bytes and paths, for a single one too")
    return [_read(image, number) for number, image in enumerate(images)]


def _read(image: object, number: int) -> bytes:
    if not isinstance(image, bytes | str | Path) or "\0" in str(image):
        raise EdgeAgentError(Code.BAD_REQUEST, f"images.{number}: must be bytes or a path")
    content = image if isinstance(image, bytes) else Path(image).read_bytes()
    if not content:
        raise EdgeAgentError(Code.BAD_REQUEST, f"images.{number}: is empty")
    return content


def room_bytes(packet_bytes_max: int | None, *, most: int) -> int:
    """Return how large a payload may be for the broker; `most` where it does not say."""
    return most if packet_bytes_max is None else min(most, packet_bytes_max - HEADER_BYTES - TOPIC_BYTES)


def attach(
    fields: Mapping[str, Any], contents: Sequence[bytes], *, packet_bytes_max: int | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the fields of a request with images added to its last message, and by hash those to be uploaded.

    `fields` are as JSON has them. The smallest images are sent inside as long as all of it fits. Fields that are no
    request stay as they are: who reads them says what is wrong.
    """
    messages = fields.get("messages") or [{"role": "user", "content": fields.get("prompt")}]
    if not contents or not isinstance(messages, list) or not isinstance(messages[-1], dict):
        return dict(fields), {}
    text = messages[-1].get("content")
    if not isinstance(text, str | list | tuple | None):
        return dict(fields), {}
    words = [{"type": "text", "text": text}] if isinstance(text, str) else list(text or ())
    named = [_by_hash(content) for content in contents]

    def request(images: list[dict[str, Any]]) -> dict[str, Any]:
        last = messages[-1] | {"content": [*words, *images]}
        return {name: value for name, value in fields.items() if name != "prompt"} | {
            "messages": [*messages[:-1], last]
        }

    room = room_bytes(packet_bytes_max, most=PAYLOAD_BYTES_MAX) - len(to_json(request(named)))
    images = list(named)
    for number in sorted(range(len(contents)), key=lambda number: len(contents[number])):
        inside = _inside(contents[number])
        room -= len(to_json(inside)) - len(to_json(named[number]))
        if room < 0:
            break
        images[number] = inside
    uploads = {image["sha256"]: content for image, content in zip(images, contents, strict=True) if "sha256" in image}
    return request(images), uploads


def parts(content: bytes, *, packet_bytes_max: int | None) -> Iterator[tuple[Mapping[str, str], bytes]]:
    """Yield the parts in which an image is uploaded, each with its user properties."""
    size = max(1, room_bytes(packet_bytes_max, most=PART_BYTES_MAX))
    pieces = [content[begin : begin + size] for begin in range(0, len(content), size)] or [b""]
    sha256 = hashlib.sha256(content).hexdigest()
    for number, piece in enumerate(pieces, 1):
        yield {"sha256": sha256, "part": str(number), "parts": str(len(pieces))}, piece


def _by_hash(content: bytes) -> dict[str, Any]:
    return {"type": "image_sha256", "sha256": hashlib.sha256(content).hexdigest()}


def _inside(content: bytes) -> dict[str, Any]:
    url = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
