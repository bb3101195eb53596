"""The log has every job's way: one line when it is accepted, one when it has ended, whoever ended it."""

import pytest
from fakes import ANSWER, ENGINE_DIED, Time, request
from structlog.testing import capture_logs

from edge_agent.jobs import chronicle
from edge_agent.jobs.job import Destination, JobState
from edge_agent.jobs.queue import Envelope
from edge_agent.jobs.request import Attached

SECRET = "S3CRET"


def accept(queue, job_id="job-1", **more):
    images = more.pop("here", None)
    asked = request(job_id, prompt=SECRET)
    envelope = Envelope("line-3", 60.0, **more)
    return queue.accept(asked, envelope, model="phi", attached=images and Attached(asked, images))


def expired(queue, machine):
    accept(queue)
    machine.pass_s(61)
    queue.expire()


def expired_while_it_waited_for_images(queue, machine):
    accept(queue, here={"a" * 64: False})
    machine.pass_s(61)
    queue.expire()


def canceled(queue, _machine):
    accept(queue)
    queue.cancel("line-3", "job-1")


def canceled_before_it_came(queue, _machine):
    queue.cancel("line-3", "job-1")
    accept(queue)


def superseded(queue, _machine):
    accept(queue, source="a/b", answer=Destination(topic="c", qos=0, retain=False, format="text"))
    queue.supersede("line-3", "a/b", keep=0)


def given_up(queue, _machine):
    queue.give_up(accept(queue), ENGINE_DIED)


def disowned(queue, _machine):
    accept(queue)
    queue.disown([], ENGINE_DIED)


def answered(queue, _machine):
    accept(queue)
    queue.end(queue.claim("phi", idle=True), JobState.SUCCEEDED, ANSWER)


def bereaved(queue, machine):
    accept(queue)
    for _ in range(9):
        machine.pass_s(61 / 9)
        queue.release()
        if job := queue.claim("phi", idle=True):
            queue.engine_lost([job], ENGINE_DIED, at_once=True)


WAYS = {
    expired: ("expired", "expired"),
    expired_while_it_waited_for_images: ("expired", "image_missing"),
    canceled: ("canceled", "canceled"),
    canceled_before_it_came: ("canceled", "canceled"),
    superseded: ("canceled", "canceled"),
    given_up: ("failed", "engine_died"),
    disowned: ("failed", "engine_died"),
    answered: ("succeeded", None),
    bereaved: ("failed", "engine_died"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_job_has_one_line_when_it_is_accepted_and_one_when_it_has_ended(tmp_path, way):
    machine = Time()
    with machine.queue(tmp_path) as queue, capture_logs() as said:
        with queue.transaction() as changes:
            way(queue, machine)
        chronicle.note(changes)
    assert [each["event"] for each in said] == ["job.accepted", "job.ended"]
    accepted, ended = said
    assert (accepted["job_id"], accepted["client"], accepted["model"]) == ("job-1", "line-3", "phi")
    assert (ended["job_id"], ended["client"], ended["row"]) == ("job-1", "line-3", accepted["row"])
    assert (ended["state"], ended["code"]) == WAYS[way]
    assert SECRET not in str(said)
