"""Who is told next: each requester's messages in order, none lost, none held up by how many another has."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.protocol.messages import Publication
from edge_agent.serving.rota import Rota

PLENTY = 10_000
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), st.sampled_from("xy")),
        st.tuples(st.just("hurry"), st.sampled_from("abc"), st.sampled_from("xy")),
        st.just(("next", "", "")),
    ),
    max_size=80,
)


def rota():
    return Rota(lambda topic: topic.split("/")[0])


def drained(waiting):
    while waiting:
        yield waiting.next()


@given(STEPS)
def test_each_topic_is_told_in_order_and_nothing_is_lost(steps):
    waiting, added, taken = rota(), [], []
    for number, (step, client, leaf) in enumerate(steps):
        topic = f"{client}/{leaf}"
        if step == "add":
            added.append(Publication(topic, str(number).encode(), qos=1))
            assert waiting.add(added[-1], most=PLENTY) == 0
        elif step == "hurry":
            there = any(each.topic == topic for each in added if each not in taken)
            assert waiting.hurry(topic) == there
        elif waiting:
            taken.append(waiting.next())
        assert len(waiting) == len(added) - len(taken)
    taken += drained(waiting)
    for topic in {each.topic for each in added}:
        assert [each for each in taken if each.topic == topic] == [each for each in added if each.topic == topic]
    assert len(taken) == len(added)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_nobody_is_told_two_while_another_waits(clients):
    waiting = rota()
    for number, client in enumerate(clients):
        waiting.add(Publication(f"{client}/{number}", b"", qos=1), most=PLENTY)
    heard, left = Counter(), Counter(clients)
    for each in drained(waiting):
        client = each.topic[0]
        heard[client] += 1
        left[client] -= 1
        assert all(heard[client] <= heard[other] + 1 for other in left if left[other])


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(1, 20))
def test_too_many_are_taken_from_who_has_most(clients, most):
    waiting, dropped = rota(), 0
    for number, client in enumerate(clients):
        dropped += waiting.add(Publication(f"{client}/{number}", b"", qos=1), most=most)
    kept = Counter(each.topic[0] for each in drained(waiting))
    assert kept.total() + dropped == len(clients)
    assert kept.total() <= most
    share = min(Counter(clients).values(), default=0)
    assert all(kept[client] >= min(share, most // 3) for client in set(clients))
