"""Grammars are read in one way, whatever is quoted and whatever is a comment in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides import grammar as grammars
from edge_agent.engine.guides import guide as bounds
from edge_agent.engine.messages import Guide, GuideKind

DEEP = "(" * 990
PIECES = (
    *("root", "a", "b-c", "_d9", "::=", "|", "(", ")", "(" * 40, DEEP, ")" * 990, "*", "+", "?", "{2}", "{0,3}"),
    *("{3,}", "{,3}", "{x}", "{99999999999}", "{" + "9" * 5000 + "}", ".", '"', '"x"', '""', r'"\""', r'"\u4e16\x41"'),
    *(r'"\q"', "[", "]", "[a-z]", r'[^"\\]', "[]", "[z-a]", r"[\-^]", r"[\x00-\x1F]", "#", '# "', "# (", "\n", "\r"),
    *("\\", "\0", "\N{NO-BREAK SPACE}", "\N{PILE OF POO}", "/", "//", "%", "'", "<", "=", "(=", r"\U00110000"),
    *(r'"\ud800"', r'"\U0010ffff"'),
)


def escaped(number):
    return f"\\u{number:04x}"


@pytest.mark.parametrize(
    "text",
    [
        f'root ::= "{DEEP}',
        f'root ::= # "\n {DEEP}',
        f'root ::= "a" # it is a quote: "\n | {DEEP}"',
        f"root ::= [{DEEP}",
        f"root ::= {DEEP}",
        f"root ::= {DEEP}{DEEP.replace('(', ')')}",
        f'root ::= {"(" * 33}"a"{")" * 33}',
        f"root ::= {DEEP!r}",
    ],
    ids=lambda text: text[:24],
)
def test_what_is_quoted_here_is_quoted_there(text):
    """Bounds and reader disagreed on it, and who believed the wrong one went deeper than Python can."""
    with pytest.raises(EdgeAgentError, match=r"^response_format: ") as raised:
        bounds.check(Guide(GuideKind.GRAMMAR, text))
    assert raised.value.code is Code.BAD_REQUEST


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(lambda pieces: "root ::= " + " ".join(pieces)))
def test_whatever_is_written_is_refused_or_read_the_same_again(text):
    """What a library is given is a grammar of which the bounds say what they said of the first."""
    try:
        first = grammars.read(text)
    except ValueError:
        return
    again = grammars.rewritten(text, escaped)
    assert list(grammars.read(again).values()) == [named(body, list(first)) for body in first.values()]
    assert grammars.rewritten(again, escaped) == again
    assert grammars.endless(again) is grammars.endless(text)


def named(body, names):
    """Return a body with the names that rules have for a library."""

    def part(each):
        name = f"r{names.index(each.name)}" if each.name in names and each.name != "root" else each.name
        return grammars.RulePart(
            each.text, each.among, each.negated, name, named(each.group, names), each.least, each.most
        )

    return tuple(tuple(map(part, sequence)) for sequence in body)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('root ::= "a" # no "quote\n "b"', 'root ::= "a" "b"'),
        ('root ::= "# no comment" [#"]', 'root ::= "# no comment" [\\u0023\\u0022]'),
        ('root ::=\n  "a"\n  | b-c\nb-c ::= "d" |\n"e"', 'root ::= "a" | r1\nr1 ::= "d" | "e"'),
        ('root ::= ("a" | )* . [^\\n-]{ 2 , 3 }', 'root ::= ("a" | "")* [^\\u0000] [^\\u000a\\u002d]{2,3}'),
        (
            'root ::= "\\n\\t\\\\\\"/" [a\\-c] [+--]',
            'root ::= "\\u000a\\u0009\\u005c\\u0022/" [a\\u002dc] [\\u002b-\\u002d]',
        ),
    ],
)
def test_a_library_is_given_what_was_read(text, read):
    assert grammars.rewritten(text, escaped) == read
