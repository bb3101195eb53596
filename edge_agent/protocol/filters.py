"""Topic filters, as MQTT has them: `+` is any one level, `#` the parent and everything below it (pure)."""

import re
from collections.abc import Iterable

FILTER_CHARACTERS_MAX = 512
SLASHES_MAX = 200
"""In a topic; mosquitto ends the connection over more (TOPIC_HIERARCHY_LIMIT)."""
_UNSPEAKABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef]")
"""Control characters, surrogates and non-characters: MQTT 5, 1.5.4, lets a broker end the connection over one."""


def check(topic_filter: str) -> None:
    """Raise ValueError when a filter is none that may be watched; the message says why."""
    levels = topic_filter.split("/")
    if not topic_filter or len(topic_filter) > FILTER_CHARACTERS_MAX or "\0" in topic_filter:
        raise ValueError(f"must have 1 to {FILTER_CHARACTERS_MAX} characters, none of them NUL")
    if levels[0].startswith("$"):
        raise ValueError("must not begin with $: neither shared subscriptions nor the broker's own topics are watched")
    if any(len(level) > 1 and ("+" in level or "#" in level) for level in levels):
        raise ValueError("+ and # must have a level to themselves")
    if "#" in levels[:-1]:
        raise ValueError("# must be the last level")


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a filter that `check` allows takes a topic."""
    return not topic.startswith("$") and "#" not in topic and "+" not in topic and intersect(topic_filter, topic)


def publishable(topic: str) -> bool:
    """Return whether any broker takes a topic to publish on: over a bad one it ends the connection, each time anew."""
    return (
        bool(topic)
        and not topic.startswith("$")
        and "+" not in topic
        and "#" not in topic
        and topic.count("/") <= SLASHES_MAX
        and _UNSPEAKABLE.search(topic) is None
        and all(ord(letter) & 0xFFFE != 0xFFFE for letter in topic)
    )


def intersect(one: str, other: str) -> bool:
    """Return whether there is a topic that both filters take."""
    here, there = one.split("/"), other.split("/")
    for level, match in zip(here, there, strict=False):
        if "#" in (level, match):
            return True
        if level != match and "+" not in (level, match):
            return False
    shared = min(len(here), len(there))
    return [*here[shared:], *there[shared:]] in ([], ["#"])


def apart(filters: Iterable[str]) -> tuple[str, ...]:
    """Return filters of which no two take the same topic, and which take all that the given ones take.

    Of filters that overlap some brokers deliver a message once, others once for each. Two that overlap become one
    that may take more than both.
    """
    found: list[str] = []
    for each in filters:
        joined = each
        while overlapping := [other for other in found if intersect(joined, other)]:
            for other in overlapping:
                found.remove(other)
                joined = _join(joined, other)
        found.append(joined)
    return tuple(found)


def _join(one: str, other: str) -> str:
    """Return the narrowest filter that takes all that two overlapping ones take."""
    here, there = one.split("/"), other.split("/")
    joined: list[str] = []
    for level, match in zip(here, there, strict=False):
        if "#" in (level, match):
            return "/".join([*joined, "#"])
        joined.append(level if level == match else "+")
    return "/".join(joined if len(here) == len(there) else [*joined, "#"])
