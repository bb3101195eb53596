"""What a program does wrong with EdgeClient is said to it at once, in an error of ours; nobody waits for ever."""

import dataclasses
import subprocess
import sys
from contextlib import suppress

import pytest
from fakes import PATIENCE_S
from hypothesis import example, given
from hypothesis import strategies as st

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.client import Access, EdgeClient
from edge_agent.client.awaited import Awaited
from edge_agent.jobs.request import Message
from edge_agent.protocol.filters import FILTER_CHARACTERS_MAX, publishable
from edge_agent.protocol.messages import PAYLOAD_BYTES_MAX
from edge_agent.protocol.topics import Topics

NOBODY = Access("127.0.0.1", 9, client_id="me")
CYCLE = {}
CYCLE["a"] = CYCLE
UNSPEAKABLE = ["\ud800", b"\xff", object(), {"a": object()}, CYCLE]
PICTURE = b"\xff\xd8\xff" + bytes(20)


@pytest.fixture(scope="module")
def client():
    with EdgeClient(NOBODY) as opened:
        yield opened


def refusal(act):
    with pytest.raises(EdgeAgentError) as caught:
        act()
    return caught.value


@given(st.text(max_size=70) | st.text("a/#+$\0", max_size=6))
@example("edge/v1")
@example("edge/v1\n")
@example("a" * 70_000)
def test_a_root_makes_topics_that_any_broker_takes_or_is_refused(root):
    """Over a topic that is none paho ends its thread, or ours."""
    topics = Topics(root, "edge-01")
    takes = publishable(topics.admin("me", "model")) and len(root) < FILTER_CHARACTERS_MAX
    if not takes:
        assert refusal(lambda: EdgeClient(NOBODY, root=root)).code is Code.BAD_REQUEST


def test_roots_that_settings_take_are_taken():
    for root in ("edge/v1", "a", "A.b-c_1/d"):
        EdgeClient(NOBODY, root=root)


@pytest.mark.parametrize("value", UNSPEAKABLE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("field", ["prompt", "job_id", "metadata", "stop", "response_format"])
@pytest.mark.parametrize("images", [[], [PICTURE]], ids=["text", "image"])
def test_what_no_json_can_say_is_a_bad_request_that_names_the_field(client, field, value, images):
    fields = {"prompt": "How is the pump?"} | {field: value}
    error = refusal(lambda: client.submit("edge-01", images=images, **fields))
    assert error.code is Code.BAD_REQUEST
    assert error.message.startswith(f"{field}: ")


@pytest.mark.parametrize("content", [5, True, {"a": 1}, 1.5])
def test_content_of_a_wrong_kind_is_a_bad_request_beside_images_too(client, content):
    for fields in ({"prompt": content}, {"messages": [{"role": "user", "content": content}]}):
        assert (
            refusal(lambda fields=fields: client.submit("edge-01", images=[PICTURE], **fields)).code is Code.BAD_REQUEST
        )


def test_an_order_that_no_json_can_say_is_a_bad_request(client):
    assert refusal(lambda: client.admin("edge-01", "load", "\ud800")).message == "model: cannot be written as JSON"


def test_a_job_that_no_agent_takes_for_its_size_is_not_sent(client):
    """An agent does not read it and cannot say which job it refuses: it would be sent until its time is up."""
    assert refusal(lambda: client.submit("edge-01", prompt="x" * PAYLOAD_BYTES_MAX)).code is Code.PAYLOAD_TOO_LARGE


ODD_VALUES = [
    None,
    True,
    0,
    -1,
    70_000,
    2**40,
    0.5,
    float("nan"),
    "",
    "\ud800",
    "a\0b",
    "ü",
    "x" * 70_000,
    b"",
    b"\xff",
]
ODD_VALUES += [[], [5], [b""], ["a\0b"], {}, object(), "/nowhere"]
ODD = pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: ascii(value)[:12])


def fault(act):
    """Return what an act is refused with, None when it is not; anything but an error of ours fails the test."""
    try:
        act()
    except EdgeAgentError as error:
        return error
    return None


@ODD
@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(Access)])
def test_an_access_that_cannot_be_is_refused_and_any_other_can_be_started(field, value):
    """What paho cannot send ended its thread, and nobody was told."""
    access = dataclasses.replace(NOBODY, **{field: value})

    def start():
        EdgeClient(access, name="me")._link._aim()

    error = fault(start)
    assert error is None or (error.code is Code.BAD_REQUEST and error.message.startswith(field))


@ODD
@pytest.mark.parametrize("argument", ["access", "name", "root"])
def test_what_a_client_cannot_be_made_of_is_refused(argument, value):
    error = fault(lambda: EdgeClient(**{"access": NOBODY} | {argument: value}))
    assert error is None or (error.code is Code.BAD_REQUEST and error.message.startswith(f"{argument}: "))
    assert error is not None or (argument, value) in {("name", None), ("root", "a")}


@ODD
@pytest.mark.parametrize("argument", ["agent", "pool", "images", "prompt", "messages", "ttl_s", "priority", "promt"])
def test_what_no_job_can_have_is_refused(client, argument, value):
    with suppress(FileNotFoundError):
        error = fault(lambda: client.submit(**{"agent": "edge-01", "prompt": "x"} | {argument: value}))
        assert error is None or error.code is Code.BAD_REQUEST


@pytest.mark.parametrize("images", ["photo.jpg", b"\xff\xd8", 5, [b""], [5], ["a\0b"]])
def test_images_that_are_no_list_of_images_are_refused(client, images):
    """The letters of a path were taken for paths; what is empty no agent takes."""
    assert refusal(lambda: client.submit("edge-01", prompt="x", images=images)).message.startswith("images")


@pytest.mark.parametrize(
    "messages",
    [
        lambda: [{"role": "user", "content": "x"}],
        lambda: ({"role": "user", "content": "x"},),
        lambda: (message for message in [{"role": "user", "content": "x"}]),
        lambda: [Message(role="user", content="x")],
    ],
    ids=["list", "tuple", "generator", "model"],
)
def test_images_are_sent_however_messages_are_given(client, messages):
    """They were left out beside what was no list of dicts."""
    assert len(client.submit("edge-01", messages=messages(), images=[PICTURE]).request.images) == 1


def test_a_session_belongs_to_one_client_at_a_time(tmp_path):
    file = str(tmp_path / "session")
    first, second = EdgeClient(NOBODY, session_file=file), EdgeClient(NOBODY, session_file=file)
    with first:
        assert "another client uses it" in refusal(second.__enter__).message
    with second:
        second.submit("edge-01", prompt="x")
    assert refusal(second.__enter__).code is Code.BAD_REQUEST


def test_a_refusal_tells_when_to_try_again_and_updates_end_more_than_once():
    handle = Awaited("job")
    handle.finish(None, EdgeAgentError(Code.QUEUE_FULL, "full", retry_after_s=5.0))
    for _ in range(2):
        assert refusal(lambda: list(handle.updates(timeout_s=PATIENCE_S))).retry_after_s == 5.0


def test_outside_of_its_block_nothing_is_taken_that_would_be_waited_for_in_vain():
    client = EdgeClient(NOBODY)

    def refuses():
        assert refusal(lambda: client.submit("edge-01", prompt="x")).code is Code.SHUTTING_DOWN
        assert refusal(lambda: client.admin("edge-01", "load", "phi")).code is Code.SHUTTING_DOWN
        assert refusal(lambda: client.wait_connected(PATIENCE_S)).code is Code.SHUTTING_DOWN

    refuses()
    with client:
        open_still = client.submit("edge-01", prompt="x")
    refuses()
    assert refusal(lambda: open_still.result(PATIENCE_S)).code is Code.SHUTTING_DOWN


def test_a_forked_child_is_told_to_open_its_own():
    """The threads of the client stay in its parent."""
    program = f"""
import os
from edge_agent.base.errors import EdgeAgentError
from edge_agent.client.client import EdgeClient
from edge_agent.mqtt.access import Access
with EdgeClient(Access("127.0.0.1", 9, client_id="me")) as client:
    if (child := os.fork()) == 0:
        try:
            client.submit("edge-01", prompt="x").result({PATIENCE_S})
        except EdgeAgentError as error:
            os._exit(7 if error.code == "shutting_down" else 1)
        os._exit(1)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60, check=False).returncode == 7


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whoever_waits_is_told_when_the_clients_own_thread_fails():
    client = EdgeClient(NOBODY)
    with client:
        handle = client.submit("edge-01", prompt="x")
        client._notes.put(refusal)  # taken as nothing
        client._jobs.chase = None
        assert refusal(lambda: handle.result(PATIENCE_S)).code is Code.SHUTTING_DOWN
        assert refusal(lambda: client.submit("edge-01", prompt="x")).code is Code.SHUTTING_DOWN
