"""Text from tokens that come one by one."""

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.engine.detokenizer import Detokenizer

WORDS = {256: b" the", 257: b" pump", 258: b"s", 259: b" ", 260: "\u00fc".encode(), 261: b""}
"""Beside a token for every byte: words that begin with a space, and one that is silent."""


def decode(tokens):
    """Decode like the published tokenizers: bytes that are no character become U+FFFD, one space before all is lost."""
    text = b"".join(WORDS.get(token) or (bytes([token]) if token < 256 else b"") for token in tokens)
    return text.decode(errors="replace").removeprefix(" ")


def said(tokens):
    words = Detokenizer(decode)
    return [*(words.feed(token) for token in tokens), words.rest()]


def test_a_character_of_several_tokens_comes_with_its_last():
    """Nothing broken is ever shown of it."""
    assert said([256, *"\u4e16".encode(), 258]) == ["the", "", "", "\u4e16", "s", ""]


def test_what_never_becomes_a_character_is_shown_in_the_end():
    """As decoding the whole shows it."""
    assert "".join(said([256, 0xE4, 0xB8])) == decode([256, 0xE4, 0xB8])


def test_broken_bytes_are_shown_as_soon_as_nothing_can_mend_them():
    """Three may still begin a character; a text of nothing else is not held back to its end."""
    assert said([0x80] * 6) == ["", "", "", "\ufffd", "\ufffd", "\ufffd", "\ufffd" * 3]


def test_many_silent_tokens_change_nothing():
    """The space after them is not taken for the first."""
    assert "".join(said([256, *[261] * 50, 257])) == "the pump"


def test_only_the_very_first_space_is_dropped():
    """Those between words stay, also where tokens far back are forgotten."""
    assert "".join(said([256, 257] * 100)) == (" the pump" * 100)[1:]


def test_each_token_costs_the_same():
    """Text that grows is not decoded from its beginning again and again."""
    lengths = []

    def counted(tokens):
        lengths.append(len(tokens))
        return decode(tokens)

    words = Detokenizer(counted)
    for token in [256, 0x80, 257] * 200:
        words.feed(token)
    assert max(lengths) <= 40


@given(st.lists(st.one_of(st.integers(0, 255), st.sampled_from(sorted(WORDS))), max_size=120))
def test_the_pieces_are_the_whole(tokens):
    """Whatever the tokens, what was shown bit by bit is what all of them decode to."""
    assert "".join(said(tokens)) == decode(tokens)
