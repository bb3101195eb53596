"""What an earlier version left at the broker: sessions under names that anybody can guess.

Messages wait in them that nobody may lose, and they go on to collect more. So each is taken once more, beside our own
connection: what waits there is taken in like all else (what came to both is known by its id), then it is ended.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from edge_agent.base.log import get_logger
from edge_agent.jobs.database import StorageError
from edge_agent.mqtt import session
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link, Receipt
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.messages import Inbound
from edge_agent.protocol.payloads import Presence

TRIES = 5
"""Connections for one session, in one life of the agent: whoever knows its name may throw us off it, again and again,
and so may our own connection, where the broker takes user names for client ids."""

Receive = Callable[[Inbound, Receipt], None]

log = get_logger()


def secret(folder: Path) -> str:
    """Return what our client ids are made with; it lies in the state folder. Raises StorageError.

    Where there was none an earlier version may have been, or nobody knows: that is noted, for `Former` to deal with.
    """
    file = folder / "session"
    try:
        if not file.exists():
            _note(folder).touch(mode=0o600)
        return session.kept(file)
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}") from error


class Former:
    """Empties and ends such sessions. `attend` belongs to the main thread.

    `sessions` are whom each one's messages go to, by client id. `presence` is our topic on which `boot_id` comes back:
    a broker delivers in order, so what comes after it is not from before our own connection.
    """

    def __init__(
        self, access: Access, *, folder: Path, sessions: Mapping[str, Receive], presence: str, boot_id: str
    ) -> None:
        self._note = _note(folder)
        self._presence = presence
        self._boot_id = boot_id
        self._emptied: set[str] = set()
        self._links: dict[str, Link] = {}
        if self._note.exists():
            self._links = {name: self._link(access, name, receive) for name, receive in sessions.items()}
        self._begun = False
        self._ready: dict[str, int] = {}
        self._settled: set[str] = set()

    @property
    def links(self) -> list[Link]:
        """The connections, while there are any."""
        return [*self._links.values()] if self._begun else []

    def attend(self, *, connection: int) -> None:
        """Begin once we are connected ourselves, by the `connection` of that number (0: none); end what is empty."""
        if connection and not self._begun:
            self._begun = True
            for link in self._links.values():
                link.start()
        for name, link in [*self._links.items()] if self._begun else []:
            link.attend()
            if link.connected and (name in self._emptied or not self._had(link)) and link.idle:
                # Looked at twice: where the broker takes user names for client ids it is our own session, and to take
                # it has thrown us off.
                if self._ready.setdefault(name, connection) != connection or not connection:
                    self._leave(name)
                elif name in self._settled:
                    self._end(name, link)
                self._settled.add(name)
            elif link.connections > TRIES:
                self._leave(name)

    def stop(self) -> None:
        """Leave what is left as it is, for the next start."""
        for link in self.links:
            link.stop()
        self._links.clear()

    def _link(self, access: Access, name: str, receive: Receive) -> Link:
        link = Link(
            replace(access, client_id=name, session="", clean_start=False),
            subscriptions=(Subscription(self._presence, retained="always"),),
            thread="mqtt-former",
            aloud=False,
        )
        link.on_received.connect(partial(self._hear, name, receive))
        return link

    @staticmethod
    def _had(link: Link) -> bool:
        return link.welcome is not None and link.welcome.resumed

    def _hear(self, name: str, receive: Receive, inbound: Inbound, receipt: Receipt) -> None:
        if inbound.topic != self._presence:
            receive(inbound, receipt)
            return
        if self._ours(inbound):
            self._emptied.add(name)
        receipt.acknowledge()

    def _ours(self, inbound: Inbound) -> bool:
        try:
            return Presence.model_validate_json(inbound.payload).boot_id == self._boot_id
        except ValidationError:
            return False

    def _leave(self, name: str) -> None:
        self._links.pop(name).stop()
        log.warning(
            "session.former_left",
            session=name,
            next="it is tried again after the next start; the broker must not take user names for client ids",
        )

    def _end(self, name: str, link: Link) -> None:
        link.stop(forget=True)
        del self._links[name]
        log.info("session.former_ended", session=name, found=self._had(link))
        if not self._links:
            with contextlib.suppress(OSError):  # on a disk that cannot be written now: the next start finds none again
                self._note.unlink(missing_ok=True)


def _note(folder: Path) -> Path:
    return folder / "session.former"
