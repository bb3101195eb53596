"""First chunk after first token: from the engine having the token to its chunk at a subscriber, in milliseconds.

The engine is the real one and computes on while its first token travels; only its text is replaced by the time it was
produced (see stamped/), on a clock that all processes of one machine share. Later chunks are held back up to 50 ms by
design, to share messages; they are reported apart.
"""

import json
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.mqtt.subscriptions import Subscription
from tests.bench.rig import arguments, model_folder, report, rig, spread
from tests.running import requester, wait_for

ROOT = Path(__file__).parents[2]
STAMPED = Path(__file__).with_name("stamped")


@contextmanager
def arrivals(broker, client: str):
    """Yield a list that gets each chunk's number and its delay in ms, from its first token to its arrival here."""
    delays: list[tuple[int, float]] = []
    ready = threading.Event()

    def receive(inbound, receipt) -> None:
        now_ns = time.monotonic_ns()
        chunk = json.loads(inbound.payload)
        delays.append((chunk["seq"], (now_ns - int(chunk["text"].split()[0])) / 1e6))
        link.ack(receipt)

    link = Link(
        Access(broker.host, broker.port, client_id="ears", clean_start=True),
        subscriptions=(Subscription(f"edge/v1/clients/{client}/inbox/+/+/chunk"),),
    )
    link.on_received.connect(receive)
    link.on_subscribed.connect(lambda _refused: ready.set())
    link.start()
    try:
        wait_for(ready.is_set, "the subscription")
        yield delays
    finally:
        link.stop()


def main() -> None:
    options = arguments(__doc__, model="tiny", jobs=200, tokens=16).parse_args()
    folder = model_folder(options.model)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(STAMPED), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with rig(folder, context_tokens=1024) as made:
        made.start()
        with requester(made.broker, "hurry") as client, arrivals(made.broker, "hurry") as delays:
            for number in range(options.jobs):
                client.submit("edge-01", prompt=f"Job {number}: go", max_tokens=options.tokens).result(300)
            wait_for(lambda: sum(seq == 0 for seq, _ in delays) >= options.jobs, "every first chunk")
    first = [delay_ms for seq, delay_ms in delays if seq == 0]
    later = [delay_ms for seq, delay_ms in delays if seq]
    figures = spread("first token → first chunk", first, "ms", at_most=20)
    if later:
        figures += spread("later token → its chunk", later, "ms")
    report(
        "First chunk after first token",
        figures,
        as_json=options.json,
        notes=[f"{folder}, {options.jobs} jobs one after the other, {options.tokens} tokens each"],
    )


if __name__ == "__main__":
    main()
