"""The image child: decodes images that come from anybody, in a process that may die of them.

Run as `python -m edge_agent.images.decoder_child --pixels N --memory BYTES --seconds N`. Reads an order per line of
JSON on standard input, answers each with a line on standard output, and ends when its input does:

    {"path": …}  →  {"width": …, "height": …}: the size, upright as far as the beginning of the file tells
    {"path": …, "long_side": …, "out": …}  →  the size and {"used_width": …, "used_height": …, "sha256": …}: written to
        `out` as RGB bytes, rows from the top, scaled down until no side is over `long_side`
    either  →  {"fault": …}, why it is no image that can be taken, or {"full": …}, why `out` cannot be written

What an image may take is the parent's to say, see decoder_process.py.
"""

import argparse
import contextlib
import hashlib
import json
import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Only these are tried; Pillow knows dozens, some of which run programs (EPS)."""
RATIO_MAX = 50
"""A longer strip shows nothing when it is cut into tiles."""
FILE_BYTES_MAX = 64 * 2**20
OOM_SCORE = "1000"
"""The first to go when memory runs out: what it does is tried again."""
SCALE_FACTOR = 2.0
"""JPEG is decoded at the smallest of its own scales that is still so much larger than wanted (libjpeg, `scale_num`)."""
_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THEIR_SIDE = frozenset({5, 6, 7, 8})


class Fault(Exception):  # noqa: N818 - it is the image's
    """An image cannot be taken; the message says why and holds nothing of it."""


def main() -> int:
    """Serve until the input ends; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.images.decoder_child", description="decode images")
    parser.add_argument("--pixels", type=int, required=True, help="largest image that is decoded")
    parser.add_argument("--memory", type=int, required=True, help="address space of this process, in bytes")
    parser.add_argument("--seconds", type=int, required=True, help="processor time of an image")
    options = parser.parse_args()
    _settle(pixels=options.pixels, memory_bytes=options.memory)
    for line in sys.stdin.buffer:
        _spend(options.seconds)
        answer = take(json.loads(line), pixels=options.pixels)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


def _settle(*, pixels: int, memory_bytes: int) -> None:
    """Bound what this process may take, and leave signals of the terminal to the parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # some containers forbid it
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
    Image.MAX_IMAGE_PIXELS = pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _spend(seconds: int) -> None:
    """Let the kernel end this process when it computes so much longer."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + seconds, hard))


def take(order: dict[str, Any], *, pixels: int) -> dict[str, Any]:
    """Return the answer to an order."""
    try:
        with _open(order["path"], pixels=pixels) as image:
            size = image.size
            if "out" not in order:
                return _size(size, 1 if _noted_late(image) else _orientation(image))
            rgb, orientation = develop(image, long_side=order["long_side"])
            content = rgb.tobytes()
    except Fault as fault:
        return {"fault": str(fault)}
    try:
        Path(order["out"]).write_bytes(content)
    except OSError as error:
        return {"full": error.strerror}
    used = {"used_width": rgb.width, "used_height": rgb.height}
    return _size(size, orientation) | used | {"sha256": hashlib.sha256(content).hexdigest()}


def _size(size: tuple[int, int], orientation: int) -> dict[str, Any]:
    width, height = upright(size, orientation)
    return {"width": width, "height": height}


@contextmanager
def _open(path: str, *, pixels: int) -> Iterator[Image.Image]:
    """Open an image, of which only the beginning is read.

    Raises Fault, also for what goes wrong inside: decoders raise nearly anything.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            check(image.size)
            yield image
    except Fault:
        raise
    except UnidentifiedImageError:
        raise Fault("is no JPEG, PNG, WebP, BMP, TIFF or GIF, or its beginning is damaged") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Fault(f"has more than the {pixels} pixels this agent takes; send it smaller") from None
    except MemoryError:
        raise Fault("takes more memory to decode than an image may; send it smaller") from None
    except Exception:  # noqa: BLE001 - see above
        raise Fault("is damaged or cut off") from None


def check(size: tuple[int, int]) -> None:
    """Raise Fault when an image is no picture by its shape."""
    width, height = size
    if min(size) < 1 or max(size) > RATIO_MAX * min(size):
        raise Fault(f"has {width} x {height} pixels; no side may be over {RATIO_MAX} times the other")


def _noted_late(image: Image.Image) -> bool:
    """Return whether how a camera was held may stand behind the pixels, as PNG allows; Pillow reads them to look."""
    return image.format == "PNG" and "exif" not in image.info


def _orientation(image: Image.Image) -> int:
    """Return how a camera was held, 1 … 8; 1 when it is not said or the note cannot be read."""
    try:
        noted = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a bad note is no bad image
        return 1
    return noted if noted in _UPRIGHT else 1


def upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the size of an image once it is turned."""
    width, height = size
    return (height, width) if orientation in _ON_THEIR_SIDE else (width, height)


def develop(image: Image.Image, *, long_side: int) -> tuple[Image.Image, int]:
    """Return the first frame in RGB, upright, on white where it is transparent, and how it lay.

    No side is over `long_side`.
    """
    orientation = None if _noted_late(image) else _orientation(image)  # some files are closed once they are read
    size = scaled(image.size, long_side=long_side)
    image.draft(None, (int(size[0] * SCALE_FACTOR), int(size[1] * SCALE_FACTOR)))
    plain = _eight_bits(image)
    if plain.size != size:
        plain = plain.resize(size, Image.Resampling.BICUBIC, reducing_gap=SCALE_FACTOR)
    rgb = _on_white(plain)
    if orientation is None:
        orientation = _orientation(image)
    return (rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb), orientation


def scaled(size: tuple[int, int], *, long_side: int) -> tuple[int, int]:
    """Return a size in the same proportions with no side over `long_side`; at least one pixel."""
    width, height = size
    if max(size) <= long_side:
        return size
    factor = long_side / max(size)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image in a mode that can be scaled: L, RGB or RGBA."""
    if image.mode.startswith("I"):  # 16 bits of grey, whatever it is kept in
        return image.convert("I").point(lambda level: level * (1 / 256)).convert("L")
    if image.mode == "F":
        raise Fault("holds fractions instead of levels of light; send it with 8 or 16 bits")
    if image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


if __name__ == "__main__":
    sys.exit(main())
