"""An image among the tokens of a prompt."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_agent.engine.batching.preprocess import Pixels
from edge_agent.engine.messages import Image
from edge_agent.images.phi_tiling import grid

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


class Album:
    """The features of pictures that were seen of late, up to so many tokens of them."""

    def __init__(self, tokens_most: int) -> None:
        self._tokens_most = tokens_most
        self._features: OrderedDict[int, Features] = OrderedDict()

    def find(self, picture: Picture) -> Features | None:
        """Return those of a picture."""
        if picture.token not in self._features:
            return None
        self._features.move_to_end(picture.token)
        return self._features[picture.token]

    def put(self, picture: Picture, features: Features) -> None:
        """Keep those of a picture; those used longest ago go."""
        self._features[picture.token] = features
        while sum(map(len, self._features.values())) > self._tokens_most:
            self._features.popitem(last=False)


def woven(parts: Sequence[Sequence[int]], images: Sequence[Image]) -> tuple[list[int], tuple[Picture, ...]]:
    """Return the tokens of a prompt whose parts have images between them, and where those stand."""
    tokens, pictures = list(parts[0]), []
    for image, part in zip(images, parts[1:], strict=True):
        pictures.append(Picture(image, len(tokens)))
        tokens += [pictures[-1].token] * pictures[-1].grid.tokens
        tokens += part
    return tokens, tuple(pictures)


def _identity(image: Image, rows: int, columns: int) -> int:
    # Width and height are in it because the file is nothing but pixels: turned or cut otherwise it is another image.
    told = f"{image.sha256} {image.width} {image.height} {rows} {columns}"
    return -1 - int.from_bytes(hashlib.sha256(told.encode()).digest())
