"""Whether a guide can come to an end (pure): where nothing may come next, a library chooses at random, or dies."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

_PART = re.compile(r'#[^\n]*|"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\]|::=|[\w-]+|\{[^}]*\}|[()|*+?]|\S')
_QUOTED = re.compile(r"""["[].""", re.DOTALL)
_OPTIONAL = re.compile(r"[*?]|\{\s*0*\s*[,}].*", re.DOTALL)
_REPEATED = re.compile(r"\+|\{.*", re.DOTALL)


def endless(text: str) -> bool:
    """Return whether some rule of a grammar leads to no finished text, such as `a ::= a "x"`, or is missing."""
    rules = _rules([part for part in _PART.findall(text) if not part.startswith("#")])
    ending: set[str] = set()
    found = -1
    while len(ending) > found:
        found = len(ending)
        ending |= {name for name, body in rules.items() if name not in ending and _ends(iter(body), ending)}
    return "root" not in ending or len(ending) < len(rules)


def circular(schema: Any, references: Iterable[str]) -> bool:
    """Return whether one of a JSON Schema's `$ref` leads to nothing but itself. What it does not find is left out."""
    targets = {each: pointed(schema, each) for each in references}
    ending: set[str] = set()
    found = -1
    while len(ending) > found:
        found = len(ending)
        ending |= {each for each, target in targets.items() if each not in ending and _says(target, ending)}
    return len(ending) < len(targets)


def _rules(parts: list[str]) -> dict[str, list[str]]:
    """Return the parts of each rule by its name, which stands before the `::=`."""
    begins = [place - 1 for place, part in enumerate(parts) if part == "::=" and place]
    return {parts[begin]: parts[begin + 2 : end] for begin, end in zip(begins, [*begins[1:], None], strict=True)}


def _ends(parts: Iterator[str], ending: Collection[str]) -> bool:
    """Return whether one of the alternatives up to the closing parenthesis ends, when the rules `ending` do."""
    one, all_before, all_so_far = False, True, True
    for part in parts:
        if part == ")":
            break
        if part == "|":
            one, all_before, all_so_far = one or all_so_far, True, True
        elif _OPTIONAL.fullmatch(part):
            all_so_far = all_before
        elif not _REPEATED.fullmatch(part):
            ends = _ends(parts, ending) if part == "(" else bool(_QUOTED.match(part)) or part in ending
            all_before, all_so_far = all_so_far, all_so_far and ends
    return one or all_so_far


def _says(schema: Any, ending: Collection[str]) -> bool:
    """Return whether a schema asks for something, when the references `ending` do."""
    if not isinstance(schema, Mapping):
        return True
    if isinstance(reference := schema.get("$ref"), str):
        return reference in ending
    for some, keyword in ((any, "anyOf"), (any, "oneOf"), (all, "allOf")):
        if isinstance(inner := schema.get(keyword), list):
            return some(_says(each, ending) for each in inner)
    return True


def pointed(schema: Any, reference: str) -> Any:
    """Return what a reference points to in a schema; None when that is not there, or elsewhere."""
    base, *path = reference.split("/")
    if base != "#":
        return None
    for step in path:
        schema = schema.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(schema, Mapping) else None
    return schema
