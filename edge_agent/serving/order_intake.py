"""An administrator's orders as they come over MQTT, and what is told of them."""

from collections.abc import Callable, Collection
from functools import partial

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.signal import Signal
from edge_agent.jobs.job import Failure
from edge_agent.jobs.store import Operation, Store
from edge_agent.protocol.decode import printable
from edge_agent.protocol.messages import (
    RESULT_EXPIRY_S,
    STATUS_EXPIRY_S,
    Inbound,
    Publication,
    check_properties,
    decode_order,
    echoed,
    loggable,
    readable_op_id,
)
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus
from edge_agent.protocol.topics import CLIENT, MISNAMED, Asked, Topics, answerable
from edge_agent.serving.strangers import Strangers

SUBJECT = "model"
"""The level of the topic that says what is administered."""

Report = OrderStatus | OrderResult
Take = Callable[[str, ModelOrder, Callable[[Report], None]], Report]
"""See `orders.Orders.take`."""


class OrderIntake:
    """Takes orders. `receive` may be called from the network thread.

    `allow` are the names that may give orders; everybody whom the broker lets when it is empty.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        strangers: Strangers,
        store: Store,
        allow: Collection[str],
        take: Take,
    ) -> None:
        self._topics = topics
        self._strangers = strangers
        self._store = store
        self._allow = allow
        self._take = take
        self.on_said: Signal[Publication] = Signal()

    def receive(self, inbound: Inbound, acknowledge: Callable[[], None]) -> None:
        """Line an order up to be taken and then acknowledged, in the order of arrival; returns at once."""

        def then(_outcome: object) -> None:
            self._hear(inbound)
            acknowledge()

        self._store.put(Operation(lambda _queue: None, then, refuse=then))

    def _hear(self, inbound: Inbound) -> None:
        asked = self._topics.parse_admin(inbound.topic)
        if asked is None or not answerable(asked.client):
            self._strangers.note(inbound.topic, MISNAMED)
            return  # there is nobody to answer
        tell = partial(self._tell, asked.client, echoed(inbound))
        try:
            self._take(asked.client, self._order(asked, inbound), tell)
        except EdgeAgentError as error:
            op_id = readable_op_id(inbound.payload)
            reason = loggable(error.message)
            client = printable(asked.client)
            self._strangers.rejected("order.rejected", client, op_id=op_id, code=error.code, reason=reason)
            tell(OrderResult(agent=self._topics.agent, op_id=op_id, state="rejected", error=Failure.of(error)))

    def _order(self, asked: Asked, inbound: Inbound) -> ModelOrder:
        if not CLIENT.match(asked.client):
            self._strangers.note(inbound.topic, MISNAMED)
            raise EdgeAgentError(Code.BAD_REQUEST, MISNAMED)
        check_properties(inbound, inbox=self._topics.inbox_root(asked.client))
        if self._allow and asked.client not in self._allow:
            raise EdgeAgentError(Code.NOT_ALLOWED, "this agent takes orders of named administrators only")
        if asked.command != SUBJECT:
            raise EdgeAgentError(Code.UNSUPPORTED, f"the topic names nothing to administer; there is: {SUBJECT}")
        return decode_order(inbound.payload)

    def _tell(self, client: str, inbound: Inbound, report: Report) -> None:
        over = isinstance(report, OrderResult)
        self.on_said(
            Publication(
                self._topics.inbox(client, report.op_id, "result" if over else "status"),
                report.encode(),
                qos=1,
                expiry_s=RESULT_EXPIRY_S if over else STATUS_EXPIRY_S,
                correlation=inbound.correlation,
                traceparent=inbound.traceparent,
            )
        )
