"""Which lane a prompt is computed in, and what of it is there already."""

import random

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.engine.batching.lanes import IDLE_LANES_MAX, IDLE_TOKENS_MAX, KEPT_TOKENS_MIN, NOBODY, Lanes
from edge_agent.engine.batching.prefill import LONGROPE_TOKENS

SYSTEM = [1000 + i for i in range(100)]


def prompt(own, *, beginning=SYSTEM, length=40):
    return [*beginning, *(own * 10_000 + i for i in range(length))]


def answer(lanes, tokens, generated=20, owner=NOBODY):
    """Have a prompt computed and answered; return its place, the lane free again."""
    place = lanes.take(tokens, owner)
    place.lane.tokens = [*tokens, *range(-generated, 0)]
    lanes.free(place.lane)
    return place


def make(number=3, *, longrope=False, copies=True):
    return Lanes(number, longrope=longrope, copies=copies)


def test_a_new_beginning_gets_an_empty_lane():
    lanes = make()
    places = [answer(lanes, prompt(own, beginning=[own])) for own in range(3)]
    assert [place.lane.number for place in places] == [0, 1, 2]
    assert all(place.kept == 0 and place.copy_from is None for place in places)


def test_a_known_beginning_is_continued_where_it_lies():
    """When more is kept than lost; the last token is computed in any case, for its logits."""
    lanes = make()
    first = answer(lanes, prompt(1))
    again = lanes.take(prompt(1))
    assert again.lane is first.lane
    assert again.kept == len(prompt(1)) - 1
    assert again.lane.tokens == prompt(1)[:-1]
    lanes.free(again.lane)
    other = lanes.take(prompt(2))
    assert (other.lane, other.kept, other.copy_from) == (first.lane, len(SYSTEM), None)
    assert other.lane.tokens == SYSTEM


def test_a_long_conversation_is_not_lost_to_a_short_beginning():
    """The lane used least recently is overwritten instead, with a copy."""
    lanes = make()
    conversation = answer(lanes, prompt(1, length=500)).lane
    place = lanes.take(prompt(2))
    assert place.lane is not conversation
    assert (place.kept, place.copy_from) == (len(SYSTEM), conversation)
    assert len(conversation.tokens) == 620
    assert lanes.take([*conversation.tokens, 7]).kept == 620


def test_the_beginning_of_one_under_way_is_copied():
    lanes = make()
    running = lanes.take(prompt(1)).lane
    running.tokens = prompt(1)
    place = lanes.take(prompt(2))
    assert place.lane is not running
    assert (place.kept, place.copy_from) == (len(SYSTEM), running)


def test_nothing_is_copied_where_that_cannot_be():
    """Then only free lanes count, and where it lies is where it is continued."""
    lanes = make(copies=False)
    running = lanes.take(prompt(1)).lane
    running.tokens = prompt(1)
    free = answer(lanes, prompt(2, length=500)).lane
    place = lanes.take(prompt(3))
    assert (place.lane, place.kept, place.copy_from) == (free, len(SYSTEM), None)


def test_what_was_used_least_recently_goes_first():
    lanes = make()
    for own in (0, 1, 2, 0, 2):
        answer(lanes, prompt(own, beginning=[own] * 50))
    oldest = [lanes.take(prompt(own, beginning=[own])).lane.number for own in (7, 8, 9)]
    assert oldest == [1, 0, 2]


def test_the_head_of_the_chat_template_is_no_known_beginning():
    lanes = make()
    answer(lanes, prompt(1, beginning=SYSTEM[: KEPT_TOKENS_MIN - 1]))
    assert lanes.take(prompt(2, beginning=SYSTEM[: KEPT_TOKENS_MIN - 1])).kept == 0


def test_no_beginning_crosses_the_original_context():
    """Its keys were turned by other factors: of use only to what ends on the same side."""
    lanes = make(longrope=True)
    short, long = prompt(1, length=1000), prompt(2, length=LONGROPE_TOKENS)
    assert [answer(lanes, tokens).kept for tokens in (short, long, long)] == [0, 0, len(long) - 1]
    assert lanes.take(prompt(3)).copy_from.number == 0
    crossed = make(longrope=True)
    lane = crossed.take(short).lane
    lane.begin_long()
    lane.tokens = [*short, *range(LONGROPE_TOKENS)]
    crossed.free(lane)
    assert crossed.take(short).kept == 0
    assert crossed.take([*lane.tokens, 7]).kept == len(lane.tokens)


def test_neighbours_are_computed_together():
    lanes = make(9)
    assert lanes.batches([2, 0, 1]) == [range(3)]
    assert lanes.batches([]) == []
    assert lanes.batches([0, 1 + IDLE_LANES_MAX]) == [range(2 + IDLE_LANES_MAX)]
    assert lanes.batches([0, 2 + IDLE_LANES_MAX]) == [range(1), range(2 + IDLE_LANES_MAX, 3 + IDLE_LANES_MAX)]
    lanes.all[1].tokens = [0] * (IDLE_TOKENS_MAX + 1)
    assert lanes.batches([0, 2]) == [range(1), range(2, 3)]
    assert lanes.batches([0, 1, 2]) == [range(3)]


def test_both_sides_of_the_original_context_are_computed_apart():
    """The factors are chosen once per call; a lane in between that is idle counts too, for the mask holds it."""
    lanes = make(4, longrope=True)
    lanes.all[1].tokens = [0] * (LONGROPE_TOKENS - 1)
    assert lanes.batches(range(4)) == [range(1), range(1, 2), range(2, 4)]
    assert lanes.batches([0, 2, 3]) == [range(1), range(2, 4)]


@given(st.data())
def test_no_lane_is_given_twice_and_what_it_keeps_is_true(data):
    """Whatever comes and goes, a place holds the beginning of its prompt and nothing else."""
    lanes = make(data.draw(st.integers(1, 4)), copies=data.draw(st.booleans()))
    taken = []
    for _ in range(data.draw(st.integers(1, 30))):
        if taken and (len(taken) == len(lanes.all) or data.draw(st.booleans())):
            lanes.free(taken.pop(data.draw(st.integers(0, len(taken) - 1))))
            continue
        tokens = prompt(data.draw(st.integers(0, 3)), beginning=SYSTEM[: data.draw(st.integers(1, 100))])
        held = {lane: list(lane.tokens) for lane in lanes.all}
        place = lanes.take(tokens)
        assert place.lane not in taken
        assert place.lane.tokens == tokens[: place.kept]
        assert held[place.copy_from or place.lane][: place.kept] == tokens[: place.kept]
        assert place.kept < len(tokens)
        place.lane.tokens = tokens
        taken.append(place.lane)


def test_what_was_computed_for_one_owner_serves_no_other():
    """Neither where it lies nor as a copy, from a free lane or a taken one; what is one's own is found again."""
    for copies in (True, False):
        lanes = make(copies=copies)
        answer(lanes, prompt(1), owner="line-3")
        assert answer(lanes, prompt(1), owner="guesser").kept == 0
        assert answer(lanes, prompt(1), owner="line-3").kept == len(prompt(1)) - 1
        running = lanes.take(prompt(2), "line-3").lane
        running.tokens = prompt(2)
        assert answer(lanes, prompt(2), owner="guesser").kept == len(SYSTEM)


def test_owners_have_as_many_lanes_as_each_other():
    """Who was alone gives some of theirs to who comes, down to as many; what was used least recently goes first."""
    lanes = make(4)
    for own in range(4):
        answer(lanes, prompt(own, beginning=[own]), owner="line-3")
    for own in (5, 6):
        answer(lanes, prompt(own, beginning=[own]), owner="line-4")
    assert [lane.owner for lane in lanes.all] == ["line-4", "line-4", "line-3", "line-3"]
    for owner, own, kept in (("line-3", 2, True), ("line-4", 6, True), ("line-3", 0, False), ("line-4", 5, True)):
        tokens = prompt(own, beginning=[own])
        assert answer(lanes, tokens, owner=owner).kept == (len(tokens) - 1 if kept else 0)


def test_the_lane_of_who_has_been_away_longest_goes_first():
    """Not the lane used least recently of all: which of theirs others use depends on what they say."""
    lanes = make(4)
    for own, owner in enumerate(("line-4", "line-3", "line-3", "line-4")):
        answer(lanes, prompt(own, beginning=[own]), owner=owner)
    answer(lanes, prompt(5), owner="line-5")
    assert [lane.owner for lane in lanes.all] == ["line-4", "line-5", "line-3", "line-4"]


OWNERS = ("watched", "busy", "third", "fourth")


def seen(script, texts, number, *, copies, longrope):
    """Play who comes and goes; return what of theirs each prompt of "watched" found, and whether it was copied."""
    lanes, running, found = make(number, copies=copies, longrope=longrope), [], []
    for step, (owner, leaves, length, generated) in enumerate(script):
        if running and (leaves or len(running) == number):
            lane, tokens, more = running.pop(leaves % len(running))
            lane.tokens = [*tokens, *range(-more, 0)]
            lanes.free(lane)
        tokens = texts(step, owner, length)
        place = lanes.take(tokens, owner)
        if owner == "watched":
            found.append((place.kept, place.copy_from is not None))
        place.lane.tokens = tokens
        running.append((place.lane, tokens, generated))
    return found


@given(st.integers(0, 2**32))
def test_what_an_owner_finds_does_not_depend_on_the_texts_of_others(seed):
    """Whoever comes and goes, with prompts however long: only what they say is another, even the same as is guessed."""
    rng = random.Random(seed)
    lengths = rng.choice(((40, 140, 200), (5, 140), (140, 120, 130), (140, LONGROPE_TOKENS)))
    present = [OWNERS[:2]] * 12 + [OWNERS] * 8
    script = [(rng.choice(owners), rng.randrange(6), rng.choice(lengths), rng.randrange(40)) for owners in present]
    watched, *others = ([rng.randrange(3) for _ in script] for _ in range(3))

    def texts(of_others):
        def text(step, owner, length):
            stem = watched[step] if owner == "watched" else of_others[step]
            return [stem * 1000 + i if i < 100 else step * 100_000 + i for i in range(length)]

        return text

    options = {"copies": rng.random() < 0.5, "longrope": rng.random() < 0.5}
    number = rng.choice((1, 2, 4, 5))
    one, other = (seen(script, texts(stems), number, **options) for stems in others)
    assert one == other
