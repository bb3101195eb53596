"""Grammars, read in one way for the bounds and for every library (pure); and whether one can come to an end.

The notation is llama.cpp's, except that a line's end means nothing: a rule ends where the next begins. What is quoted
and what is a comment is decided here alone: libraries are given the grammar as it was understood, without comments,
with names and escapes of ours. Where nothing may come next, a library chooses at random, or dies.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

DEPTH_MAX = 32
"""Of groups in groups, and of schemas in schemas: compiling grows with its cube."""
_PART = re.compile(
    r"""(?P<skipped>\s+|\#[^\n]*)|(?P<text>"(?:\\.|[^"\\\n])*")|(?P<set>\[\^?(?:\\.|[^\]\\\n])+\])|(?P<defined>::=)"""
    r"""|(?P<name>[\w-]+)|\{\s*(?P<least>[0-9]+)\s*(?P<range>,\s*(?P<most>[0-9]*)\s*)?\}|(?P<sign>[.()|*+?])"""
)
_ESCAPED = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([nrt])|([!-/:-@\[-`{-~]))|([^\\])|(\\)", re.DOTALL
)
_CONTROLS = {"n": 10, "r": 13, "t": 9}
_TIMES: Mapping[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_ENDLESS = "a rule of the grammar never comes to an end, or is missing"
_ROOT = "root"
_NO_CHARACTER = range(0xD800, 0xE000)

Range = tuple[int, int]
Body = tuple[tuple["RulePart", ...], ...]
"""Alternatives, each a sequence."""


@dataclass(frozen=True, slots=True)
class RulePart:
    """One thing in a rule, and how often it stands there: any number of times from `least` where `most` is None.

    It is a `text`, or one character of those `among` these (`negated`: not among), or what a rule of a `name` says, or
    a `group`.
    """

    text: str | None = None
    among: tuple[Range, ...] = ()
    negated: bool = False
    name: str | None = None
    group: Body = ()
    least: int = 1
    most: int | None = 1

    def times(self, least: int, most: int | None) -> "RulePart":
        """Return the same, so often."""
        return RulePart(self.text, self.among, self.negated, self.name, self.group, least, most)


Rules = Mapping[str, Body]


def read(text: str) -> Rules:
    """Return the rules of a grammar. Raises ValueError with a sentence when it is none."""
    return _GrammarReader(text).rules()


def endless(text: str) -> bool:
    """Return whether some rule of a grammar leads to no finished text, such as `a ::= a "x"`, or is missing.

    Raises ValueError as `read` does.
    """
    rules = read(text)
    ending: set[str] = set()
    found = -1
    while len(ending) > found:
        found = len(ending)
        ending |= {name for name, body in rules.items() if name not in ending and _ends(body, ending)}
    return _ROOT not in ending or len(ending) < len(rules)


def rewritten(text: str, escaped: Callable[[int], str]) -> str:
    """Return a grammar as a library shall read it; `escaped` writes the number of a character that may mean something.

    Raises ValueError as `read` does.
    """
    rules = read(text)
    names = {name: name if name == _ROOT else f"r{number}" for number, name in enumerate(rules)}
    return "\n".join(f"{names[name]} ::= {_written(body, names, escaped)}" for name, body in rules.items())


def _written(body: Body, names: Mapping[str, str], escaped: Callable[[int], str]) -> str:
    def one(part: RulePart) -> str:
        if part.text is not None:
            plain = "".join(escaped(ord(each)) if each < " " or each in '"\\\x7f' else each for each in part.text)
            found = f'"{plain}"'
        elif part.name is not None:
            found = names.get(part.name, part.name)
        elif part.among:
            ends = ("-".join(_in_set(end, escaped) for end in sorted(set(each))) for each in part.among)
            found = f"[{'^' if part.negated else ''}{''.join(ends)}]"
        else:
            found = f"({_written(part.group, names, escaped)})"
        return found + _repeated(part.least, part.most)

    return " | ".join(" ".join(map(one, sequence)) for sequence in body)


def _in_set(number: int, escaped: Callable[[int], str]) -> str:
    return chr(number) if chr(number).isalnum() or number >= 0xA0 else escaped(number)


def _repeated(least: int, most: int | None) -> str:
    sign = next((sign for sign, times in _TIMES.items() if times == (least, most)), None)
    if (least, most) == (1, 1):
        return ""
    return sign or f"{{{least},{'' if most is None else most}}}"


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)


class _GrammarReader:
    """Reads one grammar from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self._found = [found for found in self._parts(text) if found.lastgroup != "skipped"]
        self._place = 0

    @staticmethod
    def _parts(text: str) -> Iterator[re.Match[str]]:
        position = 0
        while position < len(text):
            found = _PART.match(text, position)
            if found is None:
                _refuse(_misread(text[position]))
            yield found
            position = found.end()

    def rules(self) -> Rules:
        rules: dict[str, Body] = {}
        while self._place < len(self._found):
            if not self._begins_rule():
                _refuse("the grammar is no list of rules as name ::= ...")
            name = self._next()["name"]
            self._next()
            if name in rules:
                _refuse("a rule of the grammar is there twice")
            rules[name] = self._body(depth=1)
            if self._sign() == ")":
                _refuse("a parenthesis of the grammar is closed that was not opened")
        return rules

    def _body(self, depth: int) -> Body:
        """Read alternatives up to what ends them."""
        if depth > DEPTH_MAX:
            _refuse(f"groups are nested deeper than {DEPTH_MAX}; flatten them")
        alternatives: list[list[RulePart]] = [[]]
        while self._place < len(self._found) and not self._begins_rule() and self._sign() != ")":
            if self._sign() == "|":
                self._next()
                alternatives.append([])
            else:
                part = self._part(depth)
                alternatives[-1].append(part.times(*self._times()))
        return tuple(tuple(sequence) or (RulePart(text=""),) for sequence in alternatives)

    def _part(self, depth: int) -> RulePart:
        found = self._next()
        match found.lastgroup:
            case "text":
                return RulePart(text="".join(map(chr, _characters(found["text"][1:-1]))))
            case "set":
                return _set(found["set"][1:-1])
            case "name":
                return RulePart(name=found["name"])
        if found["sign"] == ".":
            return RulePart(among=((0, 0),), negated=True)
        if found["sign"] != "(":
            _refuse("a sign of the grammar stands where it means nothing")
        group = self._body(depth + 1)
        if self._sign() != ")":
            _refuse(_ENDLESS)
        self._next()
        return RulePart(group=group)

    def _times(self) -> tuple[int, int | None]:
        """Read how often the part before stands there: once, if nothing is said."""
        if (sign := self._sign()) in _TIMES:
            self._next()
            return _TIMES[sign]
        if self._place == len(self._found) or self._found[self._place]["least"] is None:
            return 1, 1
        found = self._next()
        # More digits than any bound allows are as good as so many, and Python reads no number of thousands.
        least, most = int(found["least"][:9]), int((found["most"] or "0")[:9])
        if not found["range"]:
            return least, least
        if found["most"] and most < least:
            _refuse("a repetition of the grammar ends before it begins")
        return least, most if found["most"] else None

    def _begins_rule(self) -> bool:
        following = self._found[self._place : self._place + 2]
        return [found.lastgroup for found in following] == ["name", "defined"]

    def _sign(self) -> str:
        """Return the sign that comes next; empty when something else does."""
        return (self._found[self._place]["sign"] or "") if self._place < len(self._found) else ""

    def _next(self) -> re.Match[str]:
        self._place += 1
        return self._found[self._place - 1]


def _misread(character: str) -> str:
    """Return what is said where no part begins: of what the sender wrote nothing is repeated."""
    said = {'"': _ENDLESS, "[": _ENDLESS, "{": "Expected integer"}
    return said.get(character, "a sign of the grammar means nothing in it")


def _characters(text: str) -> list[int]:
    """Return the numbers of the characters in a quoted text."""
    return [number for number, _ in _read_characters(text)]


def _read_characters(text: str) -> Iterator[tuple[int, bool]]:
    """Yield the number of each character, and whether it stands for itself whatever it is."""
    for found in _ESCAPED.finditer(text):
        *hexadecimal, control, sign, plain, alone = found.groups()
        digits = next(filter(None, hexadecimal), None)
        if alone:
            _refuse("the grammar escapes what has no escape")
        number = int(digits, 16) if digits else _CONTROLS[control] if control else ord(sign or plain)
        if number >= 0x110000 or number in _NO_CHARACTER:
            _refuse("the grammar has the number of no character")
        yield number, plain is None


def _set(text: str) -> RulePart:
    """Return a set of characters: single ones, and ranges of them."""
    negated = text.startswith("^")
    left = list(_read_characters(text.removeprefix("^")))
    ranges: list[Range] = []
    while left:
        low, _ = left.pop(0)
        if len(left) > 1 and left[0] == (ord("-"), False):
            high, _ = left[1]
            del left[:2]
            if high < low:
                _refuse("invalid character class range, it ends before it begins")
            ranges.append((low, high))
        else:
            ranges.append((low, low))
    return RulePart(among=tuple(ranges), negated=negated)


def _ends(body: Body, ending: Collection[str]) -> bool:
    """Return whether one of the alternatives ends, when the rules `ending` do."""

    def ends(part: RulePart) -> bool:
        if part.least == 0:
            return True
        if part.name is not None:
            return part.name in ending
        return not part.group or _ends(part.group, ending)

    return any(all(map(ends, sequence)) for sequence in body)
