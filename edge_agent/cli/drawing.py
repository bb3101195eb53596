"""A picture to ask about, drawn with the standard library: Pillow belongs to the image child."""

import struct
import zlib

SIDE = 300
RED, WHITE = b"\xdc\x1e\x1e", b"\xff\xff\xff"


def red_circle() -> bytes:
    """Return a red circle on white, as PNG (W3C Portable Network Graphics, sections 5 and 11)."""
    middle, radius = SIDE / 2, SIDE * 0.3
    rows = bytearray()
    for y in range(SIDE):
        half = int(max(0.0, radius**2 - (y - middle) ** 2) ** 0.5)
        left = (SIDE - 2 * half) // 2
        rows += b"\0" + WHITE * left + RED * (2 * half) + WHITE * (SIDE - left - 2 * half)
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
