"""How the agent is, as a table: what is known of its parts, what follows."""

from dataclasses import replace

import pytest

from edge_agent.base.errors import Code
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.phase import Phase
from edge_agent.health.condition import condition
from edge_agent.jobs.job import Failure, Fallback


def engine(phase, *, starts=1, model="phi"):
    return EngineStatus(model, "onnx", phase, reason="" if phase is Phase.READY else f"is {phase}", starts=starts)


READY = engine(Phase.READY)
BROKEN = Failure.because(Code.MODEL_ERROR, "it is damaged")
STANDS_IN = replace(READY, device="cpu", fallback=Fallback(variant="phi", backend="x", device="npu", reason="it hung"))


@pytest.mark.parametrize(
    ("seen", "health", "reason"),
    [
        ({}, "ready", None),
        ({"engines": [engine(Phase.DOWN, starts=0)]}, "starting", "phi: is down"),
        ({"engines": [engine(Phase.STARTING)]}, "starting", "phi: is starting"),
        ({"engines": [engine(Phase.FETCHING, starts=0)]}, "starting", "phi: is fetching"),
        ({"engines": [engine(Phase.STARTING, starts=2)]}, "degraded", "phi: is starting"),
        ({"engines": [engine(Phase.DOWN)]}, "degraded", "phi: is down"),
        ({"engines": [STANDS_IN]}, "degraded", "phi: runs on cpu in place of npu: it hung"),
        ({"engines": [replace(STANDS_IN, phase=Phase.DOWN, reason="is down")]}, "degraded", "phi: is down"),
        ({"engines": [engine(Phase.FAILED)]}, "unhealthy", "phi: is failed"),
        ({"engines": [replace(engine(Phase.STARTING, starts=2), failure=BROKEN)]}, "unhealthy", "phi: is starting"),
        ({"engines": [READY, engine(Phase.FAILED, model="vision")]}, "degraded", "vision: is failed"),
        ({"engines": []}, "unhealthy", "no model is served"),
        ({"storage": "the disk is full"}, "unhealthy", "the disk is full"),
        ({"duplicate": "another agent has this id"}, "degraded", "another agent has this id"),
        ({"deaf": ("edge/v1/x",)}, "degraded", "the broker refuses edge/v1/x"),
        ({"unwatched": ("cams/+",)}, "degraded", "the broker refuses the watched topic cams/+"),
        ({"blind": True}, "degraded", "watched topics have no connection"),
        ({"strained": ("heat: 78 °C",)}, "degraded", "heat: 78 °C"),
        (
            {"clock": "the clock shows 1970-01-01"},
            "degraded",
            "the clock shows 1970-01-01: set it, until then no time that the machine is off is counted",
        ),
        (
            {"engines": [engine(Phase.UNLOADED)], "strained": ("models unloaded: heat",)},
            "degraded",
            "models unloaded: heat",
        ),
        ({"engines": [engine(Phase.UNLOADED)]}, "ready", None),
        ({"engines": [READY, replace(engine(Phase.STARTING), planned=True)]}, "ready", None),
        ({"unserved": "cannot listen"}, "degraded", "metrics: cannot listen"),
        ({"stuck": ("store",)}, "unhealthy", "its thread store does not come back"),
        ({"stuck": ("store",), "draining": True}, "unhealthy", "its thread store does not come back"),
        ({"draining": True}, "draining", None),
        ({"draining": True, "storage": "the disk is full"}, "draining", "the disk is full"),
    ],
)
def test_the_worst_that_is_true_with_its_reason(seen, health, reason):
    found = condition(**{"engines": [READY], "draining": False, "storage": "", "duplicate": ""} | seen)
    assert (found.health, found.reasons) == (health, () if reason is None else (reason,))
