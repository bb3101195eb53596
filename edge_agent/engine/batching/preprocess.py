"""From an image to the numbers that Phi-3.5-vision sees, as its published image processor computes them.

The image is scaled to its grid and padded with white to whole tiles; the overview shows all of that in one tile.
"""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.messages import Image
from edge_agent.images.phi_tiling import TILE_PIXELS, Grid

Floats = npt.NDArray[np.float32]

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
"""Of the images that CLIP was trained on: red, green, blue."""
_LEVELS = (np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - _MEAN) / _DEVIATION
"""What a byte stands for, in each colour."""
_COLOURS = 3
_JPEG_QUALITY = 90
_WHITE = (255, 255, 255)


class Pixels:
    """The tiles of an image: first the overview, then the grid's row by row.

    Raises EdgeAgentError IMAGE_MISSING when the image's file is not there or not whole.
    """

    def __init__(self, image: Image, grid: Grid) -> None:
        self._grid = grid
        self._padded = np.asarray(_padded(_scaled(_read(image), grid), grid))

    def tiles(self, first: int, end: int) -> Floats:
        """Return tiles by their numbers, shape [tiles, 3, 336, 336]."""
        return np.stack([self._tile(number - 1) if number else self._overview() for number in range(first, end)])

    def _tile(self, number: int) -> Floats:
        row, column = divmod(number, self._grid.columns)
        top, left = row * TILE_PIXELS, column * TILE_PIXELS
        return _numbers(self._padded[top : top + TILE_PIXELS, left : left + TILE_PIXELS])

    def _overview(self) -> Floats:
        """Shrink the numbers, not the bytes, as the processor does."""
        side = (TILE_PIXELS, TILE_PIXELS)
        colours = (Pillow.fromarray(colour) for colour in _numbers(self._padded))
        return np.stack([np.asarray(colour.resize(side, Pillow.Resampling.BICUBIC)) for colour in colours])


def jpeg(image: Image) -> bytes:
    """Return an image as a JPEG, to be sent. Raises EdgeAgentError IMAGE_MISSING as Pixels does."""
    buffer = io.BytesIO()
    _read(image).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _read(image: Image) -> Pillow.Image:
    try:
        content = Path(image.path).read_bytes()
    except OSError as error:
        raise EdgeAgentError(Code.IMAGE_MISSING, "messages: an image is gone; send the job again") from error
    if len(content) != image.width * image.height * _COLOURS:
        raise EdgeAgentError(Code.IMAGE_MISSING, "messages: an image is not whole; send the job again")
    return Pillow.frombuffer("RGB", (image.width, image.height), content, "raw", "RGB", 0, 1)


def _scaled(image: Pillow.Image, grid: Grid) -> Pillow.Image:
    """Let the longer side fill the grid; the other side follows, rounded down."""
    longer, shorter = max(image.size), min(image.size)
    length = max(grid.rows, grid.columns) * TILE_PIXELS
    width = max(1, int(length / (longer / shorter)))
    size = (width, length) if image.width < image.height else (length, width)
    return image.resize(size, Pillow.Resampling.BILINEAR)


def _padded(image: Pillow.Image, grid: Grid) -> Pillow.Image:
    whole = Pillow.new("RGB", (grid.columns * TILE_PIXELS, grid.rows * TILE_PIXELS), _WHITE)
    whole.paste(image, ((whole.width - image.width) // 2, (whole.height - image.height) // 2))
    return whole


def _numbers(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Return [3, height, width] of [height, width, 3]."""
    return np.stack([_LEVELS[pixels[..., colour], colour] for colour in range(_COLOURS)])
