"""Topic filters: what they take, and how several are made to overlap nowhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.protocol.filters import SLASHES_MAX, apart, check, intersect, matches, publishable

WORDS = st.sampled_from(["a", "b", "c", ""])
TOPICS = st.lists(WORDS, min_size=1, max_size=4).map("/".join).filter(bool)


@st.composite
def filters(draw):
    levels = draw(st.lists(st.sampled_from(["a", "b", "c", "", "+", "+"]), min_size=1, max_size=4))
    end = draw(st.sampled_from([[], ["#"]]))
    return "/".join([*levels, *end]) or "+"


def told(topic_filter, topic):
    """Section 4.7.1 of MQTT 5, word for word and slowly."""
    levels, wanted = topic.split("/"), topic_filter.split("/")
    if wanted[-1] == "#":
        wanted = wanted[:-1]
        if len(levels) < len(wanted):
            return False
        levels = levels[: len(wanted)]
    return len(levels) == len(wanted) and all(w in ("+", level) for w, level in zip(wanted, levels, strict=True))


@given(filters(), TOPICS)
def test_a_filter_takes_what_the_standard_says(topic_filter, topic):
    check(topic_filter)
    assert matches(topic_filter, topic) == told(topic_filter, topic)


@given(filters(), filters(), TOPICS)
def test_filters_that_share_a_topic_intersect(one, other, topic):
    assert intersect(one, other) == intersect(other, one)
    if matches(one, topic) and matches(other, topic):
        assert intersect(one, other)


@given(filters(), filters())
def test_filters_that_intersect_share_a_topic(one, other):
    """A topic made of both shows it: words where either has them, else any."""
    if not intersect(one, other):
        return
    here, there = one.split("/"), other.split("/")
    longest = max(len(here), len(there))
    topic = []
    for at in range(longest):
        pair = [levels[at] if at < len(levels) else "#" for levels in (here, there)]
        words = [level for level in pair if level not in ("+", "#")]
        if pair == ["#", "#"]:
            break
        topic.append(words[0] if words else "x")
    candidates = ["/".join(topic), "/".join(topic[:-1])]
    assert any(each and matches(one, each) and matches(other, each) for each in candidates) or not any(topic)


@given(st.lists(filters(), max_size=6), TOPICS)
def test_filters_set_apart_take_each_message_once(given_filters, topic):
    found = apart(given_filters)
    takers = [each for each in found if matches(each, topic)]
    assert len(takers) <= 1
    if any(matches(each, topic) for each in given_filters):
        assert takers
    for each in found:
        check(each)


def test_filters_that_do_not_overlap_are_left_as_they_are():
    assert apart(["a/+/c", "b/#", "a/c"]) == ("a/+/c", "b/#", "a/c")
    assert apart(["a/+/person/snapshot", "a/front/+/snapshot"]) == ("a/+/+/snapshot",)
    assert apart(["a/#", "a/+/c"]) == ("a/#",)


@pytest.mark.parametrize("wrong", ["", "a/#/b", "a/b#", "a+", "$SYS/#", "$share/g/a", "a\0", "a" * 513])
def test_what_is_no_filter_is_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        check(wrong)


def test_the_brokers_own_topics_are_never_taken():
    assert not matches("#", "$SYS/uptime")
    assert not matches("+/uptime", "$SYS/uptime")


@pytest.mark.parametrize(
    ("one", "other", "met"),
    [
        ("edge/v1/#", "#", True),
        ("edge/v1/#", "edge/v1", True),
        ("edge/v1/#", "+/+/clients/#", True),
        ("edge/v1/#", "edge/v2/#", False),
        ("edge/v1/#", "plant/#", False),
        ("edge/v1/#", "edge", False),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
    ],
)
def test_filters_meet_where_a_topic_is_under_both(one, other, met):
    assert intersect(one, other) is intersect(other, one) is met


@pytest.mark.parametrize(
    "topic",
    [
        *("", "$SYS/a", "a/+", "a/#", "/" * (SLASHES_MAX + 1)),
        *("a\0", "a\n", "a\x7f", "a\x85", "a\ud800", "a\ufdd0", "a\ufffe", "a\U0001ffff"),
    ],
)
def test_a_topic_over_which_a_broker_may_end_the_connection_is_none_to_publish_on(topic):
    assert not publishable(topic)
