"""The sizes of the vision part of Phi-3.5-vision, and random numbers for its weights.

A tile of 336 x 336 pixels is 24 x 24 patches; an encoder makes `width` numbers of each; 2 x 2 neighbours are joined to
one token, which a projector of two layers brings to the width of the decoder. Rows of tokens end with a learned
separator, and another one stands between an image's tiles and its overview.

Tensors, float32, matrices [inputs, outputs]; C is the encoder's width, H the decoder's:

    vision.patch [C, 3, 14, 14] · vision.pos [patches, C] · vision.proj0.{w [4C, H], b} · vision.proj2.{w [H, H], b}
    vision.sub_GN [1, 1, 4C] (ends a row) · vision.glb_GN [1, 4C] (between tiles and overview)

The stand-in for CLIP adds to each patch what an MLP makes of it:
    vision.ln.{w, b} · vision.fc1.{w [C, 4C], b} · vision.fc2.{w [4C, C], b}

CLIP has a class token, the first position, and layers of attention and MLP:
    vision.class [1, C] · vision.pre.{w, b} · for each layer vision.layers.N. and
    ln1.{w, b} · qkv.{w [C, 3C], b} · out.{w [C, C], b} · ln2.{w, b} · fc1.{w [C, 4C], b} · fc2.{w [4C, C], b}
"""

from dataclasses import dataclass

import numpy as np

from edge_agent.synth.quantize import Floats

PREFIX = "vision."
TILE_PIXELS = 336
PATCH_PIXELS = 14
PATCHES = TILE_PIXELS // PATCH_PIXELS
"""Of a side of a tile."""
TOKENS = PATCHES // 2
"""Of a side of a tile: 2 x 2 patches are one."""

_GAIN = 2.0
"""Of the projector: half of what passes through is lost in between, and images should count as much as words."""


@dataclass(frozen=True, slots=True)
class VisionShape:
    """How wide and deep the encoder is; without layers it is a stand-in for CLIP.

    Raises ValueError when `width` is not `heads` times a whole number.
    """

    width: int
    layers: int = 0
    heads: int = 1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError("the width of the vision part must be heads times a whole number")

    @property
    def token_size(self) -> int:
        """Width of a token before the projector."""
        return 4 * self.width

    @property
    def positions(self) -> int:
        """Patches of a tile, and one for CLIP's class token."""
        return PATCHES**2 + (self.layers > 0)


STAND_IN = VisionShape(width=16)

CLIP = VisionShape(width=1024, layers=23, heads=16)
"""CLIP ViT-L/14-336. It has 24 layers; Phi-3.5-vision takes the patches as the last but one leaves them."""


def random_tensor(generator: np.random.Generator, name: str, shape: tuple[int, ...]) -> Floats:
    """Return zeros for a bias, ones for a norm, else normal numbers that keep the size of what passes through."""
    kind = name.removeprefix(PREFIX).split(".")
    if kind[-1] == "b":
        return np.zeros(shape, np.float32)
    if kind[-1] == "w" and len(shape) == 1:
        return np.ones(shape, np.float32)
    drawn = generator.standard_normal(shape, np.float32)
    if kind[-1] == "w":
        return drawn * np.float32((_GAIN if kind[0].startswith("proj") else 1.0) / shape[0] ** 0.5)
    return drawn * np.float32(np.prod(shape[1:]) ** -0.5) if kind[0] == "patch" else drawn
