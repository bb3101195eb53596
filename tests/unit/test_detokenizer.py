"""Text from tokens that come one by one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.text.detokenizer import Vocabulary, Words

WORDS = {256: b" the", 257: b" pump", 258: b"s", 259: b" ", 260: "\u00fc".encode(), 261: b""}
PIECES = {byte: bytes([byte]) for byte in range(256)} | WORDS
"""A token for every byte, words that begin with a space, and one that is silent."""


def said(tokens, **options):
    words = Words(Vocabulary(PIECES), **options)
    return [*(words.feed(token) for token in tokens), words.rest()]


def whole(tokens):
    return b"".join(PIECES[token] for token in tokens).decode(errors="replace")


def test_a_character_of_several_tokens_comes_with_its_last():
    """Nothing broken is ever shown of it."""
    assert said([256, *"\u4e16".encode(), 258]) == ["the", "", "", "\u4e16", "s", ""]


def test_what_never_becomes_a_character_is_shown_in_the_end():
    """As decoding the whole shows it."""
    assert said([256, 0xE4, 0xB8]) == ["the", "", "", "\ufffd"]


def test_broken_bytes_are_shown_as_soon_as_nothing_can_mend_them():
    """And what follows them is whole."""
    assert said([0x80, 0xE4, 256]) == ["\ufffd", "", "\ufffd the", ""]


def test_the_first_space_is_dropped_and_no_other():
    """Also behind tokens without text."""
    assert "".join(said([261, 256, 257, 259, 257])) == "the pump  pump"
    assert "".join(said([259, 257])) == " pump"


def test_an_exact_text_keeps_it():
    """A regex that begins with a space is answered with one."""
    assert "".join(said([256, 257], exact=True)) == " the pump"


def test_a_stop_string_in_a_character_that_stays_incomplete_is_none():
    """What is held back at the end is looked through too."""
    assert said([256, 257, 0xE4], stop=("pump\ufffd",)) == ["the", " ", "", ""]


@given(st.lists(st.sampled_from(sorted(PIECES)), max_size=120))
def test_the_pieces_are_the_whole(tokens):
    """Whatever the tokens, what was shown bit by bit is what all of them are together."""
    assert "".join(said(tokens, exact=True)) == whole(tokens)
    assert "".join(said(tokens)) == whole(tokens).removeprefix(" ")


@pytest.mark.engine
def test_every_token_is_read_as_the_library_of_guides_reads_it(tiny_model):
    """The engines' own readers are compared in the contract suite."""
    import llguidance

    vocabulary = Vocabulary.read(tiny_model)
    tokens = llguidance.LLTokenizer(str(tiny_model / "tokenizer.json"))
    added = json.loads((tiny_model / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    special = {token["id"] for token in added if token["special"]}
    for token in range(tokens.vocab_size):
        piece = vocabulary.piece(token)
        if piece != b"\xff":  # by which llguidance marks control tokens
            assert piece == (b"" if token in special else tokens.decode_bytes([token]))
    assert vocabulary.piece(10**6) == b""


def test_a_vocabulary_of_bytes_is_read(tmp_path):
    """As GPT-2 spells it."""
    tokenizer = {
        "model": {"vocab": {"\u0120\u00c3\u00bc": 7, "a": 8, "\u010a": 9}},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [{"id": 10, "content": "<end>", "special": True}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    vocabulary = Vocabulary.read(tmp_path)
    assert [vocabulary.piece(token) for token in (7, 8, 9, 10)] == [" \u00fc".encode(), b"a", b"\n", b""]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"model": {"vocab": {}}, "decoder": null, "added_tokens": []}'])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    with pytest.raises(EdgeAgentError, match=r"tokenizer\.json") as raised:
        Vocabulary.read(tmp_path)
    assert raised.value.code is Code.MODEL_ERROR
