"""What each image of a job is given: as asked, and no more than fits."""

import pytest
from fakes import request
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.images.phi_tiling import grid
from edge_agent.images.tile_budget import Wish, room_tokens, share

PHOTO = Wish(4000, 3000, "auto")
BOUNDLESS = 10**6


@pytest.mark.parametrize(
    ("wishes", "tiles"),
    [
        ([PHOTO], [16]),
        ([Wish(300, 200, "auto")], [1]),
        ([Wish(600, 600, "auto")], [4]),
        ([Wish(4000, 3000, "low")], [1]),
        ([Wish(300, 200, "high")], [16]),
        ([PHOTO, PHOTO], [4, 4]),
        ([PHOTO, Wish(4000, 3000, "high"), Wish(99, 99, "auto")], [4, 16, 1]),
    ],
)
def test_detail_says_how_finely_an_image_is_looked_at(wishes, tiles):
    assert share(wishes, room_tokens=BOUNDLESS) == tiles


def test_what_does_not_fit_is_looked_at_less_finely_the_largest_first():
    small = Wish(300, 300, "auto")
    assert share([PHOTO], room_tokens=1500) == [11]
    high = Wish(4000, 3000, "high")
    tiles = share([high, small], room_tokens=1200)
    assert tiles[1] == 1
    assert high.tokens(tiles[0]) + small.tokens(1) <= 1200
    assert share([PHOTO, PHOTO], room_tokens=0) == [1, 1]


wishes = st.lists(
    st.builds(Wish, st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(["auto", "low", "high"])), min_size=1
)


@given(wishes, st.integers(-100, 20_000))
def test_images_fit_or_have_one_tile_each(wishes, room):
    tiles = share(wishes, room_tokens=room)
    cost = sum(grid(wish.width, wish.height, tiles=each).tokens for wish, each in zip(wishes, tiles, strict=True))
    assert cost <= room or set(tiles) == {1}
    assert all(1 <= each <= 16 for each in tiles)


def test_room_is_what_text_and_answer_leave():
    text = request(prompt="x" * 3000, max_tokens=100)
    assert 0 <= 4096 - 100 - 1000 - room_tokens(text, context_tokens=4096) < 50
