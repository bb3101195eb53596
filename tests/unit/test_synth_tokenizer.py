"""The tokenizer of synthetic models."""

import json

import pytest

from edge_agent.synth import tokenizer
from edge_agent.synth.bpe import learn_merges


def test_the_full_vocabulary_has_the_published_control_ids():
    """With 32064 ids the control tokens get the numbers that Phi-3.5 publishes."""
    words = tokenizer.build(32_064)
    published = {"<|endoftext|>": 32_000, "<|assistant|>": 32_001, "<|placeholder1|>": 32_002}
    published |= {"<|system|>": 32_006, "<|end|>": 32_007, "<|placeholder5|>": 32_008, "<|user|>": 32_010}
    published |= {"<|placeholder7|>": 32_011, "<|placeholder39|>": 32_043, "<|image|>": 32_044}
    ids = {control.text: words.control_id(control) for control in tokenizer.CONTROLS}
    assert len(ids) == 45
    assert ids.items() >= published.items()


@pytest.mark.parametrize("size", [tokenizer.SMALLEST_VOCABULARY, 512, 4096])
def test_ids_are_dense(size):
    """Every id below the control tokens has exactly one piece."""
    words = tokenizer.build(size)
    assert sorted(words.vocabulary.values()) == list(range(size - 64))


def test_a_vocabulary_without_room_for_bytes_and_letters_is_refused():
    """The smallest size is named."""
    with pytest.raises(ValueError, match=str(tokenizer.SMALLEST_VOCABULARY)):
        tokenizer.build(256)


def test_merges_are_learnt_by_frequency():
    """The commonest pair comes first and pairs seen once are left alone."""
    assert learn_merges("ab ab ab xb", 9, start="_") == (("a", "b"), ("_", "ab"))


def spelled(words: tokenizer.Tokenizer, ids: list[int]) -> str:
    pieces = {number: piece for piece, number in words.vocabulary.items()}
    spelling = b"".join(bytes([number - 3]) if 3 <= number < 259 else pieces[number].encode() for number in ids)
    return spelling.decode().replace(tokenizer.SPACE, " ").removeprefix(" ")


@pytest.mark.parametrize("text", ["the pump is off.", "the pump, the fan, the door", "the ü 世", "x", ""])
def test_an_answer_is_cut_into_distinct_tokens(text):
    """Repeated words take other pieces, so no token occurs twice and the text is kept."""
    words = tokenizer.build(512)
    ids = words.distinct_ids(text)
    assert len(set(ids)) == len(ids)
    assert spelled(words, ids) == text


def test_a_character_outside_ascii_takes_one_token_per_byte():
    """So a test can have an answer whose characters arrive in parts."""
    words = tokenizer.build(512)
    assert [number - 3 for number in words.distinct_ids("世")[1:]] == list("世".encode())


@pytest.mark.parametrize("text", ["aaaaa", "ää", "Grüße"])
def test_an_answer_that_needs_a_token_twice_is_refused(text):
    """The limit is named."""
    with pytest.raises(ValueError, match="each token only once"):
        tokenizer.build(512).distinct_ids(text)


def test_the_files_agree_on_the_control_tokens(tmp_path):
    """tokenizer.json and tokenizer_config.json tell the same ids."""
    tokenizer.build(512).write(tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    decoder = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {str(token["id"]): token["content"] for token in added} == {
        number: token["content"] for number, token in decoder.items()
    }
