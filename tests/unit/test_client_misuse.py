"""What a program does wrong with EdgeClient is said to it at once, in an error of ours; nobody waits for ever."""

import subprocess
import sys

import pytest
from fakes import PATIENCE_S
from hypothesis import example, given
from hypothesis import strategies as st

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.client.client import EdgeClient
from edge_agent.mqtt.access import Access
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


def test_outside_of_its_block_nothing_is_taken_that_would_be_waited_for_in_vain():
    client = EdgeClient(NOBODY)

    def refuses():
        assert refusal(lambda: client.submit("edge-01", prompt="x")).code is Code.SHUTTING_DOWN
        assert refusal(lambda: client.admin("edge-01", "load", "phi")).code is Code.SHUTTING_DOWN

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
