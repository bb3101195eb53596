"""How an engine is, in one word."""

from enum import StrEnum


class Phase(StrEnum):
    """How an engine is."""

    FETCHING = "fetching"
    """Its build is being chosen or fetched."""
    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    FAILED = "failed"
    """The model cannot be loaded as it is; tried again now and then, in case somebody mends it."""
    UNLOADED = "unloaded"
    """Not in memory, for now: nobody needs it, others have the room, or the machine must stay well."""
