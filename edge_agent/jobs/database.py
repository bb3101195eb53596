"""The queue's file: opened, checked, brought up to date, changed in transactions. All of SQLite."""

import dataclasses
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from edge_agent.base.errors import Code
from edge_agent.jobs.job import Destination, Failure, Job, JobState, Outcome, Prepared, sources
from edge_agent.jobs.request import StoredRequest

SCHEMA_VERSION = 5
SCRIPTS = resources.files(__package__)
"""Where `schema.sql`, `queries.sql` and, one per later version, `migrate_VERSION.sql` lie."""


class SchemaTooNewError(Exception):
    """The database was written by a newer version; the message says what to do."""


class DamagedError(Exception):
    """The database file is damaged."""


class StorageError(Exception):
    """The file cannot be read or written at the moment, and nothing of the transaction happened. Worth another try.

    `trouble` and `mend` say for people what is wrong and what to do.
    """

    trouble = "the disk cannot be written"
    mend = "mend the disk, or the rights of the state folder"


class DiskFullError(StorageError):
    """The disk is full."""

    trouble = "the disk is full"
    mend = "free disk space"


class UnreadableError(StorageError):
    """The disk does not give what it holds; a plug, a cable or a driver may be at fault, and the queue be whole."""

    trouble = "the disk cannot be read"
    mend = "mend the disk; move queue.db away when it is lost, to begin with an empty queue"


class LockedError(StorageError):
    """Another program holds the file's lock."""

    trouble = "another program holds the lock of the queue"
    mend = "let the backup or the sqlite3 that has queue.db open come to its end"


def _load_queries() -> dict[str, str]:
    names = [field.name for field in dataclasses.fields(Job)]
    columns = ", ".join(names)
    # Without what may be long, and is nobody's business in a list.
    brief = ", ".join(
        {"request": "NULL", "outcome": "json_remove(outcome, '$.text')"}.get(name, name) for name in names
    )
    to_queued = ", ".join(f"'{state}'" for state in sources(JobState.QUEUED))
    erased = (
        "request = NULL, metadata = '{}', images = NULL, outcome = iif(coalesce(outcome ->> 'text', '') = '', outcome, "
    )
    erased += "json_set(outcome, '$.text', '', '$.text_truncated', json('true')))"
    text = SCRIPTS.joinpath("queries.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {
        name: sql.strip().format(job=columns, brief=brief, to_queued=to_queued, erased=erased) for name, sql in pairs
    }


SQL = _load_queries()

BUSY_S = 1.0
"""How long a statement waits for another program's lock. Its owner has other things to say meanwhile."""
_PASSING: dict[int, type[StorageError]] = {
    sqlite3.SQLITE_FULL: DiskFullError,
    sqlite3.SQLITE_BUSY: LockedError,
    sqlite3.SQLITE_LOCKED: LockedError,
    sqlite3.SQLITE_PROTOCOL: LockedError,
    sqlite3.SQLITE_READONLY: StorageError,
    sqlite3.SQLITE_IOERR: StorageError,
    sqlite3.SQLITE_IOERR_CORRUPTFS: UnreadableError,  # EIO and the like, when it reads
    sqlite3.SQLITE_CANTOPEN: StorageError,
    sqlite3.SQLITE_PERM: StorageError,
}
LOG_BYTES = 4 * 2**20
"""What the log keeps of the disk when it is begun anew, however long a transaction made it."""
ERASING = frozenset({"remove", "erase", "erase_oldest", "forget", "forget_oldest", "prune_age"})
"""The statements that delete text."""
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_DATA})
"""What time does not mend. By their full codes or the first byte of them, see https://sqlite.org/rescode.html."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn what SQLite and the disk say into StorageError or DamagedError; all else is our own fault and crashes."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if {code, code & 0xFF} & _DAMAGE:
            raise DamagedError(str(error)) from error
        if (passing := _PASSING.get(code) or _PASSING.get(code & 0xFF)) is not None:
            raise passing(str(error)) from error
        raise
    except OSError as error:
        raise StorageError(error.strerror or type(error).__name__) from error


def job_of(row: Sequence[Any]) -> Job:
    """Return the job of a row that has its columns."""
    columns: Iterable[Any] = (
        value if value is None or read is None else read(value) for read, value in zip(_READ, row, strict=True)
    )
    return Job(*columns)


def _kept(kind: Any, lost: Any) -> Callable[[str], Any]:
    """Return what reads a value from JSON; `lost` stands for one that another version of the agent wrote otherwise."""
    validate = TypeAdapter(kind).validate_json

    def read(text: str) -> Any:
        try:
            return validate(text, extra="ignore")
        except ValidationError:
            return lost

    return read


_UNREADABLE = Failure.because(
    Code.INTERNAL, "another version of the agent wrote the result, which this one cannot read"
)
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "state": JobState,
    "alone": bool,
    "cancel_requested": bool,
    "stream": bool,
    "unprepared": bool,
    "request": StoredRequest,
    "outcome": _kept(Outcome, Outcome(error=_UNREADABLE)),
    "metadata": partial(from_json, cache_strings="keys"),
    "images": _kept(tuple[Prepared, ...], None),  # the next start decodes what an unfinished job needs
    "answer": _kept(Destination, None),
}
_READ = tuple(_READERS.get(field.name) for field in dataclasses.fields(Job))
"""What makes a job's field of its column, in their order; None for those that are the same."""


def as_json(value: Any) -> str | None:
    """Return what a column keeps of a value that Job has as a type."""
    return None if value is None else to_json(value, exclude_none=True, by_alias=True).decode()


class Database:
    """The statements of `queries.sql`, by name. One owner at a time; opened and closed by another thread than used.

    Opening creates the file or brings its schema up to date. Raises SchemaTooNewError, DamagedError or StorageError.
    The log is emptied into the file by `Leftovers` alone. `erased`: text was deleted whose bytes may lie in the log.
    """

    def __init__(self, file: Path) -> None:
        self._changes: list[Job] = []
        self.erased = False
        with translated():
            self.connection = sqlite3.connect(
                file, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            try:
                self._open()
            except BaseException:
                self.connection.close()
                raise

    def _open(self) -> None:
        if self.connection.execute("PRAGMA page_count").fetchone() == (0,):  # later it would need the lock
            self.connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("PRAGMA secure_delete = ON")
        self.connection.execute("PRAGMA cache_size = -2048")
        self.connection.execute("PRAGMA temp_store = MEMORY")  # no text in files of which nobody knows
        self.connection.execute("PRAGMA wal_autocheckpoint = 0")
        self.connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        (found,) = self.connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise DamagedError(found)
        self.page_bytes = int(self.connection.execute("PRAGMA page_size").fetchone()[0])
        self._migrate()

    def _migrate(self) -> None:
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise SchemaTooNewError(
                f"the queue has schema version {version}, this program knows {SCHEMA_VERSION}; "
                "install the newer program again, or move the file away to begin with an empty queue"
            )
        while version < SCHEMA_VERSION:
            name = "schema.sql" if version == 0 else f"migrate_{version + 1}.sql"
            script = SCRIPTS.joinpath(name).read_text(encoding="utf-8")
            version = SCHEMA_VERSION if version == 0 else version + 1
            self.connection.executescript(f"BEGIN IMMEDIATE;\n{script}\n; PRAGMA user_version = {version}; COMMIT;")

    @property
    def reusable_bytes(self) -> int:
        """What of the file is free for new rows."""
        (pages,) = self.connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages) * self.page_bytes

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[list[Job]]:
        """Commit everything done inside at once, or nothing of it.

        Yields the list of changed rows, complete when the block has ended. Raises StorageError, DamagedError.
        """
        self._changes = []
        with translated():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._changes
                self.connection.execute("COMMIT")
            except BaseException:
                self.erased = True  # what was written may stand in the log, and shall not
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def unhindered(self) -> Iterator[Callable[[str], Any]]:
        """Give what asks SQLite for one row, outside a transaction; another program's lock is an error at once.

        Raises StorageError, DamagedError.
        """
        with translated():
            (patience_ms,) = self.connection.execute("PRAGMA busy_timeout").fetchone()
            self.connection.execute("PRAGMA busy_timeout = 0")
            try:
                yield lambda sql: self.connection.execute(sql).fetchone()
            finally:
                self.connection.execute(f"PRAGMA busy_timeout = {patience_ms}")

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """In a transaction: nothing of what is done inside stays when it raises."""
        changed = len(self._changes)
        self.connection.execute("SAVEPOINT attempt")
        try:
            yield
        except BaseException:
            del self._changes[changed:]
            if self.connection.in_transaction:  # a full disk may have undone all of it
                self.connection.execute("ROLLBACK TO attempt")
                self.connection.execute("RELEASE attempt")
            raise
        self.connection.execute("RELEASE attempt")

    def row(self, name: str, **arguments: Any) -> Any:
        """Return the first row a statement gives; None when it gives none."""
        found = self.connection.execute(SQL[name], arguments).fetchone()
        self._note(name, changed=found is not None)
        return found

    def rows(self, name: str, **arguments: Any) -> list[Any]:
        """Return all rows a statement gives."""
        return self.connection.execute(SQL[name], arguments).fetchall()

    def run(self, name: str, **arguments: Any) -> int:
        """Return how many rows a statement changed."""
        changed = self.connection.execute(SQL[name], arguments).rowcount
        self._note(name, changed=changed > 0)
        return changed

    def _note(self, name: str, *, changed: bool) -> None:
        self.erased = self.erased or (changed and name in ERASING)

    def run_each(self, name: str, each: Iterable[Mapping[str, Any]]) -> None:
        """Run a statement once for each of the arguments."""
        self.connection.executemany(SQL[name], each)

    def job(self, name: str, **arguments: Any) -> Job | None:
        """Return the first job a statement gives."""
        row = self.row(name, **arguments)
        return None if row is None else job_of(row)

    def jobs(self, name: str, **arguments: Any) -> list[Job]:
        """Return all jobs a statement gives."""
        return [job_of(row) for row in self.rows(name, **arguments)]

    def change(self, name: str, **arguments: Any) -> list[Job]:
        """Return the jobs a statement changed, all of them; everybody is told of them."""
        changed = self.jobs(name, **arguments)
        self._changes += changed
        return changed
