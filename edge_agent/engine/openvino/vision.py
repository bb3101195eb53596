"""The eyes of Phi-3.5-vision: what turns tiles of images, and token ids, into what the decoder reads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.batching.picture import Album, Features, Picture
from edge_agent.images.phi_tiling import TILE_PIXELS

_MODEL_TYPE = "phi3_v"
_SIDE_TOKENS = 12
"""Of a tile; a token is 2 x 2 patches."""


class Eyes:
    """The models that see, beside the pipeline's own copies of them: those encode all tiles in one call.

    That would be half a minute for one image, in which no cancel is heard. A model that never runs takes 20 MB. What
    was seen of late is kept, up to `kept_tokens`.

    Raises EdgeAgentError: MODEL_ERROR when settings cannot be read or a tile does not come out as it should,
    UNSUPPORTED for models other than Phi-3.5-vision.
    """

    def __init__(self, folder: Path, *, device: str, properties: Mapping[str, Any], kept_tokens: int) -> None:
        self._row_end, self._before_overview = _separators(folder)
        core = ov.Core()
        self._embedding, self._encoder, self._projector = (
            core.compile_model(folder / f"openvino_{part}_model.xml", device, dict(properties))
            for part in ("text_embeddings", "vision_embeddings", "vision_projection")
        )
        self._album = Album(kept_tokens)
        self._look_at_nothing()

    def embed(self, tokens: Sequence[int]) -> Features:
        """Return what the decoder reads for token ids."""
        embedded: Features = self._embedding(np.asarray([tokens], np.int64))[0][0]
        return embedded

    def look(self, picture: Picture) -> None:
        """Encode a tile of a picture, the overview first; with the last one its features are there.

        Of one that was seen of late they are there at once. Raises EdgeAgentError IMAGE_MISSING.
        """
        if (known := self._album.find(picture)) is not None:
            picture.keep(known)
            return
        number = len(picture.tiles)
        picture.tiles.append(self._encoder(picture.open().tiles(number, number + 1))[0])
        if number + 1 == picture.tile_count:
            features: Features = self._projector(self._joined(picture)[None])[0][0]
            self._album.put(picture, features)
            picture.keep(features)

    def _look_at_nothing(self) -> None:
        """Encode an empty image: the first is slower, for weights are repacked."""
        blank = np.zeros((1, 3, TILE_PIXELS, TILE_PIXELS), np.float32)
        patches = self._encoder(blank)[0]
        expected = (1, 4 * _SIDE_TOKENS**2, self._row_end.size // 4)
        if patches.shape != expected:
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"the build makes {patches.shape} of a tile and not {expected}; use another"
            )
        self._projector(self._lines([patches], 1, 1)[None])

    def _joined(self, picture: Picture) -> Features:
        """Put the tiles together as the model reads them: the grid, what stands between, the overview."""
        overview, *others = picture.tiles
        rows, columns = picture.grid.rows, picture.grid.columns
        return np.concatenate(
            [self._lines(others, rows, columns), self._before_overview[None], self._lines([overview], 1, 1)]
        )

    def _lines(self, tiles: Sequence[Features], rows: int, columns: int) -> Features:
        """Join 2 x 2 patches to a token, line by line over the tiles; each line ends with a separator."""
        patches = np.concatenate(tiles).reshape(rows, columns, _SIDE_TOKENS, 2, _SIDE_TOKENS, 2, -1)
        tokens = patches.transpose(0, 2, 1, 4, 3, 5, 6).reshape(rows * _SIDE_TOKENS, columns * _SIDE_TOKENS, -1)
        ends = np.broadcast_to(self._row_end, (len(tokens), 1, self._row_end.size))
        return np.concatenate([tokens, ends], axis=1).reshape(-1, self._row_end.size)


def _separators(folder: Path) -> tuple[Features, Features]:
    """Return what ends a line of tokens, and what stands before the overview. Raises EdgeAgentError as `Eyes` does."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
        if kind == _MODEL_TYPE:
            row_end, before_overview = (np.asarray(config[name], np.float32).ravel() for name in ("sub_GN", "glb_GN"))
            return row_end, before_overview
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeAgentError(
            Code.MODEL_ERROR, f"config.json in {folder} cannot be read ({error!r}); fetch the model again"
        ) from error
    raise EdgeAgentError(
        Code.UNSUPPORTED, f"the build in {folder} sees images in another way than {_MODEL_TYPE}; choose one that is"
    )
