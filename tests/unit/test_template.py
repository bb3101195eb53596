"""Templates: what they say, what they refuse, and that nothing makes them do more."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.watch.template import SLOTS_MAX, LengthError, Seen, Template, UnfilledError, lookup, path

EVENT = {"type": "new", "after": {"label": "person", "score": 0.5, "box": [1, 2], "sub_label": None, "active": True}}
SEEN = Seen("frigate/events", payload=json.dumps(EVENT).encode(), body=EVENT)


def rendered(text, seen=SEEN):
    return Template.parse(text).render(seen, bytes_max=1000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A {{ json.after.label }} at {{topic.1}}.", "A person at frigate."),
        ("{{ topic }}", "frigate/events"),
        ("{{ json.after.score }} {{ json.after.active }} {{ json.after.box }}", "0.5 true [1,2]"),
        ("{{ json.after.box.1 }}", "2"),
        ("{{ json.after.sub_label | nobody known }}", "nobody known"),
        ("{{ json.after.absent | }}.", "."),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ("}} {", "}} {"),
    ],
)
def test_a_template_says_what_the_message_has(text, said):
    assert rendered(text) == said


@pytest.mark.parametrize("text", ["{{ json.after.sub_label }}", "{{ json.x }}", "{{ json.type.x }}", "{{ topic.3 }}"])
def test_without_the_field_there_is_no_text(text):
    with pytest.raises(UnfilledError):
        rendered(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "1 to"),
        ("{{ topic", "without"),
        ("{{ }}", "no variable is called ''"),
        ("{{ value_json.x }}", "no variable is called 'value_json.x'; there are topic, topic.1"),
        ("{{ json }}", "no variable"),
        ("{{ topic.0 }}", "no variable"),
        ("{{ topic.a }}", "no variable"),
        ("{{ payload.x }}", "no variable"),
        ("{{ json..x }}", "no variable"),
        ("{{ json.x y }}", "no variable"),
        ("{{ json.x|a|b }}{{", "without"),
        ("{{ topic }}" * (SLOTS_MAX + 1), "more than 64 variables"),
        ("{{ json" + ".a" * 20 + " }}", "more than 16 parts"),
        ("x" * 20_000, "1 to"),
    ],
)
def test_a_wrong_template_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        Template.parse(text)


@pytest.mark.parametrize("name", ["json.__class__", "json.after.__init__", "json.after.keys", "json.type.upper"])
def test_attributes_of_objects_are_no_fields(name):
    """Only what the JSON holds can be said: a program's own names lead nowhere."""
    assert lookup(path(name), SEEN) is None


def test_a_text_too_long_is_none():
    with pytest.raises(LengthError):
        Template.parse("{{ payload }}{{ payload }}").render(Seen("t", payload=b"x" * 600), bytes_max=1000)


LITERAL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.lists(st.sampled_from(["a", "b", "c", "0", "1", "__class__"]), min_size=1, max_size=4)


@given(LITERAL, NAMES, LITERAL, JSON)
def test_a_text_is_its_words_and_the_field(before, names, after, body):
    """What is found is what plain indexing finds; everything else stays as written."""
    found = body
    for name in names:
        try:
            found = found[int(name)] if isinstance(found, list) else found[name] if isinstance(found, dict) else None
        except (LookupError, ValueError):
            found = None
    template = f"{before}{{{{ json.{'.'.join(names)} | none }}}}{after}"
    wanted = "none" if found is None else found
    said = wanted if isinstance(wanted, str) else json.dumps(wanted, separators=(",", ":"), ensure_ascii=False)
    assert Template.parse(template).render(Seen("t", body=body), bytes_max=10_000) == before + said + after


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_values_are_never_templates(value):
    """What a message says is text, whatever braces it has."""
    assert rendered("<{{ payload }}>", Seen("t", payload=value.encode())) == f"<{value}>"


@given(st.text(alphabet="{}| .jsontpicayld01#+/\0\n", max_size=40))
def test_any_text_is_a_template_or_refused_with_a_sentence(text):
    try:
        template = Template.parse(text)
    except ValueError as error:
        said = str(error)
    else:
        said = "a template"
        with contextlib.suppress(UnfilledError, LengthError):
            template.render(SEEN, bytes_max=1000)
    assert said
