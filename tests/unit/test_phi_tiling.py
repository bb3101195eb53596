"""What an image costs in tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.images.phi_tiling import TILE_PIXELS, TILES_MOST, Grid, grid, tiles_needed

SIDE = st.integers(1, 20_000)
TILES = st.integers(1, TILES_MOST)


@pytest.mark.parametrize(("cut", "tokens"), [(Grid(1, 1), 313), (Grid(2, 2), 757), (Grid(4, 4), 2509)])
def test_tokens_are_those_of_the_published_model(cut, tokens):
    """Figures of the model's documents."""
    assert cut.tokens == tokens


@pytest.mark.parametrize(
    ("width", "height", "tiles", "cut"),
    [
        (100, 100, 1, Grid(1, 1)),
        (640, 480, 4, Grid(2, 2)),
        (1920, 1080, 16, Grid(3, 5)),
        (1080, 1920, 16, Grid(5, 3)),
        (3000, 300, 16, Grid(1, 10)),
        (10_000, 1, 16, Grid(1, 16)),
    ],
)
def test_the_longer_side_gets_as_many_tiles_as_the_budget_allows(width, height, tiles, cut):
    assert grid(width, height, tiles=tiles) == cut


@given(SIDE, SIDE, TILES)
def test_no_image_costs_more_than_its_budget(width, height, tiles):
    cut = grid(width, height, tiles=tiles)
    assert 1 <= cut.rows * cut.columns <= tiles
    assert grid(height, width, tiles=tiles) == Grid(cut.columns, cut.rows)


@given(SIDE, SIDE, TILES)
def test_no_more_tiles_are_taken_than_show_every_pixel(width, height, most):
    tiles = tiles_needed(width, height, most=most)
    assert 1 <= tiles <= most
    if tiles < most:
        cut = grid(width, height, tiles=tiles)
        assert max(cut.rows, cut.columns) * TILE_PIXELS >= max(width, height)
