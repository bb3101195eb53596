"""An image as the tiles that Phi-3.5-vision sees, as its published image processor makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from edge_agent.engine.messages import Image
from edge_agent.errors import Code, EdgeAgentError
from edge_agent.jobs.tiles import TILE_PIXELS, Grid

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_WHITE = 255
_CUBIC = (-0.09375, 0.59375, 0.59375, -0.09375)
"""Weights of the four pixels around a point that lies between two, for cubic interpolation with a = -0.75."""


@dataclass(frozen=True, slots=True)
class Normal:
    """What a channel's values, from 0 to 1, are shifted and scaled by."""

    mean: Sequence[float]
    deviation: Sequence[float]

    def of(self, pixels: npt.NDArray[np.generic]) -> Floats:
        """Return pixels [height, width, 3] from 0 to 255 as one tile [1, 3, height, width]."""
        scaled = pixels.astype(np.float32) / 255
        even = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.deviation, np.float32)
        return np.ascontiguousarray(even.transpose(2, 0, 1)[None])


def read(image: Image) -> Bytes:
    """Return the pixels [height, width, 3]. Raises EdgeAgentError INTERNAL when the file is not what it should be."""
    try:
        pixels = np.fromfile(Path(image.path), np.uint8)
    except OSError as error:
        raise EdgeAgentError(Code.INTERNAL, "a decoded image is gone; send the job again") from error
    if pixels.size != image.width * image.height * 3:
        raise EdgeAgentError(Code.INTERNAL, "a decoded image is not of its size; send the job again")
    return pixels.reshape(image.height, image.width, 3)


def padded(pixels: Bytes, grid: Grid) -> Bytes:
    """Return an image scaled to its tiles, as large as they all are, white around it.

    The longer side fills its tiles, the other one keeps the proportion.
    """
    height, width = pixels.shape[:2]
    if width < height:
        return np.ascontiguousarray(padded(pixels.transpose(1, 0, 2), Grid(grid.columns, grid.rows)).transpose(1, 0, 2))
    new_width = grid.columns * TILE_PIXELS
    new_height = min(max(1, int(new_width / (width / height))), grid.rows * TILE_PIXELS)
    scaled = Pillow.fromarray(np.ascontiguousarray(pixels)).resize((new_width, new_height), Pillow.Resampling.BILINEAR)
    whole = np.full((grid.rows * TILE_PIXELS, new_width, 3), _WHITE, np.uint8)
    top = (len(whole) - new_height) // 2
    whole[top : top + new_height] = np.asarray(scaled)
    return whole


def tile(whole: Bytes, row: int, column: int) -> Bytes:
    """Return one tile of a padded image."""
    top, left = row * TILE_PIXELS, column * TILE_PIXELS
    return whole[top : top + TILE_PIXELS, left : left + TILE_PIXELS]


def overview(whole: Bytes) -> Floats:
    """Return a padded image as one tile, by cubic interpolation at the centres of its pixels, from -80 to 335."""
    return _shrunk(_shrunk(whole.astype(np.float32)).transpose(1, 0, 2)).transpose(1, 0, 2)


def _shrunk(pixels: Floats) -> Floats:
    """Return the first axis shrunk to a tile's length: a centre lies on a pixel, or in the middle of two."""
    step = len(pixels) // TILE_PIXELS
    if step % 2:
        return pixels[step // 2 :: step]
    around = np.pad(pixels, ((1, 1), (0, 0), (0, 0)), "edge")  # one more is wanted where there are but two per point
    first = step // 2 - 1
    taps = np.stack([around[first + tap :][::step][:TILE_PIXELS] for tap in range(len(_CUBIC))])
    return np.tensordot(np.asarray(_CUBIC, np.float32), taps, axes=1)
