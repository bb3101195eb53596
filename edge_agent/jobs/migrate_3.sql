-- From version 2 to version 3: what ended jobs hold of the file, of each client. Nothing of the jobs is written anew.

ALTER TABLE jobs ADD COLUMN held_bytes INTEGER GENERATED ALWAYS AS (
    1000 + iif(request IS NULL, 0, request_bytes) + coalesce(length(CAST(outcome AS BLOB)), 0)
         + length(CAST(metadata AS BLOB)) + coalesce(length(CAST(images AS BLOB)), 0)
) VIRTUAL;

CREATE INDEX jobs_kept ON jobs (client, request IS NULL, finished_s) WHERE finished_s IS NOT NULL AND deliver_s IS NULL;

CREATE TABLE kept (
    client TEXT    PRIMARY KEY,
    jobs   INTEGER NOT NULL,
    bytes  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO kept SELECT client, count(*), sum(held_bytes) FROM jobs WHERE finished_s IS NOT NULL GROUP BY client;

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
