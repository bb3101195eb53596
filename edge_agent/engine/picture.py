"""An image among the tokens of a prompt."""

import hashlib

import numpy as np
import numpy.typing as npt

from edge_agent.engine.messages import Image
from edge_agent.engine.pixels import Pixels
from edge_agent.jobs.tiles import grid

Features = npt.NDArray[np.floating]
"""What stands for tokens inside the model, shape [tokens, hidden size]."""


class Picture:
    """An image that stands at a prompt's tokens from `begin` to `end`, and as much as was seen of it.

    Each of those tokens is `token`, below 0: the same for the same image in the same grid, and never for another, so
    whoever compares tokens compares images.
    """

    def __init__(self, image: Image, begin: int) -> None:
        self._image = image
        self.grid = grid(image.width, image.height, tiles=image.tiles)
        self.begin = begin
        self.end = begin + self.grid.tokens
        self.token = _identity(image, self.grid.rows, self.grid.columns)
        self.pixels: Pixels | None = None
        self.tiles: list[Features] = []
        self.features: Features | None = None

    @property
    def tile_count(self) -> int:
        """Tiles with the overview."""
        return self.grid.rows * self.grid.columns + 1

    def open(self) -> Pixels:
        """Return its pixels; EdgeAgentError as in Pixels."""
        if self.pixels is None:
            self.pixels = Pixels(self._image, self.grid)
        return self.pixels

    def keep(self, features: Features | None) -> None:
        """Keep what was seen, or nothing; the pixels are not needed any more."""
        self.features = features
        self.pixels = None
        self.tiles = []


def _identity(image: Image, rows: int, columns: int) -> int:
    # Width and height are in it because the file is nothing but pixels: turned or cut otherwise it is another image.
    told = f"{image.sha256} {image.width} {image.height} {rows} {columns}"
    return -1 - int.from_bytes(hashlib.sha256(told.encode()).digest())
