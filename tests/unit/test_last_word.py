"""The last word that is heard on a topic is the newest, however often the link breaks."""

import random
import threading
from itertools import count

import pytest
from fakes import PATIENCE_S
from running import wait_for
from scripted import Scripted

from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.protocol.messages import Publication

TOPICS = ("inbox/a/status", "inbox/b/status", "evt/presence")
CUTS = 6


class Speaker:
    """Says ever newer things on some topics while there is a connection, on a thread of its own, as the outbox does."""

    def __init__(self, broker, chance):
        self._chance = chance
        self._numbers = count(1)
        self._stop = threading.Event()
        self.newest = {}
        self.link = Link(
            Access(broker.host, broker.port, client_id="edge-01", session_expiry_s=3600),
            subscriptions=(),
            chance=lambda: 0.0,
        )
        self._thread = threading.Thread(target=self._speak)

    def __enter__(self):
        self.link.start()
        self._thread.start()
        return self

    def __exit__(self, *_raised):
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self.link.stop()

    def _speak(self):
        while not self._stop.wait(0.001):
            if self.link.connected and len(self.link._client.unanswered) < 20:
                topic = self._chance.choice(TOPICS)
                number = next(self._numbers)
                self.newest[topic] = number
                self.link.publish(Publication(topic, b"%d" % number, qos=1))


@pytest.mark.parametrize("seed", range(3))
def test_on_every_connection_each_topic_goes_on_in_order(seed, monkeypatch):
    """Whenever it breaks, with whatever was answered: what is sent again comes before what was said after it."""
    monkeypatch.setattr("edge_agent.mqtt.redial.RETRY_MIN_S", 0.02)
    chance = random.Random(seed)
    with Scripted() as broker, Speaker(broker, chance) as speaker:
        for _ in range(CUTS):
            broker.confirms = chance.random() < 0.5
            for _ in range(chance.randrange(1, 12)):
                broker.heard.get(timeout=PATIENCE_S)
            number, broker.confirms = len(broker.visits), True
            broker.visits[-1].hang_up()
            wait_for(lambda number=number: broker.said[-1].connection > number, "the next connection")
        speaker._stop.set()
        speaker._thread.join(PATIENCE_S)
        wait_for(lambda: speaker.link.connected and not speaker.link._client.unanswered, "all to be answered")
        for topic in TOPICS:
            for visit in broker.visits:
                numbers = [
                    int(each.payload) for each in broker.said if (each.connection, each.topic) == (visit.number, topic)
                ]
                assert numbers == sorted(numbers), (seed, topic, visit.number)
            if topic in speaker.newest:
                assert int([each for each in broker.said if each.topic == topic][-1].payload) == speaker.newest[topic]
