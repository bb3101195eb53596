"""The images that jobs of a queue need: which are here, and whose are to be decoded next."""

from collections.abc import Collection, Mapping

from pydantic_core import to_json

from edge_agent.jobs.clock import Clock
from edge_agent.jobs.database import Database, as_json
from edge_agent.jobs.job import Job, Prepared


class NeededImages:
    """Which image, known by its hash, which job needs."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock

    def add(self, job: Job, here: Mapping[str, bool]) -> None:
        """Note what a new job needs, and whether it is here."""
        each = ({"row": job.row, "sha256": sha256, "here": is_here} for sha256, is_here in here.items())
        self._db.run_each("need_image", each)

    def missing(self, job: Job) -> tuple[str, ...]:
        """Return the hashes of the images that a job waits for."""
        return tuple(sha256 for (sha256,) in self._db.rows("missing", row=job.row))

    def asked_for(self, client: str, sha256: str) -> bool | None:
        """Return whether a job of this client waits for images, this one among those it needs.

        False when all of that client's jobs that need it have it; None when none needs it.
        """
        (asked,) = self._db.row("asked_for", client=client, sha256=sha256)
        return None if asked is None else bool(asked)

    def awaiting(self, client: str, sha256: str) -> list[Job]:
        """Return the jobs of this client that wait for images, this one among those they need."""
        return self._db.jobs("awaiting", client=client, sha256=sha256)

    def held(self, client: str) -> set[str]:
        """Return the hashes of the images that the unfinished jobs of this client need."""
        return {sha256 for (sha256,) in self._db.rows("held_images", client=client)}

    def came(self, client: str, sha256: str) -> None:
        """Note that a client has sent an image; jobs of theirs that waited for no other are queued."""
        self._db.run("image_came", client=client, sha256=sha256)
        self._db.change("complete", client=client, sha256=sha256)

    def next_unprepared(self, model: str, *, ahead: int, passed: Collection[str] = ()) -> Job | None:
        """Return the first job of a model that is to be got ready, but for requesters who are `passed`.

        None while `ahead` decoded ones wait before it.
        """
        names = to_json(list(passed)).decode()
        return self._db.job("next_unprepared", model=model, now=self._clock.now_s(), ahead=ahead, passed=names)

    def prepared(self, job: Job, images: tuple[Prepared, ...] | None) -> bool:
        """Let a job be claimed, its images decoded, its guide tried; return False when it has ended meanwhile."""
        return self._db.row("prepared", row=job.row, images=as_json(images)) is not None

    def needed(self) -> tuple[frozenset[tuple[str, str]], frozenset[int]]:
        """Return whose image of which hash is needed, and the rows of the jobs that need them; forget others."""
        self._db.run("forget_images")
        images = frozenset((client, sha256) for client, sha256 in self._db.rows("needed_images"))
        return images, frozenset(row for (row,) in self._db.rows("jobs_with_images"))
