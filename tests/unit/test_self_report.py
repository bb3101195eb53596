"""What an agent says of itself to pools: what it does not get to watch is no job of theirs."""

from types import SimpleNamespace as Stand

import pytest

from edge_agent.agent.self_report import SelfReport
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.phase import Phase


@pytest.mark.parametrize(("trouble", "health"), [(None, "ready"), ("not authorized", "degraded")])
def test_a_watching_connection_that_is_refused_is_said_and_costs_no_pool(trouble, health):
    engine = EngineStatus("phi", "onnx", Phase.READY, reason="", starts=1)
    account = SelfReport(
        Stand(
            beats=(),
            http=None,
            engines=Stand(statuses=lambda: [engine]),
            restraint=Stand(reasons=(), in_pools=True),
            store=Stand(trouble=None),
            queue=Stand(clock=Stand(doubt="")),
            announcer=Stand(duplicate=""),
            pools=Stand(reasons=()),
            link=Stand(connected=True, lacks=frozenset()),
            watch_link=Stand(trouble=trouble),
        )
    )
    assert account.condition().health == health
    assert account.welcoming()
