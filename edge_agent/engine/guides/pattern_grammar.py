"""Regular expressions of a JSON Schema's strings, as parts of a grammar (pure)."""

import json
import re

PLAIN = r'[^"\\\x00-\x1f]'
"""A character that stands for itself in a JSON string."""
_PART = re.compile(
    r"""(?P<open>\((?:\?:)?)|(?P<close>\))|(?P<either>\|)|(?P<times>[*+?]|\{\d+(?:,\d*)?\})|(?P<any>\.)"""
    r"""|\[(?P<set>\^?(?:\\.|[^\\\]])+)\]|\\(?P<escaped>.)|(?P<literal>[^\\^$"\[\](){}|*+?.\x00-\x1f])"""
)
_IN_SET = re.compile(r"\\(?P<escaped>.)|(?P<first>[^\\])-(?P<last>[^\\])|(?P<literal>.)")
_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": " "}
_SIGNS = frozenset("-.^$*+?()|{}[]/")
"""Characters that stand for themselves behind a backslash."""
_OPENS = frozenset({"", "open", "either"})
"""After these something must come that can be repeated."""


def matching(pattern: str) -> str | None:
    """Return what matches an expression from its beginning to its end; None for one that is not understood."""
    body = pattern.removeprefix("^")
    if body.endswith("$") and not body.endswith("\\$"):
        body = body[:-1]
    parts, position, before, depth = ["("], 0, "", 0
    while position < len(body):
        found = _PART.match(body, position)
        kind = found.lastgroup if found else None
        if found is None or kind is None or _out_of_place(kind, before):
            return None
        written = _written(kind, found[kind])
        depth += (kind == "open") - (kind == "close")
        if written is None or depth < 0:
            return None
        parts.append(written)
        position, before = found.end(), kind
    return None if depth or before in _OPENS else "".join((*parts, " )"))


def _out_of_place(kind: str, before: str) -> bool:
    """Return whether a part has nothing before it that it could end, repeat, or be an alternative to."""
    return (kind in {"close", "either", "times"} and before in _OPENS) or (kind == before == "times")


def _written(kind: str, text: str) -> str | None:
    if kind == "set":
        return _set(text)
    if kind == "escaped" and text not in _SIGNS:
        return f" [{_CLASSES[text]}]" if text in _CLASSES else None
    return {
        "open": " (",
        "close": " )",
        "either": " |",
        "times": text,
        "any": f" {PLAIN}",
    }.get(kind, f" {json.dumps(text, ensure_ascii=False)}")


def _set(text: str) -> str | None:
    """Return a class of characters, none of which is written in another way in a JSON string."""
    negated = text.startswith("^")
    written = []
    for found in _IN_SET.finditer(text, 1 if negated else 0):
        escaped, first, last = found["escaped"], found["first"], found["last"]
        literal = found["literal"] or (escaped if escaped in _SIGNS else None)
        low, high = (first, last) if first and last else (literal or "", literal or "")
        if escaped in _CLASSES:
            written.append(_CLASSES[escaped])
        elif not low or low > high or low < " " or any(low <= each <= high for each in '"\\'):
            return None
        else:
            written.append(_quoted(low) if low == high else f"{_quoted(low)}-{_quoted(high)}")
    return f" [^{''.join(written)}{PLAIN[2:]}" if negated else f" [{''.join(written)}]"


def _quoted(character: str) -> str:
    return f"\\{character}" if character in "-^[]" else character
