"""Watch rules: from what came on a topic to a job, or to the reason why not (pure)."""

import binascii
import hashlib
import io
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic_core import to_json

from edge_agent.images.attachments import is_image
from edge_agent.jobs.request import ImageHashPart, Message, Request, TextPart
from edge_agent.jobs.response_format import ResponseFormat
from edge_agent.protocol.filters import matches, publishable
from edge_agent.settings.watch import Bounds, Wanted, WatchSection
from edge_agent.watch.template import LengthError, Path, Seen, Template, UnfilledError, lookup, path

PROMPT_BYTES_MAX = 65_536
TOPIC_BYTES_MAX = 1024
HOPS_MAX = 4
"""An answer that came of so many answers, of several agents, is watched no more: they may feed each other."""
SLICE_CHARACTERS = 2**18
"""Of base64 that are decoded at once: an image in it is in memory once and not six times."""
TOPICS_REMEMBERED = 1024
"""Topics of one rule whose last job and last value are remembered; of more the longest silent is forgotten."""


class Reason(StrEnum):
    """Why a message made no job; admission adds its codes."""

    RETAINED = "retained"
    WHEN = "when"
    UNCHANGED = "unchanged"
    EVERY = "every"
    NO_IMAGE = "no_image"
    NO_TEXT = "no_text"
    TOO_LARGE = "too_large"
    FIELD_MISSING = "field_missing"
    PROMPT_TOO_LONG = "prompt_too_long"
    ANSWER_TOPIC = "answer_topic"
    BEHIND = "behind"
    HOPS = "hops"
    RULE_FULL = "rule_full"
    """It had made one, which gave way to that of another topic: the rule has as many waiting as it may."""


WANTED = frozenset({Reason.RETAINED, Reason.WHEN, Reason.UNCHANGED, Reason.EVERY})
"""What the rule's author asked for: counted, but nothing to warn of."""


@dataclass(frozen=True, slots=True)
class Take:
    """A message becomes a job: what is asked, and where the answer goes."""

    prompt: str
    image: bytes | None
    answer_topic: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A message makes no job; `field` names what it lacks, by the name the rule has for it."""

    reason: Reason
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, its templates parsed."""

    section: WatchSection
    prompt: Template
    answer: Template
    when: Mapping[Path, Wanted]
    changed: Path | None
    response_format: ResponseFormat | None

    @property
    def name(self) -> str:
        """What logs, telemetry and topics call it."""
        return self.section.name

    def takes(self, topic: str) -> bool:
        """Return whether a topic is watched."""
        return any(matches(each, topic) for each in self.section.topics)

    def request(self, take: Take, *, job_id: str, image_sha256: str | None) -> Request:
        """Return the job."""
        section = self.section
        content = (TextPart(type="text", text=take.prompt),)
        if image_sha256 is not None:
            content = (ImageHashPart(type="image_sha256", sha256=image_sha256), *content)  # type: ignore[assignment]
        asked = Message(role="user", content=content if image_sha256 else take.prompt)
        system = (Message(role="system", content=section.system),) if section.system else ()
        return Request(
            job_id=job_id,
            model=section.model,
            messages=(*system, asked),
            max_tokens=section.max_tokens,
            response_format=self.response_format,
            stream=False,
            priority=section.priority,
            ttl_s=section.ttl_s,
            timeout_s=section.timeout_s,
        )


@dataclass(slots=True)
class Memory:
    """What one rule remembers of its topics: when a job was made last, and how `changed` was.

    Bounded in number, and in bytes too: topics are remembered by 32 bytes each, for they may have 65,535.
    """

    taken_s: OrderedDict[bytes, float] = field(default_factory=OrderedDict)
    before: OrderedDict[bytes, bytes] = field(default_factory=OrderedDict)

    def note(self, rule: Rule, seen: Seen, decision: Take | Drop, now_s: float) -> None:
        """Take in what was decided. What came too soon is forgotten, so that a change in it is seen yet."""
        if isinstance(decision, Take):
            _put(self.taken_s, _scope(rule, seen.topic), now_s)
        if rule.changed is not None and decision != Drop(Reason.EVERY):
            _put(self.before, _identity(seen.topic), _identity(lookup(rule.changed, seen)))

    def forget(self, rule: Rule, topic: str) -> None:
        """Act as if nothing had come on a topic: its job could not be stored."""
        self.taken_s.pop(_scope(rule, topic), None)
        self.before.pop(_identity(topic), None)


def decide(rule: Rule, seen: Seen, memory: Memory, *, retained: bool, now_s: float) -> Take | Drop:
    """Return what becomes of a message on a topic the rule takes.

    `retained`: it was not published now, but kept by the broker.
    """
    if retained and rule.section.retained == "skip":
        return Drop(Reason.RETAINED)
    if seen.too_large:
        return Drop(Reason.TOO_LARGE)
    for variable, wanted in rule.when.items():
        if not satisfies(lookup(variable, seen), wanted):
            return Drop(Reason.WHEN)
    if rule.changed and memory.before.get(_identity(seen.topic)) == _identity(lookup(rule.changed, seen)):
        return Drop(Reason.UNCHANGED)
    if now_s - memory.taken_s.get(_scope(rule, seen.topic), -math.inf) < rule.section.every_s:
        return Drop(Reason.EVERY)
    return _compose(rule, seen)


def satisfies(value: Any, wanted: Wanted) -> bool:
    """Return whether a value is what a condition asks for; no value never is."""
    if value is None:
        return False
    if isinstance(wanted, Bounds):
        return _within(value, wanted)
    if isinstance(wanted, tuple):
        return any(_same(value, each) for each in wanted)
    return _same(value, wanted)


def _within(value: Any, bounds: Bounds) -> bool:
    if bounds.other_than is not None and satisfies(value, bounds.other_than):
        return False
    if bounds.above is None and bounds.below is None:
        return True
    number = _number(value)
    return (
        number is not None
        and (bounds.above is None or number > bounds.above)
        and (bounds.below is None or number < bounds.below)
    )


def _same(value: Any, wanted: Any) -> bool:
    """Return whether two values are equal as JSON has it, where `true` is not 1."""
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _compose(rule: Rule, seen: Seen) -> Take | Drop:
    image = _image(rule, seen)
    if isinstance(image, Drop):
        return image
    try:
        prompt = rule.prompt.render(seen, bytes_max=PROMPT_BYTES_MAX)
    except UnfilledError as error:
        return Drop(Reason.FIELD_MISSING, error.field)
    except LengthError:
        return Drop(Reason.PROMPT_TOO_LONG)
    answer_topic = _answer_topic(rule, seen)
    if answer_topic is None:
        return Drop(Reason.ANSWER_TOPIC)
    if not prompt:  # what stands for its variables is empty
        return Drop(Reason.NO_TEXT)
    return Take(prompt, image, answer_topic)


def _image(rule: Rule, seen: Seen) -> bytes | Drop | None:
    """Return the image that goes with the prompt, None for a prompt that needs none."""
    match rule.section.image:
        case "payload":
            return seen.image or Drop(Reason.NO_IMAGE)
        case "none":
            return None if seen.speaks else Drop(Reason.NO_TEXT)
        case "auto":
            speaks = any(slot.variable[0] != "topic" for slot in rule.prompt.slots)
            if seen.image is not None or (speaks and seen.speaks):
                return seen.image
            return Drop(Reason.NO_TEXT if speaks else Reason.NO_IMAGE)
    value = lookup(path(rule.section.image), seen)
    image = _unwrapped(value) if isinstance(value, str) else None
    return image if image is not None else Drop(Reason.NO_IMAGE, rule.section.image)


def _unwrapped(text: str) -> bytes | None:
    """Return the image that a text is in base64, with or without the head of a data URL; None when it is none."""
    begin = text.find(",", 0, 128) + 1 if text.startswith("data:") else 0
    decoded, held = io.BytesIO(), ""
    try:
        for at in range(begin, len(text), SLICE_CHARACTERS):
            held += "".join(text[at : at + SLICE_CHARACTERS].split())
            whole = len(held) // 4 * 4
            if "=" in held[:whole] and at + SLICE_CHARACTERS < len(text) and text[at + SLICE_CHARACTERS :].strip():
                return None  # nothing may follow the padding
            decoded.write(binascii.a2b_base64(held[:whole], strict_mode=True))
            held = held[whole:]
    except (binascii.Error, ValueError):
        return None
    image = decoded.getvalue()
    return image if not held and is_image(image[:16]) else None


def _answer_topic(rule: Rule, seen: Seen) -> str | None:
    """Return where the answer goes; None when that is no topic, or a value in it none that may stand in a level."""
    for slot in rule.answer.slots:
        if slot.variable == ("topic",):
            continue
        try:
            level = slot.fill(seen)
        except UnfilledError:
            return None
        if not level or "/" in level:
            return None
    try:
        topic = rule.answer.render(seen, bytes_max=TOPIC_BYTES_MAX)
    except LengthError:
        return None
    return topic if publishable(topic) else None


def _scope(rule: Rule, topic: str) -> bytes:
    """Return whose time `every_s` counts."""
    return _identity(topic) if rule.section.every == "topic" else b""


def _identity(value: Any) -> bytes:
    """Return 32 bytes that are equal for equal values."""
    return hashlib.sha256(to_json(value)).digest()


def _put(known: OrderedDict[bytes, Any], key: bytes, value: Any) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > TOPICS_REMEMBERED:
        known.popitem(last=False)
