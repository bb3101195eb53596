-- Version 1. One row is one accepted job; the row is the state machine.
-- Times are seconds on the queue's own clock (see clock.py), which wall-clock changes do not move.

CREATE TABLE jobs (
    row              INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: engines know attempts by it
    client           TEXT    NOT NULL,
    job_id           TEXT    NOT NULL,
    digest           BLOB    NOT NULL,                   -- of the parsed request; outlives its text
    model            TEXT    NOT NULL,
    state            TEXT    NOT NULL,
    state_seq        INTEGER NOT NULL,
    attempt          INTEGER NOT NULL DEFAULT 0,
    strikes          INTEGER NOT NULL DEFAULT 0,
    max_attempts     INTEGER NOT NULL,
    alone            INTEGER NOT NULL DEFAULT 0,         -- an engine died with it and others: runs by itself now
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    stream           INTEGER NOT NULL,
    priority         INTEGER NOT NULL,
    rank             REAL    NOT NULL,                   -- accepted_s - priority * age step; smallest first
    accepted_s       REAL    NOT NULL,
    expires_s        REAL    NOT NULL,
    timeout_s        REAL    NOT NULL,
    claimed_s        REAL,
    finished_s       REAL,
    request          TEXT,
    request_bytes    INTEGER NOT NULL,
    outcome          TEXT,
    correlation      BLOB,
    traceparent      TEXT,
    metadata         TEXT    NOT NULL,
    deliver_s        REAL,                               -- when to publish the result next; NULL: not, or no more
    deliver_tries    INTEGER NOT NULL DEFAULT 0,
    UNIQUE (client, job_id)
) STRICT;

CREATE INDEX jobs_queued   ON jobs (model, rank)    WHERE state = 'queued';
CREATE INDEX jobs_waiting  ON jobs (row)            WHERE state = 'queued';
CREATE INDEX jobs_expiring ON jobs (expires_s)      WHERE state = 'queued';
CREATE INDEX jobs_running  ON jobs (row)            WHERE state = 'running';
CREATE INDEX jobs_owed     ON jobs (deliver_s)      WHERE deliver_s IS NOT NULL;
CREATE INDEX jobs_finished ON jobs (finished_s)     WHERE finished_s IS NOT NULL;

-- Cancels that came before their job.
CREATE TABLE cancels (
    client TEXT NOT NULL,
    job_id TEXT NOT NULL,
    at_s   REAL NOT NULL,
    PRIMARY KEY (client, job_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX cancels_age ON cancels (at_s);

-- One row: what the queue's clock showed, on which boot, beside which wall clock.
CREATE TABLE clock (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    boot_id  TEXT NOT NULL,
    offset_s REAL NOT NULL,
    queue_s  REAL NOT NULL,
    wall_s   REAL NOT NULL
) STRICT;
