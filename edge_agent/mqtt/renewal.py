"""Whether a password or certificate was renewed, so that the connection begins anew with it."""

from collections.abc import Callable

from edge_agent.base.log import get_logger
from edge_agent.mqtt.access import Access, CredentialError

RENEWAL_LOOK_S = 5.0
"""How often we look; a file counts as renewed when it was the same at two looks."""

log = get_logger()


class Renewal:
    """What the connection began with, and what lies there now."""

    def __init__(self, access: Access, *, now_s: Callable[[], float]) -> None:
        self._access = access
        self._now_s = now_s
        self._next_look_s = 0.0
        self._used = self._seen = self._unusable = access.files()

    def begin(self) -> None:
        """Note that a connection begins with what lies there now."""
        self._used = self._access.files()

    def due(self, *, connected: bool) -> bool:
        """Look, if it is time; return whether to connect anew. What cannot be used is said once, and waited out."""
        if self._now_s() < self._next_look_s:
            return False
        self._next_look_s = self._now_s() + RENEWAL_LOOK_S
        files = self._access.files()
        settled, self._seen = files == self._seen, files
        if not settled or not connected or files in (self._used, self._unusable):
            return False
        try:
            self._access.check()
        except CredentialError as error:
            self._unusable = files
            log.error("link.renewal_unusable", reason=str(error), next="the connection goes on with what it began with")
            return False
        log.info("link.renewing", reason="a password or certificate file has changed")
        return True
