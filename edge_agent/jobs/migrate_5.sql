-- From version 4 to version 5: of results that are owed, each client's are found apart from all others'.

CREATE INDEX jobs_owed_of ON jobs (client, deliver_s) WHERE deliver_s IS NOT NULL;
