"""What a guide may ask for (pure), so that compiling it takes a moment and nothing in it is quietly left out.

The libraries compile a guide inside the engine and cannot be interrupted; each of them leaves some keywords of JSON
Schema unheeded. So both are settled before, the same for every backend. The bounds were measured with xgrammar on a
vocabulary of 32,064: a repetition of a wide character class costs 4 ms per count, beyond 128 of them minutes.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides.grammar import DEPTH_MAX, Body, endless, read
from edge_agent.engine.guides.schema import Schema, SchemaError, normal
from edge_agent.engine.messages import Guide, GuideKind
from edge_agent.jobs import json_schema
from edge_agent.jobs.json_schema import COUNTS, circular, leads_to_schema, references

GUIDE_BYTES_MAX = 16_384
NODES_MAX = 2048
"""Schemas, property names and values of a JSON Schema together."""
NUMBER_MOST = 2**63
"""Of a schema's numbers: llguidance holds them in 64 bits, and dies of an integer at or below their least."""
COUNT_MAX = 128
"""The greatest number in a repetition such as `{1,128}` or `maxLength`."""
ITEMS_MAX = 1024
"""The greatest number of `maxItems` and `maxProperties`, which compile to less."""
EXPANDED_MAX = 512
"""Repeated characters, classes and groups, written out: `([a-z]{1,8}-){1,8}` is 72."""
RULES_MAX = 256
"""Of a grammar: translating one from EBNF looks through all of them once for each."""
OPTIONAL_MAX = 24
"""Question marks in one expression: each may begin at any later one."""

STEP_S = 0.5
"""Processor time that compiling a guide, or choosing one token by it, may take: so long it may stop an engine's lanes.
What takes longer is refused in its trial, see child.py, or ends the text that it slows down."""
SLOW_S = 0.7 * STEP_S
"""A text is ended when one token took so long: the next takes a little longer than the one before."""
EASY_S = 0.02
"""A token may always take so long: many times what most guides take, on a slow board too."""
ALLOWED_S = 2.0
"""What all tokens of a text may take beyond it: a text of thousands, each a little under SLOW_S, stops lanes too."""
TOO_SLOW = "response_format: takes too long to follow; simplify it"
"""What is said then: where a text leads shows only when it is written."""

_COUNTS: Mapping[str, int] = {
    **dict.fromkeys(COUNTS, ITEMS_MAX),
    **dict.fromkeys(("minLength", "maxLength"), COUNT_MAX),
}
_REPETITION = re.compile(r"\{(\d*)(,?)(\d*)\}")


def check(guide: Guide) -> None:
    """Raise EdgeAgentError: BAD_REQUEST for what is malformed or over the bounds, UNSUPPORTED for what is unheeded."""
    if len(guide.text.encode()) > GUIDE_BYTES_MAX:
        _refuse(f"more than {GUIDE_BYTES_MAX} bytes; shorten it")
    if "\0" in guide.text:
        _refuse("a NUL character; remove it")
    match guide.kind:
        case GuideKind.JSON_SCHEMA:
            _check_schema(guide.text)
        case GuideKind.REGEX:
            _check_expression(guide.text)
        case GuideKind.GRAMMAR:
            _check_grammar(guide.text)


def _refuse(what: str, code: Code = Code.BAD_REQUEST) -> NoReturn:
    raise EdgeAgentError(code, f"response_format: {what}")


def _check_grammar(text: str) -> None:
    if "::=" not in text:
        _refuse(
            "grammars are written in EBNF (root ::= ...), as for llama.cpp; rewrite it, or send a regex",
            Code.UNSUPPORTED,
        )
    try:
        rules, ends = read(text), not endless(text)
    except ValueError as error:
        raise EdgeAgentError(Code.BAD_REQUEST, f"response_format: {error}; mend it") from error
    if len(rules) > RULES_MAX:
        _refuse(f"more than {RULES_MAX} rules; simplify it")
    _settle(_measured(rules.values()))
    if not ends:
        _refuse("a rule of the grammar never comes to an end, or is missing; mend it")


def _measured(bodies: Iterable[Body]) -> "_Group":
    """Return rules of a grammar as one group."""
    measured = _Group()
    for part in (part for body in bodies for sequence in body for part in sequence):
        if part.group:
            measured.add(_measured([part.group]))
        else:
            measured.atom(1, 0)
        if (part.least, part.most) == (0, 1):
            measured.optional += 1
        elif (part.most is not None and part.most > 1) or part.least > 1:
            measured.repeat(max(part.least, part.most or 0))
    return measured


def _check_schema(text: str) -> None:
    schema, budget = asked_schema(text), _Budget()
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        each, depth = waiting.pop()
        budget.node(depth)
        if isinstance(each, dict):
            waiting += [(inner, depth + 1) for inner in _inner_schemas(each, budget)]
    budget.settle()


@lru_cache(64)
def asked_schema(text: str) -> Schema:
    """Return a schema in one spelling, see schema.py. Raises EdgeAgentError BAD_REQUEST or UNSUPPORTED."""
    try:
        asked = json.loads(text)
        json_schema.check(asked, most=NUMBER_MOST)
    except (json.JSONDecodeError, RecursionError) as error:
        raise EdgeAgentError(Code.BAD_REQUEST, "response_format: the schema is no JSON") from error
    except ValueError as error:
        raise EdgeAgentError(Code.BAD_REQUEST, f"response_format: {error}; mend it") from error
    if asked is False:
        _refuse("the schema allows no value; mend it")
    found = {*references(asked)}
    if not all(leads_to_schema(asked, each) for each in found):
        _refuse("a $ref must lead to a schema in this one, as in #/$defs/name; mend it")
    if circular(asked, found):
        _refuse("a $ref leads to nothing but itself; mend it")
    try:
        return normal(asked)
    except SchemaError as error:
        raise EdgeAgentError(Code.UNSUPPORTED, f"response_format: {error}") from error
    except RecursionError as error:
        raise EdgeAgentError(Code.BAD_REQUEST, "response_format: the schema refers too deep; flatten it") from error


def _inner_schemas(schema: Mapping[str, Any], budget: "_Budget") -> Iterator[Any]:
    """Check a schema's own keywords against the bounds and return the schemas in it."""
    for keyword, value in schema.items():
        budget.node(1)
        if keyword in {"items", "additionalProperties"}:
            yield value
        elif keyword in {"anyOf", "prefixItems"}:
            yield from value
        elif keyword in {"properties", "patternProperties", "$defs"}:
            if keyword == "patternProperties":
                budget.expanded |= {(keyword, name, _check_expression(name)) for name in value}
            yield from value.values()
        elif keyword in COUNTS and value > _COUNTS[keyword]:
            _refuse(f"{keyword} must be a whole number from 0 to {_COUNTS[keyword]}, or be left out")
        elif keyword == "pattern":
            budget.expanded.add((keyword, value, _check_expression(value)))
        elif keyword == "enum":
            budget.node(1, len(value))
    lengths = (schema.get("minLength", 0), schema.get("maxLength", 0))
    budget.expanded.add(("length", str(lengths), max(lengths)))


@dataclass(slots=True)
class _Budget:
    """What a schema has used up. `expanded` holds each different repetition once: they are compiled once."""

    nodes: int = 0
    expanded: set[tuple[str, str, int]] = field(default_factory=set)

    def node(self, depth: int, count: int = 1) -> None:
        self.nodes += count
        if depth > DEPTH_MAX:
            _refuse(f"schemas are nested deeper than {DEPTH_MAX}; flatten them, or refer to them by $ref")
        if self.nodes > NODES_MAX:
            _refuse(f"more than {NODES_MAX} keywords and values; simplify it")

    def settle(self) -> None:
        if sum(count for *_, count in self.expanded) > EXPANDED_MAX:
            _refuse(f"different lengths and patterns add up to more than {EXPANDED_MAX} characters; use fewer")


def _check_expression(text: str) -> int:
    """Check the repetitions of a regular expression; return their size written out.

    Whether it is well-formed otherwise is for the library to say.
    """
    groups = [_Group()]
    position = 0
    while position < len(text):
        character = text[position]
        group = groups[-1]
        if character == "(":
            groups.append(_Group())
            if len(groups) > DEPTH_MAX:
                _refuse(f"groups are nested deeper than {DEPTH_MAX}; flatten them")
        elif character == ")" and len(groups) > 1:
            groups.pop()
            groups[-1].add(group)
        elif character == "?":
            group.optional += 1
        elif found := _REPETITION.match(text, position):
            low, _, high = found.groups()
            group.repeat(max(int(low[:9] or 0), int(high[:9] or 0)))
            position = found.end()
            continue
        elif character not in "*+":
            group.atom(1, 0)
            position = _atom_end(text, position)
            continue
        position += 1
    whole = groups[0]
    for unclosed in groups[1:]:
        whole.add(unclosed)
    return _settle(whole)


def _settle(group: "_Group") -> int:
    """Return the size of an expression written out. Raises EdgeAgentError BAD_REQUEST when it is over the bounds."""
    if group.optional > OPTIONAL_MAX:
        _refuse(f"more than {OPTIONAL_MAX} question marks in one expression; use fewer")
    if group.expanded > EXPANDED_MAX:
        _refuse(f"repetitions come to more than {EXPANDED_MAX} parts written out; use `+` or `*`, or smaller numbers")
    return group.expanded


@dataclass(slots=True)
class _Group:
    """Parts of an expression in sequence: how many, written out, how many by repetition, how many question marks."""

    size: int = 0
    expanded: int = 0
    optional: int = 0
    _last_size: int = 0
    _last_expanded: int = 0

    def atom(self, size: int, expanded: int) -> None:
        self._last_size, self._last_expanded = size, expanded
        self.size += size
        self.expanded += expanded

    def add(self, group: "_Group") -> None:
        """Add a group as one part."""
        self.atom(group.size, group.expanded)
        self.optional += group.optional

    def repeat(self, count: int) -> None:
        """Write the last part out so many times. Raises EdgeAgentError BAD_REQUEST when that is too often."""
        if count > COUNT_MAX:
            _refuse(f"a repetition of more than {COUNT_MAX}; use `+` or `*`, or a smaller number")
        more = self._last_size * max(count - 1, 0)
        self.size += more
        self.expanded += self._last_size + more - self._last_expanded
        self._last_size += more
        self._last_expanded = self._last_size


def _atom_end(text: str, start: int) -> int:
    """Return the end of the character, escape or class that begins at `start`."""
    position = start + (2 if text[start] == "\\" else 1)
    while text[start] == "[" and position < len(text):
        if text[position] == "]":
            return position + 1
        position += 2 if text[position] == "\\" else 1
    return position
