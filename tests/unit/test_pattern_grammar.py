"""Regular expressions as parts of a grammar."""

import itertools
import re

import pytest

from edge_agent.engine.guides.pattern_grammar import matching


def expression(part):
    """Return a part of a grammar as a regular expression again: quoted texts and the spaces between parts undone."""
    places = re.compile(r'"((?:[^"\\]|\\.)*)"|(\[(?:\\.|[^\]\\])*\])|( )')
    return re.compile(places.sub(lambda found: found[2] or ("" if found[3] else re.escape(found[1])), part))


@pytest.mark.parametrize(
    "pattern",
    [
        "ab", "^ab$", "a|b", "^a|b$", "(a|b)*", "(?:ab){1,2}c?", "a{2}", "a{0,}b", ".", "[ab]-", "[^ab]", "[a-c]+",
        r"[\d-]a", r"\d\.", r"[.^-]", r"\w{2}", "((a)b)", r"a\$", r"[\]c]", r"\(a\)", "[+-]1",
    ],
)  # fmt: skip
def test_an_expression_matches_the_same_whole_texts(pattern):
    """All texts of up to four characters."""
    wanted, found = re.compile(f"(?:{pattern})"), expression(matching(pattern))
    for length in range(5):
        for characters in itertools.product("abc1-.^$()]+"[: 12 if length < 4 else 6], repeat=length):
            text = "".join(characters)
            assert bool(found.fullmatch(text)) is bool(wanted.fullmatch(text))


UNKNOWN = r"""(?=a)b (?<n>a) a+? a** (a a) |a a| () (|a) *a a^b a$b \bword (a)\1 " \\ \D [\W] [!-~] [A-z]
["] [\\] [z-a] [] \n a{,2}"""


@pytest.mark.parametrize("pattern", ["", "\x01", "[\t]", *UNKNOWN.split()])
def test_what_is_not_understood_is_left(pattern):
    """Rather than matched by half; so is what is written in another way in a JSON string."""
    assert matching(pattern) is None
