"""Where the numbers of a model come from: drawn at random, scripted, or given.

A source is asked for one tensor at a time, by its Hugging Face name and shape, so that a model of full size
is never whole in memory. Sources know nothing of file formats.
"""

import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from edge_agent.synth import vision
from edge_agent.synth.quantize import Floats, Int4, halved, quantize, zeros
from edge_agent.synth.tokenizer import CONTROL_SLOTS, FIRST_CHARACTER_ID

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

_GAINS = {"qkv_proj.weight": 2.0, LM_HEAD: 4.0}
_UNIFORM_NIBBLE_RMS = float(np.sqrt(np.mean(np.square(np.arange(-8, 8)))))


class Weights(Protocol):
    """A source of tensors. Both methods raise ValueError when it has none of that name and shape."""

    def floats(self, name: str, shape: tuple[int, ...]) -> Floats:
        """Return a tensor that stays in float32: embedding table, norms, and all of the vision part."""

    def int4(self, name: str, shape: tuple[int, int], *, block_size: int) -> Int4:
        """Return a matrix [outputs, inputs] of a linear layer."""


class RandomWeights:
    """Random numbers, alive and finite at any size; the same seed gives the same model.

    A linear layer's output is about as large as its input (standard deviation of a weight = gain /
    sqrt(inputs)). Queries and keys have a gain of 2, so attention scores vary by about 4: a head picks few
    tokens out of many, and one token changed a thousand tokens ago still changes the answer (gains up to 1.5
    missed some of those; tried on eight seeds of the tiny shape). The output layer's gain of 4 sets
    candidates for the next token apart.

    Byte and control tokens get a logit of 0 and so never win: an answer is readable text and only its bound
    ends it.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def floats(self, name: str, shape: tuple[int, ...]) -> Floats:
        """Return ones for a norm, otherwise a standard normal draw; for the vision part see vision.random_tensor."""
        if name.startswith(vision.PREFIX):
            return vision.random_tensor(self._generator(name), name, shape)
        if name.endswith("norm.weight"):
            return np.ones(shape, np.float32)
        return self._generator(name).standard_normal(shape, np.float32)

    def int4(self, name: str, shape: tuple[int, int], *, block_size: int) -> Int4:
        """Draw nibbles and the signs of the scales, never a float: 2 GB in seconds.

        Nibbles are uniform from -8 to 7, half a step below 0 on average. Signs drawn per block cancel that,
        which would otherwise add up to one direction that swallows all others.
        """
        rows, columns = shape
        generator = self._generator(name)
        blocks = -(-columns // block_size)
        packed = np.frombuffer(generator.bytes(rows * blocks * block_size // 2), np.uint8)
        gain = next((gain for ending, gain in _GAINS.items() if name.endswith(ending)), 1.0)
        scale = gain / (columns**0.5 * _UNIFORM_NIBBLE_RMS)
        scales = halved(np.where(generator.integers(0, 2, (rows, blocks), np.uint8), scale, -scale))
        if name == LM_HEAD:
            scales[:FIRST_CHARACTER_ID] = 0
            scales[-CONTROL_SLOTS:] = 0
        return Int4(packed.reshape(rows, blocks, -1), scales, columns)

    def _generator(self, name: str) -> np.random.Generator:
        # One generator per tensor: a tensor does not depend on which others were asked for before.
        return np.random.default_rng([self._seed, zlib.crc32(name.encode())])


class ScriptedWeights:
    """A model that after each token of a chain says the next one, whatever came before.

    Attention and MLP add nothing to the residual stream, so the output layer sees the current token alone:
    row `chain[k + 1]` of it is the direction of the embedding of `chain[k]`. Such a model proves plumbing
    only.

    Raises ValueError when the chain holds a token twice: one token cannot have two successors.
    """

    def __init__(self, base: Weights, chain: Sequence[int]) -> None:
        if len(set(chain)) != len(chain):
            raise ValueError("a scripted answer can use each token only once: the current token alone decides")
        self._base = base
        self._chain = chain

    def floats(self, name: str, shape: tuple[int, ...]) -> Floats:
        """Return the base's tensor."""
        return self._base.floats(name, shape)

    def int4(self, name: str, shape: tuple[int, int], *, block_size: int) -> Int4:
        """Return 0 for what writes to the residual stream, the chain for the output, else the base's."""
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return zeros(*shape, block_size=block_size)
        if name == LM_HEAD:
            return quantize(self._chained(shape), block_size=block_size)
        return self._base.int4(name, shape, block_size=block_size)

    def _chained(self, shape: tuple[int, int]) -> Floats:
        embedding = self.floats(EMBEDDING, shape)
        head = np.zeros(shape, np.float32)
        for token, successor in pairwise(self._chain):
            head[successor] = embedding[token] / np.linalg.norm(embedding[token])
        return head


class GivenWeights:
    """Tensors that exist already, by their Hugging Face names; linear layers are rounded to int4."""

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        self._tensors = tensors

    def floats(self, name: str, shape: tuple[int, ...]) -> Floats:
        """Return the tensor of that name."""
        if name not in self._tensors:
            raise ValueError(f"the given weights lack {name}")
        tensor = self._tensors[name]
        if tensor.shape != shape:
            raise ValueError(f"the given {name} has shape {tensor.shape}; the model's is {shape}")
        return tensor

    def int4(self, name: str, shape: tuple[int, int], *, block_size: int) -> Int4:
        """Return the tensor of that name, rounded."""
        return quantize(self.floats(name, shape), block_size=block_size)
