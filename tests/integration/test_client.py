"""What a program may rely on when it sends jobs through EdgeClient."""

import pytest
from running import PATIENCE_S, requester, wait_for

from edge_agent.base.errors import Code
from edge_agent.client import client as client_module
from edge_agent.client.handle import JobRejectedError

pytestmark = pytest.mark.broker


def test_an_id_that_is_open_already_is_refused_and_its_first_handle_goes_on(broker):
    """Two handles of one id would both wait for the one result, and only one would get it."""
    with requester(broker) as client:
        first = client.submit("edge-01", job_id="a-1", prompt="How is the pump?")
        second = client.submit("edge-01", job_id="a-1", prompt="How is the pump?")
        with pytest.raises(JobRejectedError) as caught:
            second.result(PATIENCE_S)
        assert caught.value.code is Code.DUPLICATE_ID
        assert not first.done
        assert first.job_id in {name for _, name in client._jobs._open}


def test_a_job_nobody_accepts_ends_with_its_time_to_live(broker, monkeypatch):
    monkeypatch.setattr("edge_agent.client.placement.LAST_WORD_S", 0.5)
    with requester(broker) as client:
        handle = client.submit("nobody", prompt="Is anybody there?", ttl_s=1)
        with pytest.raises(JobRejectedError, match="no agent accepted") as caught:
            handle.result(PATIENCE_S)
        assert caught.value.code is Code.EXPIRED
        assert handle.unheard


def test_a_refusal_of_the_broker_that_comes_late_hurts_nothing(broker):
    """The client goes on when the broker refuses a message of a job that has ended meanwhile."""
    with requester(broker) as client:
        ended = client.submit("nobody", prompt="Hello", ttl_s=600)
        wait_for(lambda: client._jobs._open, "the job to be open")
        job = next(iter(client._jobs._open.values()))
        client._notes.put(client_module._JobCancelled(ended))
        client._jobs._asked[65_000] = job
        ended.finish(None, JobRejectedError(Code.CANCELED, "ended"))
        client._notes.put(client_module._RequestAnswered(65_000, 0x87))
        wait_for(lambda: 65_000 not in client._jobs._asked, "the answer to be taken")
        assert client._thread.is_alive()
