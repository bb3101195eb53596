"""Whose prompt gets the next piece."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.engine.batching.turns import PASSED_MOST, Turns


@dataclass(eq=False)
class Prompt:
    unfilled_tokens: int
    name: str = ""
    has_images: bool = False


def ends(*prompts, piece=100, coming=()):
    """Give out pieces until all are computed, `coming` joining one per piece; return the names in order of ends."""
    turns, waiting, coming, ended = Turns(), list(prompts), list(coming), []
    while waiting:
        first = turns.order(waiting)[0]
        first.unfilled_tokens -= piece
        if first.unfilled_tokens <= 0:
            waiting.remove(first)
            ended.append(first.name)
        if coming:
            waiting.append(coming.pop(0))
    return ended


def test_nobody_is_nobody():
    assert Turns().order([]) == []


def test_the_shortest_rest_goes_first():
    """Whoever came first; among equals the first that came."""
    assert ends(Prompt(3000, "long"), Prompt(200, "short"), Prompt(200, "equal")) == ["short", "equal", "long"]


def test_what_is_left_counts_and_not_what_there_was():
    begun = Prompt(150)
    assert Turns().order([Prompt(1000), begun, Prompt(200)])[0] is begun


def test_a_stream_of_short_prompts_keeps_no_long_one_out():
    """The oldest gets every fourth piece."""
    ended = ends(Prompt(1000, "long"), Prompt(100), coming=[Prompt(100) for _ in range(200)])
    assert ended.index("long") < 10 * (PASSED_MOST + 1)


def test_of_prompts_with_images_one_is_computed_at_a_time():
    """In the order in which they came; texts go on beside them."""
    small, text = Prompt(300, has_images=True), Prompt(500)
    looking = Prompt(2500, has_images=True)
    assert Turns().order([looking, small, text]) == [text, looking]
    assert ends(looking, Prompt(300, "small", has_images=True), Prompt(500, "text")) == ["text", "", "small"]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.lists(st.integers(1, 3000), max_size=40))
def test_no_prompt_takes_longer_than_the_bound(lengths, coming):
    """In pieces: as many times what it had taken in the order of arrival as the oldest waits for turns."""
    turns, piece = Turns(), 100
    waiting = [Prompt(tokens) for tokens in lengths]
    pieces = {id(each): -(-each.unfilled_tokens // piece) for each in waiting}
    newcomers, due = [Prompt(tokens) for tokens in coming], {}
    total = 0
    for each in waiting:
        total += pieces[id(each)]
        due[id(each)] = total * (PASSED_MOST + 1)
    for step in range(1, 10_000):
        if not waiting:
            break
        first = turns.order(waiting)[0]
        first.unfilled_tokens -= piece
        if first.unfilled_tokens <= 0:
            waiting.remove(first)
            assert step <= due.get(id(first), step)
        if newcomers:
            waiting.append(newcomers.pop())
