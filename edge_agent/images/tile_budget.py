"""How many tiles each image of a job is given (pure): what was asked for, within what the model's context holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.images.phi_tiling import TILES_MOST, grid, tiles_needed
from edge_agent.jobs.request import Detail, Request

TILES_MOST_EACH = 4
"""With `auto`, for each of several images: what the model's makers advise for several frames."""
BYTES_PER_TOKEN = 3
"""Of a prompt's text, assumed before it is counted: English has about four, so that more is kept free than it takes."""
MESSAGE_TOKENS = 8
"""What the chat template may add to each message, and as much for what stands between an image and its text."""


@dataclass(frozen=True, slots=True)
class Wish:
    """An image's size in pixels and the detail it was sent with."""

    width: int
    height: int
    detail: Detail

    def tiles(self, *, several: bool) -> int:
        """Return how many tiles would do what was asked for."""
        match self.detail:
            case "low":
                return 1
            case "high":
                return TILES_MOST
        return tiles_needed(self.width, self.height, most=TILES_MOST_EACH if several else TILES_MOST)

    def tokens(self, tiles: int) -> int:
        """Return what the image costs with so many tiles."""
        return grid(self.width, self.height, tiles=tiles).tokens


def room_tokens(request: Request, *, context_tokens: int) -> int:
    """Return how many tokens of a model's context the images of a request may take, by an estimate of its text."""
    messages = request.conversation
    text_bytes = sum(len(message.text.encode()) for message in messages)
    parts = len(messages) + len(request.images)
    return context_tokens - request.max_tokens - text_bytes // BYTES_PER_TOKEN - MESSAGE_TOKENS * parts


def share(wishes: Sequence[Wish], *, room_tokens: int) -> list[int]:
    """Return the tiles of each image: less than wished, the largest first, until all fit.

    One each is given in any case: the engine counts exactly, and refuses what does not fit.
    """
    given = [wish.tiles(several=len(wishes) > 1) for wish in wishes]
    while sum(wish.tokens(tiles) for wish, tiles in zip(wishes, given, strict=True)) > room_tokens and max(given) > 1:
        given[given.index(max(given))] -= 1
    return given
