"""Orders a program has given to agents, each followed until its end is known."""

from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.client.awaited import Awaited
from edge_agent.mqtt.link import QUOTA_EXCEEDED
from edge_agent.protocol.messages import Publication
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus
from edge_agent.protocol.topics import Topics

EXPIRY_S = 300
"""How long an order waits at the broker for an agent that is away; then it is given up."""
AGAIN_FIRST_S = 5.0
AGAIN_MOST_S = 60.0
"""An order nobody answered is given again after 5 s, then after twice as long each time."""
ASK_S = 30.0
"""An order that was taken is given again, and thereby asked after, when nothing was heard for so long."""
REFUSED = 0x80

Report = OrderStatus | OrderResult


class OrderHandle(Awaited[Report, OrderResult]):
    """An order on its way. Iterate over `updates()`, or wait for `result()`."""

    def __init__(self, agent: str, order: ModelOrder) -> None:
        super().__init__("order")
        self.agent = agent
        self.order = order


@dataclass(slots=True)
class _SentOrder:
    """An order whose end is not known. Times are monotonic seconds."""

    handle: OrderHandle
    ends_s: float
    next_s: float = 0.0
    tries: int = 0
    taken: bool = False
    throttled: bool = False
    """Whether the broker last said that it takes no more of us for now."""
    newest: Report | None = None


class OrderBook:
    """The open orders of one client; belongs to its thread. `publish` returns the message's id if it goes out."""

    def __init__(
        self,
        client: str,
        *,
        topics: Callable[[str], Topics],
        publish: Callable[[Publication], int | None],
        now_s: Callable[[], float],
    ) -> None:
        self._client = client
        self._topics = topics
        self._publish = publish
        self._now_s = now_s
        self._open: dict[tuple[str, str], _SentOrder] = {}
        self._sent: dict[int, tuple[str, str]] = {}

    def add(self, handle: OrderHandle) -> None:
        """Follow an order; of two handles of one id only one could hear its end, so the later is refused."""
        key = (handle.agent, handle.order.op_id)
        if key in self._open:
            sentence = "op_id: this client has the order open already; wait for its first handle, or take a new id"
            handle.finish(None, EdgeAgentError(Code.DUPLICATE_ID, sentence))
        else:
            self._open[key] = _SentOrder(handle, self._now_s() + EXPIRY_S)

    def close(self, error: EdgeAgentError) -> None:
        """Follow no order any longer."""
        for key in list(self._open):
            self._close(key, error=error)

    def chase(self, *, connected: bool) -> None:
        """Give orders, again if they were not answered, while there is a broker; give up those that nobody took."""
        now_s = self._now_s()
        for key, each in list(self._open.items()):
            if not each.taken and now_s >= each.ends_s:
                self._close(key, error=EdgeAgentError(Code.EXPIRED, _expired(each)))
            elif connected and now_s >= each.next_s:
                self._send(key, each, now_s)

    def owns(self, agent: str, name: str) -> bool:
        """Return whether a message is about one of these orders."""
        return (agent, name) in self._open

    def hear(self, agent: str, name: str, report: Report) -> None:
        """Take in what an agent tells of one of these orders."""
        key = (agent, name)
        each = self._open[key]
        each.taken, each.tries, each.next_s = True, 0, self._now_s() + ASK_S
        if isinstance(report, OrderResult) and report.state == "rejected":
            error = report.error
            refusal = EdgeAgentError(error.code, error.message) if error else EdgeAgentError(Code.INTERNAL, "refused")
            self._close(key, error=refusal)
            return
        if report != each.newest:
            each.newest = report
            each.handle.put(report)
        if isinstance(report, OrderResult):
            self._close(key, result=report)

    def answered(self, mid: int, reason: int) -> None:
        """Take in the broker's answer to a message."""
        key = self._sent.pop(mid, None)
        if key not in self._open:
            return
        each = self._open[key]
        each.throttled = reason == QUOTA_EXCEEDED
        if reason >= REFUSED and not each.throttled:
            sentence = f"the broker refuses orders of {self._client} for {key[0]} (reason {reason:#x}); mend its ACL"
            self._close(key, error=EdgeAgentError(Code.NOT_ALLOWED, sentence))

    def _send(self, key: tuple[str, str], each: _SentOrder, now_s: float) -> None:
        each.next_s = now_s + (ASK_S if each.taken else min(AGAIN_MOST_S, AGAIN_FIRST_S * 2**each.tries))
        each.tries += 1
        topic = self._topics(each.handle.agent).admin(self._client, "model")
        payload = each.handle.order.model_dump_json(exclude_none=True).encode()
        expiry_s = EXPIRY_S if each.taken else max(1, round(each.ends_s - now_s))
        mid = self._publish(Publication(topic, payload, qos=1, expiry_s=expiry_s))
        if mid is not None:
            self._sent[mid] = key

    def _close(
        self, key: tuple[str, str], *, result: OrderResult | None = None, error: EdgeAgentError | None = None
    ) -> None:
        self._open.pop(key).handle.finish(result, error)


def _expired(each: _SentOrder) -> str:
    if each.throttled:
        return f"the broker took no more of us within {EXPIRY_S} s (quota exceeded); send less, or raise its limit"
    return f"{each.handle.agent} did not answer within {EXPIRY_S} s"
