"""What waits to be published: of each lane in order, and the lanes in turn. PURE.

A lane is a requester's. One who has thousands of refusals to hear holds up nobody else's state by more than one of
them, and when there are too many it is theirs that are dropped.
"""

from collections import OrderedDict, deque
from collections.abc import Callable

from edge_agent.protocol.messages import Publication


class Rota:
    """`lane` says whose the messages on a topic are."""

    def __init__(self, lane: Callable[[str], str]) -> None:
        self._lane = lane
        self._lanes: OrderedDict[str, deque[Publication]] = OrderedDict()
        self._first: deque[Publication] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, publication: Publication, *, most: int) -> int:
        """Line a message up; return how many were dropped for it: the oldest of who has most."""
        self._lanes.setdefault(self._lane(publication.topic), deque()).append(publication)
        self._count += 1
        dropped = 0
        while self._count > most and self._lanes:
            self._pop(max(self._lanes, key=lambda name: len(self._lanes[name])))
            dropped += 1
        return dropped

    def next(self) -> Publication:
        """Take the message whose turn it is; there must be one."""
        if self._first:
            self._count -= 1
            return self._first.popleft()
        name = next(iter(self._lanes))
        publication = self._pop(name)
        if name in self._lanes:
            self._lanes.move_to_end(name)
        return publication

    def hurry(self, topic: str) -> bool:
        """Let those on one topic go before all others; return whether there are any."""
        name = self._lane(topic)
        waiting = self._lanes.pop(name, deque())
        self._first += (each for each in waiting if each.topic == topic)
        if others := deque(each for each in waiting if each.topic != topic):
            self._lanes[name] = others
        return any(each.topic == topic for each in self._first)

    def _pop(self, name: str) -> Publication:
        publication = self._lanes[name].popleft()
        if not self._lanes[name]:
            del self._lanes[name]
        self._count -= 1
        return publication
