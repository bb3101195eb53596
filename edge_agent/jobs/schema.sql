-- Version 5. One row is one accepted job; the row is the state machine.
-- Times are seconds on the queue's own clock (see clock.py), which wall-clock changes do not move.

CREATE TABLE jobs (
    row              INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: engines know attempts by it
    client           TEXT    NOT NULL,
    job_id           TEXT    NOT NULL,
    digest           BLOB    NOT NULL,                   -- of the parsed request; outlives its text
    model            TEXT    NOT NULL,
    pool             TEXT,                               -- the pool it came through; NULL: sent to this agent
    state            TEXT    NOT NULL,
    state_seq        INTEGER NOT NULL,
    attempt          INTEGER NOT NULL DEFAULT 0,
    strikes          INTEGER NOT NULL DEFAULT 0,
    max_attempts     INTEGER NOT NULL,
    max_tokens       INTEGER NOT NULL DEFAULT 256,
    alone            INTEGER NOT NULL DEFAULT 0,         -- 1: runs by itself; 2: an engine died with it and others
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    stream           INTEGER NOT NULL,
    priority         INTEGER NOT NULL,
    rank             REAL    NOT NULL,                   -- accepted_s - priority * age step; smallest first
    not_before_s     REAL,                               -- waits until then to be tried again; NULL: may be claimed
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
    unprepared       INTEGER NOT NULL DEFAULT 0,         -- its images are not decoded yet, its guide not tried
    images           TEXT,                               -- what they were decoded to (JSON)
    source           TEXT,                               -- the topic a watch saw; NULL: somebody asked
    answer           TEXT,                               -- where a watch's answer goes (JSON); NULL: the client's inbox
    held_bytes       INTEGER GENERATED ALWAYS AS (       -- what it holds of the file, more or less
        1000 + iif(request IS NULL, 0, request_bytes) + coalesce(length(CAST(outcome AS BLOB)), 0)
             + length(CAST(metadata AS BLOB)) + coalesce(length(CAST(images AS BLOB)), 0)
    ) VIRTUAL,
    UNIQUE (client, job_id)
) STRICT;

CREATE INDEX jobs_queued   ON jobs (model, rank)    WHERE state = 'queued' AND not_before_s IS NULL;
CREATE INDEX jobs_alone    ON jobs (model, rank)    WHERE state = 'queued' AND not_before_s IS NULL AND alone;
CREATE INDEX jobs_held     ON jobs (not_before_s)   WHERE not_before_s IS NOT NULL;
CREATE INDEX jobs_waiting  ON jobs (row)            WHERE state = 'queued';
CREATE INDEX jobs_pooled   ON jobs (row)            WHERE pool IS NOT NULL AND finished_s IS NULL;
CREATE INDEX jobs_expiring ON jobs (expires_s)      WHERE state IN ('queued', 'waiting');
CREATE INDEX jobs_running  ON jobs (row)            WHERE state = 'running';
CREATE INDEX jobs_owed     ON jobs (deliver_s)      WHERE deliver_s IS NOT NULL;
CREATE INDEX jobs_owed_of  ON jobs (client, deliver_s) WHERE deliver_s IS NOT NULL;
CREATE INDEX jobs_watched  ON jobs (client, source) WHERE source IS NOT NULL;
CREATE INDEX jobs_finished ON jobs (finished_s)     WHERE finished_s IS NOT NULL;
CREATE INDEX jobs_kept ON jobs (client, request IS NULL, finished_s) WHERE finished_s IS NOT NULL AND deliver_s IS NULL;

-- Images uploaded apart are waited for; decoded are those of the first jobs only.
CREATE INDEX jobs_incomplete ON jobs (row)          WHERE state = 'waiting';
CREATE INDEX jobs_unprepared ON jobs (model, rank)  WHERE state = 'queued' AND unprepared;
CREATE INDEX jobs_prepared   ON jobs (model, rank)  WHERE state = 'queued' AND images IS NOT NULL;

-- Which images a job needs, by the hash of what was sent, and whether they are in the spool. What an ended job needed is
-- forgotten when the spool is swept.
CREATE TABLE images (
    job    INTEGER NOT NULL,
    sha256 TEXT    NOT NULL,
    here   INTEGER NOT NULL,
    PRIMARY KEY (job, sha256)
) STRICT, WITHOUT ROWID;

CREATE INDEX images_shared ON images (sha256);

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

-- How many jobs were accepted and ended how, and the tokens of the ended ones, since this file was made.
CREATE TABLE totals (
    name  TEXT    PRIMARY KEY,
    count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER total_accepted AFTER INSERT ON jobs
BEGIN
    INSERT INTO totals VALUES ('accepted', 1) ON CONFLICT DO UPDATE SET count = count + 1;
END;

CREATE TRIGGER total_refused AFTER INSERT ON jobs WHEN NEW.finished_s IS NOT NULL
BEGIN
    INSERT INTO totals VALUES (NEW.state, 1) ON CONFLICT DO UPDATE SET count = count + 1;
END;

CREATE TRIGGER total_ended AFTER UPDATE OF finished_s ON jobs WHEN OLD.finished_s IS NULL AND NEW.finished_s IS NOT NULL
BEGIN
    INSERT INTO totals VALUES (NEW.state, 1) ON CONFLICT DO UPDATE SET count = count + 1;
    INSERT INTO totals VALUES ('completion_tokens', coalesce(json_extract(NEW.outcome, '$.usage.completion_tokens'), 0))
           ON CONFLICT DO UPDATE SET count = count + excluded.count;
END;

-- How many ended jobs each client has here, and what they hold.
CREATE TABLE kept (
    client TEXT    PRIMARY KEY,
    jobs   INTEGER NOT NULL,
    bytes  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER kept_refused AFTER INSERT ON jobs WHEN NEW.finished_s IS NOT NULL
BEGIN
    INSERT INTO kept VALUES (NEW.client, 1, NEW.held_bytes)
           ON CONFLICT DO UPDATE SET jobs = jobs + 1, bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER kept_ended AFTER UPDATE OF finished_s ON jobs WHEN OLD.finished_s IS NULL AND NEW.finished_s IS NOT NULL
BEGIN
    INSERT INTO kept VALUES (NEW.client, 1, NEW.held_bytes)
           ON CONFLICT DO UPDATE SET jobs = jobs + 1, bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER kept_erased AFTER UPDATE OF request ON jobs WHEN OLD.finished_s IS NOT NULL
BEGIN
    UPDATE kept SET bytes = bytes + NEW.held_bytes - OLD.held_bytes WHERE client = NEW.client;
END;

CREATE TRIGGER kept_forgotten AFTER DELETE ON jobs WHEN OLD.finished_s IS NOT NULL
BEGIN
    UPDATE kept SET jobs = jobs - 1, bytes = bytes - OLD.held_bytes WHERE client = OLD.client;
    DELETE FROM kept WHERE client = OLD.client AND jobs = 0;
END;
