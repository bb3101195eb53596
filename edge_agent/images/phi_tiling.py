"""How Phi-3.5-vision cuts an image into tiles, and what that costs in tokens (pure).

The arithmetic is that of the published model's image processor: the image is scaled to so many tiles of 336 x 336
pixels, padded to whole ones, and seen beside an overview of one tile.
"""

import math
from dataclasses import dataclass

TILE_PIXELS = 336
TILES_MOST = 16
"""What the model was trained with for a single image; 4 are advised for each of several frames."""
_TILE_TOKENS = 144
_ROW_TOKENS = 12
"""A tile is 12 x 12 tokens; each row of tokens ends with one more."""


@dataclass(frozen=True, slots=True)
class Grid:
    """So many tiles, without the overview."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Tokens of prompt that the image takes: its tiles, the overview, the row ends, and one between the two."""
        return (self.rows * self.columns + 1) * _TILE_TOKENS + 1 + (self.rows + 1) * _ROW_TOKENS


def grid(width: int, height: int, *, tiles: int) -> Grid:
    """Return how an image of so many pixels is cut when at most so many tiles are allowed.

    The longer side gets as many tiles as the budget allows, small images being enlarged.
    """
    longer, shorter = max(width, height), min(width, height)
    across = 1
    while (across + 1) * _beside(across + 1, longer, shorter) <= tiles:
        across += 1
    beside = _beside(across, longer, shorter)
    return Grid(across, beside) if width < height else Grid(beside, across)


def tiles_needed(width: int, height: int, *, most: int) -> int:
    """Return how many tiles show an image in its own resolution; at most `most`, which shrinks it."""
    fitting = (
        tiles
        for tiles in range(1, most)
        if max(grid(width, height, tiles=tiles).rows, grid(width, height, tiles=tiles).columns) * TILE_PIXELS
        >= max(width, height)
    )
    return next(fitting, most)


def _beside(across: int, longer: int, shorter: int) -> int:
    """Return the tiles of the shorter side when the longer has `across`."""
    return math.ceil(across * shorter / longer)
