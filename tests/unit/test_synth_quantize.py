"""Four-bit rounding."""

import numpy as np
import pytest

from edge_agent.synth.quantize import quantize, zeros
from edge_agent.synth.weights import RandomWeights


def test_values_that_int4_can_hold_survive_exactly():
    """A block of the sixteen steps times a power of two is rounded to itself."""
    matrix = np.arange(-8, 8, dtype=np.float32)[None, :] * np.float32([[0.5], [-2.0]])
    np.testing.assert_array_equal(quantize(matrix, block_size=16).floats(), matrix)


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_no_value_moves_by_more_than_a_step_of_its_block(block_size):
    """The error is at most half a step, and a whole one where the 16th positive step is missing."""
    matrix = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)
    steps = np.abs(quantize(matrix, block_size=block_size).scales).repeat(block_size, axis=1)
    assert np.all(np.abs(quantize(matrix, block_size=block_size).floats() - matrix) <= steps * 1.001)


def test_a_last_block_that_the_columns_do_not_fill_is_padded():
    """Columns need not be a multiple of the block size."""
    matrix = np.ones((3, 20), np.float32)
    rounded = quantize(matrix, block_size=16)
    assert rounded.packed.shape == (3, 2, 8)
    np.testing.assert_array_equal(rounded.floats(), matrix)


def test_the_first_of_two_neighbours_is_the_low_nibble():
    """The order of nibbles is the one MatMulNBits reads."""
    matrix = np.zeros((1, 16), np.float32)
    matrix[0, :2] = [-8, 3]
    assert quantize(matrix, block_size=16).packed[0, 0, 0] == 0 | (8 + 3) << 4


def test_scales_are_numbers_that_float16_holds():
    """So models that keep them in float16 and in float32 hold the same weights, rounded or random."""
    matrix = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)
    for rounded in (
        quantize(matrix, block_size=32),
        RandomWeights(0).int4("model.layers.0.mlp.down_proj.weight", (64, 96), block_size=32),
    ):
        np.testing.assert_array_equal(rounded.scales.astype(np.float16).astype(np.float32), rounded.scales)


@pytest.mark.parametrize("weight", [np.nan, np.inf, 1e6])
def test_a_weight_that_no_scale_can_hold_is_refused(weight):
    """Not turned into a model that says nothing."""
    with pytest.raises(ValueError, match="float16"):
        quantize(np.full((1, 32), weight, np.float32), block_size=32)


def test_zeros_are_zero():
    """Nothing rounds to anything but nothing."""
    np.testing.assert_array_equal(zeros(2, 40, block_size=32).floats(), np.zeros((2, 40)))
    np.testing.assert_array_equal(quantize(np.zeros((2, 40), np.float32), block_size=32).floats(), 0)
