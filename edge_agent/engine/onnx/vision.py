"""The image encoder and the embedding of a Phi-3.5-vision build in onnxruntime.

The encoder's graph takes whole images and computes each tile by itself. It is fed strips of few tiles, which it takes
for images of one row: so no call is long, and what it computes of each tile is put together here. A strip of two takes
less time per tile than a whole image of 17, which no cache of a processor holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.batching.picture import Album, Features, Picture
from edge_agent.engine.onnx.decoder import TYPES, library
from edge_agent.images.phi_tiling import TILE_PIXELS, TILES_MOST, Grid

STRIP_TILES = 2
"""The least that the graph takes: an overview and a tile."""
_SIDE_TOKENS = 12
_WHOLE = TILES_MOST + 1


class OnnxEncoder:
    """The graph that sees. What was seen of late is kept, up to `kept_tokens`.

    Raises EdgeAgentError MODEL_ERROR, OUT_OF_MEMORY.
    """

    def __init__(self, session: Any, names: Mapping[str, str], *, kept_tokens: int) -> None:
        self._session = session
        self._names = names
        self._album = Album(kept_tokens)
        self._type = TYPES[{each.name: each.type for each in session.get_inputs()}[names["pixel_values"]]]
        self._strip_tiles, self._padded_tiles = STRIP_TILES, STRIP_TILES
        try:
            blank = self._run(np.zeros((STRIP_TILES, 3, TILE_PIXELS, TILE_PIXELS), np.float32))
        except EdgeAgentError as error:
            if error.code is not Code.MODEL_ERROR:
                raise
            # A graph that takes nothing but as many tiles as an image can have.
            self._strip_tiles, self._padded_tiles = _WHOLE, _WHOLE
            blank = self._run(np.zeros((STRIP_TILES, 3, TILE_PIXELS, TILE_PIXELS), np.float32))
        row = _SIDE_TOKENS + 1
        self._row_end, self._between = blank[row - 1], blank[_SIDE_TOKENS * row]

    def look(self, picture: Picture) -> None:
        """Compute a strip of a picture; with the last its features are there. One bounded call.

        Of one that was seen of late they are there at once. Raises EdgeAgentError, also as Pixels does.
        """
        if (known := self._album.find(picture)) is not None:
            picture.keep(known)
            return
        seen, all_tiles = len(picture.tiles), picture.tile_count
        # Two tiles at least must be left for the next call.
        end = all_tiles if all_tiles - seen < self._strip_tiles + STRIP_TILES else seen + self._strip_tiles
        strip = self._run(picture.open().tiles(seen, end))
        picture.tiles += self._tiles_of(strip)
        if end == all_tiles:
            features = self._arranged(picture.tiles, picture.grid)
            self._album.put(picture, features)
            picture.keep(features)

    def _run(self, tiles: npt.NDArray[np.float32]) -> Features:
        """Show the graph tiles [tiles, 3, 336, 336] as an image: the first as its overview, the others in one row."""
        pixels = np.zeros((1, max(len(tiles), self._padded_tiles), *tiles.shape[1:]), self._type)
        pixels[0, : len(tiles)] = tiles
        sizes = np.array([[TILE_PIXELS, TILE_PIXELS * (len(tiles) - 1)]], np.int64)
        names = self._names
        with library():
            inputs = {names["pixel_values"]: pixels, names["image_sizes"]: sizes}
            (features,) = self._session.run([names["image_features"]], inputs)
        expected = Grid(1, len(tiles) - 1).tokens
        if len(features) != expected:
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"the build makes {len(features)} tokens of an image that has {expected}; use another"
            )
        return features  # type: ignore[no-any-return]

    @staticmethod
    def _tiles_of(strip: Features) -> Sequence[Features]:
        """Take a strip's features apart, each tile's [12, 12, hidden]; the overview, which stands last, first."""
        overview_tokens = _SIDE_TOKENS * (_SIDE_TOKENS + 1)
        overview = strip[-overview_tokens:].reshape(_SIDE_TOKENS, _SIDE_TOKENS + 1, -1)[:, :-1]
        row = strip[: -overview_tokens - 1].reshape(_SIDE_TOKENS, -1, strip.shape[1])[:, :-1]
        return [overview, *np.split(row, row.shape[1] // _SIDE_TOKENS, axis=1)]

    def _arranged(self, tiles: Sequence[Features], grid: Grid) -> Features:
        """Put an image's features together as the model reads them: the grid, what stands between, the overview."""
        overview, *others = tiles
        rows = [np.concatenate(others[i : i + grid.columns], axis=1) for i in range(0, len(others), grid.columns)]
        return np.concatenate([*map(self._ended, rows), self._between[None], self._ended(overview)])

    def _ended(self, row: Features) -> Features:
        """End each row of tokens [12, tokens, hidden]; return them one after the other."""
        ends = np.broadcast_to(self._row_end, (len(row), 1, row.shape[2]))
        return np.concatenate([row, ends], axis=1).reshape(-1, row.shape[2])


class Embedding:
    """The graph that turns token ids into what the decoder reads, and puts features in the places below 0."""

    def __init__(self, session: Any, names: Mapping[str, str], *, hidden_size: int) -> None:
        self._session = session
        self._names = names
        kinds = {each.name: each.type for each in session.get_inputs()}
        self._nothing = np.zeros((0, hidden_size), TYPES[kinds[names["image_features"]]])

    def embed(self, tokens: npt.NDArray[np.int64], features: Sequence[Features] = ()) -> Features:
        """Return the embedding of ids [lanes, new], shape [lanes, new, hidden size]."""
        names = self._names
        both = np.concatenate([self._nothing, *features])
        with library():
            inputs = {names["input_ids"]: tokens, names["image_features"]: both}
            (embedded,) = self._session.run([names["inputs_embeds"]], inputs)
        return embedded  # type: ignore[no-any-return]
