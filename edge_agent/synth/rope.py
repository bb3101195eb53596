"""The rotary position embedding: its frequencies, and tables of them."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_agent.synth.quantize import Floats
from edge_agent.synth.shape import Shape


@dataclass(frozen=True, slots=True)
class Rope:
    """Cosines and sines, each float32 [positions, head_size / 2]."""

    cos: Floats
    sin: Floats


def small(shape: Shape) -> Rope:
    """Return the tables for sequences within the original context: as many positions."""
    return _rope(shape, shape.original_context_tokens, shape.short_factors)


def large(shape: Shape) -> Rope:
    """Return the tables for all sequences the model can take."""
    return _rope(shape, shape.context_tokens, shape.long_factors)


def frequencies(shape: Shape, factors: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Return the radians by which one position turns each pair of a head's dimensions: [head_size / 2]."""
    exponents = np.arange(0, shape.head_size, 2) / shape.head_size
    turns: npt.NDArray[np.float64] = shape.rope_theta**-exponents / np.asarray(factors or 1.0)
    return turns


def _rope(shape: Shape, positions: int, factors: tuple[float, ...]) -> Rope:
    angles = np.outer(np.arange(positions), frequencies(shape, factors)).astype(np.float32)
    factor = np.float32(magnitude(shape))
    return Rope(np.cos(angles) * factor, np.sin(angles) * factor)


def magnitude(shape: Shape) -> float:
    """Return longrope's factor on cosines and sines, as Hugging Face's Phi-3 computes it."""
    stretch = shape.context_tokens / shape.original_context_tokens
    if not shape.longrope or stretch <= 1:
        return 1.0
    return math.sqrt(1 + math.log(stretch) / math.log(shape.original_context_tokens))
