-- From version 3 to version 4: jobs that must run alone are found without looking through all others.

CREATE INDEX jobs_alone ON jobs (model, rank) WHERE state = 'queued' AND not_before_s IS NULL AND alone;
