"""The eyes of Phi-3.5-vision: what turns tiles of images, and token ids, into what the decoder reads."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edge_agent.engine import pixels
from edge_agent.engine.messages import Image
from edge_agent.engine.pixels import Bytes, Floats, Normal
from edge_agent.errors import Code, EdgeAgentError
from edge_agent.jobs.tiles import Grid, grid

_MODEL_TYPE = "phi3_v"
_PATCHES = 24
"""Of a side of a tile; 2 x 2 of them are joined to one token."""
_FEATURES = 1024
"""Of a patch: the width of CLIP ViT-L."""

Key = tuple[str, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """What of an image decides what the model sees: `key` is equal where that is."""

    image: Image
    grid: Grid

    @classmethod
    def of(cls, image: Image) -> "Seen":
        """Return an image with the tiles that its budget allows."""
        return cls(image, grid(image.width, image.height, tiles=image.tiles))

    @property
    def key(self) -> Key:
        """The bytes, what they mean, and how they are cut."""
        return self.image.sha256, self.image.width, self.image.height, self.grid.rows, self.grid.columns


@dataclass(slots=True)
class Encoding:
    """An image being encoded, tile by tile; the overview is the last."""

    seen: Seen
    whole: Bytes
    tiles: list[Floats] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Tiles that are still to be encoded."""
        return self.seen.grid.rows * self.seen.grid.columns + 1 - len(self.tiles)


class Eyes:
    """The models that see, beside the pipeline's own copies of them: those encode all tiles in one call.

    That would be half a minute for one image, in which no cancel is heard. A model that never runs takes 20 MB.

    Raises EdgeAgentError: MODEL_ERROR when settings cannot be read, UNSUPPORTED for models other than Phi-3.5-vision.
    """

    def __init__(self, folder: Path, *, device: str, properties: Mapping[str, Any], kept_tokens: int) -> None:
        config, preprocessor = _read(folder)
        core = ov.Core()
        self._embedding, self._encoder, self._projector = (
            core.compile_model(folder / f"openvino_{part}_model.xml", device, dict(properties))
            for part in ("text_embeddings", "vision_embeddings", "vision_projection")
        )
        self._row_end = np.asarray(config["sub_GN"], np.float32).reshape(-1)
        self._before_overview = np.asarray(config["glb_GN"], np.float32).reshape(-1)
        self._normal = Normal(preprocessor["image_mean"], preprocessor["image_std"])
        self._features: OrderedDict[Key, Floats] = OrderedDict()
        self._kept_tokens = kept_tokens

    def embed(self, tokens: Sequence[int]) -> Floats:
        """Return what the decoder reads for token ids: [tokens, hidden]."""
        embedded: Floats = self._embedding(np.asarray([tokens], np.int64))[0][0]
        return embedded

    def features(self, seen: Seen) -> Floats | None:
        """Return what the decoder reads for an image [tokens, hidden] that was encoded of late; None otherwise."""
        if seen.key in self._features:
            self._features.move_to_end(seen.key)
        return self._features.get(seen.key)

    def begin(self, seen: Seen) -> Encoding:
        """Read an image. Raises EdgeAgentError INTERNAL when its file is not what it should be."""
        return Encoding(seen, pixels.padded(pixels.read(seen.image), seen.grid))

    def encode_tile(self, encoding: Encoding) -> Floats | None:
        """Encode the next tile; with the last one return what the decoder reads for the image, and keep it."""
        image_grid, done = encoding.seen.grid, len(encoding.tiles)
        if encoding.left > 1:
            shown = pixels.tile(encoding.whole, *divmod(done, image_grid.columns))
            encoding.tiles.append(self._encode(self._normal.of(shown)))
            return None
        overview = self._encode(self._normal.of(pixels.overview(encoding.whole)))
        rows = self._rows(encoding.tiles, image_grid)
        joined = np.concatenate([rows, self._before_overview[None], self._rows([overview], Grid(1, 1))])
        features: Floats = self._projector(joined[None])[0][0]
        self._keep(encoding.seen.key, features)
        return features

    def _encode(self, shown: Floats) -> Floats:
        patches: Floats = self._encoder(shown)[0]
        return patches

    def _rows(self, tiles: Sequence[Floats], shape: Grid) -> Floats:
        """Join 2 x 2 patches to a token, line by line over the tiles; each line ends with a separator."""
        half = _PATCHES // 2
        patches = np.concatenate(tiles).reshape(shape.rows, shape.columns, half, 2, half, 2, _FEATURES)
        tokens = patches.transpose(0, 2, 1, 4, 3, 5, 6).reshape(shape.rows * half, shape.columns * half, -1)
        ends = np.broadcast_to(self._row_end, (len(tokens), 1, self._row_end.size))
        return np.concatenate([tokens, ends], axis=1).reshape(-1, self._row_end.size)

    def _keep(self, key: Key, features: Floats) -> None:
        self._features[key] = features
        while sum(map(len, self._features.values())) > self._kept_tokens:
            self._features.popitem(last=False)


def _read(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the settings that tell how images are read. Raises EdgeAgentError as `Eyes` does."""
    try:
        config, preprocessor = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("config.json", "preprocessor_config.json")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeAgentError(
            Code.MODEL_ERROR, f"the settings of images in {folder} cannot be read ({error!r}); fetch the model again"
        ) from error
    if config.get("model_type") != _MODEL_TYPE:
        raise EdgeAgentError(
            Code.UNSUPPORTED, f"{folder} holds a model that sees in a way unknown here; choose Phi-3.5-vision"
        )
    return config, preprocessor
