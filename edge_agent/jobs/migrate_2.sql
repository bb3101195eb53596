-- From version 1 to version 2.

ALTER TABLE jobs ADD COLUMN unprepared INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN images TEXT;

DROP INDEX jobs_expiring;
CREATE INDEX jobs_expiring   ON jobs (expires_s)      WHERE state IN ('queued', 'waiting');
CREATE INDEX jobs_incomplete ON jobs (row)            WHERE state = 'waiting';
CREATE INDEX jobs_unprepared ON jobs (model, rank)    WHERE state = 'queued' AND unprepared;
CREATE INDEX jobs_prepared   ON jobs (model, rank)    WHERE state = 'queued' AND images IS NOT NULL;

CREATE TABLE images (
    job    INTEGER NOT NULL,
    sha256 TEXT    NOT NULL,
    here   INTEGER NOT NULL,
    PRIMARY KEY (job, sha256)
) STRICT, WITHOUT ROWID;

CREATE INDEX images_shared ON images (sha256);
ALTER TABLE jobs ADD COLUMN pool TEXT;
ALTER TABLE jobs ADD COLUMN max_tokens INTEGER NOT NULL DEFAULT 256;
ALTER TABLE jobs ADD COLUMN not_before_s REAL;

DROP INDEX jobs_queued;
CREATE INDEX jobs_queued   ON jobs (model, rank)    WHERE state = 'queued' AND not_before_s IS NULL;
CREATE INDEX jobs_held     ON jobs (not_before_s)   WHERE not_before_s IS NOT NULL;
CREATE INDEX jobs_pooled   ON jobs (row)            WHERE pool IS NOT NULL AND finished_s IS NULL;

-- How many jobs were accepted and ended how, and the tokens of the ended ones, since this file was made.
CREATE TABLE totals (
    name  TEXT    PRIMARY KEY,
    count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO totals SELECT 'accepted', count(*) FROM jobs;
INSERT INTO totals SELECT state, count(*) FROM jobs WHERE finished_s IS NOT NULL GROUP BY state;

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

-- Where a watch saw something, and where its answer goes.

ALTER TABLE jobs ADD COLUMN source TEXT;
ALTER TABLE jobs ADD COLUMN answer TEXT;

CREATE INDEX jobs_watched ON jobs (client, source) WHERE source IS NOT NULL;
