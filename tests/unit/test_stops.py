"""Stop strings, however the text is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.engine.text.stops import StopStrings


def said(stops, pieces):
    """Return what each piece let out, the rest, and whether a stop string was met."""
    scanner = StopStrings(stops)
    out = []
    for piece in pieces:
        out.append(scanner.feed(piece))
        if scanner.met:
            break
    return out, scanner.rest(), scanner.met


def test_text_without_stop_strings_passes_at_once():
    """With nothing to look for nothing is held back."""
    assert said((), ["a", "b"]) == (["a", "b"], "", False)


def test_a_stop_string_across_pieces_is_never_shown():
    """The beginning of a stop string waits until the next piece decides."""
    assert said(["END"], ["one E", "N", "D two"]) == (["one ", "", ""], "", True)


def test_a_false_beginning_is_released():
    """What turned out to be no stop string comes out, in order."""
    assert said(["END"], ["E", "NO", "E"]) == (["", "ENO", ""], "E", False)


def test_a_repeated_beginning_does_not_hide_the_stop_string():
    """A text that begins a stop string twice is cut at the real one."""
    assert said(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", ""], "", True)


@pytest.mark.parametrize("pieces", [["xabcd"], ["xab", "cd"], ["x", "a", "b", "c", "d"]])
def test_of_two_stop_strings_the_first_complete_one_counts(pieces):
    """Which one ends the text does not depend on the cuts."""
    out, rest, met = said(["abcd", "bc"], pieces)
    assert ("".join(out), rest, met) == ("xa", "", True)


def test_an_empty_stop_string_is_ignored():
    """It would end every text before it begins."""
    assert said([""], ["text"]) == (["text"], "", False)


@given(
    text=st.text("ab\u00fc", max_size=30),
    stops=st.lists(st.text("ab\u00fc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_any_cut_gives_the_text_of_one_piece(text, stops, cuts):
    """Cutting never changes the outcome, and no stop string is ever in it."""
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    out, rest, met = said(stops, [text[a:b] for a, b in itertools.pairwise(borders)])
    whole, whole_rest, whole_met = said(stops, [text])
    shown = "".join(out) + ("" if met else rest)
    assert (shown, met) == ("".join(whole) + ("" if whole_met else whole_rest), whole_met)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert met == any(stop in text for stop in stops)
