"""Watch rules as decisions: what becomes of a message, and why."""

import base64

import pytest
from test_rules import read

from edge_agent.protocol.messages import Inbound
from edge_agent.settings.watch import Bounds
from edge_agent.watch.decide import (
    PROMPT_BYTES_MAX,
    SLICE_CHARACTERS,
    TOPICS_REMEMBERED,
    Drop,
    Memory,
    Reason,
    Take,
    decide,
    satisfies,
)
from edge_agent.watch.decode import TEXT_BYTES_MAX, decode_seen
from edge_agent.watch.template import Seen

JPEG = b"\xff\xd8\xff\xe0 not decoded here"
PNG = b"\x89PNG\r\n\x1a\n"
WEBP = b"RIFF\0\0\0\0WEBPVP8 "


def seen(payload, topic="a/b"):
    return decode_seen(Inbound(topic, payload))


def judge(table, payload, *, memory=None, topic="a/b", now_s=0.0, retained=False):
    (rule,) = read(table)
    memory = Memory() if memory is None else memory
    said = seen(payload, topic)
    decision = decide(rule, said, memory, retained=retained, now_s=now_s)
    memory.note(rule, said, decision, now_s)
    return decision


BASE64 = base64.b64encode(JPEG)


@pytest.mark.parametrize(
    ("table", "payload", "image"),
    [
        ({}, JPEG, JPEG),
        ({}, PNG, PNG),
        ({"image": "payload"}, WEBP, WEBP),
        ({"image": "none", "prompt": "{{ payload }}"}, b"on", None),
        ({"prompt": "{{ payload }}"}, b"on", None),
        ({"prompt": "{{ json.a }}"}, b'{"a": 1}', None),
        ({"image": "json.cam.jpg"}, b'{"cam": {"jpg": "%b"}}' % BASE64, JPEG),
        ({"image": "json.jpg"}, b'{"jpg": "data:image/jpeg;base64,%b"}' % BASE64, JPEG),
    ],
)
def test_an_image_is_where_the_rule_says(table, payload, image):
    assert judge(table, payload).image == image


@pytest.mark.parametrize(
    ("table", "payload", "reason"),
    [
        ({}, b"offline", Reason.NO_IMAGE),
        ({}, b"\x00\x01\x02\xff", Reason.NO_IMAGE),
        ({}, b"", Reason.NO_IMAGE),
        ({"image": "payload", "prompt": "{{ payload }}"}, b"on", Reason.NO_IMAGE),
        ({"image": "none"}, JPEG, Reason.NO_TEXT),
        ({"prompt": "{{ payload }}"}, b"", Reason.NO_TEXT),
        ({"prompt": "{{ payload }}"}, b"\xff\xfe", Reason.NO_TEXT),
        ({"prompt": "{{ json.a }}"}, b"{}", Reason.FIELD_MISSING),
        ({"prompt": "{{ json.a }}"}, b"no json", Reason.FIELD_MISSING),
        ({"prompt": "{{ json.a }}"}, b"[" * 100_000, Reason.FIELD_MISSING),
        ({"prompt": "{{ json.a }}"}, b'{"a": NaN}', Reason.FIELD_MISSING),
        ({"image": "json.jpg"}, b'{"jpg": "no base64!"}', Reason.NO_IMAGE),
        ({"image": "json.jpg"}, b'{"jpg": "%b"}' % base64.b64encode(b"text"), Reason.NO_IMAGE),
        ({"image": "json.jpg"}, b'{"jpg": 3}', Reason.NO_IMAGE),
        ({"image": "json.jpg"}, JPEG, Reason.NO_IMAGE),
        ({"prompt": "{{ payload }}"}, b"x" * (PROMPT_BYTES_MAX + 1), Reason.PROMPT_TOO_LONG),
        ({"prompt": "{{ json.a }}", "answer_topic": "x/{{ json.a }}"}, b'{"a": "b/c"}', Reason.ANSWER_TOPIC),
        ({"prompt": "{{ json.a }}", "answer_topic": "x/{{ json.a }}"}, b'{"a": "#"}', Reason.ANSWER_TOPIC),
        ({"prompt": "{{ json.a }}", "answer_topic": "x/{{ json.a }}"}, b'{"a": ""}', Reason.ANSWER_TOPIC),
        ({"prompt": "{{ json.a }}", "answer_topic": "x/{{ json.b }}"}, b'{"a": ""}', Reason.ANSWER_TOPIC),
        ({"prompt": "{{ json.a }}", "answer_topic": "{{ json.a }}/x/y"}, b'{"a": "$SYS"}', Reason.ANSWER_TOPIC),
        ({"prompt": "{{ json.a }}", "answer_topic": "x/{{ json.a }}"}, b'{"a": "b\\n"}', Reason.ANSWER_TOPIC),
        ({"prompt": "{{ json.a }}", "answer_topic": "x/{{ json.a }}"}, b'{"a": "\\ufffe"}', Reason.ANSWER_TOPIC),
        ({"prompt": "{{ json.a }}"}, b'{"a": ""}', Reason.NO_TEXT),
        ({"prompt": "{{ json.a | }}"}, JPEG, Reason.NO_TEXT),
    ],
)
def test_what_makes_no_job_has_its_reason(table, payload, reason):
    assert judge(table, payload).reason is reason


LARGE = JPEG + bytes(3 * SLICE_CHARACTERS)


def test_a_large_image_in_base64_is_decoded_whole():
    """In slices, also when it is in lines."""
    for text in (base64.b64encode(LARGE), base64.encodebytes(LARGE).replace(b"\n", b"\\n")):
        assert judge({"image": "json.jpg"}, b'{"jpg": "%b"}' % text).image == LARGE


@pytest.mark.parametrize(("head", "read"), [(127, True), (128, False)])
def test_the_head_of_a_data_url_is_short(head, read):
    """Its comma is looked for so far."""
    url = b"data:" + b"x" * (head - 5) + b"," + BASE64
    decision = judge({"image": "json.jpg"}, b'{"jpg": "%b"}' % url)
    assert (decision.image == JPEG) if read else (decision == Drop(Reason.NO_IMAGE, "json.jpg"))


@pytest.mark.parametrize("tail", [b"=AAA", b"!", b"A", b"AA=", b"\xc3\xa9"])
def test_what_follows_the_end_of_base64_spoils_it(tail):
    """At the end of a slice, or anywhere."""
    for image in (JPEG + bytes(-len(JPEG) % 3 + 1), LARGE, JPEG + bytes(SLICE_CHARACTERS // 4 * 3 - 1 - len(JPEG))):
        text = base64.b64encode(image) + tail
        assert judge({"image": "json.jpg"}, b'{"jpg": "%b"}' % text) == Drop(Reason.NO_IMAGE, "json.jpg")


def test_a_text_too_large_is_not_read():
    """An image of any size is."""
    assert judge({"prompt": "{{ payload }}"}, b'"' + b"x" * TEXT_BYTES_MAX + b'"') == Drop(Reason.TOO_LARGE)
    assert judge({}, JPEG + bytes(2 * TEXT_BYTES_MAX)).image


def test_the_field_that_lacks_is_named_as_the_rule_names_it():
    assert judge({"prompt": "{{ json.a.b }}"}, b'{"a": "secret"}') == Drop(Reason.FIELD_MISSING, "json.a.b")


@pytest.mark.parametrize(
    ("when", "payload", "taken"),
    [
        ({"json.type": "new"}, b'{"type": "new"}', True),
        ({"json.type": "new"}, b'{"type": "end"}', False),
        ({"json.type": "new"}, b"{}", False),
        ({"json.type": ["new", "end"]}, b'{"type": "end"}', True),
        ({"json.on": True}, b'{"on": true}', True),
        ({"json.on": True}, b'{"on": 1}', False),
        ({"json.on": 1}, b'{"on": true}', False),
        ({"json.on": 1}, b'{"on": 1.0}', True),
        ({"json.t": {"above": 30}}, b'{"t": 30.5}', True),
        ({"json.t": {"above": 30}}, b'{"t": 30}', False),
        ({"json.t": {"above": 20, "below": 30}}, b'{"t": "25"}', True),
        ({"json.t": {"above": 20}}, b'{"t": "warm"}', False),
        ({"json.t": {"above": 0}}, b'{"t": true}', False),
        ({"json.t": {"above": 20}}, b'{"t": [31]}', False),
        ({"json.t": {"above": 20}}, b'{"t": {"a": 31}}', False),
        ({"json.t": {"above": 20}}, b"{}", False),
        ({"payload": {"above": 30}}, b"31", True),
        ({"payload": {"other_than": ["unavailable", "unknown"]}}, b"on", True),
        ({"payload": {"other_than": ["unavailable", "unknown"]}}, b"unknown", False),
        ({"topic.2": "b", "json.a": "x"}, b'{"a": "x"}', True),
        ({"topic.2": "c", "json.a": "x"}, b'{"a": "x"}', False),
    ],
)
def test_only_what_keeps_to_the_conditions_makes_a_job(when, payload, taken):
    decision = judge({"when": when, "prompt": "{{ payload }}"}, payload)
    assert isinstance(decision, Take) if taken else decision == Drop(Reason.WHEN)


def test_nothing_and_objects_satisfy_no_condition():
    for value in (None, {}, [], {"a": 1}):
        assert not satisfies(value, "a")
        assert not satisfies(value, ("a", 1))
    assert not satisfies("9" * 400, Bounds(below=1))


DOOR = {"prompt": "{{ payload }}", "changed": "json.open"}


def test_only_a_change_makes_a_job_and_every_topic_has_its_own():
    memory = Memory()
    told = [judge(DOOR, b'{"open": %b}' % value, memory=memory) for value in (b"true", b"true", b"false", b"true")]
    assert [isinstance(each, Take) for each in told] == [True, False, True, True]
    assert told[1] == Drop(Reason.UNCHANGED)
    assert isinstance(judge(DOOR, b'{"open": true}', memory=memory, topic="a/c"), Take)
    assert judge(DOOR, b'{"open": "true"}', memory=memory, topic="a/c") != Drop(Reason.UNCHANGED)


def test_a_change_back_that_no_rule_wants_still_counts():
    """`when` true, then false, then true again is a change each time."""
    memory, table = Memory(), DOOR | {"when": {"json.open": True}}
    told = [judge(table, b'{"open": %b}' % value, memory=memory) for value in (b"true", b"false", b"true")]
    assert [isinstance(each, Take) for each in told] == [True, False, True]


def test_a_rate_holds_for_each_topic_or_for_the_rule():
    for every, others in (("topic", True), ("rule", False)):
        memory, table = Memory(), {"prompt": "{{ payload }}", "every_s": 10, "every": every}
        assert isinstance(judge(table, b"1", memory=memory), Take)
        assert judge(table, b"2", memory=memory, now_s=9.9) == Drop(Reason.EVERY)
        assert isinstance(judge(table, b"3", memory=memory, topic="a/c", now_s=9.9), Take) == others
        assert isinstance(judge(table, b"4", memory=memory, now_s=19.9), Take)


def test_a_change_that_came_too_soon_is_seen_when_it_comes_again():
    memory, table = Memory(), DOOR | {"every_s": 10}
    assert isinstance(judge(table, b'{"open": true}', memory=memory), Take)
    assert judge(table, b'{"open": false}', memory=memory, now_s=1) == Drop(Reason.EVERY)
    assert isinstance(judge(table, b'{"open": false}', memory=memory, now_s=11), Take)


def test_what_could_not_be_stored_leaves_no_trace():
    memory, table = Memory(), DOOR | {"every_s": 10}
    (rule,) = read(table)
    judge(table, b'{"open": true}', memory=memory)
    memory.forget(rule, "a/b")
    assert isinstance(judge(table, b'{"open": true}', memory=memory, now_s=1), Take)


def test_what_is_retained_is_skipped_or_taken():
    assert judge({}, JPEG, retained=True) == Drop(Reason.RETAINED)
    assert isinstance(judge({"retained": "once"}, JPEG, retained=True), Take)


def test_any_number_of_topics_takes_a_bounded_memory():
    memory, (rule,) = Memory(), read(DOOR)
    for number in range(TOPICS_REMEMBERED + 100):
        topic = f"a/{number}/" + "x" * 60_000  # whoever publishes chooses it
        memory.note(rule, Seen(topic, payload=b"x" * 1000, body="x" * 1000), Take("", None, ""), 0.0)
    assert len(memory.taken_s) == len(memory.before) == TOPICS_REMEMBERED
    assert sum(map(len, memory.before.values())) == 32 * TOPICS_REMEMBERED
    assert max(map(len, [*memory.taken_s, *memory.before])) == 32


def test_the_topic_that_was_silent_longest_is_forgotten_first():
    memory, table = Memory(), {"prompt": "{{ payload }}", "every_s": 60}
    for number in range(TOPICS_REMEMBERED):
        judge(table, b"on", memory=memory, topic=f"a/{number}")
    assert isinstance(judge(table, b"on", memory=memory, topic="a/0", now_s=60), Take)
    judge(table, b"on", memory=memory, topic="a/new", now_s=61)
    for topic, known in (("a/0", True), ("a/2", True), ("a/1", False)):
        decision = judge(table, b"on", memory=memory, topic=topic, now_s=59.9)
        assert (decision == Drop(Reason.EVERY)) is known


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("image_sha256", [None, "0" * 64])
def test_a_job_has_the_image_before_the_text_and_no_stream(system, image_sha256):
    (rule,) = read({"system": system} if system else {})
    request = rule.request(Take("What is it?", None, "a/b"), job_id="job-1", image_sha256=image_sha256)
    *before, asked = request.messages
    assert [(each.role, each.content) for each in before] == ([("system", system)] if system else [])
    assert not request.stream
    if image_sha256 is None:
        assert asked.content == "What is it?"
    else:
        image, text = asked.content
        assert (image.sha256, text.text) == (image_sha256, "What is it?")
