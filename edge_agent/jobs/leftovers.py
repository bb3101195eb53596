"""What SQLite leaves of erased text in its files, and how it is removed.

`secure_delete` overwrites what is deleted. Two places keep copies all the same: the log (`queue.db-wal`), until it is
written over; and the gap in the middle of a page. SQLite leaves there the old bytes of cells that it moved to another
page (`rebuildPage` in its btree.c). Nobody can ask it to overwrite those, so we do: the bytes of a gap mean nothing to
anybody, and while we hold the write lock and everything of the log is in the file, nobody else writes there.

Formats: https://sqlite.org/walformat.html and https://sqlite.org/fileformat2.html.
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from edge_agent.jobs.database import Database, LockedError, StorageError

LOG_PAGES = 1000
"""At so many pages the log is emptied into the file, as SQLite would do by itself."""
FREE_BYTES = 4 * 2**20
"""What of the file may lie free for the next jobs before it is given back to the disk."""
GIVEN_BYTES = 8 * 2**20
"""What is given back at once."""
REWRITTEN_BYTES = 32 * 2**20
"""How much there may be in a file of an earlier version that is written anew: SQLite makes it in memory first."""
SCAN_BYTES = 2**20
_LOG_HEADER_BYTES, _FRAME_HEADER_BYTES, _SALT = 32, 24, slice(8, 16)
_LOG_SALT = slice(16, 24)
INCREMENTAL = 2
_TABLE_LEAF, _PAGE_HEADER_BYTES = 0x0D, 8


class Leftovers:
    """The old bytes in the files of a database. Belongs to its owner; `close` it after the database.

    Raises StorageError when the file cannot be opened.
    """

    def __init__(self, database: Database, file: Path) -> None:
        self._db = database
        self._log = file.with_name(f"{file.name}-wal")
        self._page_bytes = database.page_bytes
        self._frame_bytes = _FRAME_HEADER_BYTES + self._page_bytes
        # Never closed before the database: the kernel would drop SQLite's locks on the file, see fcntl_locking(2).
        try:
            self._file = file.open("r+b", buffering=0)
        except OSError as error:
            raise StorageError(error.strerror) from error
        self._pages: set[int] = set()
        self._scan = True
        # A file that version 0.1.0 made gives nothing back before it is written anew.
        self._gives_back = database.connection.execute("PRAGMA auto_vacuum").fetchone() == (INCREMENTAL,)

    @property
    def pending(self) -> bool:
        """Whether something was erased, or nobody has looked yet what an earlier life left."""
        return self._scan or self._db.erased

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @property
    def long(self) -> bool:
        """Whether the log has grown to where it is to be emptied."""
        try:
            log = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            last = os.pread(log, _FRAME_HEADER_BYTES, self._frame(LOG_PAGES - 1))
            return last[_SALT] == os.pread(log, _LOG_HEADER_BYTES, 0)[_LOG_SALT] != b""
        finally:
            os.close(log)

    def clear(self, *, truncate: bool) -> StorageError | None:
        """Empty the log into the file, cut it to nothing if asked to, and overwrite the gaps of the pages it held.

        Costs two syncs. Returns what kept us from it: another program that reads or writes the database, or the disk.
        """
        try:
            self._pages |= self._logged()
            with self._db.unhindered() as ask:
                (version,) = ask("PRAGMA data_version")
                mode = "TRUNCATE" if truncate else "PASSIVE"
                busy, logged, emptied = ask(f"PRAGMA wal_checkpoint({mode})")
                if busy or logged != emptied:
                    return LockedError("another program reads the queue, or writes to it")
                ask("BEGIN IMMEDIATE")
                try:
                    if ask("PRAGMA data_version") != (version,):  # somebody wrote meanwhile
                        return LockedError("another program writes to the queue")
                    self._overwrite(self._everything() if self._scan else sorted(self._pages))
                finally:
                    ask("ROLLBACK")
        except StorageError as error:
            return error
        except OSError as error:
            return StorageError(error.strerror)
        self._pages.clear()
        self._scan = False
        if truncate:
            self._db.erased = False
        return None

    @property
    def surplus(self) -> bool:
        """Whether so much of the file is free that some of it is given back to the disk, if that can be done now."""
        free_bytes, used_bytes = self._room()
        if free_bytes <= max(FREE_BYTES, used_bytes // 4):
            return False
        return self._gives_back or self._may_rewrite(free_bytes, used_bytes)

    def give_back(self) -> StorageError | None:
        """Give some of what is free in the file back to the disk; the file is cut when it is cleared next.

        Returns what kept us from it.
        """
        try:
            with self._db.unhindered() as ask:
                if self._gives_back:
                    self._db.connection.executescript(f"PRAGMA incremental_vacuum({GIVEN_BYTES // self._page_bytes})")
                else:
                    ask("PRAGMA auto_vacuum = INCREMENTAL")
                    ask("VACUUM")
                    (mode,) = ask("PRAGMA auto_vacuum")
                    self._gives_back = mode == INCREMENTAL
        except StorageError as error:
            return error
        self._db.erased = True
        return None

    def settle(self) -> StorageError | None:
        """Clear, and give back all that can be; for when no agent does so by and by."""
        error = self.clear(truncate=True)
        while error is None and self.surplus:
            error = self.give_back() or self.clear(truncate=True)
        return error

    def _room(self) -> tuple[int, int]:
        """Return how many bytes of the file are free, and how many are used."""
        (pages,) = self._db.connection.execute("PRAGMA page_count").fetchone()
        free_bytes = self._db.reusable_bytes
        return free_bytes, pages * self._page_bytes - free_bytes

    def _may_rewrite(self, free_bytes: int, used_bytes: int) -> bool:
        """Return whether a file of an earlier version can be written anew: mostly free, and room for it twice."""
        stat = os.fstatvfs(self._file.fileno())
        room = stat.f_bavail * stat.f_frsize > 2 * used_bytes + FREE_BYTES
        return room and used_bytes <= min(free_bytes, REWRITTEN_BYTES)

    def _frame(self, number: int) -> int:
        return _LOG_HEADER_BYTES + number * self._frame_bytes

    def _logged(self) -> set[int]:
        """Return the numbers of the pages in the log, those before its last restart that are still there too."""
        try:
            log = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return set()
        try:
            frames = max(0, os.fstat(log).st_size - _LOG_HEADER_BYTES) // self._frame_bytes
            return {int.from_bytes(os.pread(log, 4, self._frame(frame)), "big") for frame in range(frames)}
        finally:
            os.close(log)

    def _everything(self) -> Iterable[int]:
        """Return the numbers of all pages that may be leaves of a table."""
        pages = SCAN_BYTES // self._page_bytes
        at = 0
        while piece := os.pread(self._file.fileno(), pages * self._page_bytes, at * self._page_bytes):
            kinds = piece[:: self._page_bytes]
            yield from (at + number + 1 for number, kind in enumerate(kinds) if kind == _TABLE_LEAF)
            at += pages

    def _overwrite(self, pages: Iterable[int]) -> None:
        """Overwrite the gap of each of these pages that is a leaf of a table; others hold no text in theirs.

        The first byte tells: a page that continues a long text begins with the upper byte of a page number, 0 up to
        64 GB.
        """
        file = self._file.fileno()
        for number in pages:
            at = (number - 1) * self._page_bytes
            page = os.pread(file, self._page_bytes, at)
            if number == 1 or len(page) < self._page_bytes or page[0] != _TABLE_LEAF:
                continue
            cells, end = struct.unpack_from(">HH", page, 3)
            begin = _PAGE_HEADER_BYTES + 2 * cells
            if begin < end <= self._page_bytes and any(page[begin:end]):
                os.pwrite(file, bytes(end - begin), at + begin)
