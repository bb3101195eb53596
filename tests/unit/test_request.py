"""What a request may say, in the spellings people know, and when two requests are the same."""

import json

import pytest
from fakes import request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_agent.jobs.request import METADATA_BYTES_MAX, METADATA_DEPTH_MAX, Request

USER = {"role": "user", "content": "Hello"}
TEXT = {"type": "text", "text": "What is this?"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
JSON = SCALARS | st.lists(SCALARS | st.dictionaries(st.text(max_size=8), SCALARS, max_size=3), max_size=3)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return {"a": value}


def test_a_prompt_is_one_message_of_the_user():
    asked = request(prompt="Hello")
    assert [(message.role, message.text) for message in asked.conversation] == [("user", "Hello")]


def test_max_completion_tokens_is_max_tokens():
    assert request(max_completion_tokens=7).max_tokens == 7


PLAIN = {"job_id": "job-1", "prompt": "Hello"}
GIVEN = {
    "max_tokens": 8,
    "temperature": 1.0,
    "top_p": 0.5,
    "top_k": 7,
    "seed": 3,
    "repetition_penalty": 1.5,
    "priority": 2,
    "ttl_s": 60.0,
    "timeout_s": 30.0,
    "max_attempts": 2,
}


@pytest.mark.parametrize("field", sorted(set(Request.model_fields) - {"job_id", "prompt", "messages"}))
def test_null_is_what_is_absent(field):
    """As clients of OpenAI's send it; the same job, whichever way."""
    asked = Request.model_validate_json(json.dumps(PLAIN | {field: None}))
    assert asked == Request.model_validate_json(json.dumps(PLAIN))
    assert asked.digest() == Request.model_validate_json(json.dumps(PLAIN)).digest()
    assert getattr(asked, field) == getattr(request(), field)


@pytest.mark.parametrize("field", GIVEN)
def test_a_whole_number_may_have_a_point(field):
    """JSON knows no difference; a number that is not whole is refused where one must be."""
    whole = isinstance(GIVEN[field], int)
    asked = Request.model_validate_json(json.dumps(PLAIN | {field: float(GIVEN[field])}))
    assert getattr(asked, field) == GIVEN[field]
    assert type(getattr(asked, field)) is type(GIVEN[field])
    assert asked.digest() == Request.model_validate_json(json.dumps(PLAIN | {field: GIVEN[field]})).digest()
    if whole:
        for wrong in (GIVEN[field] + 0.5, 1e300, str(GIVEN[field]), True):
            with pytest.raises(ValidationError):
                Request.model_validate_json(json.dumps(PLAIN | {field: wrong}))


def test_without_a_template_there_is_a_text_to_go_on_with():
    assert request(template=False, prompt="The pump is").prompt == "The pump is"
    with pytest.raises(ValidationError, match="template: without one there are no messages"):
        request(prompt=None, messages=[USER], template=False)


def test_what_was_stored_before_there_were_texts_without_template_is_the_same_still():
    """A repeat of a job that an earlier version accepted is no other job."""
    digest = "2d52a5a5dd1bba5f"
    assert Request.model_validate_json(json.dumps(PLAIN)).digest().hex()[:16] == digest
    assert Request.model_validate_json(json.dumps(PLAIN | {"template": True})).digest().hex()[:16] == digest
    assert Request.model_validate_json(json.dumps(PLAIN | {"template": False})).digest().hex()[:16] != digest


def test_parts_of_a_message_join_by_line_ends_and_images_are_counted():
    """Both spellings of an image URL count as an image, and so does a hash."""
    bare = {"type": "image_url", "image_url": "data:image/png;base64,AA=="}
    by_hash = {"type": "image_sha256", "sha256": "9f" * 32}
    content = [TEXT, IMAGE, bare, by_hash, {"type": "text", "text": "And this?"}]
    asked = request(prompt=None, messages=[{"role": "user", "content": content}])
    assert len(asked.images) == 3
    assert asked.conversation[0].text == "What is this?\nAnd this?"


@pytest.mark.parametrize(("stop", "stops"), [(None, ()), ("END", ("END",)), (["a", "b"], ("a", "b"))])
def test_stop_is_a_string_or_a_list(stop, stops):
    assert request(stop=stop).stops == stops


SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}}}


@pytest.mark.parametrize(
    ("asked", "guide"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, ("json_schema", '{"type":"object"}')),
        ({"type": "json_object", "schema": SCHEMA}, ("json_schema", SCHEMA)),
        ({"type": "json_schema", "schema": SCHEMA}, ("json_schema", SCHEMA)),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
            ("json_schema", SCHEMA),
        ),
        ({"type": "regex", "regex": "yes|no"}, ("regex", "yes|no")),
        ({"type": "grammar", "grammar": 'start: "a"'}, ("grammar", 'start: "a"')),
    ],
)
def test_a_shape_is_taken_in_the_spellings_people_use(asked, guide):
    """OpenAI's with a name around the schema, llama.cpp's without."""
    found = request(response_format=asked).response_format.guide
    if guide is not None and isinstance(guide[1], dict):
        assert (found[0], json.loads(found[1])) == guide
    else:
        assert found == guide


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"job_id": "a b"}, "job_id"),
        ({"job_id": "a\n"}, "job_id"),
        ({"job_id": "a" * 65}, "job_id"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"priority": 10}, "priority"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"prompt": ""}, "prompt"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"temprature": 0}, "temprature"),
        ({"prompt": None, "messages": [USER | {"role": "tool"}]}, "messages"),
        ({"prompt": None, "messages": [USER | {"content": []}]}, "messages"),
    ],
)
def test_a_fault_lies_at_its_field(fields, field):
    with pytest.raises(ValidationError) as caught:
        request(**fields)
    assert caught.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"messages": [USER]}, "messages: give either messages or prompt"),
        ({"prompt": None}, "messages: give either messages or prompt"),
        ({"prompt": None, "messages": [USER, {"role": "assistant", "content": "x"}]}, "messages: the last one must be"),
        ({"metadata": {"a": "x" * METADATA_BYTES_MAX}}, f"metadata: must be at most {METADATA_BYTES_MAX} bytes"),
        ({"metadata": {"a": "ü" * (METADATA_BYTES_MAX // 2)}}, f"metadata: must be at most {METADATA_BYTES_MAX} bytes"),
        ({"metadata": nested(METADATA_DEPTH_MAX)}, f"nests deeper than {METADATA_DEPTH_MAX} levels"),
        ({"metadata": {"a": float("inf")}}, "not finite"),
    ],
)
def test_an_incoherent_request_is_told_so(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        request(**fields)


def test_a_given_default_and_the_order_of_fields_make_no_other_request():
    """A requester's library may send defaults or not, and order as it likes: it stays the same request."""
    plain = Request.model_validate_json('{"job_id":"a","prompt":"x","metadata":{"b":1,"a":2}}')
    other = Request.model_validate_json('{"metadata":{"a":2,"b":1},"prompt":"x","max_tokens":256,"job_id":"a"}')
    assert plain.digest() == other.digest()
    assert plain.digest() != request("a", prompt="y", metadata={"a": 2, "b": 1}).digest()


@given(
    text=st.text(min_size=1, max_size=50),
    metadata=st.dictionaries(st.text(max_size=8), JSON, max_size=3),
    max_tokens=st.integers(1, 131_072),
    stop=st.none() | st.text(min_size=1, max_size=8) | st.lists(st.text(min_size=1, max_size=8), max_size=3),
    ttl_s=st.integers(1, 86_400) | st.floats(1, 86_400),
)
def test_the_stored_json_is_the_request_again(text, metadata, max_tokens, stop, ttl_s):
    """What is stored parses to an equal request with an equal digest."""
    fields = {"metadata": metadata, "max_tokens": max_tokens, "stop": stop, "ttl_s": ttl_s}
    asked = request(prompt=None, messages=[{"role": "user", "content": [TEXT | {"text": text}, IMAGE]}], **fields)
    again = Request.model_validate_json(asked.to_json())
    assert again == asked
    assert again.digest() == asked.digest()
